"""From probabilities to a label file on the image's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.data import NibabelWriter
from monai.transforms import MapTransform

__all__ = ["LabelMapd", "SeriesWriter"]


class LabelMapd(MapTransform):
    """Turn probabilities into class indices, frame by frame.

    Args:
        keys: probabilities, (T*N)H[WD], as :class:`custom.inferer.SlidingWindowProbabilities` gives them.
        num_classes: N. T, the number of frames, is 1 for a single image.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with class indices, TH[WD], instead of probabilities."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes)
            sample[key] = torch.cat([probs.argmax(0, keepdim=True) for probs in frames])
        return sample


class SeriesWriter(NibabelWriter):
    """MONAI's NIfTI writer, which also keeps a series' time step, the units, and the axis of a single slice."""

    def set_data_array(self, data_array: Any, channel_dim: int | None = 0, **kwargs: Any) -> None:
        """Take class indices, TH[WD]; the frames become the last axis, if there are several."""
        super().set_data_array(data_array, channel_dim, **kwargs | {"squeeze_end_dims": False})
        if self.data_obj.shape[-1] == 1:
            self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the affine as MONAI does, and remember which file was segmented."""
        super().set_metadata(meta_dict, resample, **options)
        self.source = (meta_dict or {}).get("filename_or_obj")

    def write(self, filename: Any, verbose: bool = False, **obj_kwargs: Any) -> None:
        """Write the file."""
        header = nib.Nifti1Header()
        header.set_data_dtype(self.output_dtype)
        image = nib.load(self.source)
        if isinstance(image, nib.Nifti1Image):
            header["xyzt_units"] = image.header["xyzt_units"]
            header["pixdim"][4] = image.header["pixdim"][4]
        super().write(filename, verbose, header=header, **obj_kwargs)
