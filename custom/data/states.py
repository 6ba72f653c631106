"""See whether the files of a case have changed."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ..utils.files import FILE_NAMES
from .dicom import dicom_files

#: Headers whose voxels are in other files, which they name.
DETACHED = (".mhd", ".nhdr")


def state_of(case: Mapping[str, Any]) -> str:
    """Hash the names, sizes and times of a case's files, wherever they are."""
    files = [file for path in case_paths(case) for file in files_of(Path(path))]
    texts = [f"{file.name} {(found := file.stat()).st_size} {found.st_mtime_ns}\n" for file in files]
    return hashlib.sha256("".join(texts).encode(errors=FILE_NAMES)).hexdigest()


def name_of(case: Mapping[str, Any]) -> str:
    """Name a case by its files."""
    return " + ".join(case_paths(case))


def case_paths(case: Mapping[str, Any]) -> list[str]:
    """List a case's images and label, a DICOM series by its folder; alike from wherever the program is started."""
    return [os.path.abspath(file) for key in ("image", "label") if key in case for file in ensure_tuple(case[key])]


def files_of(path: Path) -> list[Path]:
    """List a file, with the voxels that its header names, or the DICOM files in a folder."""
    if path.is_dir():
        return dicom_files(path)
    if path.name.lower().endswith(DETACHED) and path.is_file():
        words = {word.strip() for word in re.split(r"[=:\n]", path.read_text(errors="replace"))} - {""}
        return [path, *sorted(file for word in words if (file := path.parent / word).is_file())]
    return [path] if path.is_file() else []
