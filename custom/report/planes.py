"""A prediction on three planes as one small picture, without matplotlib, which takes half a second for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from monai.transforms.utils import generate_spatial_bounding_box
from PIL import Image, ImageColor
from scipy import ndimage

from .drawing import COLORS, windowed

__all__ = ["plane_picture"]

#: Width and height of a plane, in pixels.
SIZE = 288
#: Each plane shows the structure with so much around it, as a share of its extent, and at least so many voxels.
AROUND, AT_LEAST = 0.5, 8


def plane_picture(image: MetaTensor, label: MetaTensor) -> Image.Image:
    """Draw the contours of structures on the planes through their middle, and on photographs as they are.

    Volumes are drawn axial, coronal and sagittal as in the radiological convention, as far as their headers tell.

    Args:
        image: CH[WD]; of a volume the first channel is drawn.
        label: class indices on the same grid, 1H[WD].
    """
    if label.ndim == 3:
        return _plane(_array(image), _array(label)[0], (1.0, 1.0))
    turn: Callable[[Any], Any] = Orientation(axcodes="LAS", labels=None)
    image, label = turn(image[:1]), turn(label)
    intensity, classes, spacing = _array(image), _array(label)[0], affine_to_spacing(label.affine).tolist()
    planes = []
    for axis in (2, 1, 0):
        place = _middle(classes, axis)
        steps = [step for other, step in enumerate(spacing) if other != axis]
        planes.append(_plane(intensity.take(place, axis + 1)[..., ::-1], classes.take(place, axis)[:, ::-1], steps))
    return Image.fromarray(np.concatenate([np.asarray(plane) for plane in planes], axis=1))


def _array(array: MetaTensor) -> np.ndarray:
    return array.as_tensor().detach().cpu().numpy()


def _middle(classes: np.ndarray, axis: int) -> int:
    """The plane that halves the structures, or the volume where there are none."""
    counts = (classes > 0).sum(tuple(other for other in range(classes.ndim) if other != axis))
    return int(np.searchsorted(counts.cumsum(), counts.sum() / 2)) if counts.any() else len(counts) // 2


def _plane(image: np.ndarray, classes: np.ndarray, spacing: Sequence[float]) -> Image.Image:
    """Draw a plane, CHW and HW, whose first axis goes to the right and whose second goes down."""
    box = _box(classes)
    image, classes = image[(slice(None), *box)], classes[box]
    image = windowed(image[(slice(None), *(slice(None, None, max(1, size // (2 * SIZE))) for size in classes.shape))])
    extent = np.array(classes.shape) * spacing
    width, height = (max(1, round(SIZE * length / extent.max())) for length in extent)
    pixels = (255 * image.transpose(2, 1, 0)).astype(np.uint8)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB")
    shown = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    found = np.asarray(Image.fromarray(classes.T.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    edge = ndimage.minimum_filter(found, 3) != found  # of two classes side by side that of the higher number
    colors = np.array([ImageColor.getrgb(color) for color in COLORS], np.uint8)
    shown[edge] = colors[(found[edge].astype(int) - 1) % len(colors)]
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(Image.fromarray(shown), ((SIZE - width) // 2, (SIZE - height) // 2))
    return canvas


def _box(classes: np.ndarray) -> tuple[slice, ...]:
    """The structures with what is around them, all where there are none."""
    if not classes.any():
        return tuple(map(slice, classes.shape))
    start, end = generate_spatial_bounding_box(classes[None])
    margins = [max(AT_LEAST, round(AROUND * (b - a))) for a, b in zip(start, end, strict=True)]
    return tuple(
        slice(max(0, a - margin), min(size, b + margin))
        for a, b, margin, size in zip(start, end, margins, classes.shape, strict=True)
    )
