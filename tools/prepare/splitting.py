"""Which patients are for training, validation and test; those of an earlier preparation stay where they were."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from monai.utils import ensure_tuple

from custom.data.datalist import LISTS, read_lists
from custom.data.folders import PREPARED
from custom.utils.errors import UserError
from custom.utils.files import read_json
from custom.utils.names import case_file, file_stem

#: Lists of patients whose labels are kept from training.
HELD_OUT = ("validation", "test")
#: Folders of such patients, as in ``val/images``, ``imagesVal`` and ``imagesTs``.
HELD_OUT_FOLDERS = {
    key: re.compile(rf"(?:(?:images?|scans?)[-_ ]?)?(?:{words})|(?:images|scans){short}", re.IGNORECASE)
    for key, words, short in (("validation", "val|valid|validation", "va"), ("test", "test|testing", "ts"))
}


def names_before(folder: Path) -> dict[str, str]:
    """Read which scans an earlier preparation of this folder has, names by their paths below the source."""
    path = folder / PREPARED
    sources = read_json(path).get("sources", {}) if path.is_file() else {}
    return {source: name for name, source in sources.items()}


def contents_before(folder: Path) -> dict[str, str]:
    """Read the fingerprints of the scans of an earlier preparation, by their names; empty of old ones."""
    path = folder / PREPARED
    return dict(read_json(path).get("contents", {})) if path.is_file() else {}


def listed_before(folder: Path, patients: Mapping[str, str]) -> dict[str, set[str]]:
    """Patients by the list that an earlier preparation of this folder has them in; ``training`` with the unlabeled."""
    lists = _patients_of(folder / "datalist.json", patients)
    return {key: lists[key] for key in HELD_OUT} | {"training": lists["training"] | lists["unlabeled"]}


def _patients_of(datalist: Path, patients: Mapping[str, str]) -> dict[str, set[str]]:
    """Read which patients a data list has in its lists; none where there is no such file."""
    lists = read_lists(datalist) if datalist.is_file() else dict.fromkeys(LISTS, ())
    names = {key: [file_stem(case_file(ensure_tuple(case["image"]))) for case in cases] for key, cases in lists.items()}
    return {key: {patients[name] for name in found if name in patients} for key, found in names.items()}


def listed_by_folder(places: Mapping[str, Path], patients: Mapping[str, str]) -> dict[str, set[str]]:
    """Patients by the list that the folders of their scans name.

    Args:
        places: of each labeled scan, its path below the source.
        patients: of each scan.
    """
    found: dict[str, set[str]] = {key: set() for key in HELD_OUT}
    for name, place in places.items():
        key = next((k for part in place.parts[:-1] for k in HELD_OUT if HELD_OUT_FOLDERS[k].fullmatch(part)), None)
        if key is not None:
            found[key].add(patients[name])
    return found


def split_patients(
    names: Sequence[str],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    seed: int,
    before: Mapping[str, Collection[str]] | None = None,
    by_folder: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[str]]:
    """Assign whole patients to lists, as many as the fractions say, and at least one where they say any.

    Args:
        names: of the labeled scans.
        patients: of each scan.
        fractions: of the labeled patients, for ``validation`` and ``test``.
        seed: of the order in which patients are taken.
        before: patients by list, see :func:`listed_before`; they stay there.
        by_folder: patients by list, see :func:`listed_by_folder`; none was trained with before.

    Returns:
        Names by list; ``training`` has the rest.

    Raises:
        UserError: when no patient would be left for one of the lists.
    """
    if any(value < 0 for value in fractions.values()) or sum(fractions.values()) >= 1:
        got = ", ".join(f"--{name} {value:g}" for name, value in fractions.items())
        raise UserError(f"expected fractions of the patients that leave some for training, such as 0.2; got {got}.")
    everyone = {patients[name] for name in names}
    trained = set((before or {}).get("training", ()))
    lists = {key: set((by_folder or {}).get(key, ())) & everyone - trained for key in HELD_OUT}
    told = ", ".join(f"{len(found)} {key}" for key, found in lists.items() if found)
    if told:
        print(f"labeled patients in folders of that name: {told}")
    wanted = [key for key in HELD_OUT if fractions.get(key)]
    lists = {
        key: found | set((before or {}).get(key, ())) & everyone if key in wanted else found
        for key, found in lists.items()
    }
    free = sorted(everyone - trained.union(*lists.values()), key=lambda patient: _place(patient, seed))
    for key in wanted:
        missing = max(1, round(fractions[key] * len(everyone))) - len(lists[key])
        lists[key] |= set(free[: max(0, missing)])
        free = [patient for patient in free if patient not in lists[key]]
    lists["training"] = everyone.difference(*lists.values())
    _refuse_empty([*wanted, "training"] if wanted else [], lists, len(everyone), trained & everyone)
    if wanted:
        sizes = ", ".join(f"{len(lists[key])} {key} ({fractions[key]:g})" for key in wanted)
        print(f"{len(everyone)} labeled patient(s): {len(lists['training'])} training, {sizes}")
    keys = ("training", *HELD_OUT)
    return {key: [name for name in names if patients[name] in lists[key]] for key in keys}


def _refuse_empty(
    wanted: Sequence[str], lists: Mapping[str, Collection[str]], number: int, trained: Collection[str]
) -> None:
    empty = [key for key in wanted if not lists[key]]
    if empty:
        why = f", of whom {len(trained)} were trained with before" if trained else ""
        hint = "label more, or leave the fraction out" + ("; or give another --output" if trained else "")
        raise UserError(f"no patient is left for {' and '.join(empty)}, of {number} labeled patient(s){why}; {hint}.")


def _place(patient: str, seed: int) -> float:
    """A number in [0, 1) that follows from the patient and the seed alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:8], "big") / 2**64


def without_held_out(lists: Mapping[str, Sequence[str]], patients: Mapping[str, str]) -> dict[str, list[str]]:
    """Take unlabeled scans of patients who are kept for validation or test out of the lists."""
    held_out = {patients[name] for key in HELD_OUT for name in lists[key]}
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
    members = [_patients_of(folder / file, patients)["validation"] & everyone for file in files]
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
