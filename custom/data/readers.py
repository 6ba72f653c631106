"""One way to read scans and labels, for training, inference, checks and preparation alike."""

import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, NibabelReader
from monai.transforms import LoadImage, MapTransform
from monai.utils import ensure_tuple

from ..utils.errors import UserError
from ..utils.names import case_name
from .checksums import check_metaimage, unzip
from .dicom import SeriesReader
from .geometry import foreign_unit, grid_problem
from .kinds import refuse_other_kind
from .labels import to_label
from .nifti import refuse_unclear_sizes
from .photos import PhotoReader


class NiftiReader(NibabelReader):
    """MONAI's ``NibabelReader``, which fails at colors, and misses damage that only a checksum tells.

    Colors become channels, without opacity.
    """

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Read the header of a file, or of several.

        Raises:
            UserError: when voxels are complex numbers, whose imaginary part would be lost; and when nothing but two
                fields that contradict each other, or a field with zeros in it, says how large they are.
        """
        images = super().read(data, **kwargs)
        for image in ensure_tuple(images):
            refuse_unclear_sizes(image)
            kind = image.get_data_dtype()
            if kind.kind == "c":
                hint = "expected real ones; save the magnitude"
                raise UserError(f"{image.get_filename()}: its voxels are complex numbers ({kind}), {hint}.")
        return images

    def _get_array_data(self, img: Any, filename: Any) -> np.ndarray:
        path = img.get_filename()  # `filename` is of whichever file another thread has begun to read meanwhile
        array = unzip(img.dataobj, path) if path.lower().endswith(".gz") else super()._get_array_data(img, filename)
        return array if array.dtype.names is None else np.stack([array[name] for name in "RGB"], -1)


class LoadScan(LoadImage):
    """MONAI's ``LoadImage``, channels first, with readers of photographs and of DICOM folders that lose nothing.

    Several files become the channels of one image. MONAI stacks them too, whatever grids they lie on, as long as they
    have as many voxels.

    Args:
        in_channels: photographs get as many where that loses nothing, see :class:`custom.data.PhotoReader`.
        as_label: read masks instead of photographs.
    """

    def __init__(self, in_channels: int | None = None, as_label: bool = False) -> None:
        super().__init__(ensure_channel_first=True)
        for reader in (NiftiReader(), PhotoReader(in_channels, as_label), SeriesReader()):
            self.register(reader)

    def __call__(self, filename: Any, reader: Any = None) -> MetaTensor:
        """Read a file, CH[WD], or the DICOM series in a folder; trailing axes of one voxel are left out.

        Of several files each is a channel; the metadata are those of the first.

        Raises:
            UserError: when a file is of another kind than its name says, a header is not in millimetres, or a file of
                several has more channels than one, or lies on another grid than the first.
        """
        files = () if isinstance(filename, (str, Path)) else ensure_tuple(filename)
        if len(files) > 1:
            channels: Any = [LoadScan(in_channels=1)(file, reader) for file in files]
            check_channels(channels, files)
            joined: Any = torch.cat(channels)  # a MetaTensor with the metadata of the first
            joined.meta["channel_files"] = os.pathsep.join(map(str, files))  # a text, which batches can hold
            return joined
        for file in ensure_tuple(filename):
            refuse_other_kind(Path(file))
        array = super().__call__(filename, reader)
        check_metaimage(str(array.meta["filename_or_obj"]))
        unit = foreign_unit(array.meta)
        if unit is not None:
            hint = "write its affine, or spacing, in millimetres, and say so in the header"
            raise UserError(f"{array.meta['filename_or_obj']}: its header is in {unit}, expected millimetres; {hint}.")
        while array.ndim > 4 and array.shape[-1] == 1:
            array = array.squeeze(-1)
        return array


def check_channels(channels: Sequence[MetaTensor], files: Sequence[Any]) -> None:
    """Check that images, CH[WD], can be the channels of one.

    Args:
        channels: what was read.
        files: from where, for messages.

    Raises:
        UserError: when one has several channels itself, or lies on another grid than the first.
    """
    for channel, file in zip(channels, files, strict=True):
        if channel.shape[0] != 1:
            shape = tuple(channel.shape)
            raise UserError(f"{file}: one of {len(files)} channels must have one itself, found {shape[0]} in {shape}.")
        difference = grid_problem(channel, channels[0], str(files[0]))
        if difference is not None:
            hint = "crossmatch prepare own --channels ... --resample brings them there"
            raise UserError(f"{file}: {difference}; the channels of a case must lie on one grid, {hint}.")


class LoadLabel(LoadScan):
    """Reads a label through the gate, :func:`custom.data.to_label`.

    Args:
        num_classes: values must lie in 0 .. num_classes - 1; None when it is not known.
    """

    def __init__(self, num_classes: int | None = None) -> None:
        super().__init__(as_label=True)
        self.num_classes = num_classes

    def __call__(self, filename: Any, reader: Any = None) -> MetaTensor:
        """Read a label, 1H[WD] of whole numbers.

        Raises:
            UserError: when it is not one.
        """
        return to_label(super().__call__(filename, reader), str(filename), self.num_classes)


class LoadScand(MapTransform):
    """MONAI's ``LoadImaged`` with :class:`LoadScan` for images and :class:`LoadLabel` for labels.

    A label on its image's grid gets its image's affine, so that the two are resampled alike.

    Each array's metadata keep the name of its case in ``case``: the sample's own, else that of the image's file;
    and its ``prediction``, if it has one.

    Args:
        keys: paths, of an image also a list, one per channel; they become CH[WD]. ``label`` is one of a label, which
            becomes 1H[WD].
        allow_missing_keys: whether a sample may lack some.
        in_channels: of photographs, see :class:`LoadScan`.
        num_classes: of labels, see :class:`LoadLabel`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        allow_missing_keys: bool = False,
        in_channels: int | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.load_image = LoadScan(in_channels)
        self.load_label = LoadLabel(num_classes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the files of a sample."""
        sample = dict(data)
        name = sample.pop("case", None) or case_name(sample.get("image") or next(iter(sample.values())))
        place = {"prediction": sample.pop("prediction")} if "prediction" in sample else {}
        for key in self.key_iterator(sample):
            array = (self.load_label if key == "label" else self.load_image)(sample[key])
            array.meta |= {"case": name, **place}
            sample[key] = array
        if {"image", "label"} <= sample.keys() and grid_problem(sample["label"], sample["image"]) is None:
            sample["label"].affine = sample["image"].affine
        return sample
