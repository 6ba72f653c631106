"""Sliding-window inference as the semi-supervised literature does it: fixed stride, softmax averaged over windows.

On request also over mirrored windows, and with a map of how much the perturbed decodings disagree with the clean one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import PILWriter
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from monai.transforms import Invertd, KeepLargestConnectedComponent, MapTransform, SaveImaged
from torch import nn

from .data.loading import Unreadable
from .perturbations import FeatureDropout
from .utils.device import MixedPrecision, is_out_of_memory
from .utils.errors import UserError, causes, plain_reason
from .utils.files import prediction_file
from .utils.names import prediction_of

__all__ = [
    "Entropyd",
    "KeepLargestComponentd",
    "LabelMapd",
    "MaskWriter",
    "SavePredictiond",
    "ScanEvaluator",
    "SlidingWindowProbabilities",
    "SplitUncertaintyd",
    "disagreement",
]


logger = logging.getLogger(__name__)


class SlidingWindowProbabilities(SlidingWindowInferer):
    """MONAI's sliding window with a stride in voxels, returning averaged softmax probabilities.

    MONAI asks for a relative overlap and truncates ``size * (1 - overlap)``, which turns a stride of 16 at size 96 into
    15; the overlap here is a hair smaller, so the stride is the one asked for.

    Args:
        roi_size: window in voxels, one number per spatial axis.
        stride: step between windows in voxels, per axis, between 1 and ``roi_size``.
        sw_batch_size: windows per forward pass.
        amp: compute the network in the device's fastest 16-bit type.
        slice_axis: spatial axis of the image along which a 2D network is applied slice by slice, with 2D ``roi_size``
            and ``stride``; None when the network takes the image as it is.
        series: the input's channels are the frames of a series, each an image of its own.
        test_time_flips: spatial axes of a window. Probabilities are averaged over all combinations of mirrored axes,
            so that n axes take 2^n times as long.
        uncertainty: also return how much the perturbed decodings disagree with the clean one, see
            :func:`disagreement`. The network must be a :class:`custom.networks.PerturbedNetwork`.
        kwargs: other arguments, see :class:`monai.inferers.SlidingWindowInferer`.

    Raises:
        UserError: when ``stride`` does not fit ``roi_size``.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        stride: Sequence[int],
        sw_batch_size: int = 1,
        amp: bool = False,
        slice_axis: int | None = None,
        series: bool = False,
        test_time_flips: Sequence[int] = (),
        uncertainty: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(roi_size) != len(stride) or not all(0 < s <= n for n, s in zip(roi_size, stride, strict=True)):
            raise UserError(
                f"stride must lie between 1 and patch_size {tuple(roi_size)} per axis, got {tuple(stride)}."
            )
        if not set(test_time_flips) <= set(range(len(roi_size))):
            known = list(range(len(roi_size)))
            raise UserError(f"test_time_flips must be spatial axes out of {known}, got {list(test_time_flips)}.")
        #: What the network gets, in voxels per axis.
        self.window = tuple(roi_size)
        if slice_axis is not None:
            roi_size, stride = (_with_single_slice(values, slice_axis) for values in (roi_size, stride))
        overlap = [max(0.0, 1 - step / size - 1e-6) for size, step in zip(roi_size, stride, strict=True)]
        super().__init__(roi_size=roi_size, sw_batch_size=sw_batch_size, overlap=overlap, **kwargs)
        self.amp = amp
        self.slice_axis = slice_axis
        self.series = series
        self.flips = _combinations([axis + 2 for axis in test_time_flips])
        self.uncertainty = uncertainty

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Segment images.

        Args:
            inputs: BCH[WD]; with ``series`` C counts frames.
            network: returns logits, BNH[WD], for a batch of windows, or of slices of windows.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            Probabilities, BNH[WD], on the device that ``device`` names, else on that of the inputs; with
            ``uncertainty`` the disagreement in [0, 1] behind them, B(N+1)H[WD]. For a series the channels of the first
            frame, of the second, and so on.
        """

        def predict(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.slice_axis is not None:
                windows = windows.squeeze(self.slice_axis + 2)
            with MixedPrecision(windows.device, self.amp).autocast():
                views = [self._segment(windows.flip(axes), network, *args, **kwargs).flip(axes) for axes in self.flips]
            mean = views[0] if len(views) == 1 else torch.stack(views).mean(0)
            return mean if self.slice_axis is None else mean.unsqueeze(self.slice_axis + 2)

        segment: Callable[..., Any] = super().__call__
        images = inputs.split(1, dim=1) if self.series else [inputs]
        with _feature_dropout_on(network if self.uncertainty else None):
            probs = [segment(image, predict, *args, **kwargs) for image in images]
        return probs[0] if len(probs) == 1 else torch.cat(probs, dim=1)  # a copy may not fit into memory

    def _segment(
        self, windows: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Turn windows into probabilities, and their disagreement if it is wanted."""
        if not self.uncertainty:
            return network(windows, *args, **kwargs).float().softmax(1)
        decodings = network(windows, *args, num_perturbed=len(windows), **kwargs).float().softmax(1)
        clean, *perturbed = decodings.split(len(windows))
        return torch.cat([clean, disagreement(clean, perturbed)], dim=1)


def disagreement(clean: torch.Tensor, perturbed: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean total variation distance between the clean and the perturbed decodings of an image.

    Args:
        clean: probabilities of the clean decoding, BNH[WD].
        perturbed: those of each perturbed decoding, same shape.

    Returns:
        B1H[WD], 0 where all agree, 1 where no perturbed decoding shares any probability with the clean one.
    """
    distances = [0.5 * (probs - clean).abs().sum(1, keepdim=True) for probs in perturbed]
    return torch.stack(distances).mean(0)


@contextmanager
def _feature_dropout_on(network: Any) -> Iterator[None]:
    """Let the feature dropouts of a network in eval mode act, with the same draws for every image."""
    dropouts = [m for m in network.modules() if isinstance(m, FeatureDropout)] if isinstance(network, nn.Module) else []
    with torch.random.fork_rng(enabled=bool(dropouts)):
        if dropouts:
            torch.manual_seed(0)
        for dropout in dropouts:
            dropout.train()
        try:
            yield
        finally:
            for dropout in dropouts:
                dropout.eval()


def _combinations(axes: Sequence[int]) -> list[tuple[int, ...]]:
    """All subsets of axes, the empty one first."""
    return list(chain.from_iterable(combinations(axes, count) for count in range(len(axes) + 1)))


def _with_single_slice(values: Sequence[int], axis: int) -> list[int]:
    return [*values[:axis], 1, *values[axis:]]


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


class LabelMapd(_Framesd):
    """Turn probabilities, (T*N)H[WD], into class indices, frame by frame.

    With ``invert`` the probabilities are still on the network's grid. Where they are many, they are brought back a few
    classes at a time, keeping the most probable so far: on the scan's grid all of them may not fit into memory.

    Args:
        keys: see :class:`_Framesd`.
        num_classes: see :class:`_Framesd`.
        invert: brings channels back to the scan's grid, each as it would alone.
        values: how many probabilities are brought back at a time, but at least those of a class.
    """

    def __init__(
        self, keys: KeysCollection, num_classes: int, invert: Invertd | None = None, values: int = 2**26
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
            return probs.argmax(0, keepdim=True).to(torch.uint8)
        best = label = torch.empty(0)
        channels = max(1, self.values // probs[0].numel())
        for first in range(0, self.num_classes, channels):
            part = self.invert({**sample, key: probs[first : first + channels]})[key]
            if first == 0:
                best, label = part[:1].as_tensor().clone(), torch.zeros_like(part[:1], dtype=torch.uint8)
            for index, channel in enumerate(part.as_tensor().split(1), start=first):
                label[channel > best] = index  # as argmax, which gives the first of equals
                torch.maximum(best, channel, out=best)
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


class ScanEvaluator(SupervisedEvaluator):
    """MONAI's evaluator, which goes on when a scan cannot be segmented, and says at the end which and why.

    When memory runs out, a scan is tried again with half as many windows at once, down to one.

    Arguments: see :class:`monai.engines.SupervisedEvaluator`. ``val_data_loader`` is a
    :class:`custom.data.ScanLoader`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []  #: the scans that could not be segmented, and why

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        """Segment a scan; the output of one that fails is empty."""
        try:
            if isinstance(batchdata, Unreadable):
                raise UserError(batchdata.problem)
            return self._segment(engine, batchdata)
        except Exception as error:  # of a transform, the network, a writer
            self.problems.append(_failure(batchdata, error))
        logger.warning(self.problems[-1])
        return []

    def _segment(self, engine: Any, batchdata: Any) -> Any:
        """Segment a scan, with fewer and fewer windows at once."""
        inferer: Any = self.inferer
        given = size = getattr(inferer, "sw_batch_size", 1)
        while True:
            try:
                engine.state.batch = batchdata  # which an attempt takes apart
                inferer.sw_batch_size = size
                return super()._iteration(engine, batchdata)
            except Exception as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
            finally:
                inferer.sw_batch_size = given
            size //= 2
            logger.warning("memory ran out; trying again with --sw_batch_size %d", size)
            engine.state.output = None
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _failure(batchdata: Any, error: Exception) -> str:
    """Name a scan and say why it was not segmented."""
    plain = next((cause for cause in causes(error) if isinstance(cause, UserError)), None)
    if plain is not None:
        return str(plain)
    file = batchdata["image"].meta["filename_or_obj"][0]
    if is_out_of_memory(error):
        return f"{file}: there is not enough memory to segment it, one window at a time ({plain_reason(error)})."
    return f"{file}: cannot be segmented ({plain_reason(error)})."
