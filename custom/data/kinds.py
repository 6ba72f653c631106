"""What a file is where its name says something else, told before a reader fails at it, or waits for ever."""

import re
from pathlib import Path

from ..utils.errors import UserError
from .geometry import text_header

GZIP = b"\x1f\x8b"
#: How NIfTI files begin: with the size of their header, 348 or 540, in either order of bytes.
NIFTI = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
#: What the header of an NRRD file says of an axis along which several volumes lie.
LAYERS = re.compile(rb"^kinds:.*\blist\b", re.MULTILINE)


def refuse_other_kind(path: Path) -> None:
    """Look at the first bytes of a file; what does not exist, and folders, pass.

    Raises:
        UserError: when it is no regular file; when it is compressed and its name does not say so, or the other way
            round; and when an NRRD file holds several volumes.
    """
    if not path.exists() or path.is_dir():
        return
    if not path.is_file():
        raise UserError(f"{path}: is a pipe, a socket or a device; expected a file.")
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:  # the reader says why it cannot be read
        return
    name = path.name.lower()
    if start.startswith(GZIP) and start[128:] != b"DICM" and not name.endswith(".gz"):
        hint = f"rename it to {path.name}.gz" if name.endswith(".nii") else "unpack it, such as with gunzip"
        raise UserError(f"{path}: is compressed with gzip, but its name does not end in .gz; {hint}.")
    if name.endswith((".nrrd", ".nhdr")) and LAYERS.search(text_header(str(path)).partition(b"\n\n")[0]):
        hint = "of a segmentation whose segments overlap, export one label map"
        raise UserError(f"{path}: holds a list of volumes, layers or directions, expected one volume; {hint}.")
    if start.startswith(NIFTI) and name.endswith(".gz"):
        raise UserError(f"{path}: is not compressed, but its name ends in .gz; rename it to {path.name[:-3]}.")
