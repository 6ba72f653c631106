"""Label maps of DICOM series as DICOM Segmentation objects, which archives and viewers show over the series."""

import hashlib
import json
import logging
import warnings
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from ..utils.errors import UserError
from ..utils.files import prediction_file
from ..utils.names import prediction_of
from .dicom import SeriesReader, check_series
from .dicom_headers import Series

MANUFACTURER = "CrossMatch for MONAI"
#: Behind the numbers that scanners give to the series of a study.
SERIES_NUMBER = 1000
#: What every slice must have to be referred to.
REQUIRED = ("StudyInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID", "Modality")
#: What the standard lets be empty, and highdicom wants to be there.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber"),
)
#: Category and type of a class without codes of its own: DICOM PS3.16, CID 7150 and CID 7191.
TISSUE = ("85756007", "SCT", "Tissue")
REMEDY = "export the series again, or leave --output out"
LONGEST_TEXT = 64  # characters, of DICOM's LO


class _Source(NamedTuple):
    """A series as highdicom takes it."""

    headers: list[Any]  #: one for each plane, or one for all
    order: list[int]  #: the slice, in the order of positions, that each plane is
    series: Series


class SaveDicomSegmentationd(MapTransform):
    """Write label maps of DICOM series as Segmentation objects, ``CASE_seg.dcm``; MONAI has no writer of DICOM.

    Each class is a binary segment. Its frames lie on the slices that they refer to; those without a voxel of it are
    left out, unless no class has any: then all are written. Patient and study are the series' own. Label maps of other
    files are passed over.

    Args:
        keys: class indices, 1HWD, on the grid of the series.
        output_dir: folder, created when missing.
        class_names: foreground classes, in the order of their labels.
        terminology: ``category`` and ``type`` by class, each the value, scheme and meaning of a code. Other classes get
            the code of tissue, and are printed.
        bundle_root: folder of the bundle, whose name and version are written as those of the algorithm.
        weights: files of the weights; their SHA-256 takes the place of a device's serial number.

    Raises:
        UserError: when highdicom is missing, or a code is not one.
    """

    def __init__(
        self,
        keys: KeysCollection,
        output_dir: str,
        class_names: Sequence[str],
        terminology: Mapping[str, Mapping[str, Sequence[str]]],
        bundle_root: str,
        weights: str | Sequence[str],
    ) -> None:
        super().__init__(keys)
        refuse_without_highdicom()
        self.output_dir = Path(output_dir)
        self.codes = {name: _codes(name, terminology.get(name)) for name in class_names}
        self.bundle_root = Path(bundle_root)
        self.weights = [Path(path) for path in ensure_tuple(weights)]
        uncoded = [name for name in class_names if name not in terminology]
        if uncoded:
            print(f"not in --terminology, written as {TISSUE[2]} ({TISSUE[1]} {TISSUE[0]}): {', '.join(uncoded)}")

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the segmentations, and add their files' paths to the sample's list ``written``.

        Raises:
            UserError: when a series cannot be referred to, or a file cannot be written; what was there under its name
                is kept.
        """
        sample = dict(data)
        for key in self.key_iterator(sample):
            path = str(sample[key].meta["filename_or_obj"])
            if is_series(path):
                source = _source(path)
                content = _segmentation(path, source, _planes(path, source, sample[key]), self._algorithm)
                file = self.output_dir / f"{prediction_of(sample[key].meta)}_seg.dcm"
                with prediction_file(file) as part:
                    content.save_as(part)
                sample["written"] = [*sample.get("written", ()), str(file)]
        return sample

    @cached_property
    def _algorithm(self) -> dict[str, Any]:
        metadata = json.loads((self.bundle_root / "configs" / "metadata.json").read_text(encoding="utf-8"))
        digest = hashlib.sha256()
        for path in self.weights:
            digest.update(path.read_bytes())
        return _algorithm(metadata["name"], metadata["version"], digest.hexdigest(), self.codes)


def refuse_without_highdicom() -> None:
    """Check that highdicom is installed.

    Raises:
        UserError: says how to install it.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"--output dicom_seg needs highdicom ({error}); run `pip install highdicom`, or leave --output out."
        ) from error


def is_series(path: str) -> bool:
    """Say whether a scan is DICOM, by its folder or file."""
    return SeriesReader().verify_suffix(path)


def segmentation_problem(path: str) -> str | None:
    """Say why a segmentation cannot refer to a DICOM series; None where it can. A segmentation of one voxel is tried.

    Args:
        path: folder, or multi-frame file.
    """
    try:
        source = _source(path)
        columns, rows, planes = source.series.shape
        voxels = np.zeros((planes, rows, columns), np.uint8)
        voxels[0, 0, 0] = 1
        _segmentation(path, source, voxels, _algorithm("trial", "0", "0", {"trial": _codes("trial", None)}))
    except UserError as error:
        return str(error)
    return None


def _source(path: str) -> _Source:
    """Read the headers of a series, and complete them, in memory, by what highdicom expects at one place of many."""
    series = check_series(Path(path))
    missing = {name: part for part in reversed(series.slices) for name in REQUIRED if part.get(name) is None}
    if missing:
        found = "; ".join(f"{part.path.name} lacks {name}" for name, part in missing.items())
        raise UserError(f"{path}: {found}, to which a DICOM segmentation refers; {REMEDY}.")
    is_multiframe = "PerFrameFunctionalGroupsSequence" in series.slices[0].headers[-1]
    if is_multiframe and len(series.slices) > series.slices[0].frames:
        raise UserError(
            f"{path}: several enhanced files, one for each slice, to which highdicom cannot refer; join them into one "
            "multi-frame file, or leave --output out."
        )
    parts = [(part.frame, k) for k, part in enumerate(series.slices)]
    order = [k for _, k in (sorted(parts) if is_multiframe else parts)]
    headers = [_multiframe_header(series)] if is_multiframe else _slice_headers(series)
    _complete(headers[0])
    return _Source(headers, order, series)


def _complete(header: Any) -> None:
    """Complete the header from which patient and study are taken, and turn its texts into UTF-8.

    highdicom refuses character sets that are common, such as Japanese ones and ``ISO 2022 IR 100`` alone.
    """
    header.pop("PixelData", None)  # or decoding would read it
    header.decode()
    header.SpecificCharacterSet = "ISO_IR 192"
    for name in MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, None)


def _slice_headers(series: Series) -> list[Any]:
    """Headers of slices whose rounded orientations are the first one's, as they are for our reader."""
    headers = [part.headers[-1] for part in series.slices]
    for header in headers:
        header.ImageOrientationPatient = headers[0].ImageOrientationPatient
    _put_distance(headers[0], series)
    return headers


def _multiframe_header(series: Series) -> Any:
    """Header of a multi-frame file in which all frames share one orientation and spacing, and each has its position."""
    import pydicom

    first = series.slices[0]
    header = first.headers[-1]
    orientation, measures = pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = first.get("ImageOrientationPatient")
    measures.PixelSpacing, measures.SliceThickness = first.get("PixelSpacing"), first.get("SliceThickness")
    _put_distance(measures, series)
    shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
    shared[0].PlaneOrientationSequence, shared[0].PixelMeasuresSequence = [orientation], [measures]
    header.SharedFunctionalGroupsSequence = shared
    for part in series.slices:
        position = pydicom.Dataset()
        position.ImagePositionPatient = part.get("ImagePositionPatient")
        header.PerFrameFunctionalGroupsSequence[part.frame].PlanePositionSequence = [position]
    return header


def _put_distance(measures: Any, series: Series) -> None:
    """Put in the measured distance between slices, which some scanners give as the gap, and a thickness if missing."""
    from pydicom.valuerep import format_number_as_ds

    distance = format_number_as_ds(float(np.linalg.norm(series.affine[:3, 2])))
    measures.SpacingBetweenSlices = distance
    if measures.get("SliceThickness") is None:
        measures.SliceThickness = distance


def _planes(path: str, source: _Source, label: MetaTensor) -> np.ndarray:
    """Order the voxels of a label map, 1HWD, as the planes of its series: planes, rows, columns."""
    affine = np.diag([-1.0, -1, 1, 1]) @ source.series.affine  # NIfTI's axes point to the right and to the front
    if tuple(label.shape) != (1, *source.series.shape) or not np.allclose(label.affine.cpu(), affine, atol=1e-3):
        raise UserError(
            f"{path}: a label map of shape {tuple(label.shape)} is not on the grid of this series of "
            f"{source.series.shape} voxels; was the series changed meanwhile?"
        )
    return label.as_tensor()[0].cpu().numpy().astype(np.uint8).T[source.order]


def _segmentation(path: str, source: _Source, planes: np.ndarray, algorithm: Mapping[str, Any]) -> Any:
    """Make the Segmentation object of class indices in planes, rows, columns."""
    import highdicom

    logging.getLogger(highdicom.__name__).setLevel(logging.ERROR)  # it would tell each attribute that it copies
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The string .* person name")  # quotes the patient's
            return highdicom.seg.Segmentation(
                source_images=source.headers,
                pixel_array=planes,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                series_instance_uid=highdicom.UID(),
                series_number=SERIES_NUMBER,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer=MANUFACTURER,
                content_label="SEGMENTATION",
                **algorithm,
            )
    except Exception as error:  # whatever header highdicom does not take
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: a DICOM segmentation cannot refer to it ({reason}); {REMEDY}.") from error


def _algorithm(name: str, version: str, serial: str, classes: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Describe what made the segments, and the segments, as highdicom's arguments."""
    import highdicom
    from pydicom.sr.codedict import codes

    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=name, version=version, family=codes.cid7162.ArtificialIntelligence, source=MANUFACTURER
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=label,
            segmented_property_category=category,
            segmented_property_type=kind,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (label, (category, kind)) in enumerate(classes.items(), start=1)
    ]
    return {
        "segment_descriptions": segments,
        "manufacturer_model_name": name[:LONGEST_TEXT],
        "software_versions": version,
        "device_serial_number": serial,
        "series_description": f"Segmentation by {name}"[:LONGEST_TEXT],
    }


def _codes(name: str, given: Mapping[str, Sequence[str]] | None) -> tuple[Any, Any]:
    """Make highdicom's codes of a class, its category and its type."""
    entry = {"category": TISSUE, "type": TISSUE} if given is None else given
    try:
        return _code(entry["category"]), _code(entry["type"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"--terminology: {name} must have a category and a type, each a code's value, scheme and meaning, such as "
            f"{{category: ['91723000', SCT, Anatomical Structure], type: ['15776009', SCT, Pancreas]}}; got {given}."
        ) from error


def _code(parts: Sequence[str]) -> Any:
    from highdicom.sr import CodedConcept

    value, scheme, meaning = map(str, parts)
    if isinstance(parts, str) or not (value and scheme and meaning):
        raise ValueError(parts)
    return CodedConcept(value, scheme, meaning)
