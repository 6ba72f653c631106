"""Compare compressed voxels with the checksum behind them, which nibabel and ITK pass over."""

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
from nibabel.arrayproxy import ArrayProxy

from ..utils.errors import UserError
from .geometry import text_header

_BLOCK = 1 << 20
#: Of a MetaImage's header: that its voxels are compressed, and in which file they are.
_COMPRESSED = re.compile(rb"^CompressedData[ \t]*=[ \t]*True", re.MULTILINE | re.IGNORECASE)
_VOXELS = re.compile(rb"^ElementDataFile[ \t]*=[ \t]*(.*?)[ \t\r]*\n", re.MULTILINE)


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


def check_metaimage(path: str) -> None:
    """Decompress the voxels of a MetaImage file once more: where a byte is another, ITK says nothing.

    Args:
        path: of the file, or of the header beside the voxels; other files, and voxels that are not compressed, pass.

    Raises:
        UserError: when the checksum is another; ITK itself refuses a file that was cut off.
    """
    if not path.lower().endswith((".mha", ".mhd")):
        return
    header = text_header(path)
    place = _VOXELS.search(header)
    if place is None or _COMPRESSED.search(header[: place.end()]) is None:
        return
    is_inside = place[1].upper() == b"LOCAL"
    voxels = Path(path) if is_inside else Path(path).parent / place[1].decode()
    decompressor = zlib.decompressobj()
    with open(voxels, "rb") as file:
        file.seek(place.end() if is_inside else 0)
        try:
            while not decompressor.eof and (block := file.read(_BLOCK)):
                decompressor.decompress(block)
        except zlib.error as error:
            raise damaged(path, str(error)) from error


def damaged(path: str, reason: str) -> UserError:
    """Say that a file does not hold what was written to it."""
    return UserError(f"{path}: damaged, its voxels do not match its checksum ({reason}); copy or export it again.")
