"""Means over seeds, and paired differences from a baseline with intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from .runs import METRICS, Run


def named(run: Run) -> dict[str, Any]:
    """Name a run: its arm, how many cases were labeled, its seed."""
    labeled = {} if run.labeled is None else {"labeled": run.labeled}
    return {"arm": run.arm, **labeled, "seed": run.record["seed"]}


def summary_row(runs: Sequence[Run]) -> dict[str, Any]:
    """Mean of each metric over runs of one group, and its standard deviation; NaN for one run."""
    row = {key: value for key, value in named(runs[0]).items() if key != "seed"} | {"seeds": len(runs)}
    for name in METRICS:
        means = [m for run in runs if not math.isnan(m := _mean(run.scores.values(), name))]
        if means:
            row[name] = statistics.fmean(means)
            row[f"{name}_sd"] = statistics.stdev(means) if len(means) > 1 else math.nan
    return row


def _mean(scores: Any, name: str) -> float:
    values = [score[name] for score in scores if name in score]
    return statistics.fmean(values) if values else math.nan


def by_case(runs: Sequence[Run], name: str) -> dict[str, float]:
    """A metric by case, averaged over seeds."""
    return {case: _mean([run.scores[case] for run in runs], name) for case in runs[0].scores}


def differences_from(runs: Sequence[Run], baseline: Sequence[Run] | None) -> list[dict[str, Any]]:
    """Paired differences from the baseline, case by case, with bootstrap intervals over the patients."""
    if baseline is None or runs[0].arm == baseline[0].arm:
        return []
    rows, patients = [], baseline[0].patients
    for name in METRICS:
        ours, theirs = by_case(runs, name), by_case(baseline, name)
        paired = {case: d for case in ours if not math.isnan(d := ours[case] - theirs[case])}
        if paired:
            by_patient: dict[str, list[float]] = {}
            for case, difference in paired.items():
                by_patient.setdefault(patients[case], []).append(difference)
            low, high = _interval(list(by_patient.values()))
            row = {key: value for key, value in named(runs[0]).items() if key != "seed"} | {"metric": name}
            row |= {"difference": statistics.fmean(paired.values()), "low": low, "high": high, "cases": len(paired)}
            row |= {"patients": len(by_patient), "higher": sum(d > 0 for d in paired.values())}
            rows.append(row | {"lower": sum(d < 0 for d in paired.values())})
    return rows


def _interval(differences: Sequence[Sequence[float]]) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over cases; patients are drawn, each with all of its cases."""
    if len(differences) < 2:
        return math.nan, math.nan
    sums, counts = np.array([sum(same) for same in differences]), np.array([len(same) for same in differences])
    drawn = np.random.default_rng(0).integers(len(sums), size=(10_000, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
