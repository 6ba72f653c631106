"""Compare finished runs on one page: ``python -m tools.compare RUN... --output DIR``, also at the end of a study.

RUN is a run's ``output_dir``. Runs whose settings are the same but for the seed are one arm; runs of a study have the
name of its arm.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.utils import ensure_tuple
from PIL import Image

from custom.data.checks import Case
from custom.data.datalist import read_lists
from custom.report.drawing import new_figure
from custom.report.pages import Curve, draw_curves, overall, read_curves, read_rows, saved, write_page
from custom.report.record import data_list_record, older_metrics, read_run_record, training_seconds
from custom.utils.config import flat_config
from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable
from custom.utils.names import MEAN, groups, patient_name
from custom.utils.tables import write_csv

from . import cli

PAGE = "comparison.html"
METRICS = ("dice", "jaccard", "hd95", "asd", "hd95_mm", "asd_mm")
#: Curves of all arms, by title.
CURVES = {"Validation": "val_mean_dice", "Supervised loss": "supervised", "Pseudo-labels": "confident_share"}
#: Cases whose pictures are shown.
SHOWN = 4


class _Run(NamedTuple):
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


def compare(*runs: str, output: str, baseline: str | None = None) -> None:
    """Compare runs.

    Args:
        runs: their output folders.
        output: a new folder for the page, tables and pictures.
        baseline: the arm from which differences are taken; the first by default.

    Raises:
        UserError: for runs that cannot be compared.
    """
    folder = Path(str(output))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; choose another --output.")
    refuse_unwritable(output=str(folder))
    arms: dict[str, list[Path]] = {}
    for run in map(Path, map(str, runs)):
        arms.setdefault(_arm_in_study(run), []).append(run)
    compare_arms(arms, folder, baseline)


def compare_arms(
    arms: Mapping[str, Sequence[Path]], output: Path, baseline: str | None = None, notes: Sequence[str] = ()
) -> None:
    """Write a page, tables and pictures about the runs of arms.

    Args:
        arms: run folders by the arm's name; those without a name are put together by their settings.
        output: the folder.
        baseline: an arm; the first by default.
        notes: what the page has to say about runs that are missing.

    Raises:
        UserError: lists the runs that cannot be compared, and why.
    """
    runs = _name([run for arm, folders in arms.items() for run in _read(arm, folders)])
    problems = _problems(runs) if runs else ["no run was given; give the output_dir of each."]
    names = list(dict.fromkeys(run.arm for run in runs))
    if baseline is not None and baseline not in names:
        problems.append(f"--baseline must be the name of an arm, {', '.join(map(repr, names))}; found {baseline!r}.")
    if problems:
        raise UserError("these runs cannot be compared:", problems)
    baseline = baseline or names[0]
    by_group: dict[tuple[str, str], list[_Run]] = {}
    for run in runs:
        by_group.setdefault(run.group, []).append(run)
    summary = [_summary(same) for same in by_group.values()]
    differences = [
        row for same in by_group.values() for row in _differences(same, by_group.get((baseline, same[0].group[1])))
    ]
    write_csv(output / "cases.csv", [_named(run) | row for run in runs for row in run.rows if row["case"] != MEAN])
    write_csv(output / "summary.csv", summary)
    if differences:
        write_csv(output / "differences.csv", differences)
    pictures = {"Curves": _curves(runs, output), "Dice of every case": _strip(runs, baseline, output)}
    if len({run.labeled for run in runs}) > 1 and None not in {run.labeled for run in runs}:
        pictures["Dice against the number of labeled cases"] = _efficiency(by_group, output)
    content = {
        "name": output.resolve().parent.name,
        "baseline": baseline,
        "cases": len(runs[0].scores),
        "patients": len(set(runs[0].patients.values())),
        "notes": list(notes),
        "arms": [_short(row) for row in summary],
        "differences": [{name: _text(value) for name, value in row.items()} for row in differences],
        "pictures": {title: picture for title, picture in pictures.items() if picture},
        "gallery": _gallery(by_group, output),
        "settings": _settings(runs),
        "runs": [_about(run) for run in runs],
    }
    print(f"Comparison:  {write_page(output / PAGE, content)}")


def _arm_in_study(folder: Path) -> str:
    """Name the arm of a study's run, which is OUTPUT/ARM[/DATALIST]/seed_N/eval; empty for other runs."""
    for parent in list(folder.resolve().parents)[2:4]:
        if (parent / "study.json").is_file():
            return folder.resolve().relative_to(parent).parts[0]
    return ""


def _read(arm: str, folders: Sequence[Path]) -> list[_Run]:
    runs = []
    for folder in folders:
        record = read_run_record(folder)
        settings = _settings_of(record.get("config", {}))
        rows, curves = read_rows(folder / "metrics.csv"), read_curves(folder)
        runs.append(_Run(folder, record, rows, curves, settings, _lists(record), arm))
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


def _name(runs: Sequence[_Run]) -> list[_Run]:
    """Name arms that have no name by the settings in which they differ, and label all, with their labeled cases."""
    differing = _differing([run for run in runs if not run.arm])
    labeled = len({run.labeled for run in runs}) > 1
    named = []
    for run in runs:
        arm = run.arm or ", ".join(f"{key}={_setting(run, key)}" for key in differing) or "all runs"
        label = arm if not labeled or run.labeled is None else f"{arm}, {run.labeled} labeled"
        named.append(run._replace(arm=arm, label=textwrap.fill(label, 36)))  # as wide as a picture
    return named


def _differing(runs: Sequence[_Run]) -> list[str]:
    """Settings that are not the same in all runs; of those below one that some runs have as a number, that one."""
    keys = sorted({key for run in runs for key in run.settings})
    found = [key for key in keys if len({run.settings.get(key) for run in runs}) > 1]
    return [key for key in found if not any(key.startswith(f"{other}::") for other in found)]


def _setting(run: _Run, key: str) -> str:
    """Show a setting, also one that is a mapping in this run."""
    found = {name: value for name, value in run.settings.items() if name.startswith(f"{key}::")}
    below = ", ".join(f"{name.removeprefix(f'{key}::')}: {value}" for name, value in found.items())
    return run.settings.get(key) or below or "absent"


def _problems(runs: Sequence[_Run]) -> list[str]:
    """Say which runs cannot be compared: not scored, not finished, given twice, or scored on other cases."""
    problems = []
    for run in runs:
        if not {"seed", "data_list", "sessions", "config"} <= set(run.record):
            problems.append(f"{run.folder}: no run.json that can be read; give a run's output_dir.")
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


def _unfinished(run: _Run) -> str | None:
    """Say how a run shows that it did not reach its end, or that its metrics are of an earlier one."""
    wanted = run.record["config"].get("max_iterations", 0)
    reached = max((curve[-1][0] for name, curve in run.curves.items() if name == "loss"), default=None)
    if reached is not None and reached < wanted // 10 * 10:  # of every tenth iteration the loss is kept
        return f"the training has not come to its end, iteration {wanted}, but to {reached}; let it go on."
    return older_metrics(run.folder / "metrics.csv", run.record)


def _named(run: _Run) -> dict[str, Any]:
    labeled = {} if run.labeled is None else {"labeled": run.labeled}
    return {"arm": run.arm, **labeled, "seed": run.record["seed"]}


def _summary(runs: Sequence[_Run]) -> dict[str, Any]:
    """Mean of each metric over runs of one group, and its standard deviation; NaN for one run."""
    row = {key: value for key, value in _named(runs[0]).items() if key != "seed"} | {"seeds": len(runs)}
    for name in METRICS:
        means = [m for run in runs if not math.isnan(m := _mean(run.scores.values(), name))]
        if means:
            row[name] = statistics.fmean(means)
            row[f"{name}_sd"] = statistics.stdev(means) if len(means) > 1 else math.nan
    return row


def _mean(scores: Any, name: str) -> float:
    values = [score[name] for score in scores if name in score]
    return statistics.fmean(values) if values else math.nan


def _short(row: Mapping[str, Any]) -> dict[str, str]:
    """A summary's row for the page, each metric with its spread."""
    shown = {}
    for name, value in row.items():
        if not name.endswith("_sd"):
            spread = row.get(f"{name}_sd", math.nan)
            shown[name] = _text(value) + ("" if math.isnan(spread) else f" ± {_text(spread)}")
    return shown


def _text(value: Any) -> str:
    return ("" if math.isnan(value) else f"{value:.4f}") if isinstance(value, float) else str(value)


def _by_case(runs: Sequence[_Run], name: str) -> dict[str, float]:
    """A metric by case, averaged over seeds."""
    return {case: _mean([run.scores[case] for run in runs], name) for case in runs[0].scores}


def _differences(runs: Sequence[_Run], baseline: Sequence[_Run] | None) -> list[dict[str, Any]]:
    """Paired differences from the baseline, case by case, with bootstrap intervals over the patients."""
    if baseline is None or runs[0].arm == baseline[0].arm:
        return []
    rows, patients = [], baseline[0].patients
    for name in METRICS:
        ours, theirs = _by_case(runs, name), _by_case(baseline, name)
        paired = {case: d for case in ours if not math.isnan(d := ours[case] - theirs[case])}
        if paired:
            by_patient: dict[str, list[float]] = {}
            for case, difference in paired.items():
                by_patient.setdefault(patients[case], []).append(difference)
            low, high = _interval(list(by_patient.values()))
            row = {key: value for key, value in _named(runs[0]).items() if key != "seed"} | {"metric": name}
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


def _curves(runs: Sequence[_Run], output: Path) -> str | None:
    pictures = {}
    for title, name in CURVES.items():
        # All arms in each picture, also those without such a curve, so that an arm has one color throughout.
        labeled: dict[str, list[Curve]] = {run.label: [] for run in runs}
        for run in runs:
            labeled[run.label] += [run.curves[name]] if run.curves.get(name) else []
        if any(labeled.values()):
            pictures[title] = labeled
    return saved(draw_curves(pictures), output / "curves.png") if pictures else None


def _strip(runs: Sequence[_Run], baseline: str, output: Path) -> str:
    """One column per case, in the order of the baseline; a point per run."""
    order = _by_case([run for run in runs if run.arm == baseline], "dice")
    cases = sorted(order, key=order.__getitem__)
    labels = list(dict.fromkeys(run.label for run in runs))
    figure = new_figure(min(24, max(8, 0.3 * len(cases))), 4.5)
    axis = figure.subplots()
    for number, label in enumerate(labels):
        same = [run.scores for run in runs if run.label == label]
        place = 0.6 * ((number + 0.5) / len(labels) - 0.5)
        points = [(at + place, scores[case]["dice"]) for scores in same for at, case in enumerate(cases)]
        axis.plot(*zip(*points, strict=True), "o", ms=3, color=f"C{number}", label=label)
    axis.set_xticks(range(len(cases)), cases if len(cases) <= 80 else [""] * len(cases), rotation=90, fontsize=7)
    axis.set_ylabel("Dice")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return saved(figure, output / "cases.png")


def _efficiency(by_group: Mapping[tuple[str, str], Sequence[_Run]], output: Path) -> str:
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for arm in dict.fromkeys(arm for arm, _ in by_group):
        same = [group for (name, _), group in by_group.items() if name == arm]
        points = [(len(group[0].lists["training"]), _summary(group)) for group in same]
        points.sort(key=lambda point: point[0])
        counts, rows = [count for count, _ in points], [row for _, row in points]
        spread = [0 if math.isnan(row["dice_sd"]) else row["dice_sd"] for row in rows]
        axis.errorbar(counts, [row["dice"] for row in rows], spread, marker="o", capsize=3, label=arm)
    axis.set_xlabel("labeled cases")
    axis.set_ylabel("Dice")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return saved(figure, output / "labels.png")


def _gallery(by_group: Mapping[tuple[str, str], Sequence[_Run]], output: Path) -> list[dict[str, str]]:
    """Pictures of the cases where arms differ most: image and truth, and the prediction of each arm's first run."""
    means = {same[0].label: _by_case(same, "dice") for same in by_group.values()}
    first = {same[0].label: same[0] for same in by_group.values()}
    cases = list(next(iter(means.values())))
    spread = {case: max(mean[case] for mean in means.values()) - min(m[case] for m in means.values()) for case in cases}
    gallery = []
    for case in sorted(cases, key=spread.__getitem__, reverse=True)[:SHOWN]:
        paths = {label: run.folder / "panels" / f"{case}.png" for label, run in first.items()}
        if all(path.is_file() for path in paths.values()):
            picture = saved(_columns(paths, {label: means[label][case] for label in paths}), output / f"{case}.png")
            gallery.append({"name": case, "picture": picture})
    return gallery


def _columns(paths: Mapping[str, Path], dice: Mapping[str, float]) -> Any:
    """Image and truth once, then the last third of each picture of :class:`custom.handlers.CasePanels`."""
    title_lines = 1 + max(label.count("\n") for label in paths)
    figure = new_figure(2.6 * (2 + len(paths)), 3.1 + 0.16 * title_lines)
    axes = figure.subplots(1, 1 + len(paths), width_ratios=[2] + [1] * len(paths))
    for axis in axes:
        axis.axis("off")
    for number, (axis, (label, path)) in enumerate(zip(axes[1:], paths.items(), strict=True)):
        picture = np.asarray(Image.open(path).convert("RGB"))
        third = picture.shape[1] // 3
        if number == 0:
            axes[0].imshow(picture[:, : 2 * third])
        axis.imshow(picture[:, 2 * third :])
        axis.set_title(f"{label}: {dice[label]:.4f}", fontsize=8)
    return figure


def _settings(runs: Sequence[_Run]) -> list[dict[str, str]]:
    """Settings in which arms differ; several values where the runs of an arm differ among themselves."""
    arms = dict.fromkeys(run.arm for run in runs)
    return [
        {"setting": key} | {arm: " | ".join(sorted({_setting(r, key) for r in runs if r.arm == arm})) for arm in arms}
        for key in _differing(runs)
    ]


def _about(run: _Run) -> dict[str, str]:
    record, sessions = run.record, run.record["sessions"]
    last, seconds = sessions[-1], training_seconds(run.record)
    return {key: str(value) for key, value in _named(run).items()} | {
        "data list": Path(record["data_list"]["path"]).name,
        "sessions": str(len(sessions)),
        "time of training": "unknown" if seconds is None else f"{seconds / 60:.1f} min",
        "devices": ", ".join(last["devices"]),
        "host": f"{last['host']}, {last['processes']} process(es)",
        "torch": last["versions"].get("torch", "unknown"),
        "commit": (last["git_commit"] or "unknown")[:10],
        "folder": str(run.folder),
    }


def main() -> None:
    """Run the command line."""
    cli.run(compare)


if __name__ == "__main__":
    main()
