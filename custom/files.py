"""Write files whole or not at all, and read JSON in whichever Unicode it is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["read_json", "whole_file"]


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


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, 16 or 32, with a byte-order mark, as editors on Windows write it, or without.

    Raises:
        ValueError: when it is none.
    """
    return json.loads(path.read_bytes())  # bytes, of which json finds the encoding
