"""Write volumes to the formats that scanners and archives use, and read them as inference does."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import itk
import nibabel as nib
import numpy as np
from monai.data import Dataset
from monai.transforms import Compose

from custom.data import CheckScand, LoadScand, ScanLoader, Unreadable, find_scans

ANGLE = np.deg2rad(20)
#: Oblique, anisotropic, with a left-handed order of axes.
OBLIQUE = np.array(
    [
        [0.7 * np.cos(ANGLE), -0.9 * np.sin(ANGLE), 0, 10],
        [0.7 * np.sin(ANGLE), 0.9 * np.cos(ANGLE), 0, -20],
        [0, 0, -2.5, 30],
        [0, 0, 0, 1],
    ]
)


def write_itk(path: Path, volume: np.ndarray, affine: np.ndarray) -> None:
    """Write x, y, z voxels with an affine of NIfTI's convention to any format that ITK knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = itk.image_from_array(np.ascontiguousarray(volume.transpose(2, 1, 0)))
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing)
    image.SetOrigin(lps[:3, 3])
    image.SetDirection(itk.matrix_from_array(np.ascontiguousarray(lps[:3, :3] / spacing)))
    itk.imwrite(image, str(path))


def write_nifti(path: Path, volume: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)


def write_dicom(
    folder: Path,
    volume: np.ndarray,
    spacing=(0.7, 0.8, 2.0),
    leave_out=(),
    uid="1.2.3",
    turned=None,
    edit: Callable | None = None,
) -> None:
    """Write x, y, z voxels in HU as a DICOM series, one file per slice; ``edit`` gets each header and its number."""
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(volume.shape[2]):
        if k in leave_out:
            continue
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{uid}.{k + 1}"
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        header = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
        header.SOPClassUID, header.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        header.SeriesInstanceUID, header.StudyInstanceUID, header.FrameOfReferenceUID = uid, "1.2", "1.4"
        header.Modality, header.PatientID, header.InstanceNumber = "CT", "x", k + 1
        header.ImagePositionPatient = [0, 0, k * spacing[2]]
        header.ImageOrientationPatient = [0, 1, 0, 1, 0, 0] if k == turned else [1, 0, 0, 0, 1, 0]
        header.PixelSpacing, header.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        header.Rows, header.Columns = volume.shape[1], volume.shape[0]
        header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
        header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
        header.RescaleIntercept, header.RescaleSlope = 0, 1
        header.PixelData = np.ascontiguousarray(volume[:, :, k].T.astype(np.int16)).tobytes()
        if edit is not None:
            edit(header, k)
        header.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)


def write_multiframe(
    path: Path, volume: np.ndarray, heights: Sequence[float], slopes: Sequence[float] | None = None
) -> None:
    """Write x, y, z voxels as one enhanced CT file, a frame per slice; heights in mm, None for no position."""
    import pydicom
    from pydicom.dataset import Dataset

    def group(name: str, **values) -> Dataset:
        item, macro = Dataset(), Dataset()
        for key, value in values.items():
            setattr(macro, key, value)
        setattr(item, name, [macro])
        return item

    write_dicom(path.parent, volume[:, :, :1])
    header = pydicom.dcmread(path.parent / "000.dcm")
    (path.parent / "000.dcm").unlink()
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        delattr(header, name)
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = pydicom.uid.EnhancedCTImageStorage
    header.NumberOfFrames = volume.shape[2]
    header.PixelData = np.ascontiguousarray(volume.T.astype(np.int16)).tobytes()
    shared = group("PixelMeasuresSequence", PixelSpacing=[0.8, 0.7], SliceThickness=2)
    shared.update(group("PlaneOrientationSequence", ImageOrientationPatient=[1, 0, 0, 0, 1, 0]))
    header.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for k, height in enumerate(heights):
        slope = 1 if slopes is None else slopes[k]
        frame = group("PixelValueTransformationSequence", RescaleSlope=slope, RescaleIntercept=0)
        if height is not None:
            frame.update(group("PlanePositionSequence", ImagePositionPatient=[0, 0, height]))
        frame.update(group("FrameContentSequence", TemporalPositionIndex=k))
        frames.append(frame)
    header.PerFrameFunctionalGroupsSequence = frames
    header.save_as(path, enforce_file_format=True)


def read_scans(source: str | list[str] | Path, **rule: Any) -> tuple[list[str], list[str]]:
    """Read scans as inference does: names of those that can be segmented, and why the others cannot."""
    given = source if isinstance(source, list) else str(source)
    cases = find_scans(given, rule.get("in_channels", 1), rule.get("dimensions", 3)).cases
    check = CheckScand("image", **{"in_channels": 1, "dimensions": 3} | rule)
    items = list(ScanLoader(Dataset(cases, Compose([LoadScand("image"), check]))))
    assert len(items) == len(cases)
    good = [case["case"] for case, item in zip(cases, items, strict=True) if not isinstance(item, Unreadable)]
    return good, [item.problem for item in items if isinstance(item, Unreadable)]
