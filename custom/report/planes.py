"""A prediction on three planes as one small picture, without matplotlib, which takes half a second for it."""

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

#: Width and height of a plane, in pixels.
SIZE = 288
#: The longer side of a photograph is drawn as long at most, and as long as a plane at least.
PHOTO = 2 * SIZE
#: A plane is so many times as wide as the structure, and shows at least this share of the slice: where the place is.
AROUND, LEAST = 2.0, 0.5


def plane_picture(image: MetaTensor, label: MetaTensor) -> Image.Image:
    """Draw the contours of structures on the planes through their middle, and on whole photographs in their colors.

    Volumes are drawn axial, coronal and sagittal as in the radiological convention, as far as their headers tell.

    Args:
        image: CH[WD]; of a volume the first channel is drawn. Colors are 0 to 255, grey has any scale.
        label: class indices on the same grid, 1H[WD].
    """
    if label.ndim == 3:
        return _photo(_array(image), _array(label)[0])
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


def _photo(image: np.ndarray, classes: np.ndarray) -> Image.Image:
    """Draw a photograph, CHW and HW."""
    has_colors = len(image) == 3 and bool((image != image[:1]).any())
    return _outlined(image, classes, classes.shape, int(np.clip(max(classes.shape), SIZE, PHOTO)), has_colors)


def _plane(image: np.ndarray, classes: np.ndarray, spacing: Sequence[float]) -> Image.Image:
    """Draw what is around the structures in a plane, CHW and HW, in the middle of a square."""
    box = _box(classes)
    image, classes = image[(slice(None), *box)], classes[box]
    shown = _outlined(image, classes, [n * step for n, step in zip(classes.shape, spacing, strict=True)], SIZE)
    canvas = Image.new("RGB", (SIZE, SIZE))
    canvas.paste(shown, ((SIZE - shown.width) // 2, (SIZE - shown.height) // 2))
    return canvas


def _outlined(
    image: np.ndarray, classes: np.ndarray, extent: Sequence[float], longest: int, has_colors: bool = False
) -> Image.Image:
    """Draw contours on an image, CHW and HW, whose first axis goes to the right and whose second goes down."""
    width, height = (max(1, round(longest * length / max(extent))) for length in extent)
    thinned = (slice(None, None, max(1, size // (2 * longest))) for size in classes.shape)
    image = image[(slice(None), *thinned)]
    pixels = np.clip(image, 0, 255) if has_colors else 255 * windowed(image)
    pixels = np.rint(pixels).astype(np.uint8).transpose(2, 1, 0)
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB")
    shown = np.array(picture.resize((width, height), Image.Resampling.BILINEAR))
    found = np.asarray(Image.fromarray(classes.T.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
    edge = ndimage.minimum_filter(found, 3) != found  # of two classes side by side that of the higher number
    colors = np.array([ImageColor.getrgb(color) for color in COLORS], np.uint8)
    shown[edge] = colors[(found[edge].astype(int) - 1) % len(colors)]
    return Image.fromarray(shown)


def _box(classes: np.ndarray) -> tuple[slice, ...]:
    """The structures with what is around them, all where there are none."""
    if not classes.any():
        return tuple(map(slice, classes.shape))
    box = []
    for first, last, size in zip(*generate_spatial_bounding_box(classes[None]), classes.shape, strict=True):
        length = min(size, round(max(AROUND * (last - first), LEAST * size)))
        start = min(max(0, (first + last - length) // 2), size - length)  # beside the edge all of it is further in
        box.append(slice(start, start + length))
    return tuple(box)
