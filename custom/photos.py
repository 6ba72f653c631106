"""Photographs: PNG and JPG files."""

from __future__ import annotations

from monai.data import PILReader

__all__ = ["PHOTO_ENDINGS", "PhotoReader"]

PHOTO_ENDINGS = (".png", ".jpg", ".jpeg")


class PhotoReader(PILReader):
    """MONAI's ``PILReader``."""
