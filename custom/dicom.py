"""Folders that hold a DICOM series, one file per slice."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.config import PathLike
from monai.data import ITKReader
from monai.utils import ensure_tuple

from .errors import UserError

__all__ = ["SeriesReader", "check_series", "dicom_files", "series_folders"]


class SeriesReader(ITKReader):
    """MONAI's ``ITKReader``, for folders."""

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Take folders alone."""
        return all(os.path.isdir(path) for path in ensure_tuple(filename))


def series_folders(folder: Path) -> list[Path]:
    """Find the folder itself, and those below it, that hold DICOM files."""
    return sorted(Path(path) for path, _, _ in os.walk(folder) if dicom_files(Path(path)))


def dicom_files(folder: Path) -> list[Path]:
    """List the DICOM files in a folder, whatever their names, but for the table of contents that discs have."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name.upper() != "DICOMDIR"]
    return [path for path in files if path.suffix.lower() == ".dcm" or _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"  # DICOM PS3.10, section 7.1
    except OSError:  # somebody else's file among the scans
        return False


def check_series(folder: Path) -> None:
    """Check that the DICOM files of a folder are one complete series.

    Raises:
        UserError: when there are several series, or slices have no spacing, are missing, double, or differ in
            orientation.
    """
    import pydicom

    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in dicom_files(folder)]
    series = {str(header.SeriesInstanceUID) for header in headers}
    if len(series) != 1:
        raise UserError(f"{folder}: expected one DICOM series, found {len(series)}; give each its own folder.")
    if not all("PixelSpacing" in header for header in headers):
        raise UserError(f"{folder}: its headers have no spacing (PixelSpacing); is it a series of scanner images?")
    orientations = {tuple(np.round(np.asarray(header.ImageOrientationPatient, float), 3)) for header in headers}
    if len(orientations) != 1:
        raise UserError(f"{folder}: the slices have {len(orientations)} different orientations.")
    row, column = np.split(np.asarray(headers[0].ImageOrientationPatient, float), 2)
    places = np.sort([np.dot(np.cross(row, column), np.asarray(h.ImagePositionPatient, float)) for h in headers])
    steps = np.diff(places)
    if len(steps) and steps.min() < 1e-3:
        raise UserError(f"{folder}: {int((steps < 1e-3).sum())} slice(s) are there twice, at the same position.")
    if len(steps) and steps.max() > 1.5 * np.median(steps):
        gap = int(steps.argmax())
        raise UserError(f"{folder}: slices are missing between {places[gap]:.2f} and {places[gap + 1]:.2f} mm.")
