"""Write NIfTI files whose header says the same to every reader."""

from collections.abc import Mapping
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelWriter
from monai.data.utils import to_affine_nd
from nibabel.openers import ImageOpener

from ..utils.errors import UserError
from .geometry import lacks_spacing

#: By which share the sizes of voxels may differ between two fields of a header.
SIZE_TOLERANCE = 0.01
#: What a NIfTI header says about where its voxels are.
_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z", "pixdim", "xyzt_units"),
)


def refuse_unclear_sizes(image: nib.Nifti1Image) -> None:
    """Refuse a header that says two sizes of voxels, or for some axes none; readers go on with one without a word.

    Where the affine and the sizes differ, MONAI takes either; a size of 0 nibabel replaces by 1 mm.

    Args:
        image: as MONAI has read it, which makes the header in memory agree; that of the file is read again. A qform in
            use settles it, as in files whose sform leads to an atlas; and an sform of 1 mm, as in ACDC's files, was
            never set, so that the sizes are those of pixdim, which MONAI takes. Where pixdim has no size at all, the
            scan has no spacing, see :func:`custom.data.geometry.lacks_spacing`.

    Raises:
        UserError: says what is in the header.
    """
    path, kind = image.get_filename(), type(image.header)
    if not issubclass(kind, nib.Nifti1Header):
        return
    with ImageOpener(path) as file:
        header = kind.from_fileobj(file, check=False)
    axes = min(3, int(header["dim"][0]))
    affine = np.linalg.norm(header.get_sform()[:3, :3], axis=0)[:axes]
    sizes = np.asarray(header["pixdim"][1 : axes + 1])
    by_sform = header["qform_code"] <= 0 < header["sform_code"] and affine.all() and not np.allclose(affine, 1)
    if by_sform and not np.allclose(affine, sizes, rtol=SIZE_TOLERANCE, atol=0):
        found, other = map(_product, (affine, sizes))
        raise UserError(f"{path}: its header says voxels of {found} mm in sform, but {other} mm in pixdim; mend it.")
    lacking = sizes[np.asarray(header["dim"][1 : axes + 1]) > 1] == 0
    if not by_sform and lacking.any() and not lacking.all():
        raise UserError(f"{path}: its header says voxels of {_product(sizes)} mm; mend it.")


def _product(sizes: np.ndarray) -> str:
    return "x".join(f"{size:.4g}" for size in sizes)


class NiftiWriter(NibabelWriter):
    """MONAI's NIfTI writer, for arrays on their final grid, which writes no geometry that another field contradicts.

    A qform has no shear; of sheared axes it would tell another grid than the sform does, and readers differ in which
    of the two they take. Nor is a spacing declared that the file which was read did not declare. MONAI's writer drops
    a last axis of one, or fails where it does not lie axially.
    """

    def set_data_array(
        self, data_array: Any, channel_dim: int | None = 0, squeeze_end_dims: bool = False, **kwargs: Any
    ) -> None:
        """Take channels or frames, CHW[D]; they become the last axis if there are several. A single slice is kept."""
        super().set_data_array(data_array, channel_dim, squeeze_end_dims=False, **kwargs)
        if self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = False, **options: Any) -> None:
        """Take the affine, 4x4; nothing is resampled."""
        meta = {"affine": np.eye(4)} if meta_dict is None else meta_dict
        self.affine = to_affine_nd(r=3, affine=np.asarray(meta["affine"], dtype=float))
        self.spacing_was_lost = "qform_code" in meta and lacks_spacing(meta)

    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the file."""
        nib.save(self._image(), filename)

    def _image(self) -> nib.Nifti1Image:
        image = self.create_backend_obj(self.data_obj, affine=self.affine, dtype=self.output_dtype)
        image.set_sform(self.affine, code=1)
        image.set_qform(self.affine, code=1)
        if self.spacing_was_lost:
            image.set_sform(None, code=0)
            image.set_qform(None, code=0)
        elif not np.allclose(image.get_qform(), self.affine, atol=1e-3 * np.min(image.header.get_zooms()[:3])):
            image.set_qform(None, code=0)  # leaves the sizes of the voxels
        if not self.spacing_was_lost:
            image.header.set_xyzt_units("mm")  # as every affine is that was read
        return image


class SeriesWriter(NiftiWriter):
    """:class:`NiftiWriter` for what lies on the grid of the file that was read, whose header it repeats.

    Geometry, units and time step are those of that file, also where they contradict one another, so that a reader sees
    both files on one grid, whichever fields it goes by.
    """

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = False, **options: Any) -> None:
        """Take the affine, 4x4, and remember which file was read."""
        super().set_metadata(meta_dict, resample, **options)
        self.source = str((meta_dict or {}).get("filename_or_obj"))

    def _image(self) -> nib.Nifti1Image:
        if not self.source.lower().endswith((".nii", ".nii.gz")):
            return super()._image()
        source = nib.load(self.source).header
        header = nib.Nifti1Header()
        header.set_data_dtype(self.output_dtype)
        header.set_data_shape(self.data_obj.shape)
        for field in _GEOMETRY:
            header[field] = source[field]
        array = np.asarray(self.data_obj, self.output_dtype)
        return nib.Nifti1Image(array, header.get_best_affine(), header)
