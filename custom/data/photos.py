"""Photographs as viewers show them, and masks that are pictures as what they hold."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import PILReader
from monai.utils import ensure_tuple
from PIL import Image, ImageFile, ImageOps

from ..utils.errors import UserError

PHOTO_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
#: Modes of Pillow with a channel of opacity.
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")
GREY = ("1", "L", "LA", "La", "I", "F")
#: By how much Pillow multiplies grey values of 2 and 4 bits, which it spreads over 0 to 255.
SPREAD = {"L;2": 85, "L;4": 17}


def is_photo(path: PathLike) -> bool:
    """Say whether a path's ending is that of a photograph."""
    return str(path).lower().endswith(PHOTO_SUFFIXES)


def is_colored(path: Path) -> bool:
    """Say whether a photograph has colors, from its header alone; False where it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.mode not in GREY and not image.mode.startswith("I;16")
    except OSError:
        return False  # whoever reads its pixels names it


class PhotoReader(PILReader):
    """MONAI's ``PILReader``, which leaves out the orientation in EXIF and gives each mode of a file as it is stored.

    Photographs become upright, 0 to 255 whatever their depth, grey or RGB, without opacity. Masks become upright with
    the file's own values: indices of a palette, 0 and 1 where a pixel has one bit.

    Args:
        channels: 3 repeats a grey photograph, 1 reduces one whose three channels are equal; None gives it as it is.
        as_mask: read masks.
    """

    def __init__(self, channels: int | None = None, as_mask: bool = False) -> None:
        super().__init__(converter=_mask if as_mask else _photograph)
        self.channels = channels

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Take pictures, TIFF and WebP too."""
        return all(is_photo(path) for path in ensure_tuple(filename))

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Return WH or WHC, and what is known of it."""
        array, meta = super().get_data(img)
        if self.channels == 3 and array.ndim == 2:
            array, meta["original_channel_dim"] = np.stack([array] * 3, -1), -1
        if self.channels == 1 and array.ndim == 3 and (array == array[..., :1]).all():
            array, meta["original_channel_dim"] = array[..., 0], float("nan")
        return array, meta

    def _get_meta_dict(self, img: Any) -> dict:
        return {"width": img.width, "height": img.height}


def _photograph(image: ImageFile.ImageFile) -> Image.Image:
    _refuse_pages(image)
    # A PNG with 16 bits is I;16, with older Pillow I.
    is_deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if image.mode in ("I", "F") and not is_deep:
        hint = "its scale is not known; save it with 8 or 16 bits"
        raise UserError(f"{_name(image)}: pixels of 32 bits ({image.mode}); {hint}.")
    upright = ImageOps.exif_transpose(image)
    if is_deep:
        return Image.fromarray((np.asarray(upright) / 257).astype(np.float32))  # 65535 becomes 255
    return upright.convert("L" if upright.mode in GREY else "RGB")


def _mask(image: ImageFile.ImageFile) -> Image.Image:
    _refuse_pages(image)
    stored = str(image.tile[0].args) if image.tile else ""
    if "RGB" in stored and ";16" in stored:  # Pillow keeps the upper eight bits alone: of 1, nothing
        raise UserError(f"{_name(image)}: a color mask of 16 bits; save it as one grey channel of 8 bits.")
    name, upright = _name(image), ImageOps.exif_transpose(image)
    if upright.mode == "P":
        return _indices(upright, name)
    if upright.mode in TRANSPARENT:
        color = upright.convert("L" if upright.mode.startswith("L") else "RGB")
        if np.ptp(np.asarray(upright.getchannel("A"))) and not np.ptp(np.asarray(color), axis=(0, 1)).any():
            raise UserError(f"{name}: the mask is in the transparency; save it as one grey channel.")
        return color
    if upright.mode in ("CMYK", "YCbCr", "HSV"):
        return upright.convert("RGB")
    if upright.mode.startswith("I") and upright.getextrema() == (0, 65535):
        return Image.fromarray((np.asarray(upright) / 257).astype(np.float32))  # white in 16 bits
    return upright.point(lambda value: value // SPREAD[stored]) if stored in SPREAD else upright


def _indices(image: Image.Image, name: str) -> Image.Image:
    """Take a palette's indices for classes, unless its colors say that they are none."""
    array = np.asarray(image)
    palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
    colors = {int(index): palette[index].tolist() for index in np.unique(array) if index < len(palette)}
    if all(color in ([0, 0, 0], [255, 255, 255]) for color in colors.values()):
        return image.convert("L")  # black and white mean what they show, whichever comes first
    if any(index and color == [0, 0, 0] for index, color in colors.items()):
        hint = "so its indices are not classes; save the classes as grey values"
        raise UserError(f"{name}: black is not the first color of its palette, {hint}.")
    return Image.fromarray(array)


def _name(image: ImageFile.ImageFile) -> str:
    return os.fsdecode(image.filename)


def _refuse_pages(image: ImageFile.ImageFile) -> None:
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # telephones add small copies to a JPG
    if pages > 1:
        raise UserError(f"{_name(image)}: holds {pages} pictures; save each as a file of its own.")
