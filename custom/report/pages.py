"""What the pages about one run and about several share: reading a run's folder, curves, and the template."""

from __future__ import annotations

import base64
import csv
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..utils.files import FILE_NAMES, atomic_write
from ..utils.names import ALL, MEAN
from .drawing import new_figure, structure_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, str]
#: Iteration and value.
Curve = list[tuple[int, float]]


def beside(table: Path, what: str) -> str:
    """Name what goes with a table: ``panels_ema`` with ``metrics_ema.csv``, ``panels_test`` with ``test.csv``."""
    return table.stem.replace("metrics", what) if "metrics" in table.stem else f"{what}_{table.stem}"


def write_page(path: Path, content: Mapping[str, Any], template: str | None = None) -> Path:
    """Fill a template, by default that of the page's name."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    with atomic_write(path) as part:
        part.write_text(
            environment.get_template(template or path.name).render(content), encoding="utf-8", errors=FILE_NAMES
        )
    return path


def read_rows(path: Path) -> list[Row]:
    """Read a table of metrics; empty where there is none."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8", errors=FILE_NAMES) as file:
        return list(csv.DictReader(file))


def class_colors(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Give the structures of a table of metrics, with the color in which each is drawn."""
    return structure_colors(dict.fromkeys(row["class"] for row in rows if row["class"] != ALL))


def overall(rows: Sequence[Row]) -> list[Row]:
    """Take one row per case, over all classes, the best first."""
    classes = {row["class"] for row in rows}
    wanted = ALL if ALL in classes else next(iter(classes), None)
    cases = [row for row in rows if row["case"] != MEAN and row["class"] == wanted]
    return sorted(cases, key=lambda row: float(row["dice"]), reverse=True)


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read TensorBoard's scalars by name; a training that went on from a checkpoint gives one curve."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports every file that it opens, and each restart
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
    events.Reload()
    curves = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()[SCALARS]}
    return {name: curve for name, curve in curves.items() if curve}  # what a training that started anew has not drawn


def draw_curves(pictures: Mapping[str, Mapping[str, Sequence[Curve]]], logarithmic: Collection[str] = ()) -> Figure:
    """Draw pictures of curves over the iterations, by title and label; the curves of one label have one color.

    Args:
        pictures: by title the curves by label.
        logarithmic: titles of those whose curves differ by orders of magnitude, and may be 0.
    """
    rows = -(-len(pictures) // 2)
    figure = new_figure(11, 3.4 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis, (title, labeled) in zip(axes, pictures.items(), strict=False):
        for number, (label, curves) in enumerate(labeled.items()):
            for first, curve in enumerate(curves):
                shown = label if first == 0 else f"_{label}"
                marker = "o" if len(curve) == 1 else None  # a line of one point is none
                axis.plot(*zip(*curve, strict=True), label=shown, linewidth=1.2, color=f"C{number}", marker=marker)
        axis.set_title(title)
        axis.set_xlabel("iteration")
        if title in logarithmic:
            axis.set_yscale("symlog", linthresh=1e-4)  # a class that is lost stays in the picture, at 0
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    for axis in axes[len(pictures) :]:
        axis.axis("off")
    return figure


def saved(figure: Figure, path: Path) -> str:
    """Write a figure as PNG, and give it as the text of a page's image."""
    with atomic_write(path) as part:
        figure.savefig(part, dpi=130)
    return embedded(path)


def embedded(path: Path) -> str:
    """Give a PNG as the text of a page's image."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
