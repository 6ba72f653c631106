"""Write volumes to the formats that scanners and archives use."""

from pathlib import Path

import itk
import nibabel as nib
import numpy as np

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
    folder: Path, volume: np.ndarray, spacing=(0.7, 0.8, 2.0), leave_out=(), uid="1.2.3", turned=None
) -> None:
    """Write x, y, z voxels in HU as a DICOM series, one file per slice."""
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
        header.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
