"""Draw the training step, ``python docs/figures/step.py``; the arrows are those of ``custom.losses.PAIRS``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

mpl.use("svg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from custom.losses import PAIRS
from custom.trainer import FIRST_PASS, SECOND_PASS

__all__ = ["draw"]

WIDTH, HEIGHT = 900, 478
INK, MUTED, LINE, PANEL = "#1f2933", "#616e7c", "#cbd2d9", "#ffffff"
FILLS = {FIRST_PASS: "#eef4fb", SECOND_PASS: "#fdf3ea"}
#: Colour, sign and meaning of each group of pairs.
GROUPS = {
    "image_perturbation": ("#2b6cb0", r"$L_{ip}$", "strong views learn\nfrom the weak view"),
    "teacher_distillation": ("#d9730d", r"$L_{tkd}$", "decodings with dropped\nfeatures learn from\nthe weak view"),
    "decoder_distillation": (
        *("#2f855a", r"$L_{dkd}$"),
        "decodings of strong view 2\nlearn from the weak view's\nwith the same dropout",
    ),
}
#: Where its arrows leave a teacher and reach a student, below the middle, and how far they bend.
LANES = {"#2b6cb0": (7, 0, 0.26), "#d9730d": (-3, -7, 0.42), "#2f855a": (5, 7, 0.3)}
MEANING = {
    "labeled": "learns from the label",
    "weak": "makes the pseudo-labels",
    "weak_fw": "25 % of channels dropped",
    "weak_fs": "75 % of channels dropped",
    "strong_1": "changed intensities + CutMix",
    "strong_2": "changed intensities + CutMix",
    "strong_2_fw": "25 % of channels dropped",
    "strong_2_fs": "75 % of channels dropped",
}
ROW = 46
TOP = {FIRST_PASS: 50, SECOND_PASS: 280}
LEFT, NODE, NODE_WIDTH, NODE_HEIGHT = 150, 372, 196, 36


def draw(path: str | Path) -> None:
    """Draw the figure.

    Args:
        path: of the SVG file.
    """
    mpl.rcParams |= {"svg.hashsalt": "step", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
    figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.axis("off")
    _box(axes, 1, 1, WIDTH - 2, HEIGHT - 2, PANEL, 14)
    for number, names in enumerate((FIRST_PASS, SECOND_PASS), start=1):
        _pass(axes, number, names, names[:2])
    for group, pairs in PAIRS.items():
        for pair in pairs:
            _pair(axes, pair.name, pair.teacher, pair.student, GROUPS[group][0])
    _legend(axes)
    figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
    path = Path(path)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


def _pass(axes: Axes, number: int, names: tuple[str, ...], inputs: tuple[str, ...]) -> None:
    top, bottom = TOP[names], TOP[names] + 4 * ROW - 10
    _box(axes, 16, top - 34, 564, 4 * ROW + 36, FILLS[names], 10)
    _text(axes, 30, top - 16, f"Pass {number}", INK, 12, weight="bold")
    then = ("backpropagated before the second pass starts", "gradients are added; then the optimizer steps")
    _text(axes, 88, top - 16, then[number - 1], MUTED, 10)
    _box(axes, LEFT, top, 190, 4 * ROW - 10, PANEL, 8)
    middle = (top + bottom) / 2
    _text(axes, LEFT + 95, middle - 16, "network", INK, 12, "center", weight="bold")
    _text(axes, LEFT + 95, middle + 2, "encodes both inputs, decodes", MUTED, 9.5, "center")
    _text(axes, LEFT + 95, middle + 16, "the lower one three times", MUTED, 9.5, "center")
    for name, y in zip(inputs, (_row("labeled" if number == 1 else "strong_1"), _row(inputs[1])), strict=True):
        title = {"labeled": "labeled image", "weak": "weak view"}.get(name, f"strong view {name[-1]}")
        _box(axes, 28, y - 18, 96, NODE_HEIGHT, PANEL, 6)
        _text(axes, 76, y, title, INK, 10.5, "center")
        _arrow(axes, (125, y), (LEFT, y), MUTED)
    for name in names:
        y = _row(name)
        _arrow(axes, (LEFT + 190, y), (NODE, y), MUTED)
        _box(axes, NODE, y - 18, NODE_WIDTH, NODE_HEIGHT, PANEL, 6)
        _text(axes, NODE + 12, y - 7, name, INK, 10.5, weight="bold")
        _text(axes, NODE + 12, y + 8, MEANING[name], MUTED, 9)


def _row(name: str) -> float:
    """Give the height at which a prediction is drawn."""
    names = FIRST_PASS if name in FIRST_PASS else SECOND_PASS
    return TOP[names] + names.index(name) * ROW + 18


def _pair(axes: Axes, name: str, teacher: str, student: str, color: str) -> None:
    # Arrows leave and reach a prediction below each other, each group in a lane of its own, so that none hides another.
    leave, arrive, bend = LANES[color]
    points = (NODE + NODE_WIDTH, _row(teacher) + leave), (NODE + NODE_WIDTH + 2, _row(student) + arrive)
    arrow = FancyArrowPatch(
        *points, connectionstyle=f"arc3,rad=-{bend}", arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.7
    )
    arrow.set_gid(f"pair-{name}")
    axes.add_patch(arrow)


def _legend(axes: Axes) -> None:
    x, y = 668, 84
    _text(axes, x, y - 28, "Who learns from whom", INK, 12, weight="bold")
    for color, sign, meaning in GROUPS.values():
        _arrow(axes, (x, y), (x + 30, y), color, 1.9)
        _text(axes, x + 38, y, sign, color, 12.5)
        for number, line in enumerate(meaning.split("\n")):
            _text(axes, x + 76, y + 14 * number, line, INK, 9.5)
        y += 66
    y += 16
    lines = ("A teacher's prediction becomes a", "pseudo-label where its softmax", "reaches the threshold; elsewhere")
    lines += ("the voxel is left out. CutMix pastes", "the same box into a strong view", "and into its pseudo-label.")
    for number, line in enumerate(lines):
        _text(axes, x, y + 15 * number, line, MUTED, 9.5)


def _box(axes: Axes, x: float, y: float, width: float, height: float, fill: str, radius: float) -> None:
    style = f"round,pad=0,rounding_size={radius}"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=LINE, linewidth=1))


def _arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], color: str, linewidth: float = 1.2
) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=color, linewidth=linewidth))


def _text(
    axes: Axes, x: float, y: float, text: str, color: str, size: float, align: str = "left", weight: str = "normal"
) -> None:
    axes.text(x, y, text, color=color, fontsize=size, ha=align, va="center", weight=weight)


if __name__ == "__main__":
    draw(Path(__file__).with_suffix(".svg"))
