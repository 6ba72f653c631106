"""Which predictions to look at first: what is odd about a scan's prediction, and the order that follows from it.

A scan is measured alone, as soon as it is segmented. Only its rank needs the others.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import MapTransform
from monai.transforms.utils import generate_spatial_bounding_box
from scipy import ndimage

from ..utils.names import case_of
from ..utils.tables import Row

#: How far from the predicted boundary uncertainty counts, in voxels. With 4 the order follows the true Dice better
#: than with 2, on left atria and on short axes (docs/performance.md).
REACH = 4
#: An axis whose voxels are longer than so many of the shortest ones lies across thick slices.
THICK = 2.0
#: What the parts of a score count, in standard deviations of the uncertainty: all of the prediction removed, the border
#: touched, all classes but for one without a voxel, all of them.
REMOVED, BORDER, LACKING, EMPTY = 10.0, 0.5, 20.0, 100.0
#: No other part counts for more, so that an empty prediction stays the worst.
MOST = 10.0
#: A volume is odd beyond so many robust standard deviations from the cohort's median, among at least so many scans.
USUAL, COHORT = 3.0, 5


class ReviewMeasuresd(MapTransform):
    """Measure a prediction for its review, see :func:`review_measures`, into ``review``.

    Args:
        keys: class indices, TH[WD]. The sample has them as they were before small components were removed in
            ``with_components``, which is taken out, and ``uncertainty``, TH[WD].
        class_names: foreground classes, in the order of their labels.
    """

    def __init__(self, keys: KeysCollection, class_names: Sequence[str]) -> None:
        super().__init__(keys)
        self.class_names = tuple(class_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with ``review``, a mapping of texts and numbers."""
        sample = dict(data)
        before = sample.pop("with_components")
        for key in self.keys:
            sample["review"] = review_measures(sample[key], before, sample["uncertainty"], self.class_names)
        return sample


def review_measures(
    pred: MetaTensor, before: torch.Tensor, uncertainty: torch.Tensor, class_names: Sequence[str]
) -> Row:
    """Measure what is odd about the prediction of one scan.

    Args:
        pred: class indices, TH[WD] for T frames.
        before: the same, before small components were removed.
        uncertainty: in [0, 1], of the same shape.
        class_names: foreground classes, in the order of their labels.

    Returns:
        ``case``; ``boundary_uncertainty``, the sum over the voxels up to 4 from a boundary, per predicted voxel, so
        that the same boundary around a smaller structure counts for more, as it does in Dice; empty where there is no
        structure; ``removed_share``, the predicted voxels that were in small components; ``touches_border``, 1 when a
        structure reaches the edge of the image; ``empty_classes``, joined by ``;``; and the volume of each class, the
        mean over the frames. Across thick slices neither distance nor edge counts.
    """
    labels, found, doubt = (array.detach().cpu().numpy() for array in (pred.as_tensor(), before, uncertainty))
    axes = _fine_axes(affine_to_spacing(pred.affine, labels.ndim - 1), labels.shape[1:])
    doubtful = sum(_sum_near_boundary(*frame, axes) for frame in zip(labels, doubt, strict=True))
    predicted, kept = np.count_nonzero(found), np.count_nonzero(labels)
    volumes = [structure_volumes(frame, class_names) for frame in pred]
    return {
        "case": case_of(pred.meta),
        "boundary_uncertainty": doubtful / kept if kept else "",
        "removed_share": 1 - kept / predicted if predicted else 0.0,
        "touches_border": int(any(_touches(frame > 0, axes) for frame in labels)),
        "empty_classes": ";".join(
            name for index, name in enumerate(class_names, start=1) if not (labels == index).any()
        ),
        **{column: float(np.mean([frame[column] for frame in volumes])) for column in volumes[0]},
    }


def structure_volumes(labels: MetaTensor, class_names: Sequence[str]) -> dict[str, float]:
    """Measure structures, class indices, H[WD]: ``NAME_ml``, or ``NAME_pixels`` in photographs, which have no scale."""
    counts = torch.bincount(labels.as_tensor().flatten().long(), minlength=len(class_names) + 1).tolist()[1:]
    if labels.ndim == 2:
        return {f"{name}_pixels": count for name, count in zip(class_names, counts, strict=True)}
    voxel = float(np.abs(np.linalg.det(np.asarray(labels.affine)[:3, :3]))) / 1000  # mm3 to ml
    return {f"{name}_ml": count * voxel for name, count in zip(class_names, counts, strict=True)}


def review_order(measures: Sequence[Row]) -> list[Row]:
    """Score predictions, and put the worst first.

    The score adds up, in robust standard deviations of the boundary's uncertainty over these scans: how far that of the
    scan lies above their median, 1 for each tenth of the prediction that was removed, how much further than usual a
    volume lies from the median, 1/2 for touching the border, 20 times the share of the classes without a voxel, and 100
    for an empty prediction.

    Args:
        measures: of each scan, see :func:`review_measures`.

    Returns:
        Per scan ``case``, ``score``, the measures but for the volumes, ``volume_deviation``, the largest over the
        classes in robust standard deviations of their logarithms, which is 0 among fewer than 5 scans and empty where
        there is no structure, and ``why``, what of it stands out.
    """
    doubts = [row["boundary_uncertainty"] for row in measures]
    uncertain = _deviations([np.nan if doubt == "" else doubt for doubt in doubts])
    columns = [name for name in (measures[0] if measures else {}) if name.endswith(("_ml", "_pixels"))]
    by_class = [_volume_deviations([row[column] for row in measures]) for column in columns]
    rows = []
    for place, row in enumerate(measures):
        odd = {column: deviations[place] for column, deviations in zip(columns, by_class, strict=True)}
        rows.append(_scored(row, uncertain[place], odd, len(columns)))
    return sorted(rows, key=lambda row: (-row["score"], row["case"]))


def _scored(row: Row, uncertain: float, odd: Mapping[str, float], num_classes: int) -> Row:
    empty = [name for name in row["empty_classes"].split(";") if name]
    deviation = max(odd.values(), key=abs, default=0.0)
    parts = {
        "uncertain boundary": uncertain,
        "components removed": REMOVED * row["removed_share"],
        "unusual volume": abs(deviation) - USUAL if abs(deviation) > USUAL else 0.0,
    }
    score = sum(float(np.clip(part, -MOST, MOST)) for part in parts.values()) + BORDER * row["touches_border"]
    score += EMPTY if len(empty) == num_classes else LACKING * len(empty) / num_classes
    why = ["empty"] if len(empty) == num_classes else [f"no {name}" for name in empty]
    why += [name for name, part in parts.items() if part >= 1]
    why += ["touches the border"] if row["touches_border"] else []
    return {
        "case": row["case"],
        "score": score,
        **{name: row[name] for name in ("boundary_uncertainty", "removed_share")},
        "volume_deviation": "" if len(empty) == num_classes else deviation,
        **{name: row[name] for name in ("touches_border", "empty_classes")},
        "why": "; ".join(why),
    }


def _fine_axes(spacing: Any, shape: Sequence[int]) -> list[int]:
    """Axes within slices; of a volume without thick slices all. One voxel alone has neither neighbors nor edges."""
    steps = np.asarray(spacing, float)
    return [axis for axis, step in enumerate(steps) if step < THICK * 1.01 * steps.min() and shape[axis] > 1]


def _sum_near_boundary(labels: np.ndarray, doubt: np.ndarray, axes: Sequence[int]) -> float:
    """Add up a map near the boundaries between classes, both H[WD]."""
    start, end = generate_spatial_bounding_box(labels[None], margin=REACH, allow_smaller=True)
    box = tuple(map(slice, start, end))  # of no voxel where there is no structure
    size = [2 * REACH + 1 if axis in axes else 1 for axis in range(labels.ndim)]
    largest, smallest = (f(labels[box], size, mode="nearest") for f in (ndimage.maximum_filter, ndimage.minimum_filter))
    return float(doubt[box][largest != smallest].sum(dtype=np.float64))


def _touches(structure: np.ndarray, axes: Sequence[int]) -> bool:
    return any(bool(np.take(structure, [0, -1], axis).any()) for axis in axes)


def _volume_deviations(volumes: Sequence[float]) -> np.ndarray:
    """Deviations of the volumes that are not 0, on a logarithmic scale; 0 for the others, and among few."""
    found = np.asarray(volumes, float)
    if np.count_nonzero(found) < COHORT:
        return np.zeros(len(found))
    return _deviations(np.log(np.where(found > 0, found, np.nan)))


def _deviations(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """How many robust standard deviations values lie above their median; NaN counts as the median."""
    found = np.asarray(values, float)
    if np.isnan(found).all():
        return np.zeros(len(found))
    above = np.nan_to_num(found - np.nanmedian(found))
    spread = 1.4826 * np.median(np.abs(above[~np.isnan(found)]))
    return above / spread if spread > 0 else np.sign(above) * (np.abs(above) > 1e-9)
