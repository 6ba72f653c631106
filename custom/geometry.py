"""What the header of a file says about where its voxels are."""

from __future__ import annotations

import torch
from monai.data import MetaTensor

__all__ = ["has_volume", "lacks_spacing"]

#: What the text header of a format must hold for its spacing to be known; ITK reads 1 mm where it is missing.
_SPACING_FIELDS = {
    (".mha", ".mhd"): (b"ElementSpacing", b"ElementSize"),
    (".nrrd", ".nhdr"): (b"spacings:", b"space directions:"),
}
_HEADER_BYTES = 16384


def has_volume(affine: torch.Tensor) -> bool:
    """Say whether an affine, 4x4, is finite and gives every voxel a volume."""
    return bool(torch.isfinite(affine).all()) and abs(float(torch.linalg.det(affine.double()))) > 1e-12


def lacks_spacing(path: str, image: MetaTensor) -> bool:
    """Say whether a readable file is silent about its spacing, so that the 1 mm which readers give is a guess."""
    for endings, fields in _SPACING_FIELDS.items():
        if path.lower().endswith(endings):
            with open(path, "rb") as file:
                header = file.read(_HEADER_BYTES)
            return not any(field in header for field in fields)
    codes = [image.meta.get(name) for name in ("qform_code", "sform_code")]
    if None in codes:
        return False
    # NIfTI: neither transform is declared valid, and the sizes are those of an untouched header.
    return not any(int(code) for code in codes) and bool((image.meta["pixdim"][1:4] == 1).all())
