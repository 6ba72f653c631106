"""Find the scans to segment: files of many formats, and folders with a DICOM series."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..utils.errors import UserError
from ..utils.names import case_names, short_stems
from .checks import Case
from .datalist import read_lists
from .dicom_seg import is_series, refuse_without_highdicom
from .finding import VOLUME_SUFFIXES, first_names, list_scans, refuse_channels, tell_left_out
from .photos import PHOTO_SUFFIXES

__all__ = ["find_scans"]


def find_scans(
    source: str | Sequence[str],
    dimensions: int,
    datalist: str | None = None,
    dicom_seg: bool = False,
) -> list[Case]:
    """List the scans to segment, without opening them. Labels are not needed.

    Args:
        source: a folder (its subfolder ``images`` if there is one) with files, or folders with a DICOM series each, in
            it and in folders below, see :func:`custom.data.list_scans`; a file; or a list of these.
        dimensions: spatial axes of the images, of which 2 are photographs.
        datalist: take the images of this data list's ``validation`` and ``test`` lists instead.
        dicom_seg: say which scans are not DICOM, and so get no DICOM segmentation.

    Returns:
        Cases with ``image`` and ``case``, a name that no other has; each file once. Those of a single folder also have
        ``prediction``, the path of their results, which mirrors the folders below it: ``patient001/scan``; all others
        are called by their case.

    Raises:
        UserError: when there is nothing to segment, two scans would give the same prediction file, several files are
            channels of one case, or ``dicom_seg`` without highdicom.
    """
    if dicom_seg:
        refuse_without_highdicom()
    if datalist is not None:
        lists = read_lists(Path(datalist))
        listed = [case for name in ("validation", "test") for case in lists[name]]
        cases = [{key: case[key] for key in ("image", "case")} for case in listed]
    else:
        if isinstance(source, str) and not os.path.exists(os.path.expanduser(source)):
            raise UserError(f"{source}: no such file or folder; give --dataset_dir a folder of images.")
        cases = _cases([source] if isinstance(source, str) else source, dimensions)
    if not cases:
        kinds = "photographs, .png or .jpg" if dimensions == 2 else "NIfTI, NRRD, MetaImage or DICOM"
        raise UserError(f"{datalist or source}: no image to segment; expected {kinds}.")
    if dicom_seg:
        _tell_others(cases)
    return cases


def _tell_others(cases: Sequence[Case]) -> None:
    others = [case["case"] for case in cases if not is_series(case["image"])]
    if others:
        print(f"not DICOM, so without a DICOM segmentation: {first_names(others)}")


def _cases(sources: Sequence[str], dimensions: int) -> list[Case]:
    """List the scans in folders, and the files that are named, each once."""
    paths: dict[str, Path] = {}
    left_out: list[str] = []
    for source in map(os.path.expanduser, sources):
        found, others = _expand(Path(source), PHOTO_SUFFIXES if dimensions == 2 else VOLUME_SUFFIXES)
        left_out += others
        for path in found:
            first = paths.setdefault(os.path.realpath(path), path)
            if first != path:
                left_out.append(f"{path} (the same file as {first})")
    tell_left_out(left_out)
    refuse_channels(list(paths.values()))
    names = case_names(paths.values())
    cases = {path: {"image": str(path), "case": names[str(path)]} for path in paths.values()}
    if len(sources) == 1 and os.path.isdir(folder := os.path.expanduser(sources[0])):
        root, stems = _root(Path(folder)), short_stems(names)
        for path, case in cases.items():
            case["prediction"] = (path.relative_to(root).parent / stems[str(path)]).as_posix()
    return list(cases.values())


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
