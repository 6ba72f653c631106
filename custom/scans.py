"""Find the scans to segment: files of many formats, and folders with a DICOM series.

A scan that cannot be segmented does not keep the others waiting: it is left out, and named at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .data import Case, CaseRule, case_name, check_cases, groups, read_lists
from .dicom import series_folders
from .errors import UserError
from .photos import PHOTO_ENDINGS

__all__ = [
    "VOLUME_ENDINGS",
    "Scans",
    "find_scans",
    "refuse_left_out",
]

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")


class Scans(NamedTuple):
    """Scans that can be segmented, and why the others cannot."""

    cases: list[Case]
    problems: list[str]


def find_scans(
    source: str | Sequence[str],
    in_channels: int,
    dimensions: int,
    pad_to: Mapping[str, Any] | None = None,
    series: bool = False,
    datalist: str | None = None,
) -> Scans:
    """List the scans to segment, read and check them. Labels are neither needed nor opened.

    Args:
        source: a folder (its subfolder ``images`` if there is one) of files, or of folders with a DICOM series each;
            a file; a folder of DICOM files; or a list of these.
        in_channels: channels that every image must have.
        dimensions: spatial axes that every image must have.
        pad_to: ``size`` in voxels per axis, and ``spacing`` in mm to which volumes are resampled before, or None for
            their own; smaller volumes are reported once, since they will be padded. None when nothing is padded.
        series: whether an image may have a time axis behind its spatial ones, instead of channels.
        datalist: take the images of this data list's ``validation`` and ``test`` lists instead.

    Raises:
        UserError: when there is nothing that can be segmented, or two scans would give the same prediction file.
    """
    if datalist is not None:
        lists = read_lists(Path(datalist))
        paths = [Path(case["image"]) for name in ("validation", "test") for case in lists[name]]
    else:
        paths = _expand(source, PHOTO_ENDINGS if dimensions == 2 else VOLUME_ENDINGS)
    if not paths:
        kinds = "photographs, .png or .jpg" if dimensions == 2 else "NIfTI, NRRD, MetaImage or DICOM"
        raise UserError(f"{datalist or source}: no image to segment; expected {kinds}.")
    double = [", ".join(map(str, same)) for same in groups(paths, key=case_name)]
    if double:
        raise UserError("scans whose predictions would have the same name; segment them one at a time:", double)

    cases = [{"image": str(path)} for path in paths]
    findings = check_cases(cases, CaseRule(in_channels, 0, dimensions, pad_to, series))
    problems = [problem for found in findings for problem in found]
    good = [case for case, found in zip(cases, findings, strict=True) if not found]
    if not good:
        raise UserError(f"{len(problems)} problem(s), nothing was segmented:", problems)
    return Scans(good, problems)


def refuse_left_out(scans: Scans) -> None:
    """End the program with the scans that were left out, if any; call it when the others are done.

    Raises:
        UserError: names every scan that was left out, and why.
    """
    if scans.problems:
        summary = f"{len(scans.cases)} scan(s) segmented; left out, with {len(scans.problems)} problem(s):"
        raise UserError(summary, scans.problems)


def _expand(source: str | Sequence[str], endings: tuple[str, ...]) -> list[Path]:
    if not isinstance(source, str):
        return [Path(file) for file in source]
    folder = Path(source)
    if not folder.exists():
        raise UserError(f"{source}: no such file or folder; give --dataset_dir a folder of images.")
    if folder.is_file():
        return [folder]
    folder = folder / "images" if (folder / "images").is_dir() else folder
    files = [path for path in folder.iterdir() if path.name.lower().endswith(endings)]
    return sorted([*files, *series_folders(folder)] if endings == VOLUME_ENDINGS else files)
