"""Which files below a folder are scans, which are labels, and which label belongs to which scan.

The one place where folders are searched, for preparation and inference alike. What is left out is told, by name.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.errors import UserError
from ..utils.names import CHANNEL, case_name, file_stem, same_name
from .dicom import dicom_files
from .folders import is_written_by_inference, walk
from .photos import PHOTO_SUFFIXES

__all__ = [
    "VOLUME_SUFFIXES",
    "Listing",
    "first_names",
    "list_scans",
    "own_scans",
    "pair_labels",
    "refuse_channels",
    "tell_left_out",
]

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
#: Files with the voxels of headers that stand beside them.
VOXEL_SUFFIXES = (".raw", ".zraw", ".raw.gz")
HEADER_SUFFIXES = (".nhdr", ".mhd")

WORDS = r"(?:d?seg|segmentations?|labels?|lbl|masks?|gts?|ground[-_ ]?truths?|annotations?)"
PART = "(?:tr|ts|va|val|train|test)?"
LABEL_FOLDER = re.compile(rf"(?:{WORDS}|.*ground[-_ ]?truths?){PART}", re.IGNORECASE)
IMAGE_FOLDER = re.compile(rf"(?:images?|scans?|.*[-_]input){PART}", re.IGNORECASE)
PREDICTION_FOLDER = re.compile(r"(?:predictions?|preds?)", re.IGNORECASE)
#: a_seg, seg_a, seg01; the group that is not None is the name of the scan.
LABEL_NAME = re.compile(rf"(.+)[-_. ]{WORDS}|{WORDS}[-_. ]+(.+)|{WORDS}(\d.*)|{WORDS}()", re.IGNORECASE)
IMAGE_WORDS = r"(?:image|img|volume|vol|scan)"
IMAGE_NAME = re.compile(rf"(.+)[-_. ]{IMAGE_WORDS}|{IMAGE_WORDS}[-_. ]+(.+)|{IMAGE_WORDS}(\d.*)", re.IGNORECASE)
PREDICTION_NAME = re.compile(r".+_(?:probs|uncertainty)")
#: More numbers than this behind one name are of scans, not of channels.
MOST_CHANNELS = 8
#: How many of the files that were left out are named.
NAMED = 20


class Listing(NamedTuple):
    """What was found below a folder: scans, labels beside them, and what else there was, with the reason."""

    scans: list[Path]
    labels: list[Path]
    left_out: list[str]


def list_scans(
    folder: Path,
    endings: tuple[str, ...] = (*VOLUME_SUFFIXES, *PHOTO_SUFFIXES),
    skip: Iterable[Path] = (),
    all_labels: bool = False,
) -> Listing:
    """Find scans and labels in a folder and those below, linked ones too; each file is taken once.

    A file counts as a label by its name (``a_seg``, ``label_a``, ``mask``) or by its folder's (``labelsTr``).

    Args:
        folder: the folder.
        endings: of the files that are wanted; DICOM series are looked for where volumes are.
        skip: files and folders that are not taken, nor told of.
        all_labels: the folder is one of labels, whatever their names; several may be one file, such as an empty one.
    """
    skipped = {os.path.realpath(path) for path in skip}
    folders, left_out = walk(folder, skipped)
    scans: dict[str, Path] = {}
    labels, others = [], []
    for here in folders:
        dicom = dicom_files(here) if VOLUME_SUFFIXES[0] in endings else ()
        slices = {path for path in dicom if not path.name.startswith(".") and not _is_prediction(path, folder)}
        files = sorted((path for path in here.iterdir() if not path.is_dir()), key=lambda p: (p.is_symlink(), p.name))
        has_header = any(path.name.lower().endswith(HEADER_SUFFIXES) for path in files)
        for path in [*([here] if slices else []), *files]:
            name, real = str(path.relative_to(folder)), os.path.realpath(path)
            if path.name.startswith(".") and path != folder:
                left_out.append(f"{name} (hidden)")
            elif path in slices or real in skipped or (has_header and name.lower().endswith(VOXEL_SUFFIXES)):
                continue
            elif not path.exists():
                left_out.append(f"{name} (link to nothing)")
            elif path != here and not name.lower().endswith(endings):
                others.append(f"{name} (not an image of this kind)")
            elif PREDICTION_NAME.fullmatch(file_stem(path)) or (not all_labels and _is_prediction(path, folder)):
                left_out.append(f"{name} (earlier prediction)")
            elif all_labels or _is_label(path, folder):
                labels.append(path)
            elif real in scans:
                left_out.append(f"{name} (the same file as {scans[real].relative_to(folder)})")
            else:
                scans[real] = path
    return Listing(sorted(scans.values()), sorted(labels), [*left_out, *others])


def pair_labels(
    scans: Sequence[Path], labels: Sequence[Path], scan_root: Path, label_root: Path
) -> tuple[dict[Path, Path], list[str]]:
    """Give each label its scan: the one of its name in the folder of the same name, else the only one of its name.

    Args:
        scans: files, or folders of DICOM files.
        labels: files named as their scan, or with a word such as ``_seg`` or ``label_``; a file called ``label`` is of
            the only scan in its folder. A scan may also be named with its folders, or by the folder that it has alone.
        scan_root: folder below which the scans are.
        label_root: folder below which the labels are.

    Returns:
        Labels by scan, and a line for each label without a scan of its own.
    """
    homes = {scan: _home(scan, scan_root) for scan in scans}
    alone = Counter(homes.values())
    known: dict[str, list[Path]] = defaultdict(list)
    for scan, home in homes.items():
        names = _scan_names(scan)
        names |= {"_".join([*home[k:], name]) for name in names for k in range(len(home))}
        for name in names | ({home[-1]} if home and alone[home] == 1 else set()):
            known[name].append(scan)

    pairs: dict[Path, Path] = {}
    strays = []
    for label in labels:
        home, found = _home(label, label_root), []
        for name in _label_names(label):
            matching = known.get(name, []) if name else [scan for scan in scans if homes[scan] == home]
            found = [scan for scan in matching if homes[scan] == home] or matching
            if found:
                break
        if len(found) != 1:
            of = "no image of that name" if not found else f"may be of {' or '.join(map(str, found))}"
            strays.append(f"{label}: {of}")
        elif found[0] in pairs:
            strays.append(f"{label}: so is {pairs[found[0]].name}, of {found[0]}")
        else:
            pairs[found[0]] = label
    return pairs, strays


def own_scans(images: Path, labels: Path | None, output: Path) -> dict[Path, Path | None]:
    """Find a user's scans and the label of each, or None; print what was left out.

    Args:
        images: folder of scans. Labels beside them are taken where no folder of labels is given.
        labels: folder of labels, which may be the same, in the other, or around it.
        output: folder that is written, which may lie in the others, and is not searched.

    Raises:
        UserError: when there are no scans, when labels have no scan of their own, or several scans are one case.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: no such folder.")
        if folder is not None and any(os.path.realpath(folder) == os.path.realpath(o) for o in _written(output)):
            raise UserError(f"{folder}: files written to --output {output} would lie among these; choose another.")
    same = labels is not None and os.path.realpath(labels) == os.path.realpath(images)
    root = images if labels is None or same else labels
    found = list_scans(images, skip=[output] if root is images else [output, root])
    left_out = found.left_out
    if root is images:
        candidates = found.labels
    else:
        listed = list_scans(root, skip=[output, *found.scans], all_labels=True)
        candidates = listed.labels
        left_out = [*(f"{path.relative_to(images)} (a label, not in {labels})" for path in found.labels), *left_out]
        left_out = [*left_out, *listed.left_out]
    tell_left_out(left_out)
    if not found.scans:
        endings = ", ".join((*VOLUME_SUFFIXES, *PHOTO_SUFFIXES))
        raise UserError(f"{images}: no scans; expected files ending in {endings}, or folders of DICOM files.")
    refuse_channels(found.scans, candidates)
    pairs, strays = pair_labels(found.scans, candidates, images, root)
    if strays:
        raise UserError(f"{root}: {len(strays)} label(s) without an image of their own, nothing was written:", strays)
    if labels is None and pairs:
        print(f"labels beside their scans: {len(pairs)}, {first_names(label.name for label in pairs.values())}")
    return {scan: pairs.get(scan) for scan in found.scans}


def refuse_channels(scans: Sequence[Path], labels: Sequence[Path] = ()) -> None:
    """Refuse files that nnU-Net's naming makes channels of one case; labels named as they are say that they are not.

    Raises:
        UserError: names the cases.
    """
    labeled = {same_name(file_stem(label)) for label in labels}
    channels: dict[Path, list[str]] = defaultdict(list)
    for scan in scans:
        match = None if scan.is_dir() else CHANNEL.fullmatch(file_stem(scan))
        if match:
            channels[scan.with_name(match[1])].append(match[2])
    problems = [
        f"{case}: {', '.join(f'_{number}' for number in sorted(numbers))}"
        for case, numbers in channels.items()
        if sorted(map(int, numbers)) == list(range(len(numbers))) and 1 < len(numbers) <= MOST_CHANNELS
        if not any(same_name(f"{case.name}_{number}") in labeled for number in numbers)
    ]
    if problems:
        hint = "give a folder with one image per case, or, if these are cases, rename them (a_1, a_2)"
        raise UserError(f"several channels of one case, as nnU-Net names them, cannot be read yet; {hint}:", problems)


def tell_left_out(left_out: Collection[str]) -> None:
    """Print how many files were left out, and which."""
    if left_out:
        print(f"left out {len(left_out)}: {first_names(left_out)}")


def first_names(names: Iterable[str]) -> str:
    """Write the first of many names, and how many more there are."""
    names = list(names)
    return ", ".join(names[:NAMED]) + (f", and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _written(output: Path) -> list[Path]:
    return [output, output / "images", output / "labels"]


def _is_label(path: Path, root: Path) -> bool:
    if path == root:
        return False
    for part in reversed(path.relative_to(root).parts[:-1]):
        if LABEL_FOLDER.fullmatch(part) or IMAGE_FOLDER.fullmatch(part):
            return LABEL_FOLDER.fullmatch(part) is not None or LABEL_NAME.fullmatch(file_stem(path)) is not None
    return LABEL_NAME.fullmatch(file_stem(path)) is not None


def _is_prediction(path: Path, root: Path) -> bool:
    if path == root:
        return False
    by_folder = any(PREDICTION_FOLDER.fullmatch(part) for part in path.relative_to(root).parts[:-1])
    return by_folder or is_written_by_inference(path)


def _home(path: Path, root: Path) -> tuple[str, ...]:
    """Folders between the root and a file, but for those that hold images or labels of all patients."""
    folders = path.relative_to(root).parts[:-1]
    return tuple(same_name(f) for f in folders if not (LABEL_FOLDER.fullmatch(f) or IMAGE_FOLDER.fullmatch(f)))


def _scan_names(scan: Path) -> set[str]:
    names = {file_stem(scan), case_name(scan)}
    matches = [IMAGE_NAME.fullmatch(name) for name in names]
    names |= {group for match in matches if match for group in match.groups() if group}
    return {same_name(name) for name in names}


def _label_names(label: Path) -> list[str]:
    """Names that a label's scan may have, the likeliest first; empty for whatever scan is alone in the folder."""
    stem = file_stem(label)
    match = LABEL_NAME.fullmatch(stem) or re.fullmatch(rf"(.+){WORDS}", stem, re.IGNORECASE)
    core = [] if match is None else [group for group in match.groups() if group is not None]
    return [same_name(name) for name in (stem, *core)]
