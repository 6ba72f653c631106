"""Pictures of a finished run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from .data import case_name

__all__ = ["CaseFiles", "save_overlays"]


class CaseFiles(NamedTuple):
    """Files of one case, all on one grid."""

    image: Path
    label: Path
    pred: Path


def save_overlays(cases: Sequence[CaseFiles], path: str | Path) -> Path:
    """Draw image, truth and prediction side by side, one case per row, in the slice with the largest true structure.

    Args:
        cases: volumes, HWD; labels are class indices.
        path: the PNG to write.

    Returns:
        The path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # needs no screen
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.7 * len(cases)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(cases), 3, squeeze=False)
    for row, files in zip(axes, cases, strict=True):
        image, label, pred = (np.asarray(nib.load(file).dataobj) for file in files)
        z = int((label > 0).sum((0, 1)).argmax())
        aspect = nib.load(files.image).header.get_zooms()[1] / nib.load(files.image).header.get_zooms()[0]
        for axis, mask in zip(row, (None, label, pred), strict=True):
            _draw(axis, image[:, :, z], None if mask is None else mask[:, :, z], aspect)
        row[0].set_ylabel(f"{case_name(files.image)}, slice {z}")
    for axis, title in zip(axes[0], ("image", "truth", "prediction"), strict=True):
        axis.set_title(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def _draw(axis, image: np.ndarray, mask: np.ndarray | None, aspect: float) -> None:
    low, high = np.percentile(image, [1, 99])
    axis.imshow(image.T, cmap="gray", vmin=low, vmax=high, origin="lower", aspect=aspect, interpolation="nearest")
    if mask is not None and mask.any():
        shown = np.ma.masked_equal(mask.T, 0)
        axis.imshow(shown, cmap="autumn", vmin=1, vmax=4, alpha=0.45, origin="lower", aspect=aspect)
        for index in np.unique(mask[mask > 0]):
            axis.contour((mask == index).T, [0.5], colors="tab:red", linewidths=1.2)
    axis.set_xticks([])
    axis.set_yticks([])
