"""Write files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole_file"]


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
