"""What a case is called: the same in tables, pictures, reports and predictions, and which patient it is of."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from .errors import UserError

#: In tables, the class of the rows over all classes, and the case of those over all cases; nothing else is called so.
ALL, MEAN = "all", "mean"

#: The lists of a data list.
LISTS = ("training", "unlabeled", "validation", "test")

#: What stands between a folder and a name; the second where the first makes two of them alike (a/b_c and a_b/c).
JOINTS = ("_", "-")
#: How nnU-Net ends the name of an image's file: with the number of its channel.
CHANNEL = re.compile(r"(.+)_(\d{4})")
#: What stands between the name of a case and that of a channel.
SEPARATORS = "-_. "


def case_name(image: str | Path | Sequence[str]) -> str:
    """Name a case by its file alone, without folder, ending and ``_0000``, or by the folder of its DICOM series.

    Args:
        image: the file, or one for each channel, see :func:`case_file`.
    """
    file = case_file(ensure_tuple(image))
    stem = file_stem(file)
    match = None if os.path.isdir(file) else CHANNEL.fullmatch(stem)
    return match[1] if match and match[2] == "0000" else stem


def case_file(files: Sequence[str | Path]) -> str:
    """Give the path by which a case is named: of one file its own, of several one without what tells them apart.

    ``p1_t1.nii.gz`` and ``p1_t2.nii.gz`` are the case ``p1.nii.gz``; ``p1/t1.nii.gz`` and ``p1/t2.nii.gz``, which share
    no beginning that ends in a separator, the case ``p1/p1.nii.gz``. These need not exist.

    Args:
        files: one for each channel; folders hold a DICOM series.
    """
    first, stems = Path(os.path.abspath(files[0])), [file_stem(file) for file in files]
    if len(set(stems)) == 1:
        return str(files[0])
    beginnings = [re.split(rf"([{re.escape(SEPARATORS)}])", stem)[:-1] for stem in stems]
    shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*beginnings, strict=False))
    name = "".join(parts[0] for parts in shared).rstrip(SEPARATORS) or first.parent.name
    ending = ".nii.gz" if first.is_dir() else first.name[len(stems[0]) :]
    return str(first.with_name(name + ending))


def case_files(images: Iterable[str | Sequence[str]], known: Mapping[str, str] | None = None) -> dict[str, str]:
    """Give the paths by which the cases of a set are named, see :func:`case_file`, by the first file of each.

    Cases that would share one, such as two pairs of channels in one folder, are named by their first files.

    Args:
        images: a file each, or one for each channel.
        known: paths by first file, of cases whose channels' names are known.
    """
    files = {found[0]: case_file(found) for found in map(ensure_tuple, images)} | dict(known or {})
    double = {first for same in groups(files, key=files.__getitem__) for first in same}
    return {first: first if first in double else file for first, file in files.items()}


def case_names(files: Iterable[str | Path]) -> dict[str, str]:
    """Name cases by their files and by as many of the folders above as they need to differ.

    A case's name differs from :data:`MEAN` too, so that a file ``mean.nii.gz`` is named with its folder.

    Args:
        files: the images of a set, in any order, see :func:`case_files` for images of several files.

    Returns:
        Names by path. No two of them are alike, on file systems that ignore case and accents' encoding either.

    Raises:
        UserError: for files that differ in their ending, or in upper and lower case, alone.
    """
    paths = sorted({str(file) for file in files})
    stems = short_stems(paths)
    for joint in JOINTS:
        names = _shortest_names(paths, stems, joint)
        double = groups(paths, key=lambda path: same_name(names[path]))
        if not double:
            return names
    hint = "they differ in their ending or in upper and lower case alone; rename them"
    raise UserError(f"scans whose predictions would have the same name, {hint}:", [", ".join(same) for same in double])


def case_of(meta: Mapping[str, Any]) -> str:
    """Name the case that an array is of, by its metadata: as its data list does, else by its file."""
    return str(meta.get("case") or case_name(meta["filename_or_obj"]))


def file_stem(file: str | Path) -> str:
    """Give a file's name without its ending, ``.nii.gz`` is one; a folder's name as it is."""
    path = Path(os.path.abspath(file))  # the folder "." has a name too
    if path.is_dir():
        return path.name  # may be a DICOM identifier, full of dots
    return Path(path.stem).stem if path.name.lower().endswith(".nii.gz") else path.stem


def prediction_of(meta: Mapping[str, Any]) -> str:
    """Give the path, below the folder of results, of what is written about an array's case, without its ending."""
    return str(meta.get("prediction") or case_of(meta))


def same_name(name: str) -> str:
    """Make names equal that file systems may take for one: in case, or in how letters with accents are stored."""
    return unicodedata.normalize("NFC", name).casefold()


def are_class_names(names: Sequence[str]) -> bool:
    """Say whether structures can be called so: all differently, not by numbers, and none as the rows over all."""
    return 0 < len(names) == len(set(names)) and all(
        name.strip() and not name.strip().isnumeric() and same_name(name) != ALL for name in names
    )


def structure_names(labels: Any) -> list[str] | None:
    """Read which structures a data set's ``labels`` name.

    Args:
        labels: ``{"0": "background", "1": "liver"}``, as in the Decathlon; ``{"background": 0, "liver": 1}``, as in
            nnU-Net; or a list of names, the background first.

    Returns:
        Names of the structures labeled 1, 2, ...; None where not every number from 0 on has one name, as with
        nnU-Net's regions.
    """
    pairs = labels.items() if isinstance(labels, Mapping) else enumerate(labels) if isinstance(labels, list) else ()
    named = [(name, key) if str(key).isdecimal() else (key, name) for key, name in pairs]
    names = {int(number): str(name) for name, number in named if str(number).isdecimal()}
    complete = len(named) == len(names) and sorted(names) == list(range(len(names)))
    return [names[number] for number in range(1, len(names))] if names and complete else None


def are_channel_names(names: Sequence[str]) -> bool:
    """Say whether names of files can end so, each with another name, in upper or lower case."""
    return 0 < len(names) == len(set(map(same_name, names))) and all(
        name and name.strip(SEPARATORS) == name for name in names
    )


def first_names(names: Iterable[str], most: int = 20) -> str:
    """Write the first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def groups(items: Iterable[Any], key: Any) -> list[list[Any]]:
    """Collect the items that share a key with another one."""
    found = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return [same for same in found.values() if len(same) > 1]


def patient_name(file: str | Path, pattern: str | None) -> str:
    """Find the patient of a scan.

    Args:
        file: path below the folder of the set, such as ``patient01/scan.nii.gz``.
        pattern: regular expression that is searched in the file's name, then in its folders, the innermost first.

    Returns:
        What was found; without a pattern, or where nothing is found, the path without ending: a patient of its own.
    """
    path = Path(file)
    alone = path.with_name(file_stem(path) or path.name).as_posix()
    try:
        found = (re.finditer(pattern or "", part) for part in reversed(alone.split("/")))
        return next((match.group() for matches in found for match in matches if match.group()), alone)
    except re.error as error:
        raise UserError(f"--patient_pattern {pattern} is not a regular expression ({error}).") from error


def short_stems(paths: Iterable[str]) -> dict[str, str]:
    """Name files by themselves; ``_0000`` goes where it tells a file from no other one in its folder."""
    stems = {path: file_stem(path) for path in paths}
    taken = defaultdict(set)
    for path, stem in stems.items():
        taken[os.path.dirname(path)].add(same_name(stem))
        match = CHANNEL.fullmatch(stem)
        if match and match[2] != "0000":
            taken[os.path.dirname(path)].add(same_name(match[1]))
    short = {path: case_name(path) for path in stems}
    return {p: s if same_name(short[p]) in taken[os.path.dirname(p)] else short[p] for p, s in stems.items()}


def _shortest_names(paths: Iterable[str], stems: Mapping[str, str], joint: str) -> dict[str, str]:
    folders = {path: Path(os.path.abspath(path)).parent.parts[1:] for path in paths}
    depths = dict.fromkeys(paths, 0)
    while True:
        names = {p: joint.join([*folders[p][len(folders[p]) - depth :], stems[p]]) for p, depth in depths.items()}
        alike = [path for same in groups(paths, key=lambda path: same_name(names[path])) for path in same]
        alike += [path for path in paths if same_name(names[path]) == MEAN]
        deeper = [path for path in alike if depths[path] < len(folders[path])]
        if not deeper:
            return names
        for path in deeper:
            depths[path] += 1
