"""Find the scans to segment, files of many formats and folders with a DICOM series, and share them out."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from monai.utils import ensure_tuple

from ..utils.errors import UserError
from ..utils.names import case_files, case_names, file_stem, first_names, groups, same_name, short_stems
from .channels import group_channels
from .checks import Case
from .datalist import read_lists
from .dicom import series_of_slice, slices_beside
from .dicom_seg import is_series, refuse_without_highdicom
from .finding import VOLUME_SUFFIXES, list_scans, tell_left_out
from .photos import PHOTO_SUFFIXES
from .states import files_of


class Scans(NamedTuple):
    """Scans to segment, and why others cannot be."""

    cases: list[Case]
    problems: list[str]


def find_scans(
    source: str | Sequence[str | Sequence[str]],
    in_channels: int,
    dimensions: int,
    series: bool = False,
    datalist: str | None = None,
    channels: Sequence[str] | None = None,
    dicom_seg: bool = False,
) -> Scans:
    """List the scans to segment, without opening them. Labels are not needed.

    Args:
        source: a folder (its subfolder ``images`` if there is one) with files, or folders with a DICOM series each, in
            it and in folders below, see :func:`custom.data.list_scans`; a file; or a list of these, in which a list of
            files is one scan, with a channel in each.
        in_channels: channels that every image must have.
        dimensions: spatial axes of the images, of which 2 are photographs.
        series: whether an image may have a time axis behind its spatial ones, instead of channels.
        datalist: take the images of this data list's ``validation`` and ``test`` lists instead.
        channels: names at the end of the files of one scan, see :func:`custom.data.channels.group_channels`; None for
            nnU-Net's numbers.
        dicom_seg: say which scans are not DICOM, and so get no DICOM segmentation.

    Returns:
        Cases with ``image`` and ``case``, a name that no other has; each file once. Those of a single folder also have
        ``prediction``, the path of their results, which mirrors the folders below it: ``patient001/scan``; all others
        are called by their case. Scans that lack a channel, or whose files differ in their ending alone, are among the
        problems instead.

    Raises:
        UserError: when there is nothing to segment, two scans would give the same prediction file, a scan is a slice
            of a DICOM series, or for ``dicom_seg`` without highdicom.
    """
    if dicom_seg:
        refuse_without_highdicom()
    if series and in_channels > 1:
        raise UserError(f"--series: the frames of a series have one channel, but in_channels is {in_channels}.")
    problems: list[str] = []
    if datalist is not None:
        lists = read_lists(Path(datalist))
        listed = [case for name in ("validation", "test") for case in lists[name]]
        cases = [{key: case[key] for key in ("image", "case")} for case in listed]
    else:
        if isinstance(source, str) and not os.path.exists(os.path.expanduser(source)):
            raise UserError(
                f"{source}: no such file or folder; give --dataset_dir a folder of images, or --files a list."
            )
        sources = [source] if isinstance(source, str) else source
        cases, problems = _cases(sources, dimensions, in_channels, channels)
    if not cases and not problems:
        kinds = "photographs, .png or .jpg" if dimensions == 2 else "NIfTI, NRRD, MetaImage or DICOM"
        raise UserError(f"{datalist or source}: no image to segment; expected {kinds}.")
    _refuse_slices(cases)
    if dicom_seg:
        _tell_others(cases)
    return Scans(cases, problems)


def _refuse_slices(cases: Sequence[Case]) -> None:
    """Refuse files that are slices of one series, each of which would be a scan, or a channel, of its own."""
    paths = {os.path.realpath(file): Path(file) for case in cases for file in ensure_tuple(case["image"])}
    series = {path: series_of_slice(path) for path in paths.values()}
    same = groups([path for path, name in series.items() if name is not None], key=lambda path: str(series[path]))
    found = [*same, *([path] for path, name in series.items() if name is not None and slices_beside(path) > 1)]
    if found:
        folders = sorted({str(path.parent) for path in found[0]})
        hint = f"give its folder, {folders[0]}" if len(folders) == 1 else "put them into one folder, and give that"
        what = "slices" if len(found[0]) > 1 else "one of several slices"
        raise UserError(f"{first_names(map(str, found[0]))}: {what} of one DICOM series, expected scans; {hint}.")


def _tell_others(cases: Sequence[Case]) -> None:
    others = [case["case"] for case in cases if not is_series(ensure_tuple(case["image"])[0])]
    if others:
        print(f"not DICOM, so without a DICOM segmentation: {first_names(others)}")


def _cases(
    sources: Sequence[str | Sequence[str]], dimensions: int, in_channels: int, channels: Sequence[str] | None
) -> tuple[list[Case], list[str]]:
    """List the scans in folders, and the files that are named, each once; and which lack a channel."""
    paths: dict[str, Path] = {}
    left_out: list[str] = []
    given = [source for source in sources if not isinstance(source, str)]
    for source in map(os.path.expanduser, (source for source in sources if isinstance(source, str))):
        found, others = _expand(Path(source), PHOTO_SUFFIXES if dimensions == 2 else VOLUME_SUFFIXES)
        left_out += others
        for path in found:
            first = paths.setdefault(os.path.realpath(path), path)
            if first != path:
                left_out.append(f"{path} (the same file as {first})")
    grouped = group_channels(list(paths.values()), channels if in_channels > 1 else None, in_channels)
    tell_left_out(
        [*left_out, *(f"{path} (none of the channels {', '.join(channels or ())})" for path in grouped.left_out)]
    )
    alike = groups(grouped.cases, key=lambda case: same_name(os.path.join(case.parent, file_stem(case))))
    problems = [f"{', '.join(map(str, same))}: their predictions would have one name; rename them." for same in alike]
    scans = {case: files for case, files in grouped.cases.items() if not any(case in same for same in alike)}
    known = {str(files[0]): str(case) for case, files in scans.items()}
    images = [*scans.values(), *([Path(file).expanduser() for file in files] for files in given)]
    texts = [[str(file) for file in files] for files in images]
    places = case_files(texts, known)
    names = case_names(places.values())
    folder = os.path.expanduser(sources[0]) if len(sources) == 1 and isinstance(sources[0], str) else ""
    root, stems = (_root(Path(folder)) if os.path.isdir(folder) else None), short_stems(names)
    cases: list[Case] = []
    for files in filter(None, texts):
        place = places[files[0]]
        case: Case = {"image": files if len(files) > 1 else files[0], "case": names[place]}
        if root is not None:
            case["prediction"] = (Path(place).relative_to(root).parent / stems[place]).as_posix()
        cases.append(case)
    return cases, [*grouped.problems, *problems]


def _root(folder: Path) -> Path:
    """Give the folder that is searched for scans, which may have a subfolder for them."""
    return _root(folder / "images") if (folder / "images").is_dir() else folder


def _expand(source: Path, endings: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """List the scans in a folder, and what else there is; a file is taken whatever it is called."""
    if not source.is_dir():
        return [source], []
    images = _root(source)
    if images != source:
        beside = list_scans(source, endings, skip=[images]).scans
        scans, others = _expand(images, endings)
        return scans, [*others, *(f"{path} (not in {images})" for path in beside)]
    found = list_scans(source, endings)
    return found.scans, [*(f"{path.relative_to(source)} (a label)" for path in found.labels), *found.left_out]


def share_out(cases: Sequence[Case], shard: str | None = None, rank: int = 0, num_ranks: int = 1) -> list[Case]:
    """Take this process's share of the scans, the same at each start.

    They are dealt in turn, the largest first, so that no process is left with the largest at the end.

    Args:
        cases: all scans, the same in all processes.
        shard: such as ``2/8``, the second of eight parts, for jobs that know nothing of each other; None for all.
        rank: number of this process among those that share the part, from 0.
        num_ranks: how many those are.

    Returns:
        The share; all scans in their order where there is one process.

    Raises:
        UserError: when ``shard`` is not as above.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", "1/1" if shard is None else shard)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard must be such as 2/8, for the second of eight parts; got {shard}.")
    if count * num_ranks == 1:
        return list(cases)
    parts = [[part for file in ensure_tuple(case["image"]) for part in files_of(Path(file))] for case in cases]
    sizes = [sum(part.stat().st_size for part in found) for found in parts]
    order = sorted(range(len(cases)), key=lambda index: -sizes[index])
    return [cases[index] for index in order[(number - 1) * num_ranks + rank :: count * num_ranks]]
