"""Slices with labels on them, as matplotlib figures that need no screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Colors of the classes 1, 2, ...: distinguishable with any color vision (Okabe & Ito).
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")


class Panel(NamedTuple):
    """One picture.

    ``image`` is CHW with one channel or three; ``label`` HW class indices; ``ignored`` HW, True where there is no
    label; ``aspect`` the height of a pixel over its width; ``is_photo`` whether the second axis goes down, which that
    of an image with three channels always does.
    """

    title: str
    image: np.ndarray
    label: np.ndarray | None = None
    ignored: np.ndarray | None = None
    aspect: float = 1.0
    is_photo: bool = False


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def structure_colors(structures: Iterable[str]) -> list[tuple[str, str]]:
    """Give each structure, in the order of the labels, the color in which it is drawn."""
    return list(zip(structures, cycle(COLORS), strict=False))


def draw_panels(rows: Sequence[Sequence[Panel]], row_titles: Sequence[str] = ()) -> Figure:
    """Draw panels in rows; the first axis of an image goes to the right, the second upwards, of photographs down."""
    columns = max(map(len, rows))
    figure = new_figure(2.6 * columns, 2.8 * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, panels in zip(axes, rows, strict=True):
        for axis in line:
            axis.axis("off")
        for axis, panel in zip(line, panels, strict=False):
            _draw(axis, panel)
    for line, title in zip(axes, row_titles, strict=False):
        line[0].text(-0.03, 0.5, title, rotation=90, ha="right", va="center", transform=line[0].transAxes, fontsize=8)
    return figure


def largest_slice(label: np.ndarray) -> int | None:
    """Find the slice along the last axis with the largest structure, HWD class indices; None in 2D."""
    return None if label.ndim == 2 else int((label > 0).sum((0, 1)).argmax())


def case_panels(
    image: np.ndarray, label: np.ndarray, pred: np.ndarray, spacing: Sequence[float] = (1, 1)
) -> list[Panel]:
    """Show image, truth and prediction side by side, in the slice with the largest true structure.

    Args:
        image: CH[WD].
        label: class indices, H[WD].
        pred: the same.
        spacing: of the first two axes.
    """
    z = largest_slice(label)
    image, label, pred = (array if z is None else array[..., z] for array in (image, label, pred))
    aspect = float(spacing[1] / spacing[0])
    title = "image" if z is None else f"image, slice {z}"
    return [
        Panel(title, image, aspect=aspect),
        Panel("truth", image, label, aspect=aspect),
        Panel("prediction", image, pred, aspect=aspect),
    ]


def _draw(axis, panel: Panel) -> None:
    has_colors = panel.image.shape[0] == 3
    how = {
        "origin": "upper" if panel.is_photo or has_colors else "lower",
        "aspect": panel.aspect,
        "interpolation": "nearest",
    }
    shown = windowed(panel.image).transpose(2, 1, 0)
    axis.imshow(shown if has_colors else shown[..., 0], cmap="gray", vmin=0, vmax=1, **how)
    if panel.ignored is not None:
        axis.imshow(np.ma.masked_equal(panel.ignored.T, 0), cmap="gray", vmin=0, vmax=2, alpha=0.5, **how)
    if panel.label is not None:
        from matplotlib.colors import to_rgba

        for index in np.unique(panel.label[panel.label > 0]).astype(int):
            mask = (panel.label == index).T
            color = to_rgba(COLORS[(index - 1) % len(COLORS)])
            axis.imshow(np.where(mask[..., None], [*color[:3], 0.35], 0.0), **how)
            if not mask.all() and min(mask.shape) > 1:  # a contour needs both, and two pixels each way
                axis.contour(mask, [0.5], colors=[color], linewidths=1.2)
    axis.set_title(panel.title, fontsize=9)


def windowed(image: np.ndarray) -> np.ndarray:
    """Scale an image to [0, 1], but for the darkest and the brightest hundredth."""
    low, high = np.percentile(image, [1, 99])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1)
