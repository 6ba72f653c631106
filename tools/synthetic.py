"""Synthetic volumes for the demo and the tests: an organ that one can learn to find, but not by thresholding alone.

A bright blob with a wavy surface lies among neighbours of the same brightness, which are smaller or tubular, on a
textured background; everything is blurred, shaded by a bias field and noisy. For the short-axis bundle there are hearts
that beat, whose ejection fractions are known in closed form.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image
from scipy import ndimage

#: mm per axis of the written volumes.
SPACING = (1.25, 1.25, 1.25)
#: mm per axis of the written short-axis volumes.
HEART_SPACING = (1.4, 1.4, 8.0)


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

    def cases(number: int, _: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        yield f"case_{number:03d}", *make_case(np.random.default_rng([seed, number]), size)

    return _write(Path(folder) / name, ["background", "organ"], counts, cases, SPACING)


def write_hearts(
    folder: str | Path,
    counts: dict[str, int],
    size: Sequence[int] = (64, 56, 6),
    seed: int = 0,
    name: str = "synthetic.json",
    variety: float = 0.0,
    labeled_variety: float = 0.0,
) -> Path:
    """Write a dataset folder as :func:`write_dataset`, with short-axis hearts; ``counts`` are patients.

    A patient has two volumes, named as in ACDC: ``patient001_frame01`` at the end of diastole, ``patient001_frame02``
    at the end of systole. ``variety``, see :func:`make_heart`, is drawn for each between 0 and the number given, those
    in ``training`` between 0 and ``labeled_variety``.
    """

    def cases(number: int, list_name: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        rng = np.random.default_rng([seed, number])
        most = labeled_variety if list_name == "training" else variety
        image, label, _ = make_heart(rng, size, frames=2, variety=rng.uniform(0, most))
        for frame in range(2):
            yield f"patient{number + 1:03d}_frame{frame + 1:02d}", image[..., frame], label[..., frame]

    names = ["background", "right ventricle", "myocardium", "left ventricle"]
    return _write(Path(folder) / name, names, counts, cases, HEART_SPACING)


def write_photos(
    folder: str | Path,
    counts: dict[str, int],
    size: Sequence[int] = (64, 56),
    seed: int = 0,
    name: str = "synthetic.json",
) -> Path:
    """Write a dataset folder as :func:`write_dataset`, with JPG photographs of moles and PNG masks (0 and 255)."""

    def cases(number: int, _: str) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        yield f"photo_{number:03d}", *make_photo(np.random.default_rng([seed, number]), size)

    return _write(Path(folder) / name, ["background", "lesion"], counts, cases, None)


def make_photo(rng: np.random.Generator, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a photograph of skin (uint8, HW3) with one mole, and the mole's mask (uint8, HW)."""
    scale = min(size)
    mole = _blob(rng, size, [count * rng.uniform(0.4, 0.6) for count in size], radius=rng.uniform(0.18, 0.28) * scale)
    skin, brown = rng.uniform([200, 150, 120], [235, 185, 160]), rng.uniform([90, 50, 30], [150, 95, 70])
    shade = 1 + 0.06 * _smooth_noise(rng, size, sigma=scale / 6)
    edge = ndimage.gaussian_filter(mole.astype(float), 1.0)[..., None]
    image = (skin * (1 - edge) + brown * edge) * shade[..., None] + rng.normal(0, 6, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), mole.astype(np.uint8)


def make_heart(
    rng: np.random.Generator, size: Sequence[int], frames: int, variety: float = 0.0
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Draw a beating heart in short axis, from the end of diastole to the end of systole and back.

    The ventricles are ellipsoids that contract in plane, so a cavity's volume goes with its radius squared; the
    myocardium around the left one keeps its volume. Vessels around the heart are as bright as blood.

    Args:
        rng: draws place, size, contraction and noise.
        size: voxels per axis, HWD.
        frames: T, at least 2.
        variety: in [0, 1], how far place, direction, size, contrast and shading may be from those of a typical heart.

    Returns:
        Image, HWDT, float32; label, HWDT, uint8: 1 right ventricle, 2 myocardium, 3 left ventricle; and the ejection
        fraction of each ventricle in [0, 1], by class name.
    """

    def spread(share: float) -> float:
        return variety * share * rng.uniform(-1, 1)

    scale = min(size[:2])
    center = [(0.42 + spread(0.1)) * size[0], (0.5 + spread(0.1)) * size[1]] + rng.uniform(-0.02, 0.02, 2) * scale
    angle = np.radians(spread(70))
    left, right = (0.14 + spread(0.045)) * scale, (0.12 + spread(0.035)) * scale
    wall = left * (1.5 + spread(0.3))
    apart = np.array([np.cos(angle), np.sin(angle)]) * (wall + 0.8 * right)
    brightness = np.array([0.25 + spread(0.2), 1 + spread(0.2), 0.45 + spread(0.25), 1.0])
    shade = np.exp(spread(0.3) * _smooth_noise(rng, [*size[:2], 1], sigma=scale / 3))
    contraction = {"left_ventricle": rng.uniform(0.2, 0.35), "right_ventricle": rng.uniform(0.15, 0.3)}
    vessels = _vessels(rng, size, center)
    texture = 0.15 * _smooth_noise(rng, size, sigma=3)
    images, labels = [], []
    for frame in range(frames):
        beat = np.sin(np.pi * frame / frames) if frames > 2 else frame  # 0 at the end of diastole, 1 of systole
        inner = left * (1 - contraction["left_ventricle"] * beat)
        outer = np.sqrt(wall**2 - left**2 + inner**2)
        label = np.zeros(size, np.uint8)
        label[_ellipsoid(size, center + apart, right * (1 - contraction["right_ventricle"] * beat))] = 1
        label[_ellipsoid(size, center, outer)] = 2
        label[_ellipsoid(size, center, inner)] = 3
        image = brightness[np.where(vessels & (label == 0), 3, label)]
        image = ndimage.gaussian_filter(image + texture, [0.7, 0.7, 0]) * shade + rng.normal(0, 0.08, size)
        images.append(100 * image + 200)
        labels.append(label)
    fractions = {name: 1 - (1 - share) ** 2 for name, share in contraction.items()}
    return np.stack(images, -1).astype(np.float32), np.stack(labels, -1), fractions


def _vessels(rng: np.random.Generator, size: Sequence[int], center: np.ndarray) -> np.ndarray:
    """Four tubes across the slices, around the heart."""
    x, y, _ = _grid(size)
    vessels = np.zeros(size, bool)
    for angle, distance, radius in zip(
        rng.uniform(0, 2 * np.pi, 4), rng.uniform(0.42, 0.5, 4), rng.uniform(0.04, 0.09, 4), strict=True
    ):
        shift = distance * min(size[:2]) * np.array([np.cos(angle), np.sin(angle)])
        vessels |= np.hypot(x - center[0] - shift[0], y - center[1] - shift[1]) < radius * min(size[:2])
    return vessels


def _ellipsoid(size: Sequence[int], center: np.ndarray, radius: float) -> np.ndarray:
    """Round in plane; 90 % of the slices are its long axis."""
    x, y, z = _grid(size)
    long_axis = 0.45 * size[2]
    return ((x - center[0]) ** 2 + (y - center[1]) ** 2) / radius**2 + ((z - (size[2] - 1) / 2) / long_axis) ** 2 < 1


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


def _write(
    path: Path,
    labels: Sequence[str],
    counts: dict[str, int],
    cases: Callable[[int, str], Iterable[tuple[str, np.ndarray, np.ndarray]]],
    spacing: Sequence[float] | None,
) -> Path:
    """Write a data list and its files; ``cases`` gives name, image and label of each scan of a patient in a list."""
    content: dict = {
        "name": "Synthetic",
        "modality": {"0": "synthetic"},
        "labels": {str(index): label for index, label in enumerate(labels)},
    }
    numbers = iter(range(sum(counts.values())))
    for list_name, count in counts.items():
        content[list_name] = []
        for number in (next(numbers) for _ in range(count)):
            for name, image, label in cases(number, list_name):
                case = {"image": _save(path.parent / "images" / name, image, spacing)}
                if list_name != "unlabeled":
                    case["label"] = _save(path.parent / "labels" / name, label, spacing)
                content[list_name].append(case)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def _save(stem: Path, volume: np.ndarray, spacing: Sequence[float] | None) -> str:
    """Write a volume with its centre at the origin, or a photograph; return its path relative to the dataset folder."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    if spacing is None:
        path = stem.with_name(stem.name + (".jpg" if volume.ndim == 3 else ".png"))
        Image.fromarray(volume if volume.ndim == 3 else volume * 255).save(path)
        return f"{path.parent.name}/{path.name}"
    path = stem.with_name(stem.name + ".nii.gz")
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -np.asarray(volume.shape[:3]) / 2 * spacing
    nib.save(nib.Nifti1Image(volume, affine), path)
    return f"{path.parent.name}/{path.name}"
