"""Which files below a folder are scans, and which are labels.

The one place where folders are searched, for preparation and inference alike. What is left out is told, by name.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.names import file_stem, first_names, same_name
from .dicom import dicom_files, other_object
from .folders import is_written_by_inference, walk
from .photos import PHOTO_SUFFIXES

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
#: Files with the voxels of headers that stand beside them.
VOXEL_SUFFIXES = (".raw", ".zraw", ".raw.gz")
HEADER_SUFFIXES = (".nhdr", ".mhd")

WORDS = r"(?:d?seg|segmentations?|labels?|lbl|masks?|gts?|ground[-_ ]?truths?|annotations?)"
PART = "(?:tr|ts|va|val|train|test)?"
LABEL_FOLDER = re.compile(rf"(?:{WORDS}|.*ground[-_ ]?truths?){PART}", re.IGNORECASE)
IMAGE_FOLDER = re.compile(rf"(?:images?|scans?|.*[-_]input){PART}", re.IGNORECASE)
PREDICTION_FOLDER = re.compile(r"(?:predictions?|preds?)", re.IGNORECASE)
#: What stands behind a label's name alone: a_seg, and BIDS's sub-01_label-lesion_roi.
ENDS = rf"(?:{WORDS}|label-[a-z0-9]+_roi)"
#: a_seg, seg_a, seg01; the group that is not None is the name of the scan.
LABEL_NAME = re.compile(rf"(.+?)[-_. ]{ENDS}|{WORDS}[-_. ]+(.+)|{WORDS}(\d.*)|{WORDS}()", re.IGNORECASE)
#: a_mask_1, a_seg_v2: a label of the scan a, where there is one beside it.
LABEL_WITHIN = re.compile(rf"(.+?)[-_. ]+{WORDS}[-_. ]+.+", re.IGNORECASE)
PREDICTION_NAME = re.compile(r".+_(?:probs|uncertainty)")
#: Files that may hold scans, which are not looked into.
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")


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

    A file counts as a label by its name (``a_seg``, ``label_a``, ``mask``; beside a scan ``a`` also ``a_seg_v2``) or by
    its folder's (``labelsTr``).

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
            name, real = str(folder if path == folder else path.relative_to(folder)), os.path.realpath(path)
            if path.name.startswith(".") and path != folder:
                left_out.append(f"{name} (hidden)")
            elif path == here and (kind := other_object(dicom)) is not None:
                left_out.append(f"{name} ({kind}, no scan)")
            elif path in slices or real in skipped or (has_header and name.lower().endswith(VOXEL_SUFFIXES)):
                continue
            elif not path.exists():
                left_out.append(f"{name} (link to nothing)")
            elif path != here and not path.is_file():  # who opens a pipe waits for its other end
                left_out.append(f"{name} (a pipe, a socket or a device)")
            elif path != here and name.lower().endswith(ARCHIVES):
                left_out.append(f"{name} (an archive, unpack it first)")
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
    within = _labels_beside(list(scans.values()))
    kept = sorted(path for path in scans.values() if path not in within)
    return Listing(kept, sorted([*labels, *within]), [*left_out, *others])


def tell_left_out(left_out: Collection[str]) -> None:
    """Print how many files were left out, and which."""
    if left_out:
        print(f"left out {len(left_out)}: {first_names(left_out)}")


def _is_label(path: Path, root: Path) -> bool:
    if path == root:
        return False
    for part in reversed(path.relative_to(root).parts[:-1]):
        if LABEL_FOLDER.fullmatch(part) or IMAGE_FOLDER.fullmatch(part):
            return LABEL_FOLDER.fullmatch(part) is not None or LABEL_NAME.fullmatch(file_stem(path)) is not None
    return LABEL_NAME.fullmatch(file_stem(path)) is not None


def _labels_beside(scans: Sequence[Path]) -> set[Path]:
    """Find labels among scans whose names begin as that of a scan beside them, and go on with a word for labels."""
    stems = {(scan.parent, same_name(file_stem(scan))) for scan in scans}
    matches = {scan: LABEL_WITHIN.fullmatch(file_stem(scan)) for scan in scans if not scan.is_dir()}
    return {scan for scan, match in matches.items() if match and (scan.parent, same_name(match[1])) in stems}


def _is_prediction(path: Path, root: Path) -> bool:
    if path == root:
        return False
    by_folder = any(PREDICTION_FOLDER.fullmatch(part) for part in path.relative_to(root).parts[:-1])
    return by_folder or is_written_by_inference(path)
