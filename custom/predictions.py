"""From probabilities to a label file on the image's own grid."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import PILWriter
from monai.transforms import KeepLargestConnectedComponent, MapTransform, SaveImaged

from .errors import UserError
from .files import whole_file
from .names import case_of

__all__ = ["KeepLargestComponentd", "LabelMapd", "MaskWriter", "SavePredictiond", "SplitUncertaintyd"]


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


class MaskWriter(PILWriter):
    """MONAI's writer of pictures, for one structure: 255, which shows, where ``SaveImage`` has it write 1."""

    def __init__(self, output_dtype: Any, **kwargs: Any) -> None:
        super().__init__(output_dtype, **kwargs | {"scale": 255})


class SavePredictiond(SaveImaged):
    """MONAI's ``SaveImaged`` for what lies on the image's own grid already, as ``CASE_POSTFIX`` in one folder.

    A file is written whole or not at all; MONAI leaves what it had written when the disk was full.

    Args:
        keys: what to write, CH[WD].
        output_dir: folder, created when missing.
        output_postfix: what the file holds.
        kwargs: other arguments, see :class:`monai.transforms.SaveImaged`.
    """

    def __init__(self, keys: KeysCollection, output_dir: str, output_postfix: str, **kwargs: Any) -> None:
        plain = {"resample": False, "separate_folder": False, "print_log": False}
        super().__init__(keys, output_dir=output_dir, output_postfix=output_postfix, **plain | kwargs)

    def __call__(self, data: Mapping[Hashable, Any]) -> Mapping[Hashable, Any]:
        """Write the arrays; the sample stays as it is.

        Raises:
            UserError: when a file cannot be written; what was there under its name is kept.
        """
        for key in self.key_iterator(data):
            layout, case = self.saver.folder_layout, case_of(data[key].meta)
            path = Path(layout.output_dir) / f"{case}_{layout.postfix}{layout.ext}"
            try:
                with whole_file(path) as part:
                    self.saver(data[key], filename=str(part).removesuffix(layout.ext))
            except (OSError, RuntimeError) as error:  # MONAI's, which quotes the writer's error last
                reason = str(error).strip().splitlines()[-1]
                raise UserError(f"{path}: cannot be written ({reason}); files that were complete are kept.") from error
        return data
