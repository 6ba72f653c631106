"""What the header of a file says about where its voxels are."""

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor

#: How far a voxel of a label may lie from its image's, as a share of the image's smallest step: less than what headers
#: lose in float32 and in quaternions is not a difference, and much more would shift a contour.
GRID_TOLERANCE = 0.1

#: What the text header of a format must hold for its spacing to be known; ITK reads 1 mm where it is missing.
_SPACING_FIELDS = {
    (".mha", ".mhd"): (b"ElementSpacing", b"ElementSize"),
    (".nrrd", ".nhdr"): (b"spacings:", b"space directions:"),
}
_HEADER_BYTES = 16384

#: NIfTI's codes for lengths that are not millimetres; 0 is unknown, and a missing unit is taken for millimetres.
_NIFTI_UNITS = {1: "metres", 3: "microns"}
#: Where the text headers of NRRD and MetaImage name their unit, and what they call those that are not millimetres.
_UNIT_FIELD = re.compile(r"^(?:space units|units|DistanceUnits)[ \t]*[:=](.*)$", re.MULTILINE | re.IGNORECASE)
_TEXT_UNITS = {
    "metres": {"m", "meter", "meters", "metre", "metres"},
    "centimetres": {"cm", "centimeter", "centimeters", "centimetre", "centimetres"},
    "microns": {"um", "µm", "μm", "micron", "microns", "micrometer", "micrometers", "micrometre", "micrometres"},
    "nanometres": {"nm", "nanometer", "nanometers", "nanometre", "nanometres"},
}

#: Sizes of voxels in mm between which a volume may lie. A micro-CT resolves about a micron, and no slice of a scanner
#: is as thick as 100 mm; a header in metres or in microns that does not say so mostly gives sizes beyond one of them.
SMALLEST, LARGEST = 0.001, 100.0
_ROUNDING = 1e-3  # of what float32 and quaternions make of a bound itself


def has_volume(affine: torch.Tensor) -> bool:
    """Say whether an affine, 4x4, is finite and gives every voxel a volume."""
    return bool(torch.isfinite(affine).all()) and abs(float(torch.linalg.det(affine.double()))) > 1e-12


def size_problem(affine: torch.Tensor) -> str | None:
    """Say which size of a voxel, by its affine, 4x4, no scanner makes; None where each may be, or is not known."""
    sizes = affine[:3, :3].double().norm(dim=0)
    if not torch.isfinite(sizes).all() or not (sizes > 0).all():
        return None  # which has_volume tells
    if (sizes >= SMALLEST * (1 - _ROUNDING)).all() and (sizes <= LARGEST * (1 + _ROUNDING)).all():
        return None
    found = "x".join(f"{size:.4g}" for size in sizes.tolist())
    hint = "is it in another unit? Write the affine in millimetres"
    return f"its header says voxels of {found} mm, expected {SMALLEST:g} to {LARGEST:g} mm; {hint}"


def foreign_unit(meta: Mapping[str, Any]) -> str | None:
    """Name the unit in which the header of the file that was read gives lengths, where it is not the millimetre.

    Readers take every number for millimetres.

    Args:
        meta: metadata of an image as MONAI's readers give them.
    """
    if "xyzt_units" in meta:
        return _NIFTI_UNITS.get(int(meta["xyzt_units"]) % 8)  # the other bits are the unit of time
    path = str(meta.get("filename_or_obj", ""))
    if not path.lower().endswith(tuple(ending for endings in _SPACING_FIELDS for ending in endings)):
        return None
    text = text_header(path).decode(errors="replace")
    words = {word.strip('",').lower() for line in _UNIT_FIELD.findall(text) for word in line.split()}
    return next((name for name, spellings in _TEXT_UNITS.items() if words & spellings), None)


def text_header(path: str) -> bytes:
    """Read what the header of an NRRD or MetaImage file may be, and a beginning of its voxels."""
    with open(path, "rb") as file:
        return file.read(_HEADER_BYTES)


def grid_problem(label: MetaTensor, image: MetaTensor, owner: str = "its image") -> str | None:
    """Say how the grid of a label, CH[WD], differs from its image's; None where they agree within the tolerance.

    Args:
        label: or another channel.
        image: whose grid is expected.
        owner: what to call the image.
    """
    size, found = tuple(image.shape[1:]), tuple(label.shape[1:])
    if found != size:
        turned = ", turned by a quarter, perhaps by EXIF" if len(size) == 2 and found == size[::-1] else ""
        return f"shape {found} differs from {owner}'s {size}{turned}"
    corners = torch.tensor([[*place, *[0] * (3 - len(size)), 1] for place in product(*((0, n - 1) for n in size))])
    shift = (label.affine - image.affine).double().cpu() @ corners.double().T
    distance = float(shift[:3].norm(dim=0).max())
    allowed = GRID_TOLERANCE * float(image.affine[:3, : len(size)].norm(dim=0).min())
    if not distance <= allowed:  # NaN too
        return f"affine differs from {owner}'s by up to {distance:.4g} mm, {allowed:.2g} mm is allowed"
    return None


def label_problem(label: MetaTensor, image: MetaTensor, file: str) -> str | None:
    """Say that a label, CH[WD], read from a file, does not lie on its image's grid, and what to do; None where it does.

    Its values tell nothing then, since it may be of another image.
    """
    difference = grid_problem(label, image)
    if difference is None:
        return None
    of = image.meta.get("filename_or_obj", "its image")
    hint = "if it is of another image, rename it; if not, resample it onto this one's grid, by nearest neighbor"
    return f"{file}: {difference} ({of}); {hint}."


def lacks_spacing(meta: Mapping[str, Any]) -> bool:
    """Say whether the header of the file that was read is silent about spacing; readers give 1 mm then.

    A NIfTI header is, when both of its codes are 0, which declares neither transform valid, and its pixels are 1 mm
    wide as in an untouched header. Photographs have no spacing.

    Args:
        meta: metadata of an image as MONAI's readers give them; transforms keep what is needed.
    """
    path = str(meta.get("filename_or_obj", ""))
    for endings, fields in _SPACING_FIELDS.items():
        if path.lower().endswith(endings):
            header = text_header(path)
            return not any(field in header for field in fields)
    codes: list[Any] = [meta.get(name) for name in ("qform_code", "sform_code")]
    if None in codes:
        return "original_affine" not in meta  # the reader of photographs knows of no geometry
    return not any(int(code) for code in codes) and bool((np.asarray(meta["pixdim"])[1:3] == 1).all())
