"""Synthetic volumes for the demo and the tests: an organ that one can learn to find, but not by thresholding alone.

A bright blob with a wavy surface lies among neighbours of the same brightness, which are smaller or tubular, on a
textured background; everything is blurred, shaded by a bias field and noisy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

__all__ = ["SPACING", "make_case", "write_dataset"]

#: mm per axis of the written volumes.
SPACING = (1.25, 1.25, 1.25)


def write_dataset(
    folder: str | Path,
    counts: dict[str, int],
    size: Sequence[int] = (64, 64, 48),
    seed: int = 0,
    name: str = "synthetic.json",
) -> Path:
    """Write a dataset folder with ``images/``, ``labels/`` and a data list.

    Args:
        folder: created when missing.
        counts: cases per list, such as ``{"training": 4, "unlabeled": 12, "test": 8}``; unlabeled cases get no label.
        size: voxels per axis.
        seed: of the first case; every case has a seed of its own, so that counts do not change the cases.
        name: file name of the data list.

    Returns:
        Path of the data list.
    """
    folder = Path(folder)
    content: dict = {
        "name": "Synthetic blobs",
        "modality": {"0": "synthetic"},
        "labels": {"0": "background", "1": "organ"},
    }
    numbers = iter(range(sum(counts.values())))
    for list_name, count in counts.items():
        cases = []
        for number in (next(numbers) for _ in range(count)):
            image, label = make_case(np.random.default_rng([seed, number]), size)
            case = {"image": _save(folder, "images", number, image)}
            if list_name != "unlabeled":
                case["label"] = _save(folder, "labels", number, label)
            cases.append(case)
        content[list_name] = cases
    path = folder / name
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path


def make_case(rng: np.random.Generator, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (float32, arbitrary unit) and its label (uint8, 1 in the organ) of ``size`` voxels."""
    scale = min(size)
    center = [count / 2 + rng.uniform(-0.12, 0.12) * count for count in size]
    organ = _blob(rng, size, center, radius=rng.uniform(0.2, 0.27) * scale)
    neighbours = np.zeros(size, bool)
    for _ in range(5):
        place = [rng.uniform(0.1, 0.9) * count for count in size]
        neighbours |= _blob(rng, size, place, radius=rng.uniform(0.06, 0.1) * scale)
    for _ in range(2):
        neighbours |= _tube(rng, size, radius=0.05 * scale)
    image = 0.25 * _smooth_noise(rng, size, sigma=3)
    image[neighbours] += rng.uniform(0.8, 1.1)
    image[organ] = 1 + 0.1 * image[organ]
    image = ndimage.gaussian_filter(image, 1.0) * np.exp(0.3 * _smooth_noise(rng, size, sigma=scale / 3))
    image += rng.normal(0, 0.15, size)
    return (100 * image + 200).astype(np.float32), organ.astype(np.uint8)


def _grid(size: Sequence[int]) -> np.ndarray:
    return np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).astype(float)


def _blob(rng: np.random.Generator, size: Sequence[int], center: Sequence[float], radius: float) -> np.ndarray:
    """An ellipsoid with a wavy surface; the largest component, so that waves leave no crumbs."""
    axes = radius * rng.uniform(0.8, 1.25, len(size))
    shift = _grid(size) - np.reshape(center, (-1, *[1] * len(size)))
    distance = np.sqrt(((shift / np.reshape(axes, (-1, *[1] * len(size)))) ** 2).sum(0))
    blob = distance + 0.18 * _smooth_noise(rng, size, sigma=radius / 2) < 1
    components, count = ndimage.label(blob)
    return blob if count < 2 else components == 1 + np.argmax(np.bincount(components.ravel())[1:])


def _tube(rng: np.random.Generator, size: Sequence[int], radius: float) -> np.ndarray:
    point = np.asarray(size) * rng.uniform(0.2, 0.8, len(size))
    direction = rng.normal(size=len(size))
    direction /= np.linalg.norm(direction)
    shift = _grid(size) - point.reshape(-1, *[1] * len(size))
    along = np.tensordot(direction, shift, axes=1)
    return (shift**2).sum(0) - along**2 < radius**2


def _smooth_noise(rng: np.random.Generator, size: Sequence[int], sigma: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=size), sigma)
    return noise / noise.std()


def _save(folder: Path, kind: str, number: int, volume: np.ndarray) -> str:
    path = folder / kind / f"case_{number:03d}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*SPACING, 1.0])
    affine[:3, 3] = -np.asarray(volume.shape) / 2 * SPACING
    nib.save(nib.Nifti1Image(volume, affine), path)
    return f"{kind}/{path.name}"
