"""Folders that hold a DICOM series, one file per slice, and multi-frame files that hold all slices."""

import os
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader
from monai.utils import ensure_tuple

from ..utils.errors import UserError
from .dicom_headers import OTHER_OBJECTS, Series, read_series
from .folders import is_written_by_inference

#: Elements of groups 2 and 8 with which a file without preamble may begin, and their types.
_FIRST_ELEMENTS = {0x00, 0x01, 0x02, 0x05, 0x08, 0x10, 0x12, 0x16, 0x18}
_FIRST_VRS = {b"UL", b"OB", b"UI", b"CS", b"DA"}


class SeriesReader(ITKReader):
    """MONAI's ``ITKReader`` with the slices, the grid and the scaling of the headers, which ITK in part guesses.

    ITK alone splits a series by tags such as SliceThickness and reads the first part, lays uneven slices out evenly,
    and scales all slices in the number type of the first.
    """

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Take folders, and DICOM files."""
        return all(os.path.isdir(path) or _is_dicom(Path(path)) for path in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **kwargs: Any) -> Any:
        """Read folders, or multi-frame files, to ITK images of 32-bit floats.

        Raises:
            UserError: when one is not a complete series on one grid, or a file is damaged.
        """
        images = [_read_image(check_series(Path(path))) for path in ensure_tuple(data)]
        return images if len(images) > 1 else images[0]


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files in a folder, whatever their names.

    Hidden ones, a disc's table of contents and our own segmentations are passed over.
    """
    return [path for path in _files_of_scans(folder) if _is_dicom(path)]


def _files_of_scans(folder: Path) -> list[Path]:
    """List the files in a folder that may be slices, by their names and what our record knows of them."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.name.upper() != "DICOMDIR" and not is_written_by_inference(path)]


def _is_dicom(path: Path) -> bool:
    """Tell a DICOM file by its name or its beginning, which in old files is not that of the standard."""
    if path.suffix.lower() == ".dcm":
        return True
    if not path.is_file():  # who opens a pipe waits for its other end
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:  # somebody else's file among the scans
        return False
    if start[128:] == b"DICM":  # DICOM PS3.10, section 7.1
        return True
    group, element = int.from_bytes(start[:2], "little"), int.from_bytes(start[2:4], "little")
    if group not in (2, 8) or element not in _FIRST_ELEMENTS:
        return False
    size = int.from_bytes(start[4:8], "little")  # where the type is not written; even, and 4 for the length of a group
    return start[4:6] in _FIRST_VRS or (size == 4 if element == 0 else 0 < size <= 128 and size % 2 == 0)


def check_series(path: Path) -> Series:
    """Read the headers of a folder's DICOM files, or of a multi-frame file, and check that they are one series.

    Returns:
        The slices in order, and their grid.

    Raises:
        UserError: in one line, when they are not: a file or an attribute is missing or damaged, slices are missing,
            double, uneven or tilted, or the files are something else, such as several series or a time series.
    """
    files = dicom_files(path) if path.is_dir() else [path]
    if not path.is_dir() and (count := slices_beside(path)) > 1:
        raise UserError(f"{path}: is one of {count} slices of one series; give its folder, {path.parent}.")
    if not files:
        raise UserError(f"{path}: holds no DICOM files.")
    if path.is_dir():
        _refuse_lost_slices(path, files)
    return read_series(path, files)


def _refuse_lost_slices(folder: Path, files: Sequence[Path]) -> None:
    """Refuse a folder with a file that is named as its slices are, and is empty or may not be read."""
    kinds = {_kind_of_name(path) for path in files}
    for path in _files_of_scans(folder):  # those with .dcm are among the files
        if _kind_of_name(path) in kinds and not os.access(path, os.R_OK):
            raise UserError(f"{path}: no permission to read it; have the permission changed, or remove it.")
        if _kind_of_name(path) in kinds and not path.stat().st_size:
            raise UserError(f"{path}: is empty; copy it again, or remove it.")


def _kind_of_name(path: Path) -> str:
    """Give the ending of a file's name; none where it is a number, as in IM.0001 and in names that are UIDs."""
    ending = path.suffix.lower()
    return "" if ending[1:].isdecimal() else ending


def series_of_slice(path: Path) -> str | None:
    """Read of which series a DICOM file is a slice; None for files with several frames, and for other files."""
    if not (path.is_file() and _is_dicom(path)):
        return None
    import pydicom  # takes a third of a second, which other files need not wait for

    try:
        tags = ["SeriesInstanceUID", "NumberOfFrames"]
        header = pydicom.dcmread(path, specific_tags=tags, stop_before_pixels=True, force=True)
        is_single = int(header.get("NumberOfFrames") or 1) == 1
        return str(header.get("SeriesInstanceUID") or "") or None if is_single else None
    except Exception:  # whoever reads its voxels says what is damaged
        return None


def other_object(files: Sequence[Path]) -> str | None:
    """Say what the DICOM files of a folder are, where none is of a scan, such as RTSTRUCT."""
    if not files:
        return None
    import pydicom

    kinds = set()
    for path in files:
        try:
            header = pydicom.dcmread(path, specific_tags=["Modality"], stop_before_pixels=True, force=True)
            kinds.add(str(header.get("Modality")))
        except Exception:  # whoever reads its voxels says what is damaged
            return None
        if not kinds <= set(OTHER_OBJECTS):
            return None
    return " and ".join(sorted(kinds))


def slices_beside(path: Path) -> int:
    """Count the files in the folder of a slice that are of its series, itself too; 0 where it is no slice."""
    series = series_of_slice(path)
    return 0 if series is None else _slices_by_series(path.parent, path.parent.stat().st_mtime_ns)[series]


@cache
def _slices_by_series(folder: Path, _: int) -> Counter[str | None]:
    return Counter(map(series_of_slice, dicom_files(folder)))


def _read_image(series: Series) -> Any:
    """Read the voxels of a series into an ITK image on the headers' grid."""
    import itk

    voxels = np.empty(series.shape[::-1], np.float32)
    for path, found in groupby(enumerate(series.slices), key=lambda item: item[1].path):
        frames, scaling = _read_file(path)
        slices = list(found)
        expected = (slices[0][1].frames, *voxels.shape[1:])
        if frames.shape != expected:
            raise UserError(f"{path}: its header says {expected} voxels, but {frames.shape} are read; is it damaged?")
        for k, part in slices:
            voxels[k] = _scaled(frames[part.frame], scaling, part.scaling)
    image = itk.image_from_array(voxels)
    spacing = np.linalg.norm(series.affine[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(series.affine[:3, 3])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(series.affine[:3, :3] / spacing)))
    return image


def _read_file(path: Path) -> tuple[np.ndarray, tuple[float, float]]:
    """Read a file's frames, DHW, and the slope and intercept that ITK has applied."""
    import itk

    used = itk.GDCMImageIO.New()
    reader = itk.ImageFileReader[itk.Image[itk.D, 3]].New(FileName=str(path))
    reader.SetImageIO(used)
    try:
        reader.Update()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"{path}: its voxels cannot be read, it is damaged or compressed unusually ({reason})."
        ) from error
    return itk.array_from_image(reader.GetOutput()), (used.GetRescaleSlope(), used.GetRescaleIntercept())


def _scaled(voxels: np.ndarray, applied: tuple[float, float], wanted: tuple[float, float]) -> np.ndarray:
    """Scale a slice by its own header, where ITK took another slope: the first frame's, or a real-world mapping's."""
    if np.allclose(applied, wanted, rtol=1e-9, atol=0):
        return voxels
    return np.round((voxels - applied[1]) / applied[0]) * wanted[0] + wanted[1]
