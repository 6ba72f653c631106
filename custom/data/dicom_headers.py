"""What the headers of a DICOM series say: which slices there are, where they lie, and how their values are scaled.

A series that is not one volume on one grid is refused, in one line that names the file and what to do.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.errors import UserError

#: What every slice must have besides its voxels, and how many numbers that is; None for other content.
REQUIRED = {
    "SeriesInstanceUID": None,
    "Rows": 1,
    "Columns": 1,
    "BitsAllocated": 1,
    "PixelRepresentation": 1,
    "PhotometricInterpretation": None,
    "PixelSpacing": 2,
    "ImageOrientationPatient": 6,
    "ImagePositionPatient": 3,
}
POSITIVE = ("Rows", "Columns", "BitsAllocated", "PixelSpacing")
#: Objects that archives keep beside scans.
OTHER_OBJECTS = (
    *("SEG", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE"),
    *("SR", "PR", "KO", "REG", "DOC", "FID", "PLAN"),
)
#: What tells slices at the same position apart: what they are, and by which attributes; the first that differs counts.
TELLING = (
    ("a time series", ("TemporalPositionIdentifier", "TemporalPositionIndex")),
    ("several echoes", ("EchoNumbers", "EchoTime", "EffectiveEchoTime")),
    ("several diffusion weightings", ("DiffusionBValue", "DiffusionGradientOrientation")),
    ("several inversion times", ("InversionTime",)),
    ("several flip angles", ("FlipAngle",)),
    ("several reconstructions", ("ConvolutionKernel",)),
    ("several kinds of image", ("ComplexImageComponent", "ImageType", "FrameType")),
    ("a time series", ("TriggerTime", "NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase")),
    ("a time series", ("TemporalPositionTimeOffset", "FrameReferenceTime")),
    ("several acquisitions", ("AcquisitionNumber",)),
    ("a time series or several acquisitions", ("AcquisitionDateTime", "FrameAcquisitionDateTime")),
    ("a time series or several acquisitions", ("AcquisitionTime", "ContentTime")),
)
#: Share of the step by which a slice may lie off the grid, and mm per mm that rounded headers may add to that.
STEP_TOLERANCE = 0.01
ROUNDING = 1e-4
#: Distance in mm below which two positions are the same.
SAME = 1e-3
CONVERT = "convert it to NIfTI, for example with dcm2niix"


class Slice(NamedTuple):
    """A slice: its file, which of the file's frames it is, and its headers, the frame's own before the file's."""

    path: Path
    frame: int
    frames: int
    headers: tuple[Any, ...]

    def get(self, name: str) -> Any:
        """Look an attribute up; None when it is missing or empty."""
        values = (header.get(name) for header in self.headers)
        return next((value for value in values if value is not None and str(value) != ""), None)

    def numbers(self, name: str) -> np.ndarray:
        """Look up an attribute that is one number or several."""
        return np.atleast_1d(np.asarray(self.get(name), float))

    @property
    def scaling(self) -> tuple[float, float]:
        """Slope and intercept of its values."""
        slope, intercept = self.get("RescaleSlope"), self.get("RescaleIntercept")
        return 1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept)


class Series(NamedTuple):
    """Slices in order, their grid of (columns, rows, slices), and its affine, 4x4, in mm to the left, back and up."""

    slices: list[Slice]
    shape: tuple[int, int, int]
    affine: np.ndarray


def read_series(folder: Path, files: Sequence[Path]) -> Series:
    """Read the headers of DICOM files, and check that they are one volume on one grid.

    Args:
        folder: where they are, for messages.
        files: one per slice, or one for all.

    Raises:
        UserError: when they are not.
    """
    try:
        slices = [part for file in files for part in _slices(file)]
        for check in (_check_attributes, _check_one_series, _check_images):
            check(slices)
        shape, affine = (int(slices[0].get("Columns")), int(slices[0].get("Rows"))), _plane(slices[0])
        positions = np.stack([part.numbers("ImagePositionPatient") for part in slices])
        order = np.argsort(positions @ affine[:3, 2], kind="stable")
        slices, positions = [slices[k] for k in order], positions[order]
        _check_double(slices, positions)
        affine[:3, 2] *= _step(slices, positions, affine[:3, 2])
        affine[:3, 3] = positions[0]
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except Exception as error:  # whatever else a damaged or careless header holds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{folder}: a header cannot be understood ({reason}); export the series again.") from error
    return Series(slices, (*shape, len(slices)), affine)


def _slices(path: Path) -> list[Slice]:
    """Read the header of a file, and of each frame where it has several."""
    import pydicom

    try:
        header = pydicom.dcmread(path, defer_size="2 KB", force=True)  # old files have no preamble
    except Exception as error:  # whatever the bytes of a damaged file lead to
        raise UserError(f"{path.name} is damaged, or no DICOM file ({error}).") from error
    slices = _frames(path, header)
    kind = str(slices[0].get("Modality"))
    if kind in OTHER_OBJECTS:
        raise UserError(f"{path.name} is no slice of a scan but a {kind} object; move it into a folder of its own.")
    if header.get("SOPClassUID") is None and "PixelData" not in header:
        raise UserError(f"{path.name} is truncated or damaged, or no DICOM file; copy it again, or remove it.")
    if "PixelData" not in header:
        raise UserError(f"{path.name} lacks PixelData, its voxels; is it complete, and an image?")
    _check_size(path, header)
    return slices


def _frames(path: Path, header: Any) -> list[Slice]:
    count = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        if count > 1:
            found = f"is multi-frame, {count} frames without positions, such as a film or a time series"
            raise UserError(f"{path.name} {found}; {CONVERT}.")
        return [Slice(path, 0, 1, (header,))]
    if len(groups) != count:
        raise UserError(f"{path.name} is multi-frame and describes {len(groups)} of its {count} frames; {CONVERT}.")
    shared = _flat((header.get("SharedFunctionalGroupsSequence") or [{}])[0])
    return [Slice(path, k, count, (_flat(group), shared, header)) for k, group in enumerate(groups)]


def _flat(group: Any) -> Any:
    """Collect what the macros of a functional group hold; DICOM PS3.3, section C.7.6.16.

    Private ones are passed over, since they may hold positions, too, of corners instead of voxels.
    """
    import pydicom

    flat = pydicom.Dataset()
    for macro in [group[tag] for tag in sorted(group.keys()) if not tag.is_private]:
        if macro.VR == "SQ" and macro.value:
            flat.update(macro.value[0])
    return flat


def _check_size(path: Path, header: Any) -> None:
    """Find files that end before their voxels do; of compressed ones ITK tells when it reads them."""
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    syntax = header.file_meta.get("TransferSyntaxUID")
    pixels = header.get_item("PixelData", keep_deferred=True)
    if syntax == DeflatedExplicitVRLittleEndian or pixels.length == 0xFFFFFFFF:
        return
    factors = [header.get(name) for name in ("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated")]
    needed = int(np.prod([int(1 if factor is None else factor) for factor in factors])) // 8
    found = min(pixels.length, path.stat().st_size - pixels.value_tell)
    if found < needed:
        raise UserError(f"{path.name} is truncated: {found} of {needed} bytes of voxels; copy or export it again.")


def _check_attributes(slices: Sequence[Slice]) -> None:
    wrong: dict[str, dict[str, None]] = defaultdict(dict)
    for part in slices:
        missing = [name for name in REQUIRED if part.get(name) is None]
        problems = [f"lacks {' and '.join(missing)}"] if missing else []
        problems += [
            f"has {name} {str(part.get(name))!r}, expected {count} {'positive ' if name in POSITIVE else ''}number(s)"
            for name, count in REQUIRED.items()
            if count is not None and name not in missing and not _has_numbers(part, name, count)
        ]
        if problems:
            kind = ", which is multi-frame, " if part.frames > 1 else " "
            wrong[kind + " and ".join(problems)][part.path.name] = None
    if wrong:
        found = [
            f"{next(iter(files))}{problem}" + (f" (as do {len(files) - 1} more)" if len(files) > 1 else "")
            for problem, files in wrong.items()
        ]
        raise UserError(f"{'; '.join(found)}; export the scanner's own images with all attributes, or {CONVERT}.")


def _has_numbers(part: Slice, name: str, count: int) -> bool:
    try:
        numbers = part.numbers(name)
    except (ValueError, TypeError):
        return False
    return len(numbers) == count and bool(np.isfinite(numbers).all()) and (name not in POSITIVE or numbers.min() > 0)


def _check_one_series(slices: Sequence[Slice]) -> None:
    """Refuse several series, several multi-frame files, and slices that lie in different planes."""
    series = {str(part.get("SeriesInstanceUID")): part.path.name for part in slices}
    if len(series) > 1:
        found = f"found {len(series)} (such as {' and '.join(list(series.values())[:2])})"
        raise UserError(f"expected one DICOM series, {found}; give each a folder of its own.")
    files = list(dict.fromkeys(part.path.name for part in slices))
    if len(files) > 1 and any(part.frames > 1 for part in slices):
        raise UserError(f"expected one multi-frame file, found {len(files)} files; give each a folder of its own.")
    first = slices[0].numbers("ImageOrientationPatient")
    row, column = first[:3], first[3:]
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        raise UserError(f"{files[0]} has ImageOrientationPatient {first.tolist()}, expected two axes at right angles.")
    orientations: list[np.ndarray] = []
    for part in slices:
        turned = part.numbers("ImageOrientationPatient")
        if not any(np.allclose(turned, known, atol=1e-3) for known in orientations):
            orientations.append(turned)
    if len(orientations) > 1:
        found = f"the slices have {len(orientations)} different orientations"
        raise UserError(f"{found}, as localizers have, or several stacks; give each stack a folder of its own.")
    for name in ("Rows", "Columns", "PixelSpacing", "PhotometricInterpretation", "FrameOfReferenceUID", "Modality"):
        _check_same(slices, name)


def _check_same(slices: Sequence[Slice], name: str) -> None:
    first = slices[0].get(name)
    for part in slices:
        value = part.get(name)
        if REQUIRED.get(name) is None:
            differs = value != first
        else:
            differs = not np.allclose(part.numbers(name), slices[0].numbers(name), rtol=1e-3, atol=0)
        if differs:
            found = f"{first} in {slices[0].path.name}, {value} in {part.path.name}"
            raise UserError(f"the slices differ in {name} ({found}); give each kind a folder of its own.")


def _check_images(slices: Sequence[Slice]) -> None:
    """Refuse images whose values or planes are not what they seem."""
    for part in slices:
        name, kinds = part.path.name, [str(kind).upper() for kind in np.atleast_1d(part.get("ImageType") or [])]
        colors = str(part.get("PhotometricInterpretation"))
        if "LOCALIZER" in kinds:
            raise UserError(f"{name} is a localizer ({part.get('Modality')}), not a slice of a scan; take it out.")
        if "MOSAIC" in kinds:
            raise UserError(f"{name} is a mosaic, all slices in one picture; {CONVERT}.")
        if colors != "MONOCHROME2":
            found = f"a picture in {colors}, not the scanner's values in MONOCHROME2"
            raise UserError(f"{name} is {found}; export the original images.")
        samples, bits = part.get("SamplesPerPixel"), int(part.get("BitsAllocated"))
        if samples not in (None, 1) or bits not in (8, 16, 32):
            found = f"SamplesPerPixel {samples} and BitsAllocated {bits}, expected 1, and 8, 16 or 32"
            raise UserError(f"{name} has {found}; {CONVERT}.")
        if part.get("ModalityLUTSequence") is not None:
            raise UserError(f"{name} has a ModalityLUTSequence, a table of values, which is not read; {CONVERT}.")
        if not np.isfinite(part.scaling).all() or part.scaling[0] == 0:
            raise UserError(f"{name} has RescaleSlope and RescaleIntercept {part.scaling}; export it again.")


def _plane(part: Slice) -> np.ndarray:
    """Affine of a slice, 4x4: columns, rows, and the unit normal; without its place."""
    row, column = np.split(part.numbers("ImageOrientationPatient"), 2)
    down, along = part.numbers("PixelSpacing")  # between rows, between columns
    affine = np.eye(4)
    normal = np.cross(row, column)
    affine[:3, 0], affine[:3, 1] = row / np.linalg.norm(row) * along, column / np.linalg.norm(column) * down
    affine[:3, 2] = normal / np.linalg.norm(normal)
    return affine


def _check_double(slices: Sequence[Slice], positions: np.ndarray) -> None:
    """Refuse several slices at one position, and say what they are."""
    is_new = np.linalg.norm(np.diff(positions, axis=0), axis=1) >= SAME
    if is_new.all():
        return
    place, places = int(is_new.argmin()), 1 + int(is_new.sum())
    group = [part for part, number in zip(slices, np.cumsum([0, *is_new]), strict=True) if number == place]
    for kind, names in TELLING:
        for name in names:
            if len({str(part.get(name)) for part in group}) > 1:
                found = f"{len(slices)} images at {places} position(s) that differ in {name}"
                raise UserError(f"it is {kind}, {found}; give each volume a folder of its own, or {CONVERT}.")
    files = " and ".join(dict.fromkeys(part.path.name for part in group[:2]))
    double = len(slices) - places
    raise UserError(f"{double} slice(s) are there twice, at the same position ({files}); remove one of each.")


def _step(slices: Sequence[Slice], positions: np.ndarray, normal: np.ndarray) -> float:
    """Measure the distance between slices in mm, and check that all lie on one grid."""
    if len(slices) == 1:
        return _thickness(slices[0])
    heights = (positions - positions[0]) @ normal
    _check_even(slices, positions @ normal)
    step = heights[-1] / (len(slices) - 1)
    aside = positions - positions[0] - np.outer(heights, normal)
    off = np.linalg.norm(aside, axis=1)
    worst = int(off.argmax())
    if (off > STEP_TOLERANCE * step + ROUNDING * heights).any():
        bent = np.linalg.norm(aside - np.outer(heights / heights[-1], aside[-1]), axis=1).max()
        if bent < STEP_TOLERANCE * step + SAME:
            angle = np.degrees(np.arctan2(off[-1], heights[-1]))
            raise UserError(
                f"the stack is tilted by {angle:.1f} degrees against its slices (gantry tilt), expected one at right "
                f"angles; resample it, for example with dcm2niix."
            )
        raise UserError(
            f"the slices are uneven: {slices[worst].path.name} is shifted by {off[worst]:.2f} mm in its plane, "
            f"expected a straight stack; resample it."
        )
    return float(step)


def _check_even(slices: Sequence[Slice], places: np.ndarray) -> None:
    """Refuse gaps, and steps along the normal that differ."""
    steps = np.diff(places)
    even = places[0] + np.linspace(0, 1, len(places)) * (places[-1] - places[0])
    mean = steps.mean()
    if (np.abs(places - even) <= STEP_TOLERANCE * mean + ROUNDING * (even - even[0])).all():
        return
    usual = float(np.sort(steps)[(len(steps) - 1) // 2])
    gaps = np.flatnonzero(steps > 1.5 * usual)
    whole = np.abs(steps / usual - np.round(steps / usual)).max() < 2 * STEP_TOLERANCE if usual > 0 else False
    alone = (np.diff(gaps) > 1).all() and len(gaps) <= max(1, len(steps) // 4)  # else the step changes
    if whole and alone and len(gaps):
        gap = int(gaps[0])
        found = f"slices are missing between {places[gap]:.2f} and {places[gap + 1]:.2f} mm"
        files = f"{slices[gap].path.name} and {slices[gap + 1].path.name}"
        raise UserError(f"{found} ({files}), where others are {usual:.2f} mm apart; export them again.")
    odd = int(np.abs(steps - usual).argmax())
    raise UserError(
        f"uneven steps between slices, {steps.min():.3f} to {steps.max():.3f} mm (such as {slices[odd].path.name} and "
        f"{slices[odd + 1].path.name}); add what is missing, or resample it, for example with dcm2niix."
    )


def _thickness(part: Slice) -> float:
    """Take the thickness of a single slice from its header."""
    for name in ("SpacingBetweenSlices", "SliceThickness"):
        value = abs(float(part.get(name) or 0))
        if 0 < value < np.inf:
            return value
    found = f"one slice, {part.path.name}, which lacks SpacingBetweenSlices and SliceThickness"
    raise UserError(f"{found}, so that its thickness is not known; set one of them, or {CONVERT}.")
