"""From probabilities on the network's grid to label maps on the scan's, and into files."""

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, PILWriter
from monai.transforms import Invertd, KeepLargestConnectedComponent, MapTransform, SaveImaged, SpatialResample
from monai.utils import TraceKeys

from .utils.files import prediction_file
from .utils.names import prediction_of


def _entropy(probs: torch.Tensor) -> torch.Tensor:
    """Entropy of probabilities, NH[WD], in [0, 1], 1H[WD]; class by class, since a scan's may not fit twice."""
    total = torch.zeros_like(probs[:1])
    for channel in probs.split(1):
        total += torch.special.entr(channel.clamp(0, 1))
    return (total / math.log(len(probs))).clamp(0, 1)


class _Framesd(MapTransform):
    """Base of transforms of predictions whose channels hold one frame after the other.

    Args:
        keys: predictions, channels first.
        num_classes: N. The number of frames, T, is 1 for a single image.
    """

    def __init__(self, keys: KeysCollection, num_classes: int) -> None:
        super().__init__(keys)
        self.num_classes = num_classes


class SplitUncertaintyd(_Framesd):
    """Take the disagreement out of a prediction, into ``uncertainty``.

    The prediction, (T*(N+1))H[WD], as :class:`SlidingWindowProbabilities` gives it with ``uncertainty``, becomes the
    probabilities, (T*N)H[WD].
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with ``uncertainty``, TH[WD], in [0, 1]."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes + 1)
            sample["uncertainty"] = torch.cat([frame[-1:] for frame in frames])
            sample[key] = torch.cat([frame[:-1] for frame in frames])
        return sample


class Entropyd(_Framesd):
    """Write the entropy of probabilities, (T*N)H[WD], into ``uncertainty``: 0 where sure, 1 where all are alike."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with ``uncertainty``, TH[WD], in [0, 1]."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes)
            sample["uncertainty"] = torch.cat([_entropy(probs) for probs in frames])
        return sample


#: Numbers that resampling holds for a voxel beside its channels: its place in both grids.
_COORDINATES = 7
#: Slabs at once, each of which takes memory.
_MOST_THREADS = 8
#: By how many voxels the axes of a grid may lean away from those of another one, and count as parallel.
_SHEAR = 1e-3


class ResampleToScand(MapTransform):
    """Bring what lies on the grid of a resampled image back to the scan's own, linearly, slab by slab.

    MONAI's ``Invertd`` does it for the whole scan at once, which takes 28 bytes a voxel more, 2.3 GB for 512x512x320,
    and one thread, since PyTorch has no more for a single volume; and it looks up eight neighbours of every voxel, also
    where both grids have the same axes, as they do but for a gantry's tilt, and two along each axis are enough. Slabs
    are the same whatever the number of threads.

    Args:
        keys: CHWD, on the grid of the sample's ``image``, which is as ``Orientationd`` and ``Spacingd`` left it.
        values: how many numbers a slab holds at most, but those of a slice at least.
    """

    def __init__(self, keys: KeysCollection, values: int = 2**22) -> None:
        super().__init__(keys)
        self.values = values
        self.resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float32)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with what the keys hold on the scan's grid."""
        sample = dict(data)
        for key in self.keys:
            sample[key] = self.in_slabs(sample[key], sample)
        return sample

    def in_slabs(
        self, channels: torch.Tensor, sample: Mapping[Hashable, Any], then: Callable[..., torch.Tensor] | None = None
    ) -> MetaTensor:
        """Resample CHWD, and apply to each slab what follows, so that the channels never exist on the whole grid."""
        image, plain = sample["image"], channels.as_subclass(torch.Tensor)
        affine = torch.as_tensor(image.meta["original_affine"], dtype=torch.float64)
        changes = image.applied_operations
        size = [int(length) for length in (changes[0][TraceKeys.ORIG_SIZE] if changes else image.shape[1:])]
        then = (lambda slab: slab) if then is None else then
        example = then(plain[:, :1, :1, :1])
        whole = example.new_empty((len(example), *size))
        along = places_along_axes(torch.linalg.solve(image.affine.double(), affine), size, plain.shape[1:])
        along = along and [(axis, places.to(plain.device)) for axis, places in along]

        def fill(place: slice) -> None:
            whole[:, place] = then(
                self._sheared_slab(plain, image.affine, affine, place, size)
                if along is None
                else _separable_slab(plain, along, place)
            )

        step = max(1, self.values // ((len(plain) + _COORDINATES) * math.prod(size[1:])))
        places = [slice(first, min(first + step, size[0])) for first in range(0, size[0], step)]
        with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as pool:
            list(pool.map(fill, places))
        result = MetaTensor(whole, meta=dict(image.meta))
        result.affine = affine
        return result

    def _sheared_slab(
        self, plain: torch.Tensor, source: torch.Tensor, target: torch.Tensor, place: slice, size: Sequence[int]
    ) -> torch.Tensor:
        shift = torch.eye(4, dtype=torch.float64)
        shift[0, 3] = place.start
        slab: Any = self.resample(
            MetaTensor(plain, affine=source),
            dst_affine=target @ shift,
            spatial_size=[place.stop - place.start, *size[1:]],
        )
        return slab.as_tensor()


def places_along_axes(
    to_source: torch.Tensor, size: Sequence[int], source_size: Sequence[int]
) -> list[tuple[int, torch.Tensor]] | None:
    """Find where the voxels of a grid lie along the axes of another one.

    Args:
        to_source: 4x4, from indices of the one to indices of the other.
        size: of the one, in voxels.
        source_size: of the other; places outside are moved to its edge.

    Returns:
        For each axis the one of the other grid that has its direction, and the places along it, in voxels; None where
        the axes of the two grids differ.
    """
    rotation, length = to_source[:3, :3].abs(), torch.as_tensor(size)
    order = rotation.argmax(0).tolist()
    shear = (rotation * (length - 1)).masked_fill(torch.nn.functional.one_hot(torch.tensor(order), 3).T.bool(), 0)
    if sorted(order) != [0, 1, 2] or shear.sum(1).max() > _SHEAR:
        return None
    steps = [(axis, to_source[axis, own], to_source[axis, 3]) for own, axis in enumerate(order)]
    return [
        (axis, (step * torch.arange(number) + start).clamp(0, source_size[axis] - 1))
        for (axis, step, start), number in zip(steps, size, strict=True)
    ]


def _separable_slab(plain: torch.Tensor, along: Sequence[tuple[int, torch.Tensor]], place: slice) -> torch.Tensor:
    """Interpolate CHWD at places along its axes, in a part of the first one."""
    places = [along[0][1][place], along[1][1], along[2][1]]
    start, stop = int(places[0].min()), int(places[0].max()) + 2
    slab = plain.permute(0, *(1 + axis for axis, _ in along))[:, start:stop].float()
    places[0] = places[0] - start
    for dim in sorted((1, 2, 3), key=lambda dim: len(places[dim - 1]) / slab.shape[dim]):  # the fewest voxels first
        slab = _interpolated(slab, dim, places[dim - 1])
    return slab


def _interpolated(channels: torch.Tensor, dim: int, places: torch.Tensor) -> torch.Tensor:
    low = places.long()
    share = (places - low).to(channels.dtype).reshape(-1, *[1] * (channels.ndim - 1 - dim))
    below = channels.index_select(dim, low)
    if not share.any():  # as along a thick slice, which keeps its spacing
        return below
    return below.lerp_(channels.index_select(dim, (low + 1).clamp(max=channels.shape[dim] - 1)), share)


class LabelMapd(_Framesd):
    """Turn probabilities, (T*N)H[WD], into class indices, frame by frame.

    With ``invert`` the probabilities are still on the network's grid, and are never all on the scan's, where they may
    not fit into memory: they are brought back slab by slab; or, by ``Invertd``, a few classes at a time, of which the
    most probable so far is kept.

    Args:
        keys: see :class:`_Framesd`.
        num_classes: see :class:`_Framesd`.
        invert: brings channels back to the scan's grid, each as it would alone.
        values: how many probabilities ``Invertd`` brings back at a time, but at least those of a class.
    """

    def __init__(
        self,
        keys: KeysCollection,
        num_classes: int,
        invert: Invertd | ResampleToScand | None = None,
        values: int = 2**26,
    ) -> None:
        super().__init__(keys, num_classes)
        self.invert = invert
        self.values = values

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with class indices, TH[WD], uint8, instead of probabilities."""
        sample = dict(data)
        for key in self.keys:
            frames = sample[key].split(self.num_classes)
            sample[key] = torch.cat([self._label_map(sample, key, probs) for probs in frames])
        return sample

    def _label_map(self, sample: dict[Hashable, Any], key: Hashable, probs: torch.Tensor) -> torch.Tensor:
        if self.invert is None:
            return most_probable([probs])
        if isinstance(self.invert, ResampleToScand):
            return self.invert.in_slabs(probs, sample, lambda slab: most_probable([slab]))
        invert, channels = self.invert, max(1, self.values // probs[0].numel())
        return most_probable(invert({**sample, key: part})[key] for part in probs.split(channels))


def most_probable(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """Find the class of the highest probability, 1H[WD], uint8; the first of equals.

    As ``argmax``, which takes some 40 times as long along channels and wants all of them.

    Args:
        parts: probabilities of some classes each, CH[WD], in the order of the classes.
    """
    best = label = torch.empty(0)
    index = 0
    for part in parts:
        for channel in part.as_subclass(torch.Tensor).split(1):
            if index == 0:
                best, label = channel.clone(), torch.zeros_like(part[:1], dtype=torch.uint8)
            else:
                label.masked_fill_(channel > best, index)
                torch.maximum(best, channel, out=best)
            index += 1
    return label


class KeepLargestComponentd(MapTransform):
    """MONAI's ``KeepLargestConnectedComponent`` for class indices, frame by frame.

    Args:
        keys: class indices, TH[WD].
        applied_labels: classes of which only the largest connected component is kept; the rest becomes background.
    """

    def __init__(self, keys: KeysCollection, applied_labels: Sequence[int]) -> None:
        super().__init__(keys)
        self.keep: Callable[..., Any] = KeepLargestConnectedComponent(applied_labels, is_onehot=False)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the small components gone."""
        sample = dict(data)
        for key in self.keys:
            sample[key] = torch.cat([self.keep(frame) for frame in sample[key].split(1)])
        return sample


class MaskWriter(PILWriter):
    """MONAI's writer of pictures, for one structure: 255, which shows, where ``SaveImage`` has it write 1."""

    def __init__(self, output_dtype: Any, **kwargs: Any) -> None:
        super().__init__(output_dtype, **kwargs | {"scale": 255})


class SavePredictiond(SaveImaged):
    """MONAI's ``SaveImaged`` for what lies on the image's own grid already, as ``PREDICTION_POSTFIX``.

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

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the arrays, and add the file's path to the sample's list ``written``.

        Raises:
            UserError: when a file cannot be written; what was there under its name is kept.
        """
        sample = dict(data)
        for key in self.key_iterator(sample):
            layout: Any = self.saver.folder_layout
            path = Path(layout.output_dir) / f"{prediction_of(sample[key].meta)}_{layout.postfix}{layout.ext}"
            with prediction_file(path) as part:
                self.saver(sample[key], filename=str(part).removesuffix(layout.ext))
            sample["written"] = [*sample.get("written", ()), str(path)]
        return sample
