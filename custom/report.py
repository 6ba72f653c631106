"""One page about a finished run: ``python -m custom.report RUN_DIR``, also written at the end of ``evaluating``.

It is put together from what the run left in its folder: ``metrics.csv``, TensorBoard's events, the pictures of
:class:`custom.panels.CasePanels` and ``run.json``. What is missing is left out.
"""

from __future__ import annotations

import base64
import csv
import json
import logging
import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from monai.utils import optional_import

from .cli import run
from .drawing import COLORS, new_figure
from .errors import UserError
from .files import FILE_NAMES, whole_file
from .run_record import read_run_record
from .tables import ALL, MEAN

__all__ = ["report"]

#: Curves by picture: title, patterns of the names of TensorBoard's scalars.
CURVES = {
    "Loss": ("loss", "supervised", "image_perturbation", "teacher_distillation", "decoder_distillation"),
    "Pseudo-labels": ("threshold", "confident_share", r"confident_share_\d+"),
    "Validation": ("val_mean_dice",),
    "Learning rate": ("learning_rate",),
}
#: Pictures whose curves differ by orders of magnitude, and may be 0.
LOGARITHMIC = {"Pseudo-labels"}
#: How many of the best and of the worst cases are shown.
SHOWN = 4
Row = dict[str, str]
Curves = dict[str, list[tuple[int, float]]]


def report(run_dir: str, metrics: str | None = None, **unknown: Any) -> None:
    """Write ``report.html``, which needs no other file, and ``curves.png``.

    Args:
        run_dir: a run's ``output_dir``.
        metrics: the table of an evaluation; ``metrics.csv`` in the run's folder by default.
        unknown: refused.

    Raises:
        UserError: for an unknown flag, or a folder that no training and no evaluation has written to.
    """
    if unknown:
        raise UserError(f"unknown flag --{', --'.join(unknown)}; python -m custom.report RUN_DIR [--metrics FILE].")
    folder = Path(str(run_dir))
    record, curves = read_run_record(folder), _read_curves(folder)
    rows = _read_rows(Path(str(metrics)) if metrics else folder / "metrics.csv")
    if not (record or curves or rows):
        raise UserError(f"{folder}: neither run.json, metrics.csv nor TensorBoard events; give a run's output_dir.")
    cases = _overall(rows)
    content = {
        "name": "/".join(folder.resolve().parts[-2:]),
        "iterations": max((curve[-1][0] for curve in curves.values()), default=None),
        "means": [row for row in rows if row["case"] == MEAN],
        "rows": [row for row in rows if row["case"] != MEAN],
        "cases": cases,
        "colors": list(
            zip(dict.fromkeys(row["class"] for row in rows if row["class"] != ALL), cycle(COLORS), strict=False)
        ),
        "galleries": _galleries(cases, folder / "panels"),
        "curves": _draw_curves(curves, folder / "curves.png"),
        "record": record,
        "settings": {name: text for name, value in record.get("config", {}).items() if (text := _setting(value))},
    }
    page = folder / "report.html"
    with whole_file(page) as part:
        part.write_text(_template().render(content), encoding="utf-8", errors=FILE_NAMES)
    print(f"Report:  {page}")


def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.get_template("report.html")


def _read_rows(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors=FILE_NAMES) as file:
        return list(csv.DictReader(file))


def _overall(rows: Sequence[Row]) -> list[Row]:
    """One row per case, over all classes, the best first."""
    classes = {row["class"] for row in rows}
    wanted = ALL if ALL in classes else next(iter(classes), None)
    cases = [row for row in rows if row["case"] != MEAN and row["class"] == wanted]
    return sorted(cases, key=lambda row: float(row["dice"]), reverse=True)


def _galleries(cases: Sequence[Row], folder: Path) -> dict[str, list[dict[str, str]]]:
    """Pictures of the best and of the worst cases, no case in both."""
    count = min(SHOWN, len(cases) // 2) or min(1, len(cases))
    galleries = {"Best cases": cases[:count], "Worst cases": cases[count:][::-1][:count]}
    pictures = {
        title: [{**row, "picture": _embedded(folder / f"{row['case']}.png")} for row in rows if _has(folder, row)]
        for title, rows in galleries.items()
    }
    return {title: shown for title, shown in pictures.items() if shown}


def _has(folder: Path, row: Row) -> bool:
    return (folder / f"{row['case']}.png").is_file()


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _read_curves(folder: Path) -> Curves:
    """Scalars by name; a training that went on from a checkpoint gives one curve."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.WARNING)  # it reports every file that it opens
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()[SCALARS]}


def _draw_curves(curves: Curves, path: Path) -> str | None:
    """Draw :data:`CURVES` over the iterations; None where there are none, or nothing that draws."""
    found = {
        title: [name for pattern in patterns for name in sorted(curves) if re.fullmatch(pattern, name)]
        for title, patterns in CURVES.items()
    }
    found = {title: names for title, names in found.items() if names}
    if not found or not optional_import("matplotlib.backends.backend_agg")[1]:
        return None
    figure = new_figure(11, 3.4 * -(-len(found) // 2))
    axes = figure.subplots(-(-len(found) // 2), 2, squeeze=False).flatten()
    for axis, (title, names) in zip(axes, found.items(), strict=False):
        for name in names:
            axis.plot(*zip(*curves[name], strict=True), label=name, linewidth=1.2)
        axis.set_title(title)
        axis.set_xlabel("iteration")
        if title in LOGARITHMIC:
            axis.set_yscale("symlog", linthresh=1e-4)  # a class that is lost stays in the picture, at 0
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    for axis in axes[len(found) :]:
        axis.axis("off")
    with whole_file(path) as part:
        figure.savefig(part, dpi=130)
    return _embedded(path)


def _setting(value: Any) -> str | None:
    """Write a setting as JSON; None for components and expressions, which are not numbers to read."""
    text = json.dumps(value)
    return None if (isinstance(value, Mapping) and "_target_" in text) or '"$' in text or '"@' in text else text


if __name__ == "__main__":
    run(report)
