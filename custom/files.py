"""Write files whole or not at all, and see whether they have changed."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["fingerprint", "whole_file"]

#: Headers whose voxels are in other files, which they name.
DETACHED = (".mhd", ".nhdr")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a place to write to; what is there at the end becomes ``path`` in one step.

    After an error ``path`` is as it was. The place ends as ``path`` does, for writers that go by the ending.

    Args:
        path: the file; its folder is created when missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".part-{path.name}")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())  # a machine that dies leaves the old file or the whole new one
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def fingerprint(parts: Iterable[str]) -> str:
    """Hash names, sizes and times of files, so that another hash means that one of them may have changed.

    Args:
        parts: paths of files, which count with the voxels that their headers name; of folders, which count as all the
            files in them; or other texts, which count as they are.
    """
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
        for file in _files_of(Path(part)):
            found = file.stat()
            digest.update(f"{file} {found.st_size} {found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.name.lower().endswith(DETACHED) and path.is_file():
        words = {word.strip() for word in re.split(r"[=:\n]", path.read_text(errors="replace"))} - {""}
        return [path, *sorted(file for word in words if (file := path.parent / word).is_file())]
    return [path] if path.is_file() else []
