"""One page about a finished run, written at the end of ``evaluating``.

It is put together from what the run left in its folder: ``metrics.csv``, TensorBoard's events, the pictures of
:class:`custom.handlers.CasePanels` and ``run.json``. What is missing is left out.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple, optional_import

from ..utils.errors import UserError
from ..utils.files import read_json
from ..utils.names import MEAN
from .pages import (
    Curve,
    beside,
    class_colors,
    draw_curves,
    embedded,
    overall,
    read_curves,
    read_rows,
    saved,
    write_page,
)
from .record import older_metrics, read_run_record, training_seconds

#: Curves by picture: title, patterns of the names of TensorBoard's scalars.
CURVES = {
    "Loss": ("loss", "supervised", "image_perturbation", "teacher_distillation", "decoder_distillation"),
    "Pseudo-labels": ("threshold", "confident_share", r"confident_share_\d+"),
    "Validation": ("val_mean_dice",),
    "Learning rate": ("learning_rate",),
}
#: Pictures whose curves differ by orders of magnitude, and may be 0.
LOGARITHMIC = {"Pseudo-labels"}
#: The table of an evaluation that names none.
METRICS = "metrics.csv"
#: How many of the best and of the worst cases are shown.
SHOWN = 4


def report(run_dir: str, metrics: str | None = None) -> None:
    """Write ``report.html``, one self-contained page, and ``curves.png``; metrics older than the training are left out.

    Another table gets a page of its own, such as ``report_ema.html`` for ``metrics_ema.csv``.

    Args:
        run_dir: a run's ``output_dir``.
        metrics: the table of an evaluation; ``metrics.csv`` in the run's folder by default.

    Raises:
        UserError: for a folder that no training and no evaluation has written to.
    """
    folder = Path(str(run_dir))
    record, curves = read_run_record(folder), read_curves(folder)
    table = Path(str(metrics)) if metrics else folder / METRICS
    older = older_metrics(table, record)
    rows = read_rows(table) if older is None else []
    if not (record or curves or rows):
        raise UserError(f"{folder}: has neither run.json, metrics.csv nor TensorBoard events; give a run's output_dir.")
    cases = overall(rows)
    content = {
        "name": "/".join(folder.resolve().parts[-2:]),
        "iterations": record.get("sessions", [{}])[-1].get("iteration"),
        "older": older,
        "scored": _scored(table, folder) if rows else {},
        "means": [row for row in rows if row["case"] == MEAN],
        "rows": [row for row in rows if row["case"] != MEAN],
        "cases": cases,
        "colors": class_colors(rows),
        "galleries": _galleries(cases, folder / beside(table, "panels")),
        "curves": _draw_curves(curves, folder / "curves.png"),
        "record": record,
        "seconds": training_seconds(record),
        "settings": {name: text for name, value in record.get("config", {}).items() if (text := _setting(value))},
    }
    page = write_page(folder / f"{beside(table, 'report')}.html", content, "report.html")
    print(f"Report:  {page}" + (f" ({older})" if older else ""))


def _scored(table: Path, folder: Path) -> dict[str, str]:
    """Say of which weights and which list the metrics are, as the evaluation has noted beside them."""
    path = table.with_suffix(".json")
    try:
        noted = read_json(path) if path.is_file() else {}
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); take it away, or run `evaluating` again.") from error
    weights = [os.path.relpath(file, folder) for file in ensure_tuple(noted.get("weights", ()))]
    about = {"weights": ", ".join(weights), "list": str(noted.get("list", "")), "table": table.name}
    return {name: text for name, text in about.items() if text}


def _galleries(cases: Sequence[dict[str, str]], folder: Path) -> dict[str, list[dict[str, str]]]:
    """Pictures of the best and of the worst cases, no case in both."""
    count = min(SHOWN, len(cases) // 2) or min(1, len(cases))
    galleries = {"Best cases": cases[:count], "Worst cases": cases[count:][::-1][:count]}
    pictures: dict[str, list[dict[str, str]]] = {}
    for title, rows in galleries.items():
        for row in rows:
            if (path := folder / f"{row['case']}.png").is_file():
                pictures.setdefault(title, []).append({**row, "picture": embedded(path)})
    return pictures


def _draw_curves(curves: Mapping[str, Curve], path: Path) -> str | None:
    """Draw :data:`CURVES` over the iterations; None where there are none, or nothing that draws."""
    found = {
        title: [name for pattern in patterns for name in sorted(curves) if re.fullmatch(pattern, name)]
        for title, patterns in CURVES.items()
    }
    found = {title: names for title, names in found.items() if names}
    if not found or not optional_import("matplotlib.backends.backend_agg")[1]:
        return None
    figure = draw_curves(
        {title: {name: [curves[name]] for name in names} for title, names in found.items()}, LOGARITHMIC
    )
    return saved(figure, path)


def _setting(value: Any) -> str | None:
    """Write a setting as JSON; None for components and expressions, which are not numbers to read."""
    text = json.dumps(value)
    return None if (isinstance(value, Mapping) and "_target_" in text) or '"$' in text or '"@' in text else text
