"""Data lists: reading them, checking them, keeping what was read.

A data list is a JSON file in Decathlon form with two more lists::

    {"name": ..., "modality": {...}, "labels": {"0": "background", ...},
     "training": [{"image": path, "label": path}], "unlabeled": [{"image": path}],
     "validation": [{"image": path, "label": path}], "test": [{"image": path, "label": path}]}

Paths are relative to the JSON file. An image of several channels, such as T1 and T2, may be a list of paths, one for
each in the same order throughout, and all on one grid: ``"image": ["a_t1.nii.gz", "a_t2.nii.gz"]``. Everything is read
and checked before the first iteration, so that a broken file does not end a run hours later.
"""

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from ..utils.errors import UserError
from ..utils.files import read_json, sha256_of
from ..utils.names import (
    LISTS,
    are_class_names,
    case_files,
    case_names,
    first_names,
    groups,
    patient_name,
    structure_names,
)
from .checks import Case, CaseRule, check_cases

logger = logging.getLogger(__name__)


def load_datalist(
    path: str,
    lists: Sequence[str],
    in_channels: int,
    num_classes: int,
    dimensions: int,
    needs_spacing: bool = False,
    patient_pattern: str | None = None,
    optional: bool = False,
    checks_dir: str | None = None,
    planned_for: str | Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> dict[str, list[Case]]:
    """Read a data list, and every voxel of the named lists, and check them.

    Unlabeled cases keep their image only: a label that a list gives them is never opened.

    Args:
        path: the JSON file.
        lists: names out of :data:`LISTS` whose files are read; the others are checked for overlap by name alone.
        in_channels: channels that every image must have.
        num_classes: labels must lie in 0 .. num_classes - 1.
        dimensions: spatial axes that every file must have.
        needs_spacing: whether volumes are resampled, for which their headers must have a spacing.
        patient_pattern: regular expression that finds the patient, see :func:`custom.utils.names.patient_name`; a
            patient may be in one list only. None when every file is a patient of its own.
        optional: the labeled cases come from elsewhere, so that the file or its labeled cases may be missing.
        checks_dir: folder that keeps what was found in ``checks.json``, see :func:`custom.data.check_cases`.
        planned_for: SHA-256 of the data list, or lists, that settings were planned for; another one is told.
        class_names: of the structures labeled 1, 2, ...; the file may not give one of them another number, and other
            names in it are told.

    Returns:
        Cases by list, see :func:`read_lists`.

    Raises:
        UserError: lists everything that is wrong with the file and the cases.
    """
    if optional and not Path(path).is_file():
        return {name: [] for name in LISTS}
    cases = read_lists(Path(path))
    if planned_for is not None and sha256_of(path) not in ensure_tuple(planned_for):
        logger.warning("%s has changed since the plan was made; `crossmatch plan` makes a new one.", path)
    problems = [] if class_names is None or optional else _name_problems(Path(path), class_names)
    problems += overlap_problems(cases, patient_pattern, Path(path).parent)
    problems += [problem for name in lists if name != "unlabeled" for problem in _without_labels(cases, name)]
    if "training" in lists and not cases["training"] and not optional:
        problems.append("the list 'training' is empty; at least one labeled case is needed.")
    if "training" not in lists and not any(cases[name] for name in lists):
        empty = " or ".join(map(repr, lists))
        problems.append(f"nothing to read: the list {empty} is empty; {_other_list(cases, lists)}.")
    rule = CaseRule(in_channels, num_classes, dimensions, needs_spacing)
    read = [(name, case) for name in lists for case in cases[name]]
    findings = check_cases([case for _, case in read], rule, checks_dir)
    problems += [problem for finding in findings for problem in finding.problems]
    marked = [(name, case, found.structures) for (name, case), found in zip(read, findings, strict=True)]
    taught = {number for name, _, structures in marked if name == "training" for number in structures}
    learns = "training" in lists and bool(cases["training"])
    if learns and not problems and not taught:
        problems.append(nothing_labeled([case["label"] for case in cases["training"]]))
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was run:", problems)
    for number in sorted(set(range(1, num_classes)) - taught if learns else ()):
        told = f"{number}, {class_names[number - 1]}" if class_names is not None else str(number)
        logger.warning("%s: no label of the list 'training' marks class %s; it cannot be learned.", path, told)
    for name, case, structures in marked:
        if name in ("validation", "test") and not structures:
            logger.warning("%s: every voxel is 0, so that scores of this case say little.", case["label"])
    return cases


def _other_list(cases: Mapping[str, Sequence[Case]], lists: Sequence[str]) -> str:
    """Say what to score instead of lists that are empty."""
    others = [n for n in ("test", "validation") if n not in lists and cases[n] and not _without_labels(cases, n)]
    hint = "list labeled cases there, or prepare the data with --validation 0.2"
    return f"give --evaluation_list {others[0]}" if others else hint


def nothing_labeled(labels: Sequence[str]) -> str:
    """Say that labels of the list ``training`` mark no structure, so that nothing can be learned from them."""
    hint = "label at least one structure, or export the labels again"
    return f"every voxel is 0 in all {len(labels)} label(s) of the list 'training' ({first_names(labels, 5)}); {hint}."


def default_evaluation_list(path: str) -> str:
    """Name the list to evaluate: ``test`` where the data list has one, else ``validation``."""
    return "test" if read_lists(Path(path))["test"] else "validation"


def read_lists(path: Path) -> dict[str, list[Case]]:
    """Read a data list, without its files.

    Returns:
        Cases by list: ``image`` and, where it is used, ``label``, as absolute paths, of an image of several files a
        list of them; and ``case``, a name that no other case of the file has. A list that is missing or null is empty.
        Entries of ``test`` may lack a label.

    Raises:
        UserError: lists every entry that is not as it must be.
    """
    content = _read_content(path)
    if not isinstance(content, dict) or not any(name in content for name in LISTS):
        found = first_names(content, 5) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(
            f"{path}: expected a JSON object with the lists {', '.join(LISTS)}; found {found or 'an empty one'}. "
            "`crossmatch prepare own` makes one from folders of images and labels."
        )
    problems: list[str] = []
    lists = {name: _read_list(path, name, content.get(name), problems) for name in LISTS}
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was run:", problems)
    files = case_files(case["image"] for cases in lists.values() for case in cases)
    names = case_names(files.values())
    return {
        name: [{**case, "case": names[files[ensure_tuple(case["image"])[0]]]} for case in cases]
        for name, cases in lists.items()
    }


def _read_content(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such data list; set --dataset_dir or --datalist.")
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error


def _name_problems(path: Path, class_names: Sequence[str]) -> list[str]:
    """Refuse a data list that gives a structure another number; tell one that calls a number otherwise."""
    listed = structure_names(_read_content(path).get("labels"))
    if listed is None or not are_class_names(listed):
        return []
    ours, theirs = map(_plain_names, (class_names, listed))
    if ours == theirs:
        return []
    spelled = dict(zip(theirs, listed, strict=True)) | dict(zip(ours, class_names, strict=True))
    taken = shlex.quote(json.dumps([spelled[name] for name in theirs]))
    told = f"'labels' names 1, 2, ... as {', '.join(listed)}, but class_names as {', '.join(class_names)}"
    if any(name in theirs and theirs.index(name) != index for index, name in enumerate(ours)):
        return [f"{told}: they would be taken for one another; put one right, such as with --class_names {taken}"]
    logger.warning("%s: %s, which tables and weights will say. The list's: --class_names %s", path, told, taken)
    return []


def _plain_names(names: Sequence[str]) -> list[str]:
    """Spell names alike that differ in case, or in what stands between their words."""
    return [re.sub(r"(?<=[^\W_])[\s_-]+(?=[^\W_])", "_", name.strip()).casefold() for name in names]


def _read_list(path: Path, name: str, entries: Any, problems: list[str]) -> list[Case]:
    """Take the entries of one list; what is wrong with them is added to the problems."""
    if not isinstance(entries or [], list):
        problems.append(f"'{name}' must be a list, found {json.dumps(entries)[:80]}.")
        return []
    needs_label = name in ("training", "validation")
    keys = ("image", "label") if needs_label else ("image",)
    cases = []
    for index, entry in enumerate(entries or []):
        # Decathlon's own lists of scans without labels hold paths alone.
        case = {"image": entry} if isinstance(entry, str) and not needs_label else entry
        texts: dict[str, Any] = {key: case.get(key) for key in ("image", "label")} if isinstance(case, dict) else {}
        if not all(_is_path(texts.get(key)) or (key == "image" and _are_paths(texts.get(key))) for key in keys):
            hint = f"an object with {' and '.join(keys)}, a path each, or an image's list of paths"
            problems.append(f"{name}[{index}] must be {hint}, found {json.dumps(entry)}.")
            continue
        wanted = ("image",) if name == "unlabeled" or not isinstance(texts["label"], str) else ("image", "label")
        cases.append({key: _absolute_paths(path, texts[key]) for key in wanted})
    return cases


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_path, value))


def _absolute_paths(datalist: Path, files: str | Sequence[str]) -> str | list[str]:
    """Resolve a path, or one for each channel; a single one in a list is a path."""
    paths = [_absolute_path(datalist, file) for file in ensure_tuple(files)]
    return paths if len(paths) > 1 else paths[0]


def _absolute_path(datalist: Path, file: str) -> str:
    """Resolve a path relative to its data list; one that was written on Windows too."""
    place = os.path.abspath(datalist.parent / os.path.expanduser(file))
    slashed = os.path.abspath(datalist.parent / file.replace("\\", "/"))
    return slashed if os.path.exists(slashed) and not os.path.exists(place) else place


def _without_labels(lists: Mapping[str, Sequence[Case]], name: str) -> list[str]:
    """Say that a list cannot be scored or learned from, if some of its cases have no label."""
    lacking = [case["case"] for case in lists[name] if "label" not in case]
    if not lacking:
        return []
    hint = "; or score --evaluation_list validation" if name == "test" and lists["validation"] else ""
    shown = first_names(lacking, 5)
    return [f"{len(lacking)} of {len(lists[name])} cases of '{name}' have no label ({shown}); give them one{hint}."]


def overlap_problems(cases: Mapping[str, Sequence[Case]], patient_pattern: str | None, folder: Path) -> list[str]:
    """Say which image or patient stands in more than one place; patients are sought in paths below the folder."""
    entries = [(name, file) for name in LISTS for case in cases[name] for file in ensure_tuple(case["image"])]
    problems = []
    for same in groups(entries, key=lambda entry: os.path.realpath(entry[1])):
        problems.append(f"{same[0][1]} stands in {_places(same)}; a case may be listed once only.")
    if patient_pattern is not None:
        places = {(patient_name(os.path.relpath(image, folder), patient_pattern), name) for name, image in entries}
        for same in groups(sorted(places), key=lambda place: place[0]):
            lists = " and ".join(repr(name) for _, name in same)
            problems.append(f"{same[0][0]} is in {lists}; all scans of a patient must be in one list.")
    return problems


def _places(entries: Sequence[tuple[str, str]]) -> str:
    return " and ".join(repr(name) for name, _ in entries)
