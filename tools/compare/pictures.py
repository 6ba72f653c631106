"""Pictures of a comparison: curves, a column per case, label efficiency, and the cases where arms differ most."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from custom.report.drawing import new_figure
from custom.report.pages import Curve, draw_curves, saved

from .differences import by_case, summary_row
from .runs import Run

#: Curves of all arms, by title.
CURVES = {
    "Dice in training, on the validation list": "val_mean_dice",
    "Supervised loss": "supervised",
    "Share of voxels with a pseudo-label": "confident_share",
}
#: Cases whose pictures are shown.
SHOWN = 4


def curves_picture(runs: Sequence[Run], output: Path) -> str | None:
    """Draw the curves of all runs, one color per arm; None where there are none."""
    pictures = {}
    for title, name in CURVES.items():
        # All arms in each picture, also those without such a curve, so that an arm has one color throughout.
        labeled: dict[str, list[Curve]] = {run.label: [] for run in runs}
        for run in runs:
            labeled[run.label] += [run.curves[name]] if run.curves.get(name) else []
        if any(labeled.values()):
            pictures[title] = labeled
    return saved(draw_curves(pictures), output / "curves.png") if pictures else None


def strip_picture(runs: Sequence[Run], baseline: str, output: Path) -> str:
    """One column per case, in the order of the baseline; a point per run."""
    order = by_case([run for run in runs if run.arm == baseline], "dice")
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


def label_picture(by_group: Mapping[tuple[str, str], Sequence[Run]], output: Path) -> str:
    """Draw Dice against the number of labeled cases, one line per arm."""
    figure = new_figure(7, 4.5)
    axis = figure.subplots()
    for arm in dict.fromkeys(arm for arm, _ in by_group):
        same = [group for (name, _), group in by_group.items() if name == arm]
        points = [(len(group[0].lists["training"]), summary_row(group)) for group in same]
        points.sort(key=lambda point: point[0])
        counts, rows = [count for count, _ in points], [row for _, row in points]
        spread = [0 if math.isnan(row["dice_sd"]) else row["dice_sd"] for row in rows]
        axis.errorbar(counts, [row["dice"] for row in rows], spread, marker="o", capsize=3, label=arm)
    axis.set_xlabel("labeled cases")
    axis.set_ylabel("Dice")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    return saved(figure, output / "labels.png")


def gallery_pictures(by_group: Mapping[tuple[str, str], Sequence[Run]], output: Path) -> list[dict[str, str]]:
    """Pictures of the cases where arms differ most: image and truth, and the prediction of each arm's first run."""
    means = {same[0].label: by_case(same, "dice") for same in by_group.values()}
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
