"""How a user's scans are called, and whose they are."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path

from custom.utils.errors import UserError
from custom.utils.names import case_names, first_names, patient_name, same_name

from .pairing import OwnScan
from .splitting import contents_before, names_before


def named_scans(
    scans: Mapping[Path, OwnScan], source: Path, folder: Path, contents: Mapping[Path, str | None]
) -> dict[str, Path]:
    """Name the scans; one that was prepared before keeps its name, whatever was added, and if its file was renamed.

    Args:
        scans: what was found.
        source: folder of scans.
        folder: of the data set, maybe prepared before.
        contents: fingerprints, see :func:`tools.prepare.copies.quick_fingerprint`.
    """
    before, called = names_before(folder), {Path(file): name for file, name in case_names(scans).items()}
    by_path = {file: name for file in called if (name := before.get(os.path.relpath(file, source))) is not None}
    same = _same_scans(contents, contents_before(folder))
    renamed = {file: name for file, name in same.items() if by_path.get(file) != name}
    known = {file: name for file, name in by_path.items() if name not in renamed.values()} | same
    told = [f"{called[file]} is {name}" for file, name in renamed.items() if called[file] != name]
    if told:
        print(f"{len(told)} scan(s) were renamed since, and keep their names here: {first_names(told)}")
    named, places = _without_doubles(called, known), {name: k for k, name in enumerate(before.values())}
    return dict(sorted(named.items(), key=lambda item: places.get(item[0], len(places))))  # lists keep their order


def _same_scans(contents: Mapping[Path, str | None], before: Mapping[str, str]) -> dict[Path, str]:
    """Find the earlier name of scans by what they hold, where no other scan, now or then, looks the same."""
    now, then = Counter(contents.values()), Counter(before.values())
    names = {text: name for name, text in before.items() if then[text] == 1}
    return {file: names[text] for file, text in contents.items() if text in names and now[text] == 1}


def _without_doubles(called: Mapping[Path, str], known: Mapping[Path, str]) -> dict[str, Path]:
    """Give each scan the name it is known by, else that of its file; a number behind it where another has that."""
    taken = {same_name(name) for name in known.values()}
    named = {}
    for file, name in called.items():
        if file not in known and same_name(name) in taken:
            others = taken | set(map(same_name, called.values()))
            name = next(longer for k in count(2) if same_name(longer := f"{name}_{k}") not in others)
            taken.add(same_name(name))
        named[known.get(file, name)] = file
    return named


def bids_pattern(places: Iterable[Path]) -> str | None:
    """Give the pattern of BIDS's subjects where every scan is of one, so that their sessions stay together."""
    is_bids = [bool(re.match(r"sub-[a-zA-Z0-9]+", place.name)) for place in places]
    return r"sub-[a-zA-Z0-9]+" if is_bids and all(is_bids) else None


def find_patients(places: Mapping[str, Path], pattern: str | None, splits: bool) -> dict[str, str]:
    """Find the patient of every scan, by its path below the folder of scans, which may itself be the only scan."""
    patients = {name: patient_name(path, pattern) for name, path in places.items()}
    found = {
        name: any(match.group() for match in re.finditer(pattern or "", str(path))) for name, path in places.items()
    }
    alone = [name for name in places if pattern and not found[name]]
    if places and len(alone) == len(places):
        example = next(iter(places.values()))
        raise UserError(f"--patient_pattern {pattern} finds no patient in any name, such as {example}.")
    if pattern is None and splits:
        _tell_shared_beginnings(list(places))
    if alone:
        print(f"--patient_pattern finds no patient in {len(alone)} scan(s), each then its own: {first_names(alone)}")
    return patients


def _tell_shared_beginnings(names: Sequence[str]) -> None:
    """Say that scans may be of one patient where their names begin alike, up to a number."""
    beginnings: dict[str, list[str]] = {}
    for name in names:
        match = re.match(r"(\D*\d+)\D", name)
        beginnings.setdefault(match[1] if match else name, []).append(name)
    shared = [found for found in beginnings.values() if len(found) > 1]
    if shared and len(beginnings) > 1:
        print(
            f"{first_names(shared[0])} count as patients of their own, and may come into different lists; if they are "
            "of one patient, say how to find it, such as --patient_pattern 'patient\\d+'"
        )
