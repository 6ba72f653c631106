"""The command that compares finished runs, also at the end of a study.

A run is given by its ``output_dir``. Runs whose settings are the same but for the seed are one arm; runs of a study
have the name of its arm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.report.pages import class_colors, write_page
from custom.report.record import training_seconds
from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable
from custom.utils.names import MEAN
from custom.utils.tables import write_csv

from .differences import differences_from, named, summary_row
from .pictures import curves_picture, gallery_pictures, label_picture, strip_picture
from .runs import Run, arm_in_study, differing_settings, name_arms, read_runs, run_problems, shown_setting

PAGE = "comparison.html"


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
        arms.setdefault(arm_in_study(run), []).append(run)
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
    runs = name_arms([run for arm, folders in arms.items() for run in read_runs(arm, folders)])
    problems = run_problems(runs) if runs else ["no run was given; give the output_dir of each."]
    names = list(dict.fromkeys(run.arm for run in runs))
    if baseline is not None and baseline not in names:
        problems.append(f"--baseline must be the name of an arm, {', '.join(map(repr, names))}; found {baseline!r}.")
    if problems:
        raise UserError("these runs cannot be compared:", problems)
    baseline = baseline or names[0]
    by_group: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_group.setdefault(run.group, []).append(run)
    summary = [summary_row(same) for same in by_group.values()]
    differences = [
        row for same in by_group.values() for row in differences_from(same, by_group.get((baseline, same[0].group[1])))
    ]
    write_csv(output / "cases.csv", [named(run) | row for run in runs for row in run.rows if row["case"] != MEAN])
    write_csv(output / "summary.csv", summary)
    if differences:
        write_csv(output / "differences.csv", differences)
    pictures = {"Curves": curves_picture(runs, output), "Dice of every case": strip_picture(runs, baseline, output)}
    if len({run.labeled for run in runs}) > 1 and None not in {run.labeled for run in runs}:
        pictures["Dice against the number of labeled cases"] = label_picture(by_group, output)
    content = {
        "name": f"Comparison of {output.resolve().parent.name}",
        "baseline": baseline,
        "cases": len(runs[0].scores),
        "patients": len(set(runs[0].patients.values())),
        "notes": list(notes),
        "arms": [_short(row) for row in summary],
        "differences": [{name: _text(value) for name, value in row.items()} for row in differences],
        "pictures": {title: picture for title, picture in pictures.items() if picture},
        "gallery": gallery_pictures(by_group, output),
        "colors": class_colors(runs[0].rows),
        "settings": _settings(runs),
        "runs": [_about(run) for run in runs],
    }
    print(f"Comparison:  {write_page(output / PAGE, content)}")


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


def _settings(runs: Sequence[Run]) -> list[dict[str, str]]:
    """Settings in which arms differ; several values where the runs of an arm differ among themselves."""
    arms = dict.fromkeys(run.arm for run in runs)
    return [
        {"setting": key}
        | {arm: " | ".join(sorted({shown_setting(r, key) for r in runs if r.arm == arm})) for arm in arms}
        for key in differing_settings(runs)
    ]


def _about(run: Run) -> dict[str, str]:
    record, sessions = run.record, run.record["sessions"]
    last, seconds = sessions[-1], training_seconds(run.record)
    return {key: str(value) for key, value in named(run).items()} | {
        "data list": Path(record["data_list"]["path"]).name,
        "sessions": str(len(sessions)),
        "time of training": "unknown" if seconds is None else f"{seconds / 60:.1f} min",
        "devices": ", ".join(last["devices"]),
        "host": f"{last['host']}, {last['processes']} process(es)",
        "torch": last["versions"].get("torch", "unknown"),
        "commit": (last["git_commit"] or "unknown")[:10],
        "folder": str(run.folder),
    }
