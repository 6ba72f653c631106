"""Data lists: reading them, checking them, keeping what was read.

A data list is a JSON file in Decathlon form with two more lists::

    {"name": ..., "modality": {...}, "labels": {"0": "background", ...},
     "training": [{"image": path, "label": path}], "unlabeled": [{"image": path}],
     "validation": [{"image": path, "label": path}], "test": [{"image": path, "label": path}]}

Paths are relative to the JSON file. Everything is read and checked before the first iteration, so that a broken file
does not end a run hours later.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import monai
import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor, PersistentDataset
from monai.data.utils import affine_to_spacing, pickle_hashing
from torch.utils.data import Dataset
from tqdm import tqdm

from .errors import UserError
from .files import fingerprint, read_json
from .geometry import grid_problem, has_volume, lacks_spacing
from .labels import to_label
from .names import case_names, groups, patient_name
from .photos import is_photo
from .readers import LoadScan

__all__ = [
    "LISTS",
    "CaseRule",
    "cached_dataset",
    "check_cases",
    "default_evaluation_list",
    "image_problems",
    "load_datalist",
    "overlap_problems",
    "read_image",
    "read_label",
    "read_lists",
]

LISTS = ("training", "unlabeled", "validation", "test")

Case = dict[str, str]
logger = logging.getLogger(__name__)


def cached_dataset(
    data: Sequence[Case],
    transform: Callable[[Case], Any],
    cache: str = "memory",
    cache_rate: float = 1.0,
    cache_dir: str | None = None,
) -> Dataset:
    """Keep what a deterministic transform makes of the cases.

    Args:
        data: cases of a data list.
        transform: reads a case.
        cache: ``memory``; ``disk``, for data that do not fit there, which also serves later runs; or ``none``. On disk
            are plain tensors, without metadata, which are loaded without unpickling; what was made from files that
            have changed since is made again, and the old removed.
        cache_rate: share of the cases that is kept in memory.
        cache_dir: folder for ``disk``, created when missing.

    Raises:
        UserError: for any other ``cache``.
    """
    if cache == "memory":
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=None, progress=False)
    if cache == "disk":
        # By default MONAI's keys are the paths alone: it would serve what other files or other settings have made.
        made_from = {pickle_hashing(case): fingerprint(map(str, case.values())) for case in data}
        keys = {"hash_func": partial(_cache_key, made_from), "hash_transform": pickle_hashing}
        dataset = PersistentDataset(data, transform, cache_dir=cache_dir, track_meta=False, weights_only=True, **keys)
        for path in dataset.cache_dir.glob("*-*.pt") if dataset.cache_dir else ():
            case, _, rest = path.name.partition("-")
            if not rest.startswith(made_from.get(case.encode(), "")):
                path.unlink(missing_ok=True)
        return dataset
    if cache == "none":
        return monai.data.Dataset(data, transform)
    raise UserError(f"--cache must be memory, disk or none, got {cache}.")


def _cache_key(made_from: Mapping[bytes, str], case: Case) -> bytes:
    name = pickle_hashing(case)
    return name + b"-" + made_from[name].encode()


def load_datalist(
    path: str,
    lists: Sequence[str],
    in_channels: int,
    num_classes: int,
    dimensions: int,
    pad_to: Mapping[str, Any] | None = None,
    patient_pattern: str | None = None,
    optional: bool = False,
) -> dict[str, list[Case]]:
    """Read a data list, and every voxel of the named lists, and check them.

    Unlabeled cases keep their image only: a label that a list gives them is never opened.

    Args:
        path: the JSON file.
        lists: names out of :data:`LISTS` whose files are read; the others are checked for overlap by name alone.
        in_channels: channels that every image must have.
        num_classes: labels must lie in 0 .. num_classes - 1.
        dimensions: spatial axes that every file must have.
        pad_to: ``size`` in voxels per axis, and ``spacing`` in mm to which volumes are resampled before, or None for
            their own; smaller volumes are reported once, since they will be padded. None when nothing is padded.
        patient_pattern: regular expression that finds the patient, see :func:`custom.names.patient_name`; a patient may
            be in one list only. None when every file is a patient of its own.
        optional: the labeled cases come from elsewhere, so that the file or its labeled cases may be missing.

    Returns:
        Cases by list, see :func:`read_lists`.

    Raises:
        UserError: lists everything that is wrong with the file and the cases.
    """
    if optional and not Path(path).is_file():
        return {name: [] for name in LISTS}
    cases = read_lists(Path(path))
    problems = overlap_problems(cases, patient_pattern, Path(path).parent)
    problems += [problem for name in lists if name != "unlabeled" for problem in _without_labels(cases, name)]
    if "training" in lists and not cases["training"] and not optional:
        problems.append("the list 'training' is empty; at least one labeled case is needed.")
    if "training" not in lists and not any(cases[name] for name in lists):
        problems.append(f"nothing to read: the list {' or '.join(map(repr, lists))} is empty.")
    rule = CaseRule(in_channels, num_classes, dimensions, pad_to)
    for found in check_cases([case for name in lists for case in cases[name]], rule):
        problems += found
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was run:", problems)
    return cases


def default_evaluation_list(path: str) -> str:
    """Name the list to evaluate: ``test`` where the data list has one, else ``validation``."""
    return "test" if read_lists(Path(path))["test"] else "validation"


def read_lists(path: Path) -> dict[str, list[Case]]:
    """Read a data list, without its files.

    Returns:
        Cases by list: ``image`` and, where it is used, ``label``, as absolute paths; and ``case``, a name that no other
        case of the file has. A list that is missing or null is empty. Entries of ``test`` may lack a label.

    Raises:
        UserError: lists every entry that is not as it must be.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such data list; set --dataset_dir or --datalist.")
    try:
        content = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}).") from error
    if not isinstance(content, dict) or not any(name in content for name in LISTS):
        raise UserError(f"{path}: expected a JSON object with the lists {', '.join(LISTS)}.")
    problems: list[str] = []
    lists = {name: _read_list(path, name, content.get(name), problems) for name in LISTS}
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was run:", problems)
    names = case_names(case["image"] for cases in lists.values() for case in cases)
    return {name: [{**case, "case": names[case["image"]]} for case in cases] for name, cases in lists.items()}


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
        texts = {key: case.get(key) for key in ("image", "label")} if isinstance(case, dict) else {}
        if not all(isinstance(texts.get(key), str) and texts[key] for key in keys):
            problems.append(f"{name}[{index}] must be an object with {' and '.join(keys)}, found {json.dumps(entry)}.")
            continue
        wanted = ("image",) if name == "unlabeled" or not isinstance(texts["label"], str) else ("image", "label")
        cases.append({key: _absolute_path(path, texts[key]) for key in wanted})
    return cases


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
    names = ", ".join(lacking[:5]) + (", ..." if len(lacking) > 5 else "")
    return [f"{len(lacking)} of {len(lists[name])} cases of '{name}' have no label ({names}); give them one{hint}."]


def overlap_problems(cases: Mapping[str, Sequence[Case]], patient_pattern: str | None, folder: Path) -> list[str]:
    """Say which image or patient stands in more than one place; patients are sought in paths below the folder."""
    entries = [(name, case["image"]) for name in LISTS for case in cases[name]]
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


class CaseRule(NamedTuple):
    """What a case must be like."""

    in_channels: int
    num_classes: int
    dimensions: int
    pad_to: Mapping[str, Any] | None = None
    series: bool = False


class _Finding(NamedTuple):
    """What is wrong with a case, and whether patches will have to be padded."""

    problems: list[str]
    is_small: bool


def check_cases(cases: Sequence[Case], rule: CaseRule) -> list[list[str]]:
    """Read every file, and say what is wrong, case by case."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # unzipping, the slow part, runs outside Python's lock
        results = tqdm(pool.map(lambda case: _check_case(case, rule), cases), "Checking", len(cases), unit="case")
        findings = list(results)
    small = [case["image"] for case, finding in zip(cases, findings, strict=True) if finding.is_small]
    if small:
        logger.warning(
            "%d of %d volumes are smaller than the patch, %s voxels, and will be padded: %s",
            *(len(small), len(cases), list(rule.pad_to["size"]), ", ".join(map(os.path.basename, small))),
        )
    return [finding.problems for finding in findings]


def _check_case(case: Case, rule: CaseRule) -> _Finding:
    image, problems = read_image(case["image"], rule.in_channels)
    if image is None:
        return _Finding(problems, False)
    problems += image_problems(case["image"], image, rule)
    if "label" in case:
        problems += read_label(case["label"], image, rule.num_classes)[1]
    return _Finding(problems, not problems and _is_small(image, rule))


def read_image(
    path: str, in_channels: int | None = None, as_label: bool = False
) -> tuple[MetaTensor | None, list[str]]:
    """Read a file, CH[WD], see :class:`custom.readers.LoadScan`; None and the reason where that fails."""
    if not os.path.exists(path):
        return None, [f"{path}: no such file."]
    try:
        return LoadScan(in_channels, as_label)(path), []
    except UserError as error:
        return None, [str(error)]
    except Exception as error:  # every reader fails in its own way; the cause is quoted
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        return None, [f"{path}: cannot be read, probably truncated or not an image ({reason})."]


def image_problems(path: str, image: MetaTensor, rule: CaseRule) -> list[str]:
    """Say why training would refuse an image, CH[WD]."""
    problems = []
    if image.ndim - 1 != rule.dimensions:
        return [f"{path}: expected {rule.dimensions} dimensions, found shape {_shape(image)}."]
    if image.shape[0] != rule.in_channels and not rule.series:
        hint = "; save the frames of a series as files of their own" if rule.in_channels == 1 else ""
        hint = "; it has colors: make it grey, or set in_channels: 3" if hint and is_photo(path) else hint
        found = f"found {image.shape[0]} (shape {_shape(image)})"
        problems.append(f"{path}: expected {rule.in_channels} channel(s), {found}{hint}.")
    if not has_volume(image.affine):
        problems.append(f"{path}: its header has no spacing, or axes that do not span a volume; mend the header.")
    elif rule.pad_to is not None and rule.pad_to["spacing"] is not None and lacks_spacing(image.meta):
        hint = "write it into the header, or take the voxels as they are with --spacing '$None'"
        problems.append(f"{path}: its header has no spacing, which resampling needs; {hint}.")
    bad = int((~torch.isfinite(image.as_tensor())).sum())
    if bad:
        problems.append(f"{path}: {bad} voxel(s) are NaN or infinite.")
    return problems


def read_label(path: str, image: MetaTensor, num_classes: int) -> tuple[MetaTensor | None, list[str]]:
    """Read the label of an image, 1H[WD]; None where it is none, and why training would refuse it."""
    label, problems = read_image(path, as_label=True)
    if label is None:
        return None, problems
    difference = grid_problem(label, image)
    problems = [] if difference is None else [f"{path}: {difference}."]
    try:
        return to_label(label, path, num_classes), problems
    except UserError as error:
        return None, [*problems, str(error)]


def _shape(image: MetaTensor) -> tuple[int, ...]:
    return tuple(image.shape[1:] if image.shape[0] == 1 else (*image.shape[1:], image.shape[0]))


def _is_small(image: MetaTensor, rule: CaseRule) -> bool:
    if rule.pad_to is None:
        return False
    size = np.asarray(image.shape[1:], dtype=float)
    if rule.pad_to["spacing"] is not None:
        size = np.round(size * affine_to_spacing(image.affine, len(size)).numpy() / np.asarray(rule.pad_to["spacing"]))
    return bool((size < np.asarray(rule.pad_to["size"])).any())
