"""From probabilities to a label file on the image's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import torch
from monai.config import KeysCollection
from monai.data import NibabelWriter
from monai.transforms import KeepLargestConnectedComponent, MapTransform, SaveImaged

from .names import case_of

__all__ = ["KeepLargestComponentd", "LabelMapd", "SavePredictiond", "SeriesWriter", "SplitUncertaintyd"]


class SplitUncertaintyd(MapTransform):
    """Take the disagreement out of a prediction, into ``uncertainty``.

    Args:
        keys: a prediction, (T*(N+1))H[WD], as :class:`custom.inferer.SlidingWindowProbabilities` gives it with
            ``uncertainty``; becomes the probabilities, (T*N)H[WD].
        num_classes: N. T, the number of frames, is 1 for a single image.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with ``uncertainty``, TH[WD], in [0, 1]."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes + 1)
            sample["uncertainty"] = torch.cat([frame[-1:] for frame in frames])
            sample[key] = torch.cat([frame[:-1] for frame in frames])
        return sample


class KeepLargestComponentd(MapTransform):
    """MONAI's ``KeepLargestConnectedComponent`` for class indices, frame by frame.

    Args:
        keys: class indices, TH[WD].
        applied_labels: classes of which only the largest connected component is kept; the rest becomes background.
    """

    def __init__(self, keys: KeysCollection, applied_labels: Sequence[int]) -> None:
        super().__init__(keys)
        self.keep = KeepLargestConnectedComponent(applied_labels, is_onehot=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the small components gone."""
        sample = dict(data)
        for key in self.keys:
            sample[key] = torch.cat([self.keep(frame) for frame in sample[key].split(1)])
        return sample


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
        """Return the sample with class indices, TH[WD], uint8, instead of probabilities."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes)
            sample[key] = torch.cat([probs.argmax(0, keepdim=True).to(torch.uint8) for probs in frames])
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
        if str(self.source).endswith((".nii", ".nii.gz")):
            image = nib.load(self.source)
            header["xyzt_units"] = image.header["xyzt_units"]
            header["pixdim"][4] = image.header["pixdim"][4]
        super().write(filename, verbose, header=header, **obj_kwargs)


class SavePredictiond(SaveImaged):
    """MONAI's ``SaveImaged`` for what lies on the image's own grid already, as ``CASE_POSTFIX`` in one folder.

    Args:
        keys: what to write, CH[WD].
        output_dir: folder, created when missing.
        output_postfix: what the file holds.
        kwargs: other arguments, see :class:`monai.transforms.SaveImaged`.
    """

    def __init__(self, keys: KeysCollection, output_dir: str, output_postfix: str, **kwargs: Any) -> None:
        plain = {"resample": False, "separate_folder": False, "print_log": False, "output_name_formatter": _by_case}
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix, **plain | kwargs)


def _by_case(meta_dict: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Name a file by its case; an ending is put behind it, since the name itself may hold dots."""
    return {"subject": Path(meta_dict["filename_or_obj"]).with_name(case_of(meta_dict) + ".nii")}
