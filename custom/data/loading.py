"""Read scans while the network is at the one before; one that cannot be read does not end the others."""

import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from monai.config import KeysCollection
from monai.data import Dataset, list_data_collate
from monai.transforms import MapTransform
from monai.utils import ensure_tuple

from ..utils.device import is_out_of_memory, release_freed_memory
from ..utils.errors import UserError
from .checks import CaseRule, image_problems, reading_problem
from .dicom_seg import is_series, segmentation_problem

logger = logging.getLogger(__name__)

#: Voxels of a scan from which on resampling it leaves more memory behind than a window can use again.
LARGE = 2**24


class Unreadable(NamedTuple):
    """Stands for a scan that cannot be read, and says why."""

    problem: str
    out_of_memory: bool = False


class CheckScand(MapTransform):
    """Refuse a scan that cannot be segmented, as soon as it is read.

    Args:
        keys: images as they are stored, CH[WD].
        in_channels: channels that they must have.
        dimensions: spatial axes that they must have.
        needs_spacing: whether they are resampled, for which their headers must have a spacing.
        series: whether an image may have a time axis behind its spatial ones, instead of channels.
        dicom_seg: whether a DICOM series must be one to which a DICOM segmentation can refer.
    """

    def __init__(
        self,
        keys: KeysCollection,
        in_channels: int,
        dimensions: int,
        needs_spacing: bool = False,
        series: bool = False,
        dicom_seg: bool = False,
    ) -> None:
        super().__init__(keys)
        self.dicom_seg = dicom_seg
        self.rule = CaseRule(in_channels, 0, dimensions, needs_spacing, series)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample as it is.

        Raises:
            UserError: says all that is wrong with its images.
        """
        sample = dict(data)
        for key in self.key_iterator(sample):
            meta = sample[key].meta
            path = str(meta["filename_or_obj"])
            problems = image_problems(meta.get("channel_files", path).split(os.pathsep), sample[key], self.rule)
            if self.dicom_seg and not problems and is_series(path):
                problems = [text for text in [segmentation_problem(path)] if text is not None]
            if problems:
                raise UserError(problems[0], problems[1:])
        return sample


class ScanLoader:
    """Give the scans of a data set one by one, each as a batch, and read the next one meanwhile.

    Unlike a ``DataLoader``, it gives :class:`Unreadable` in the place of a scan that cannot be read, and holds one scan
    ahead, no more.

    Args:
        dataset: reads ``image`` of its cases.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[dict[str, Any] | Unreadable]:
        """Read in a thread: what takes long, unzipping and resampling, runs outside Python's lock."""
        indices = range(len(self))
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(self._read, index) for index in indices[:1]]
            for index in indices:
                item = ahead.pop().result()
                if isinstance(item, Unreadable) and item.out_of_memory:
                    item = self._read(index)  # now the network is at rest
                ahead += [reader.submit(self._read, following) for following in indices[index + 1 : index + 2]]
                yield item

    def _read(self, index: int) -> dict[str, Any] | Unreadable:
        try:
            scan = list_data_collate([self.dataset[index]])
            if scan["image"].numel() > LARGE:
                release_freed_memory()
            return scan
        except Exception as error:  # every reader fails in its own way
            cases: Sequence[Mapping[str, Any]] = self.dataset.data
            return Unreadable(reading_problem(ensure_tuple(cases[index]["image"]), error), is_out_of_memory(error))
