"""How a user's scans are called, and whose they are."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from custom.utils.errors import UserError
from custom.utils.names import case_names, first_names, patient_name

from .pairing import OwnScan
from .splitting import names_before


def named_scans(scans: Mapping[Path, OwnScan], source: Path, folder: Path) -> dict[str, Path]:
    """Name the scans; one that was prepared before keeps its name, whatever was added since."""
    before, named = names_before(folder), {name: Path(file) for file, name in case_names(scans).items()}
    known = {name: before.get(os.path.relpath(file, source), name) for name, file in named.items()}
    return {known[name]: file for name, file in named.items()} if len(set(known.values())) == len(named) else named


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
