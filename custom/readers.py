"""One way to read scans and labels, for training, inference, checks and preparation alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import LoadImage, MapTransform

from .dicom import SeriesReader
from .labels import to_label
from .names import case_name
from .photos import PhotoReader

__all__ = ["LoadScan", "LoadScand"]


class LoadScan(LoadImage):
    """MONAI's ``LoadImage``, channels first, with readers of photographs and of DICOM folders that lose nothing."""

    def __init__(self) -> None:
        super().__init__(ensure_channel_first=True)
        for reader in (PhotoReader(), SeriesReader()):
            self.register(reader)


class LoadScand(MapTransform):
    """MONAI's ``LoadImaged`` with :class:`LoadScan`, which also makes whole numbers of what is read as a label.

    Each array's metadata keep the name of its case in ``case``: the sample's own, else that of the image's file.

    Args:
        keys: paths of images and labels; they become CH[WD].
        label_keys: those among them that are labels, which become 1H[WD].
        allow_missing_keys: whether a sample may lack some.
    """

    def __init__(
        self, keys: KeysCollection, label_keys: KeysCollection = "label", allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_keys = tuple([label_keys] if isinstance(label_keys, str) else label_keys)
        self.load = LoadScan()

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Read the files of a sample."""
        sample = dict(data)
        name = sample.pop("case", None) or case_name(sample.get("image") or next(iter(sample.values())))
        for key in self.key_iterator(sample):
            array: MetaTensor = self.load(sample[key])
            array.meta["case"] = name
            sample[key] = to_label(array, str(sample[key])) if key in self.label_keys else array
        return sample
