"""See whether the files of a case have changed."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
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
    return _hash(_describe(file, file.name) for file in files)


def name_of(case: Mapping[str, Any]) -> str:
    """Name a case by its files."""
    return " + ".join(case_paths(case))


def case_paths(case: Mapping[str, Any]) -> list[str]:
    """List a case's images and label, a DICOM series by its folder; alike from wherever the program is started."""
    return [os.path.abspath(file) for key in ("image", "label") if key in case for file in ensure_tuple(case[key])]


def fingerprint(parts: Iterable[str]) -> str:
    """Hash names, sizes and times of files, so that another hash means that one of them may have changed.

    Args:
        parts: paths, see :func:`files_of`; or other texts, which count as they are.
    """
    return _hash(text for part in parts for text in (part, *(_describe(file, file) for file in files_of(Path(part)))))


def _describe(file: Path, name: object) -> str:
    found = file.stat()
    return f"{name} {found.st_size} {found.st_mtime_ns}"


def _hash(texts: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{text}\n" for text in texts).encode(errors=FILE_NAMES)).hexdigest()


def files_of(path: Path) -> list[Path]:
    """List a file, with the voxels that its header names, or the DICOM files in a folder."""
    if path.is_dir():
        return dicom_files(path)
    if path.name.lower().endswith(DETACHED) and path.is_file():
        words = {word.strip() for word in re.split(r"[=:\n]", path.read_text(errors="replace"))} - {""}
        return [path, *sorted(file for word in words if (file := path.parent / word).is_file())]
    return [path] if path.is_file() else []
