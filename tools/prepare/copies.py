"""Images that are there twice, byte for byte, under two names."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.data.states import DETACHED, files_of
from custom.utils.errors import UserError
from custom.utils.files import sha256_of
from custom.utils.names import first_names, groups

from .assembling import Lists

#: Bytes from the middle of a file, which tell most images of one size apart.
BLOCK = 2**16
#: Where a fingerprint looks into a file besides: the middle may be the edge of a slice, all of it background.
PLACES = (0.37, 0.5, 0.61)


def find_copies(images: Mapping[str, Sequence[Path]]) -> list[list[str]]:
    """Find images whose files hold the same bytes, which gzip may have packed in different ways.

    Args:
        images: files, or folders of DICOM files, by case; one for each channel.

    Returns:
        Cases that share an image. Only images of one size and checksum, or with the same middle, are read in full.
    """
    files = {case: [file for path in paths for file in _with_voxels(path)] for case, paths in images.items()}

    def split(cases: Sequence[str], look: Callable[[Path], Any]) -> list[list[str]]:
        return groups(cases, key=lambda case: tuple(sorted(map(look, files[case]))))

    found = []
    for cases in split([case for case, parts in files.items() if parts], _size):
        both = len({_is_packed(file) for case in cases for file in files[case]}) > 1
        for alike in split(cases, _checksum if both else _glance):
            found += split(alike, _content)
    return found


def quick_fingerprint(paths: Sequence[Path]) -> str | None:
    """Hash the sizes of an image's files, whatever their names, and some bytes of each; None where one is not readable.

    Args:
        paths: files, or folders of DICOM files.
    """
    files = [file for path in paths for file in files_of(path)]
    try:
        parts = sorted(_glimpse(file) for file in files)
    except OSError:  # whoever reads all of it names it
        return None
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _glimpse(file: Path) -> bytes:
    """Hash a file's size and blocks of it."""
    blocks = b"".join(_block(file, place) for place in PLACES)
    return hashlib.sha256(str(file.stat().st_size).encode() + blocks).digest()


def _is_packed(file: Path) -> bool:
    return file.name.lower().endswith(".gz")


def _end(file: Path) -> bytes:
    """Read how a gzip file ends: with a CRC-32 of its content and the size of that, four bytes each."""
    with open(file, "rb") as packed:
        packed.seek(max(0, file.stat().st_size - 8))
        return packed.read().rjust(8, b"\0")


def _size(file: Path) -> int:
    return int.from_bytes(_end(file)[4:], "little") if _is_packed(file) else file.stat().st_size % 2**32


def _checksum(file: Path) -> int:
    return int.from_bytes(_end(file)[:4], "little") if _is_packed(file) else zlib.crc32(file.read_bytes())


def _glance(file: Path) -> Any:
    return _checksum(file) if _is_packed(file) else _block(file)


def _content(file: Path) -> str:
    try:
        with gzip.open(file) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except (OSError, EOFError, zlib.error):  # not packed, or damaged, which whoever reads it tells
        return sha256_of(file)


def _with_voxels(path: Path) -> list[Path]:
    """List the files of an image; none where a header names its voxels in a way that is not understood."""
    files = files_of(path)
    return [] if len(files) == 1 and path.name.lower().endswith(DETACHED) else files


def _block(file: Path, place: float = 0.5) -> bytes:
    """Read a block that begins in the middle of a file, or at another share of it."""
    with open(file, "rb") as content:
        content.seek(int(file.stat().st_size * place))
        return content.read(BLOCK)


def refuse_copies_apart(
    copies: Sequence[Sequence[str]], images: Mapping[str, Sequence[Path]], lists: Mapping[str, Lists]
) -> None:
    """Report copies, and refuse those with one in ``training`` or ``unlabeled`` and the other held out.

    Args:
        copies: see :func:`find_copies`.
        images: files by case.
        lists: names of cases by list, of each data list.

    Raises:
        UserError: names them; a network would be scored on what it was trained with.
    """
    named = [(set(cases), " and ".join(str(images[case][0]) for case in cases)) for cases in copies]
    if named:
        print(f"the same image under several names: {first_names(text for _, text in named)}")
    problems = []
    for cases, text in named:
        for file, content in lists.items():
            places = [name for name, members in content.items() if cases & set(members)]
            if len({"training" if name == "unlabeled" else name for name in places}) > 1:
                problems.append(f"{text}: in {' and '.join(places)} of {file}")
    if problems:
        hint = "take one of each away, or give a --patient_pattern by which both are of one patient"
        raise UserError(
            f"the same image would be in lists that must not share any, nothing was written; {hint}:", problems
        )
