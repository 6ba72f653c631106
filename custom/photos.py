"""Photographs: PNG and JPG files."""

from __future__ import annotations

from monai.data import PILReader

__all__ = ["PhotoReader"]


class PhotoReader(PILReader):
    """MONAI's ``PILReader``."""
