"""Sliding-window inference as the semi-supervised literature does it: fixed stride, softmax averaged over windows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from monai.inferers import SlidingWindowInferer

from .mixed_precision import MixedPrecision

__all__ = ["SlidingWindowProbabilities"]


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
        kwargs: other arguments, see :class:`monai.inferers.SlidingWindowInferer`.

    Raises:
        ValueError: when ``stride`` does not fit ``roi_size``.
    """

    def __init__(
        self,
        roi_size: Sequence[int],
        stride: Sequence[int],
        sw_batch_size: int = 1,
        amp: bool = False,
        slice_axis: int | None = None,
        series: bool = False,
        **kwargs: Any,
    ) -> None:
        if len(roi_size) != len(stride) or not all(0 < s <= n for n, s in zip(roi_size, stride, strict=True)):
            raise ValueError(
                f"stride must lie between 1 and patch_size {tuple(roi_size)} per axis, got {tuple(stride)}."
            )
        if slice_axis is not None:
            roi_size, stride = (_with_single_slice(values, slice_axis) for values in (roi_size, stride))
        overlap = [max(0.0, 1 - step / size - 1e-6) for size, step in zip(roi_size, stride, strict=True)]
        super().__init__(roi_size=roi_size, sw_batch_size=sw_batch_size, overlap=overlap, **kwargs)
        self.amp = amp
        self.slice_axis = slice_axis
        self.series = series

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Segment images.

        Args:
            inputs: BCH[WD]; with ``series`` C counts frames.
            network: returns logits, BNH[WD], for a batch of windows, or of slices of windows.
            args: passed on to the network.
            kwargs: passed on to the network.

        Returns:
            Probabilities, BNH[WD]; for a series the N classes of the first frame, of the second, and so on.
        """

        def probabilities(windows: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            if self.slice_axis is not None:
                windows = windows.squeeze(self.slice_axis + 2)
            with MixedPrecision(windows.device, self.amp).autocast():
                logits = network(windows, *args, **kwargs)
            probs = logits.float().softmax(1)
            return probs if self.slice_axis is None else probs.unsqueeze(self.slice_axis + 2)

        segment = super().__call__
        images = inputs.split(1, dim=1) if self.series else [inputs]
        return torch.cat([segment(image, probabilities, *args, **kwargs) for image in images], dim=1)


def _with_single_slice(values: Sequence[int], axis: int) -> list[int]:
    return [*values[:axis], 1, *values[axis:]]
