"""Compare compressed voxels with the checksum behind them, which nibabel and ITK pass over."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..utils.errors import UserError

__all__ = ["unzip"]

_BLOCK = 1 << 20


def unzip(voxels: ArrayProxy, path: str) -> np.ndarray:
    """Read voxels as nibabel would, and on to the end of the file, where gzip compares its checksum.

    Args:
        voxels: of a NIfTI file, as nibabel has found them.
        path: of that file, whose name ends in ``.gz``.

    Raises:
        UserError: when the checksum is missing or another.
    """
    place = (voxels.shape, voxels.dtype, voxels.offset, voxels.slope, voxels.inter)
    with gzip.open(path) as stream:
        array = np.asanyarray(ArrayProxy(stream, place))
        try:
            while stream.read(_BLOCK):
                pass
        except (OSError, EOFError, zlib.error) as error:
            raise damaged(path, str(error)) from error
    return array


def damaged(path: str, reason: str) -> UserError:
    """Say that a file does not hold what was written to it."""
    return UserError(f"{path}: damaged, its voxels do not match its checksum ({reason}); copy or export it again.")
