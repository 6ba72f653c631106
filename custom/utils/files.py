"""Write files whole or not at all, and read JSON in whichever Unicode it is."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .errors import UserError

#: How texts with names of files are encoded: in an ASCII locale Python keeps the other bytes of a name this way.
FILE_NAMES = "surrogateescape"


def refuse_unwritable(**folders: str | Sequence[str] | None) -> None:
    """Say which folders could not be written to, before anything is computed; they need not exist yet.

    Args:
        folders: by the flag that says where, one or several; None for those that are not wanted.

    Raises:
        UserError: names them.
    """
    problems = []
    for flag, given in folders.items():
        for folder in map(Path, [given] if isinstance(given, str) else given or ()):
            there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.exists(path))
            if not there.is_dir():
                problems.append(f"{folder}: {there} is a file, not a folder; choose another --{flag}.")
            elif (reason := _refusal(there)) is not None:
                problems.append(f"{folder}: {there} is not writable ({reason}); choose another --{flag}.")
    if problems:
        raise UserError("there is no place for the results, nothing was computed:", problems)


def _refusal(folder: Path) -> str | None:
    """Try to write, and give the system's reason why not; permissions do not tell of /proc, or of a server's rules."""
    try:
        with TemporaryDirectory(dir=folder, prefix=".part-"):
            return None
    except OSError as error:
        return error.strerror


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
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
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # writers do not say for which file the disk was full
        raise


@contextmanager
def prediction_file(path: Path) -> Iterator[Path]:
    """:func:`atomic_write` for what is predicted.

    Raises:
        UserError: when the file cannot be written.
    """
    try:
        with atomic_write(path) as part:
            yield part
    except (OSError, RuntimeError) as error:  # MONAI's, which quotes the writer's error last
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{path}: cannot be written ({reason}); files that were complete are kept.") from error


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=indent) + "\n", encoding="utf-8")


def sha256_of(path: str | Path) -> str:
    """Hash what a file holds."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON file in UTF-8, 16 or 32, with a byte-order mark, as editors on Windows write it, or without.

    Raises:
        ValueError: when it is none.
    """
    return json.loads(path.read_bytes())  # bytes, of which json finds the encoding
