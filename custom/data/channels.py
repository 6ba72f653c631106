"""Which files are the channels of one case, such as its T1 and its FLAIR, by the ends of their names."""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..utils.names import CHANNEL, SEPARATORS, file_stem, same_name
from .photos import is_photo

#: More numbers than this behind one name are of scans, not of channels.
MOST_CHANNELS = 8


class Grouping(NamedTuple):
    """Files of each case in the order of the channels, by the path that names the case; what is wrong; what is left.

    ``left_out`` are files whose names end in no channel, where those of others do.
    """

    cases: dict[Path, list[Path]]
    problems: list[str]
    left_out: list[Path]


def group_channels(
    scans: Sequence[Path],
    channels: Sequence[str] | None = None,
    count: int | None = None,
    labeled: Collection[str] = (),
) -> Grouping:
    """Put files together that are channels of one case; a case of one file stays as it is.

    Args:
        scans: files, or folders that hold a DICOM series each.
        channels: names at the end of those of the files, or all of it: ``p1_t1.nii.gz``, ``p1-T1.nii.gz``, or
            ``p1/t1.nii.gz``, which is of the case ``p1``. None for nnU-Net's numbers, ``p1_0000``, ``p1_0001``. Files
            without such an end are cases of their own, or left out where others have one of the names.
        count: how many channels a case must have, where that is known and there are no names.
        labeled: names of labels, see :func:`same_name`; numbered files that have one of their own are cases.

    Returns:
        The cases; those that lack a channel, or have one twice, are among the problems instead, by name.
    """
    found = _by_number(scans, labeled) if channels is None else _by_name(scans, channels)
    if channels is None:
        complete = {case: files for case, files in found.items() if _is_complete(files, count)}
        begun = any("0000" in files and not is_photo(files["0000"][0]) for files in found.values())
        if not complete and not (begun and (count or 1) > 1):
            return Grouping({scan: [scan] for scan in scans}, [], [])
        expected = [f"{number:04d}" for number in range(count or max(map(len, complete.values())))]
        found = complete if len(expected) == 1 else found
    else:
        expected = list(channels)
    problems = {case: lines for case, files in found.items() if (lines := _problems(case, files, expected))}
    cases = {
        _with_ending(case, files[expected[0]][0]): [files[name][0] for name in expected]
        for case, files in found.items()
        if case not in problems
    }
    taken = {path for files in found.values() for paths in files.values() for path in paths}
    others = [scan for scan in scans if scan not in taken]
    left_out = others if channels is not None and found else []
    cases |= {scan: [scan] for scan in others if not left_out}
    return Grouping(cases, [line for lines in problems.values() for line in lines], left_out)


Found = dict[Path, dict[str, list[Path]]]


def _by_name(scans: Sequence[Path], channels: Sequence[str]) -> Found:
    """Collect files by the path of their case, without ending, and by channel."""
    known = {name.casefold(): name for name in channels}
    ends = "|".join(re.escape(name) for name in sorted(channels, key=len, reverse=True))
    pattern = re.compile(rf"(?:(.*?)[{re.escape(SEPARATORS)}]+)?({ends})", re.IGNORECASE)
    found: Found = {}
    spelled: dict[Path, Path] = {}
    for scan in scans:
        match = pattern.fullmatch(file_stem(scan))
        if match:
            case = scan.parent / (match[1] or scan.absolute().parent.name)
            case = spelled.setdefault(case.with_name(same_name(case.name)), case)
            found.setdefault(case, defaultdict(list))[known[match[2].casefold()]].append(scan)
    return found


def _by_number(scans: Sequence[Path], labeled: Collection[str]) -> Found:
    found: Found = {}
    for scan in scans:
        match = None if scan.is_dir() else CHANNEL.fullmatch(file_stem(scan))
        if match:
            found.setdefault(scan.with_name(match[1]), defaultdict(list))[match[2]].append(scan)
    return {
        case: files
        for case, files in found.items()
        if not any(same_name(f"{case.name}_{number}") in labeled for number in files)
    }


def _is_complete(files: Mapping[str, Sequence[Path]], count: int | None) -> bool:
    numbers = sorted(map(int, files))
    return numbers == list(range(len(numbers))) and 1 < len(numbers) <= max(MOST_CHANNELS, count or 0)


def _problems(case: Path, files: Mapping[str, Sequence[Path]], expected: Sequence[str]) -> list[str]:
    """Say which channels of a case are missing, double, or more than are expected."""
    name, (first, *_) = next(iter(files.items()))
    double = {name: ", ".join(map(str, paths)) for name, paths in files.items() if len(paths) > 1}
    lines = [f"{case}: several files of channel {name}, {paths}" for name, paths in double.items()]
    more = [f"_{name}" for name in sorted(files) if name not in expected]
    if more:
        hint = "if these are cases, rename them (a_1, a_2)"
        has = ", ".join(f"_{name}" for name in sorted(files))
        lines.append(f"{case}: several channels, as nnU-Net names them, {has}, expected {len(expected)}; {hint}")
    stem = file_stem(first)
    ending = "" if first.is_dir() else first.name[len(stem) :]
    for missing in expected:
        if missing not in files:
            file = first.with_name(stem[: len(stem) - len(name)] + missing + ending)
            lines.append(f"{case}: channel {missing} is missing, expected {file}")
    return lines


def _with_ending(case: Path, file: Path) -> Path:
    """Give the path of a case the ending of its first file, so that it is named as a file is."""
    return case.with_name(case.name + (".nii.gz" if file.is_dir() else file.name[len(file_stem(file)) :]))
