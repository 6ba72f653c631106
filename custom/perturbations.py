"""Image and feature perturbations of CrossMatch (Zhao et al., doi:10.1109/JBHI.2024.3463711; settings: model cards).

Drawing is kept apart from applying: :class:`CutMix` draws boxes as masks, :func:`paste` applies the same mask to an
image and to its pseudo-labels. Intensity perturbations are stock MONAI transforms, listed in the bundle's config;
here is only what MONAI lacks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, RandAdjustContrast, Randomizable, RandomizableTransform
from torch import nn

from .utils.errors import UserError


class FeatureDropout(nn.Module):
    """Drop whole channels of every feature map, each map and each sample with a mask of its own.

    A registered module, so that ``eval()`` turns it off (the original keeps its dropouts in a plain list, always on).

    Args:
        probability: chance in [0, 1) that a channel is set to zero; the kept ones are scaled by 1 / (1 - probability).

    Raises:
        UserError: when ``probability`` lies outside [0, 1).
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise UserError(f"feature_dropout must lie in [0, 1), got {probability}.")
        self.probability = probability

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        """Perturb feature maps, each BCH[WD]."""
        return [torch.feature_dropout(level, self.probability, self.training) for level in features]


class CutMix:
    """Draw CutMix boxes (Yun et al., ICCV 2019, doi:10.1109/ICCV.2019.00612) for 2D and 3D patches.

    The extent of a box along axis i is ``size_i * fraction**(1/n) * a_i`` with ``prod(a) = 1``, so the box has the
    drawn share of the patch's volume, and ``a`` says how far its proportions depart from the patch's own. Boxes that
    would not fit are drawn again; the position is uniform among those where the box lies inside the patch.

    Args:
        prob: probability in [0, 1] that a sample gets a box.
        fraction: range of the box's share of the patch's area or volume, within (0, 1].
        aspect: range of the ratio between the extent of each axis and that of the last one, relative to the patch.

    Raises:
        UserError: when a range is empty or leaves its bounds.
    """

    def __init__(
        self,
        prob: float = 0.5,
        fraction: Sequence[float] = (0.02, 0.4),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
    ) -> None:
        if not 0 <= prob <= 1:
            raise UserError(f"prob must lie in [0, 1], got {prob}.")
        if not 0 < fraction[0] <= fraction[1] <= 1:
            raise UserError(f"fraction must be an ascending range within (0, 1], got {tuple(fraction)}.")
        if not 0 < aspect[0] <= 1 <= aspect[1]:
            raise UserError(f"aspect must be a range of positive numbers around 1, got {tuple(aspect)}.")
        self.prob = prob
        self.fraction = fraction
        self.aspect = aspect

    def sample(self, batch_size: int, size: Sequence[int]) -> torch.Tensor:
        """Draw one mask per sample from PyTorch's CPU generator.

        Args:
            batch_size: number of masks B.
            size: spatial size of the patch in voxels.

        Returns:
            Boolean mask on the CPU, B1H[WD]: True inside the box, all False where no box was drawn.
        """
        mask = torch.zeros((batch_size, 1, *size), dtype=torch.bool)
        for sample in mask[:, 0]:
            if torch.rand(()) < self.prob:
                sample[self.sample_box(size)] = True
        return mask

    def sample_box(self, size: Sequence[int]) -> tuple[slice, ...]:
        """Draw a box inside a patch of ``size`` voxels, as one slice per axis."""
        extents = self._sample_extents(size)
        starts = [int(torch.randint(n - extent + 1, ())) for n, extent in zip(size, extents, strict=True)]
        return tuple(slice(start, start + extent) for start, extent in zip(starts, extents, strict=True))

    def _sample_extents(self, size: Sequence[int]) -> list[int]:
        fraction = _uniform(self.fraction)
        while True:
            ratios = [*(_uniform(self.aspect) for _ in size[1:]), 1.0]
            scale = (fraction / math.prod(ratios)) ** (1 / len(ratios))
            shares = [scale * ratio for ratio in ratios]
            if max(shares) <= 1:
                return [max(1, round(n * share)) for n, share in zip(size, shares, strict=True)]


def paste(mask: torch.Tensor, base: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    """Take ``partner`` where ``mask`` is True and ``base`` elsewhere.

    Args:
        mask: B1H[WD], boolean.
        base: BCH[WD], images or pseudo-labels.
        partner: same shape as ``base``.
    """
    return torch.where(mask, partner, base)


class RandLogGamma(RandAdjustContrast):
    """MONAI's ``RandAdjustContrast`` with gamma = exp(U(-log_gamma, log_gamma)).

    Brightening and darkening are equally likely that way; MONAI draws gamma itself uniformly, which favours darkening.

    Args:
        log_gamma: largest absolute value of log(gamma), positive.
        prob: probability of adjustment.
    """

    def __init__(self, log_gamma: float = 0.5, prob: float = 1.0) -> None:
        super().__init__(prob=prob, gamma=(math.exp(-log_gamma), math.exp(log_gamma)))
        self.log_gamma = log_gamma

    def randomize(self, data: Any | None = None) -> None:
        """Draw whether to act, and gamma."""
        RandomizableTransform.randomize(self, None)
        self.gamma_value = math.exp(self.R.uniform(-self.log_gamma, self.log_gamma))


class StrongViewsd(Randomizable, MapTransform):
    """Add two independent strong views of an image to a sample, ``strong_1`` and ``strong_2``.

    Args:
        keys: the weak view, an image CH[WD].
        view: array transforms that make one strong view; called once for each, so every view has draws of its own.
    """

    def __init__(self, keys: KeysCollection, view: Sequence[Any]) -> None:
        MapTransform.__init__(self, keys)
        self.view = Compose(view)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> StrongViewsd:
        """Seed this transform and the view's own transforms."""
        super().set_random_state(seed, state)
        self.view.set_random_state(seed, state)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the sample with the strong views added; the weak view is left as it is."""
        sample = dict(data)
        for key in self.keys:
            for name in ("strong_1", "strong_2"):
                sample[name] = self.view(sample[key].clone())
        return sample


def _uniform(bounds: Sequence[float]) -> float:
    return float(torch.empty(()).uniform_(bounds[0], bounds[1]))
