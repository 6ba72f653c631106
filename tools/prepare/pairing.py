"""Which label belongs to which of a user's scans."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from custom.data.channels import Grouping, group_channels
from custom.data.finding import (
    ARCHIVES,
    IMAGE_FOLDER,
    LABEL_FOLDER,
    LABEL_NAME,
    LABEL_WITHIN,
    VOLUME_SUFFIXES,
    WORDS,
    list_scans,
    tell_left_out,
)
from custom.data.photos import PHOTO_SUFFIXES
from custom.utils.errors import UserError
from custom.utils.names import SEPARATORS, are_channel_names, case_name, file_stem, first_names, same_name

IMAGE_WORDS = r"(?:image|img|volume|vol|scan)"
IMAGE_NAME = re.compile(rf"(.+)[-_. ]{IMAGE_WORDS}|{IMAGE_WORDS}[-_. ]+(.+)|{IMAGE_WORDS}(\d.*)", re.IGNORECASE)
#: What may stand behind the name of a label, but of an image too.
MARKED = re.compile(r"(.+)[-_. ](?:manual|roi|lesion)", re.IGNORECASE)
#: What BIDS says of a label besides its image, and how it ends an image's name: sub-01_desc-lesion_mask, sub-01_T1w.
BIDS_ENTITY = re.compile(r"_(?:desc|label|space|res|den)-[^_]+", re.IGNORECASE)
BIDS_IMAGE = re.compile(r"(sub-.+)_[a-z0-9]+", re.IGNORECASE)
NO_IMAGE = "no image of that name"
#: What the channels of a case are called: sequences of MRI, and kinds of scans.
SEQUENCE = re.compile(r"t[12]\w*|fl(?:air)?|adc|dwi|swi|hbv|b\d+|pdw?|ct|pet|c\d+|ch\d+|dce\d*", re.IGNORECASE)


class OwnScan(NamedTuple):
    """The files of an image, one for each channel, and that of its label, if it has one."""

    files: list[Path]
    label: Path | None


def pair_labels(
    scans: Sequence[Path], labels: Sequence[Path], scan_root: Path, label_root: Path
) -> tuple[dict[Path, Path], dict[Path, str]]:
    """Give each label its scan: the one of its name in the folder of the same name, else the only one of its name.

    Args:
        scans: files, or folders of DICOM files.
        labels: files named as their scan, or with a word such as ``_seg`` or ``label_``; a file called ``label`` is of
            the only scan in its folder. A scan may also be named with its folders, or by a folder that it has alone.
            Where all are called alike, such as ``liver``, in a folder for each scan, the folders name the scans.
        scan_root: folder below which the scans are.
        label_root: folder below which the labels are.

    Returns:
        Labels by scan, and a line for each label without a scan of its own, by label.
    """
    homes = {scan: _home(scan, scan_root) for scan in scans}
    alone = Counter(home[: k + 1] for home in homes.values() for k in range(len(home)))  # scans below each folder
    exact: dict[str, list[Path]] = defaultdict(list)
    bids: dict[str, list[Path]] = defaultdict(list)  # sub-01 for sub-01_T1w, where no scan is called sub-01 itself
    bare: dict[str, list[Path]] = defaultdict(list)  # and for sub-01_space-MNI_T1w, where there is no sub-01_T1w
    for scan, home in homes.items():
        names = _scan_names(scan)
        names |= {"_".join([*home[k:], name]) for name in names for k in range(len(home))}
        for name in names | {part for k, part in enumerate(home) if alone[home[: k + 1]] == 1}:
            exact[name].append(scan)
        for known, name in ((bids, file_stem(scan)), (bare, BIDS_ENTITY.sub("", file_stem(scan)))):
            if match := BIDS_IMAGE.fullmatch(name):
                known[same_name(match[1])].append(scan)

    pairs: dict[Path, Path] = {}
    strays: dict[Path, str] = {}
    by_folder = len(set(map(file_stem, labels))) == 1 and all(_home(label, label_root) for label in labels)
    for label in labels:
        home, found = _home(label, label_root), []
        called = [*_label_names(label), *((home[-1], "") if by_folder else ())]
        for known, name in product((exact, bids, bare), called):
            matching = known.get(name, []) if name else [scan for scan in scans if home in _places(scan, homes[scan])]
            found = [scan for scan in matching if homes[scan] == home] or matching
            if found:
                break
        if len(found) != 1:
            of = NO_IMAGE if not found else f"may be of {' or '.join(map(str, found))}"
            strays[label] = f"{label}: {of}"
        elif found[0] in pairs:
            strays[label] = (
                f"{label}: so is {pairs[found[0]].name}, of {found[0]}; merge them if each marks one structure"
            )
        else:
            pairs[found[0]] = label
    return pairs, strays


def own_scans(
    images: Path,
    labels: Path | None,
    output: Path,
    channels: Sequence[str] | None = None,
    count: int | None = None,
) -> dict[Path, OwnScan]:
    """Find a user's scans and the label of each; print what was left out.

    Args:
        images: folder of scans. Labels beside them are taken where no folder of labels is given.
        labels: folder of labels, which may be the same, in the other, or around it.
        output: folder that is written, which may lie in the others, and is not searched.
        channels: names at the end of the files of a case, see :func:`custom.data.channels.group_channels`.
        count: how many channels a case has, where that is known.

    Returns:
        Scans by the path that names them, that of the file where it is one.

    Raises:
        UserError: when there are no scans, when a channel of one is missing, or labels have no scan of their own.
    """
    for folder in (images, labels):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{folder}: {_no_folder(folder)}")
        if folder is not None and any(os.path.realpath(folder) == os.path.realpath(o) for o in _written(output)):
            raise UserError(f"{folder}: files written to --output {output} would lie among these; choose another.")
    same = labels is not None and os.path.realpath(labels) == os.path.realpath(images)
    root = images if labels is None or same else labels
    found = list_scans(images, skip=[output] if root is images else [output, root])
    left_out = found.left_out
    if root is images:
        manual = _beside_their_images(found.scans)
        found = found._replace(scans=[scan for scan in found.scans if scan not in manual])
        candidates = [*found.labels, *manual]
    else:
        listed = list_scans(root, skip=[output, *found.scans], all_labels=True)
        candidates = listed.labels
        left_out = [*(f"{path.relative_to(images)} (a label, not in {labels})" for path in found.labels), *left_out]
        left_out = [*left_out, *listed.left_out]
    labeled = {name for label in candidates for name in _label_names(label)}
    grouped = group_channels(found.scans, channels, count, labeled)
    tell_left_out([*left_out, *(f"{path.relative_to(images)} (none of the channels)" for path in grouped.left_out)])
    if not found.scans:
        endings = ", ".join((*VOLUME_SUFFIXES, *PHOTO_SUFFIXES))
        packed = [text for text in left_out if text.endswith("unpack it first)")]
        hint = f" Found {first_names(packed)}." if packed else ""
        raise UserError(f"{images}: no scans; expected files ending in {endings}, or folders of DICOM files.{hint}")
    _refuse_uneven(images, grouped, channels)
    pairs, strays = pair_labels(list(grouped.cases), candidates, images, root)
    if strays:
        hint = _channels_hint(found.scans, candidates, images, root) if channels is None else ""
        lines = _by_structure(strays, list(grouped.cases), images, root)
        if not hint and any(line.endswith(NO_IMAGE) for line in lines):
            hint = f"a label is called as its image is, {_example(grouped.cases)}; rename it, or its image"
        lines += [hint] if hint else []
        raise UserError(f"{root}: {len(strays)} label(s) without an image of their own, nothing was written:", lines)
    if labels is None and pairs:
        print(f"labels beside their scans: {len(pairs)}, {first_names(label.name for label in pairs.values())}")
    return {case: OwnScan(files, pairs.get(case)) for case, files in grouped.cases.items()}


def _beside_their_images(scans: Sequence[Path]) -> list[Path]:
    """Find the labels a_manual among scans, beside their images a; alone it may be an image."""
    stems = {(scan.parent, same_name(file_stem(scan))) for scan in scans}
    matches = {scan: re.fullmatch(r"(.+)[-_. ]manual", same_name(file_stem(scan))) for scan in scans}
    return [scan for scan, match in matches.items() if match and (scan.parent, match[1]) in stems]


def _channels_hint(scans: Sequence[Path], labels: Sequence[Path], images: Path, root: Path) -> str:
    """Name the ends that all cases share (p1_t1, p1_t2, p2_t1, p2_t2), where they would give each label its image."""
    ends: dict[tuple[Path, str], set[str]] = defaultdict(set)
    for scan in scans:
        *start, end = re.split(rf"[{re.escape(SEPARATORS)}]", file_stem(scan))
        ends[scan.parent, "_".join(start)].add(end)
    shared = next(iter(ends.values()))
    names = sorted(shared, key=lambda name: (name[:1].lower() != "t", name))  # t1,t1ce,t2,flair, as is customary
    if len(names) < 2 or any(found != shared for found in ends.values()) or not are_channel_names(names):
        return ""
    if not all(map(SEQUENCE.fullmatch, names)):
        return ""
    grouped = group_channels(scans, names)
    if grouped.problems or grouped.left_out or pair_labels(list(grouped.cases), labels, images, root)[1]:
        return ""
    return f"if {', '.join(names)} are channels of one image each, give --channels {','.join(names)}"


def _by_structure(strays: Mapping[Path, str], cases: Sequence[Path], images: Path, root: Path) -> list[str]:
    """Write a line for each label, but one for all that mark a structure each of the same image, as it seems."""
    homes = {case: _home(case, images) for case in cases}
    count = Counter(homes.values())
    alone = {home: case for case, home in homes.items() if count[home] == 1}
    named = {name: case for case in cases for name in _scan_names(case)}
    of: dict[Path, list[Path]] = defaultdict(list)
    for label in strays:
        core = _label_names(label)[-1]
        starts = [core[: match.start()] for match in re.finditer(rf"[{re.escape(SEPARATORS)}]", core)]
        known = [named[start] for start in starts if start in named]
        case = known[-1] if known else alone.get(_home(label, root))
        if case is not None:
            of[case].append(label)
    several = {case: labels for case, labels in of.items() if len(labels) > 1}
    hint = "merge them into one label map with 1, 2, ..., as docs/own_data.md shows"
    lines = [
        f"{case}: {len(labels)} label files, {first_names(label.name for label in labels)}; if each marks a structure "
        f"of it, {hint}; if they are of several readers, keep one; else their images are missing"
        for case, labels in several.items()
    ]
    told = {label for labels in several.values() for label in labels}
    return [*lines, *(line for label, line in strays.items() if label not in told)]


def _example(cases: Iterable[Path]) -> str:
    """Name labels that the first scan could have."""
    name = case_name(next(iter(cases)))
    return f"such as {name}, {name}_seg, {name}_label, {name}_mask, {name}_manual or {name}_gt"


def _refuse_uneven(images: Path, grouped: Grouping, channels: Sequence[str] | None) -> None:
    """Refuse scans without the channels that the others have."""
    problems = grouped.problems
    if channels is not None and not problems and all(files == [case] for case, files in grouped.cases.items()):
        wanted = " or ".join(f"_{name}" for name in channels)
        hint = "nnU-Net's _0000, _0001 need no --channels"
        raise UserError(f"{images}: no file ends in {wanted}, as --channels says; {hint}.")
    sizes = {case: len(files) for case, files in grouped.cases.items()}
    most = max(sizes.values(), default=1)
    problems = [*problems, *(f"{case}: has no number of a channel" for case, size in sizes.items() if size < most)]
    if problems:
        hint = "every case needs the same ones"
        raise UserError(f"{images}: {len(problems)} problem(s) with channels, nothing was written; {hint}:", problems)


def _no_folder(path: Path) -> str:
    if path.name.lower().endswith(ARCHIVES) and path.is_file():
        return "an archive; unpack it first, and give the folder."
    return "a file; expected the folder in which it is." if path.exists() else "no such folder."


def _written(output: Path) -> list[Path]:
    return [output, output / "images", output / "labels"]


def _home(path: Path, root: Path) -> tuple[str, ...]:
    """Folders between the root and a file, but for those that hold images or labels of all patients."""
    folders = path.relative_to(root).parts[:-1]
    return tuple(same_name(f) for f in folders if not (LABEL_FOLDER.fullmatch(f) or IMAGE_FOLDER.fullmatch(f)))


def _places(scan: Path, home: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Folders in which a label of a scan may lie: the scan's own, and among the slices of a DICOM series."""
    return [home, (*home, same_name(scan.name))] if scan.is_dir() else [home]


def _scan_names(scan: Path) -> set[str]:
    names = {file_stem(scan), case_name(scan)}
    matches = [IMAGE_NAME.fullmatch(name) for name in names]
    names |= {group for match in matches if match for group in match.groups() if group}
    return {same_name(name) for name in names}


def _label_names(label: Path) -> list[str]:
    """Names that a label's scan may have, the likeliest first; empty for whatever scan is alone in the folder."""
    stem = file_stem(label).removesuffix(".seg") or file_stem(label)  # of 3D Slicer's .seg.nrrd
    match = LABEL_NAME.fullmatch(stem) or re.fullmatch(rf"(.+){WORDS}", stem, re.IGNORECASE)
    match = match or LABEL_WITHIN.fullmatch(stem)
    names = [stem, *(group for group in (match.groups() if match else ()) if group is not None)]
    names += [match[1] for name in names if (match := MARKED.fullmatch(name))]
    names += [BIDS_ENTITY.sub("", name) for name in names[1:] if name.lower().startswith("sub-")]
    return [same_name(name) for name in dict.fromkeys(names)]
