"""Finished runs, read from their folders, named, and refused where they cannot be compared."""

from __future__ import annotations

import json
import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.utils import ensure_tuple

from custom.data.checks import Case
from custom.data.datalist import read_lists
from custom.report.pages import Curve, overall, read_curves, read_rows
from custom.report.record import data_list_record, older_metrics, read_run_record
from custom.utils.config import flat_config
from custom.utils.names import groups, patient_name

METRICS = ("dice", "jaccard", "hd95", "asd", "hd95_mm", "asd_mm")


class Run(NamedTuple):
    """A finished run: what its folder holds, and how it is called here."""

    folder: Path
    record: dict[str, Any]
    rows: list[dict[str, str]]
    curves: dict[str, Curve]
    settings: dict[str, str]
    lists: dict[str, list[Case]]
    arm: str = ""
    label: str = ""

    @property
    def labeled(self) -> int | None:
        """Number of labeled cases; None where the data list is gone or has changed."""
        return len(self.lists["training"]) if self.lists else None

    @property
    def patients(self) -> dict[str, str]:
        """The patient of each case, sought in the paths of the data list, or in the cases' names; else the case."""
        pattern = self.record["config"].get("patient_pattern")
        folder = Path(self.record["data_list"]["path"]).absolute().parent
        cases = [case for same in self.lists.values() for case in same]
        paths = {case["case"]: os.path.relpath(ensure_tuple(case["image"])[0], folder) for case in cases}
        return {case: patient_name(paths.get(case, case), pattern) for case in self.scores}

    @property
    def scores(self) -> dict[str, dict[str, float]]:
        """Metrics by case, over all classes."""
        found = {}
        for row in overall(self.rows):
            found[row["case"]] = {name: float(row[name]) for name in METRICS if row.get(name)}
        return found

    @property
    def group(self) -> tuple[str, str]:
        """Arm and data list, by its content."""
        return self.arm, self.record["data_list"]["sha256"] or self.record["data_list"]["path"]


def arm_in_study(folder: Path) -> str:
    """Name the arm of a study's run, which is OUTPUT/ARM[/DATALIST]/seed_N/eval; empty for other runs."""
    for parent in list(folder.resolve().parents)[2:4]:
        if (parent / "study.json").is_file():
            return folder.resolve().relative_to(parent).parts[0]
    return ""


def read_runs(arm: str, folders: Sequence[Path]) -> list[Run]:
    """Read the folders of an arm's runs; what is missing is empty, see :func:`run_problems`."""
    runs = []
    for folder in folders:
        record = read_run_record(folder)
        settings = _settings_of(record.get("config", {}))
        rows, curves = read_rows(folder / "metrics.csv"), read_curves(folder)
        runs.append(Run(folder, record, rows, curves, settings, _lists(record), arm))
    return runs


def _settings_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Settings as JSON by their path, without the seed and those that say where and how a run is computed."""
    leave_out = {"seed", "data_list", *config.get("runtime_keys", ())} - {"max_iterations"}
    return {path: json.dumps(value) for path, value in flat_config(config, leave_out).items()}


def _lists(record: Mapping[str, Any]) -> dict[str, list[Case]]:
    """Read the data list of a run; empty where it is gone or has changed."""
    found = record.get("data_list", {})
    if not found.get("sha256") or data_list_record(found["path"])["sha256"] != found["sha256"]:
        return {}
    return read_lists(Path(found["path"]))


def name_arms(runs: Sequence[Run]) -> list[Run]:
    """Name arms that have no name by the settings in which they differ, and label all, with their labeled cases."""
    differing = differing_settings([run for run in runs if not run.arm])
    labeled = len({run.labeled for run in runs}) > 1
    named = []
    for run in runs:
        arm = run.arm or ", ".join(f"{key}={shown_setting(run, key)}" for key in differing) or "all runs"
        label = arm if not labeled or run.labeled is None else f"{arm}, {run.labeled} labeled"
        named.append(run._replace(arm=arm, label=textwrap.fill(label, 36)))  # as wide as a picture
    return named


def differing_settings(runs: Sequence[Run]) -> list[str]:
    """Settings that are not the same in all runs; of those below one that some runs have as a number, that one."""
    keys = sorted({key for run in runs for key in run.settings})
    found = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
    return [key for key in found if not any(key.startswith(f"{other}::") for other in found)]


def shown_setting(run: Run, key: str) -> str:
    """Show a setting, also one that is a mapping in this run."""
    found = {name: value for name, value in run.settings.items() if name.startswith(f"{key}::")}
    below = ", ".join(f"{name.removeprefix(f'{key}::')}: {value}" for name, value in found.items())
    return run.settings.get(key) or below or "absent"


def run_problems(runs: Sequence[Run]) -> list[str]:
    """Say which runs cannot be compared: not scored, not finished, given twice, or scored on other cases."""
    problems = []
    for run in runs:
        if not {"seed", "data_list", "sessions", "config"} <= set(run.record):
            problems.append(f"{run.folder}: no run.json that can be read; give the output_dir of a training.")
        elif not run.rows:
            problems.append(f"{run.folder}: no metrics.csv; run `evaluating` first.")
        elif not {"case", "class", "dice"} <= set(run.rows[0]):
            problems.append(f"{run.folder}: metrics.csv has no columns case, class and dice; run `evaluating` again.")
        elif trouble := _unfinished(run):
            problems.append(f"{run.folder}: {trouble}")
    if problems:
        return problems
    for same in groups(runs, key=lambda run: run.folder.resolve()):
        problems.append(f"{same[0].folder} is given twice.")
    for same in groups(runs, key=lambda run: (*run.group, run.record["seed"])):
        folders = ", ".join(dict.fromkeys(str(run.folder) for run in same))
        problems.append(f"seed {same[0].record['seed']} of {same[0].arm} is there {len(same)} times: {folders}")
    first = runs[0]
    for run in runs:
        twice = [case for case, count in Counter(row["case"] for row in overall(run.rows)).items() if count > 1]
        if twice:
            problems.append(f"{run.folder}: several cases have one name: {', '.join(twice)}")
        if set(run.scores) != set(first.scores):
            other = sorted(set(run.scores) ^ set(first.scores))
            problems.append(f"{run.folder}: other cases were scored than in {first.folder}: {', '.join(other[:5])}")
        if {row["class"] for row in run.rows} != {row["class"] for row in first.rows}:
            problems.append(f"{run.folder}: other classes were scored than in {first.folder}.")
    return problems


def _unfinished(run: Run) -> str | None:
    """Say how a run shows that it did not reach its end, or that its metrics are of an earlier one."""
    wanted = run.record["config"].get("max_iterations", 0)
    reached = max((curve[-1][0] for name, curve in run.curves.items() if name == "loss"), default=None)
    if reached is not None and reached < wanted // 10 * 10:  # of every tenth iteration the loss is kept
        return f"the training has not come to its end, iteration {wanted}, but to {reached}; let it go on."
    return older_metrics(run.folder / "metrics.csv", run.record)
