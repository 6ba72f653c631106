"""Which patients to label next: those that the network doubts, and among them those unlike each other.

Doubt alone finds the same difficulty many times over. So the most doubtful are taken first, as in Suggestive Annotation
(Yang et al., MICCAI 2017, doi:10.1007/978-3-319-66179-7_46), and out of them, where that takes representative ones,
those far from each other: the k-center greedy of core sets (Sener & Savarese, ICLR 2018, arXiv:1708.00489).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import Dataset
from monai.inferers import SlidingWindowInferer
from monai.utils import ensure_tuple
from scipy.spatial.distance import cdist
from tqdm import tqdm

from custom.data.checks import Case
from custom.data.loading import ScanLoader, Unreadable
from custom.utils.errors import UserError
from custom.utils.names import patient_name
from custom.utils.tables import Row

#: How many of the most doubtful patients are looked at for each one that is wanted.
POOL = 3


class Patient(NamedTuple):
    """All scans of one patient, and what the review made of them.

    ``doubt`` is the mean of their scores in the review, ``why`` what stands out in any of them.
    """

    name: str
    cases: list[Case]
    doubt: float
    why: str


def by_patient(cases: Sequence[Case], pattern: str | None, folder: Path) -> dict[str, list[Case]]:
    """Collect the scans of each patient, who are labeled together.

    Args:
        cases: with ``image`` and ``case``.
        pattern: regular expression that finds the patient, see :func:`custom.utils.names.patient_name`.
        folder: of the data list; patients are sought in paths below it.

    Returns:
        Cases by patient. Where the pattern finds none, a case is a patient of its own, and lends its name.

    Raises:
        UserError: when the pattern is no regular expression.
    """
    patients: dict[str, list[Case]] = {}
    for case in cases:
        path = os.path.relpath(ensure_tuple(case["image"])[0], folder)
        name = patient_name(path, pattern)
        patients.setdefault(case["case"] if name == patient_name(path, None) else name, []).append(case)
    return patients


def most_doubtful(patients: Mapping[str, list[Case]], review: Sequence[Row], count: int) -> list[Patient]:
    """Take the patients whose predictions are the most doubtful, the worst first.

    Args:
        patients: see :func:`by_patient`.
        review: a row for each case, see :func:`custom.report.ranking.review_order`.
        count: how many patients, at most.
    """
    rows = {row["case"]: row for row in review}
    found = []
    for name, cases in patients.items():
        reasons = [reason for case in cases for reason in rows[case["case"]]["why"].split("; ") if reason]
        doubt = float(np.mean([rows[case["case"]]["score"] for case in cases]))
        found.append(Patient(name, cases, doubt, "; ".join(dict.fromkeys(reasons))))
    return sorted(found, key=lambda patient: (-patient.doubt, patient.name))[:count]


def farthest_first(pool: np.ndarray, centers: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Choose points one by one, each the farthest from those that are there: k-center greedy.

    Args:
        pool: features of the candidates, PF; of several equally far ones the first is taken.
        centers: features of what is labeled already, CF. Without any, the first candidate is the first choice.
        count: how many to choose, at most P.

    Returns:
        Places in the pool in the order of their choice, with the distance to the nearest center or earlier choice; NaN
        for a first choice without centers.
    """
    nearest = cdist(pool, centers).min(1) if len(centers) else np.full(len(pool), np.inf)
    chosen: list[tuple[int, float]] = []
    for _ in range(count):
        place = int(nearest.argmax())
        chosen.append((place, float(nearest[place]) if np.isfinite(nearest[place]) else float("nan")))
        nearest = np.minimum(nearest, cdist(pool, pool[[place]])[:, 0])
        nearest[[place for place, _ in chosen]] = -1  # copies of one scan are all at distance 0
    return chosen


def standardized(features: np.ndarray) -> np.ndarray:
    """Bring features, PF, to mean 0 and standard deviation 1, and leave out those that are the same for all.

    They are divided by the root of their number, so that a distance is the typical difference of a feature, in standard
    deviations, whatever the width of the network.
    """
    spread = features.std(0)
    varying = spread > 1e-6 * max(float(np.abs(features).max(initial=0)), 1e-12)
    kept = features[:, varying]
    return (kept - kept.mean(0)) / spread[varying] / np.sqrt(max(1, kept.shape[1]))


@torch.no_grad()
def bottleneck_features(config: ConfigParser, patients: Sequence[Sequence[Case]]) -> np.ndarray:
    """Describe patients by what the network's coarsest features are on average.

    Args:
        config: of the bundle's inference, with the weights in its ``network``, a
            :class:`custom.networks.PerturbedNetwork`.
        patients: the cases of each.

    Returns:
        PF, a row for each patient: the mean over the voxels of the coarsest resolution, the windows, which lie side by
        side, the frames of a series, and the scans.

    Raises:
        UserError: when a scan cannot be read.
    """
    cases = [{"image": case["image"], "case": case["case"]} for scans in patients for case in scans]
    reader = ScanLoader(Dataset(cases, config.get_parsed_content("preprocessing")))
    rows = []
    for batch in tqdm(reader, desc="Comparing", unit="scan"):
        if isinstance(batch, Unreadable):
            raise UserError(batch.problem)
        rows.append(_pooled(config, batch["image"].as_tensor()))
    found = iter(rows)
    return np.array([np.mean([next(found) for _ in scans], axis=0) for scans in patients])


def _pooled(config: ConfigParser, image: torch.Tensor) -> np.ndarray:
    """Average the coarsest features of an image, 1CH[WD], of which 2D networks get slices: F numbers."""
    names = ("network", "inferer", "device", "memory_format")
    network, inferer, device, layout = (config.get_parsed_content(name) for name in names)
    found: list[torch.Tensor] = []

    def encode(windows: torch.Tensor) -> torch.Tensor:
        flat = windows if inferer.slice_axis is None else windows.squeeze(inferer.slice_axis + 2)
        found.append(network.encode(flat.to(memory_format=layout))[-1].flatten(2).mean(2).cpu())
        return windows[:, :1]  # MONAI wants a map of each window, and nobody reads it

    cut_up: Any = SlidingWindowInferer(inferer.roi_size, inferer.sw_batch_size, overlap=0, sw_device=device)
    for frame in image.split(1, dim=1) if inferer.series else [image]:
        cut_up(frame, encode)
    return torch.cat(found).mean(0).numpy()
