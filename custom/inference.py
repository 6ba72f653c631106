"""Sliding-window inference as the semi-supervised literature does it: fixed stride, softmax averaged over windows.

On request also over mirrored windows, and with a map of how much the perturbed decodings disagree with the clean one.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
from monai.engines import SupervisedEvaluator
from monai.inferers import SlidingWindowInferer
from torch import nn

from .data.loading import Unreadable
from .perturbations import FeatureDropout
from .utils.device import MixedPrecision, is_out_of_memory
from .utils.errors import UserError, first_cause, plain_reason

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
        known = list(range(len(roi_size)))
        if not set(test_time_flips) <= set(known) or len(set(test_time_flips)) < len(test_time_flips):
            raise UserError(
                f"test_time_flips must be spatial axes out of {known}, each once; got {list(test_time_flips)}."
            )
        #: What the network gets, in voxels per axis.
        self.window = tuple(roi_size)
        if slice_axis is not None:
            roi_size, stride = ([*v[:slice_axis], 1, *v[slice_axis:]] for v in (roi_size, stride))
        overlap = [max(0.0, 1 - step / size - 1e-6) for size, step in zip(roi_size, stride, strict=True)]
        super().__init__(roi_size=roi_size, sw_batch_size=sw_batch_size, overlap=overlap, **kwargs)
        self.amp = amp
        self.slice_axis = slice_axis
        self.series = series
        axes, counts = [axis + 2 for axis in test_time_flips], range(len(test_time_flips) + 1)
        #: All subsets of the axes, the empty one first.
        self.flips = [subset for count in counts for subset in combinations(axes, count)]
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
                views = [
                    _mirrored(self._segment(_mirrored(windows, axes), network, *args, **kwargs), axes)
                    for axes in self.flips
                ]
            mean = views[0] if len(views) == 1 else torch.stack(views).mean(0)
            return mean if self.slice_axis is None else mean.unsqueeze(self.slice_axis + 2)

        if self.uncertainty and not _feature_dropouts(network):
            name = type(network).__name__
            raise UserError(
                f"--uncertainty true: {name} has no feature dropout; expected a custom.networks.PerturbedNetwork."
            )
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


def _feature_dropouts(network: Any) -> list[FeatureDropout]:
    return [m for m in network.modules() if isinstance(m, FeatureDropout)] if isinstance(network, nn.Module) else []


@contextmanager
def _feature_dropout_on(network: Any) -> Iterator[None]:
    """Let the feature dropouts of a network in eval mode act, with the same draws for every image."""
    dropouts = _feature_dropouts(network)
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


def _mirrored(windows: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    return windows.flip(axes) if axes else windows  # flip copies, even along no axis


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
    plain = first_cause(error, UserError)
    if plain is not None:
        return str(plain)
    file = batchdata["image"].meta["filename_or_obj"][0]
    if is_out_of_memory(error):
        return f"{file}: there is not enough memory to segment it, one window at a time ({plain_reason(error)})."
    return f"{file}: cannot be segmented ({plain_reason(error)})."
