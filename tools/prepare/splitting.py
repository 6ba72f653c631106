"""Which patients are for training, validation and test: the same ones when others are added."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from custom.data.datalist import read_lists
from custom.utils.errors import UserError
from custom.utils.names import case_file, file_stem

__all__ = ["fold_lists", "split_patients", "trained_before", "without_held_out"]


def trained_before(folder: Path, patients: Mapping[str, str]) -> set[str]:
    """Patients whose scans an earlier preparation of this folder has listed for training, labeled or not."""
    datalist = folder / "datalist.json"
    lists = read_lists(datalist) if datalist.is_file() else {}
    names = {_stem(case) for key in ("training", "unlabeled") for case in lists.get(key, ())}
    return {patients[name] for name in names if name in patients}


def _stem(case: Mapping[str, Any]) -> str:
    """Find the name under which a case was prepared."""
    return file_stem(case_file(ensure_tuple(case["image"])))


def split_patients(
    names: Sequence[str],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    before: Collection[str] = (),
) -> dict[str, list[str]]:
    """Assign whole patients to lists, each by itself, so that none moves when others are added."""
    if any(value < 0 for value in fractions.values()) or sum(fractions.values()) >= 1:
        raise UserError(f"validation and test must be fractions that leave some for training, got {dict(fractions)}.")

    def count(seed: int) -> dict[str, list[str]]:
        lists: dict[str, list[str]] = {"training": [], **{key: [] for key in fractions}}
        for patient in sorted({patients[name] for name in names}):
            lists["training" if patient in before else _list_of(patient, seed, **fractions)].append(patient)
        return lists

    lists = count(seed)
    number = sum(map(len, lists.values()))
    wanted = {key: max(1, round(fraction * number)) for key, fraction in fractions.items() if fraction > 0}
    empty = [f"--{key} {fractions[key]:g}" for key in wanted if not lists[key]]
    if empty or (wanted and not lists["training"]):
        better = (s for s in range(seed + 1, seed + 1000) if {key: len(count(s)[key]) for key in wanted} == wanted)
        found = None if sum(wanted.values()) >= number else next(better, None)
        sizes = " and ".join(f"{size} for {key}" for key, size in wanted.items())
        hint = "" if found is None else f"; with --seed {found} there are {sizes}"
        what = f"{' and '.join(empty)} gives none" if empty else "nothing is left for training"
        raise UserError(f"{what} of {number} labeled patient(s) with --seed {seed}; give other fractions{hint}.")
    if wanted:
        sizes = ", ".join(f"{len(lists[key])} {key} ({fractions[key]:g})" for key in wanted)
        print(f"{number} labeled patient(s): {len(lists['training'])} training, {sizes}")
    return {key: [name for name in names if patients[name] in members] for key, members in lists.items()}


def _list_of(patient: str, seed: int, validation: float, test: float) -> str:
    """Choose a patient's list by a hash: the lowest are for validation, the highest for test."""
    place = _place(patient, seed)
    return "validation" if place < validation else "test" if place >= 1 - test else "training"


def _place(patient: str, seed: int) -> float:
    """A number in [0, 1) that follows from the patient and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8], "big") / 2**64


def without_held_out(lists: Mapping[str, Sequence[str]], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Take unlabeled scans of patients who are kept for validation or test out of the lists."""
    held_out = {patients[name] for key in ("validation", "test") for name in lists[key]}
    kept = [name for name in lists["unlabeled"] if patients[name] not in held_out]
    return {key: list(names) for key, names in lists.items()} | {"unlabeled": kept}


def fold_lists(
    lists: Mapping[str, Sequence[str]], patients: Mapping[str, str], folds: int, seed: int, folder: Path
) -> dict[str, dict[str, list[str]]]:
    """Make the data lists of a cross-validation: each labeled patient is for validation in one of them.

    Folds are as large as each other. A patient stays in the fold where an earlier preparation of the folder had them.

    Args:
        lists: names of scans for ``training``, ``unlabeled`` and ``test``.
        patients: of each scan.
        folds: how many.
        seed: of the order in which patients are dealt out.
        folder: that is prepared.

    Returns:
        Lists by file name, ``fold_0.json`` and so on.

    Raises:
        UserError: when there are fewer than two folds, fewer labeled patients than folds, or a validation list.
    """
    everyone = {patients[name] for name in lists["training"]}
    if lists["validation"]:
        raise UserError("--folds and --validation exclude each other: each fold has a validation list of its own.")
    if not 2 <= folds <= len(everyone):
        raise UserError(f"--folds must be from 2 to the number of labeled patients, {len(everyone)}, got {folds}.")
    files = [f"fold_{number}.json" for number in range(folds)]
    members = [_validated_before(folder / file, patients) & everyone for file in files]
    for patient in sorted(everyone - set().union(*members), key=lambda patient: _place(patient, seed)):
        min(members, key=len).add(patient)
    print(f"{len(everyone)} labeled patient(s) in {folds} folds: {', '.join(str(len(fold)) for fold in members)}")
    return {
        file: without_held_out(
            {
                **lists,
                "training": [name for name in lists["training"] if patients[name] not in fold],
                "validation": [name for name in lists["training"] if patients[name] in fold],
            },
            patients,
        )
        for file, fold in zip(files, members, strict=True)
    }


def _validated_before(datalist: Path, patients: Mapping[str, str]) -> set[str]:
    lists = read_lists(datalist) if datalist.is_file() else {}
    names = {_stem(case) for case in lists.get("validation", ())}
    return {patients[name] for name in names if name in patients}
