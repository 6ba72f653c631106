"""Images that are there twice, byte for byte, under two names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from custom.data.finding import first_names
from custom.data.states import DETACHED, files_of
from custom.utils.errors import UserError
from custom.utils.names import groups

from .assembling import Lists
from .writer import checksum

#: Bytes from the middle of a file, which tell most images of one size apart.
BLOCK = 2**16


def find_copies(images: Mapping[str, Sequence[Path]]) -> list[list[str]]:
    """Find images whose files hold the same bytes.

    Args:
        images: files, or folders of DICOM files, by case; one for each channel.

    Returns:
        Cases that share an image. Only images of one size, and with the same middle, are read in full.
    """
    files = {case: [file for path in paths for file in _with_voxels(path)] for case, paths in images.items()}
    alike = [[case for case, found in files.items() if found]]
    looks: tuple[Callable[[Path], Any], ...] = (lambda file: file.stat().st_size, _middle, checksum)
    for look in looks:
        alike = [
            same for cases in alike for same in groups(cases, key=lambda case: tuple(sorted(map(look, files[case]))))
        ]
    return alike


def _with_voxels(path: Path) -> list[Path]:
    """List the files of an image; none where a header names its voxels in a way that is not understood."""
    files = files_of(path)
    return [] if len(files) == 1 and path.name.lower().endswith(DETACHED) else files


def _middle(file: Path) -> bytes:
    with open(file, "rb") as content:
        content.seek(file.stat().st_size // 2)
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
