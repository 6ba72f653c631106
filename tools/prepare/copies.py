"""Images that are there twice, byte for byte, under two names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from custom.data.finding import first_names
from custom.data.states import files_of
from custom.utils.errors import UserError
from custom.utils.names import groups

from .assembling import Lists
from .writer import checksum


def find_copies(images: Iterable[Path]) -> list[list[Path]]:
    """Collect files, or folders of DICOM files, that hold the same bytes; only those of one size are read."""
    alike = groups(images, key=_sizes)
    return [same for paths in alike for same in groups(paths, key=_content)]


def _sizes(path: Path) -> tuple[int, ...]:
    return tuple(sorted(file.stat().st_size for file in files_of(path)))


def _content(path: Path) -> tuple[str, ...]:
    return tuple(sorted(checksum(file) for file in files_of(path)))


def refuse_copies_apart(
    copies: Sequence[Sequence[Path]], names: Mapping[Path, str], lists: Mapping[str, Lists]
) -> None:
    """Tell of copies, and refuse those with one in ``training`` or ``unlabeled`` and the other held out.

    Args:
        copies: see :func:`find_copies`.
        names: of the case that each image is of.
        lists: names of cases by list, of each data list.

    Raises:
        UserError: names them; a network would be scored on what it was trained with.
    """
    if copies:
        print(f"the same image under several names: {first_names(' and '.join(map(str, same)) for same in copies)}")
    problems = []
    for same in copies:
        cases = {names[path] for path in same}
        for file, content in lists.items():
            places = [name for name, members in content.items() if cases & set(members)]
            if len({"training" if name == "unlabeled" else name for name in places}) > 1:
                problems.append(f"{' and '.join(map(str, same))}: in {' and '.join(places)} of {file}")
    if problems:
        hint = "take one of each away, or give a --patient_pattern by which both are of one patient"
        raise UserError(
            f"the same image would be in lists that must not share any, nothing was written; {hint}:", problems
        )
