"""Metrics of the semi-supervised literature, per case and class.

Dice and Jaccard overlap; 95HD, the 95th percentile of the surface distances of both directions pooled; ASD, the mean
distance from the predicted to the true surface (both as medpy defines them, so that figures compare). MONAI's own 95HD,
the larger of the two directed percentiles, stands beside under its own name.

A structure that only one of prediction and truth has gets the worst possible distance, the image's diagonal, instead of
dropping out of the mean; where both lack it, prediction and truth agree: overlap 1, distance 0.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.utils import get_mask_edges, get_surface_distance

DISTANCES = ("hd95", "asd", "hd95_monai")


def case_metrics(pred: torch.Tensor, label: torch.Tensor, spacing: Sequence[float] | None = None) -> dict[str, float]:
    """Compare a predicted with a true structure.

    Args:
        pred: boolean mask, H[WD].
        label: boolean mask of the same shape.
        spacing: mm per axis; None when the header has none, then there are no entries in mm.

    Returns:
        ``dice`` and ``jaccard`` in [0, 1]; ``hd95``, ``asd`` and ``hd95_monai`` in voxels, and the same with ``_mm``.

    Raises:
        ValueError: when the shapes differ.
    """
    if pred.shape != label.shape:
        raise ValueError(f"prediction and label must have one shape, got {tuple(pred.shape)} and {tuple(label.shape)}.")
    pred, label = pred.bool(), label.bool()
    metrics, total = overlap(pred, label), int(pred.sum()) + int(label.sum())
    edges = None if not pred.any() or not label.any() else get_mask_edges(pred, label)
    units = {"": [1.0] * pred.ndim} | ({} if spacing is None else {"_mm": spacing})
    for unit, steps in units.items():
        if edges is None:
            worst = math.hypot(*(count * step for count, step in zip(pred.shape, steps, strict=True)))
            distances = dict.fromkeys(DISTANCES, worst if total else 0.0)
        else:
            distances = _surface_distances(edges[0], edges[1], steps)
        metrics |= {name + unit: value for name, value in distances.items()}
    return metrics


def overlap(pred: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
    """Compare two boolean masks of one shape: ``dice`` and ``jaccard`` in [0, 1]."""
    intersection, total = int((pred & label).sum()), int(pred.sum()) + int(label.sum())
    return {
        "dice": 2 * intersection / total if total else 1.0,
        "jaccard": intersection / (total - intersection) if total else 1.0,
    }


def _surface_distances(
    pred_edges: torch.Tensor, label_edges: torch.Tensor, spacing: Sequence[float]
) -> dict[str, float]:
    to_label = np.asarray(get_surface_distance(pred_edges, label_edges, spacing=list(spacing)))
    to_pred = np.asarray(get_surface_distance(label_edges, pred_edges, spacing=list(spacing)))
    values = (
        np.percentile(np.concatenate([to_label, to_pred]), 95),
        to_label.mean(),
        max(np.percentile(to_label, 95), np.percentile(to_pred, 95)),
    )
    return {name: float(value) for name, value in zip(DISTANCES, values, strict=True)}
