"""A look at whether a CPU's bfloat16 computes the right thing, and fast, before it is relied on."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from ..data.loading import Unreadable
from ..utils.device import MixedPrecision
from ..utils.distributed import any_rank

logger = logging.getLogger(__name__)


class PrecisionCheck:
    """Compute a patch in bfloat16 and in float32 as an engine starts on a CPU; take float32 where bfloat16 does harm.

    Releases of oneDNN and PyTorch have computed wrong convolutions in bfloat16 on some processors (oneDNN issue 5494)
    and slow ones on others (PyTorch issues 183815 and 193951), without a word.

    Segmenting leaves bfloat16 where it is wrong or slower. Training leaves it only where it is wrong, since otherwise
    what it computes would depend on how busy the machine was; it says so where bfloat16 is slower. The state that goes
    into checkpoints is whether it was left, so that a training that goes on computes in the same type.

    The patch is noise. Of training the gradients are compared, too: PyTorch 2.13 on a processor with AVX512-BF16 and
    without AMX adds to what happens to be in memory in the weights' gradients of a 3D convolution on maps of 2x2 voxels
    in plane, such as the V-Net's coarsest at 32x32x32.

    Args:
        network: that is trained, not wrapped; None where the engine segments, or trains in one process.
        validator: engine that validates during training, in the same type.
    """

    def __init__(self, network: nn.Module | None = None, validator: Engine | None = None) -> None:
        self.network = network
        self.validator = validator
        self.fell_back = False

    def attach(self, engine: Engine) -> None:
        """Look when the first batch that could be read is there, whose channels a patch has, too."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._look_once)

    def state_dict(self) -> dict[str, Any]:
        """Whether bfloat16 was left."""
        return {"fell_back": self.fell_back}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on in the same type."""
        self.fell_back = state["fell_back"]

    def _look_once(self, engine: Engine) -> None:
        if isinstance(engine.state.batch, Unreadable):
            return
        engine.remove_event_handler(self._look_once, Events.ITERATION_STARTED)
        if hasattr(engine, "mixed_precision"):
            self._look_at_training(engine, self.network or engine.network)
        else:
            self._look_at_inference(engine)

    def _look_at_training(self, trainer: Any, network: nn.Module) -> None:
        if not _can_be_wrong(trainer.mixed_precision):
            return
        patch = trainer.state.batch["labeled"]["image"][:1]
        if not self.fell_back:
            found = trainer.mixed_precision.compare(network, _noise(patch.shape), gradients=True)
            self.fell_back = any_rank(found.is_wrong)
            if found.is_wrong:
                logger.warning("amp: %s, computing in float32.", found)
            elif found.is_slower and not self.fell_back:
                logger.warning("amp: %s; --amp false would train faster.", found)
        if self.fell_back:
            trainer.mixed_precision = MixedPrecision(trainer.state.device, enabled=False)
            if self.validator is not None:
                self.validator.inferer.amp = False

    def _look_at_inference(self, evaluator: Any) -> None:
        inferer = evaluator.inferer
        if not getattr(inferer, "amp", False):  # MONAI's own inferers do not know it
            return
        precision = MixedPrecision(evaluator.state.device, enabled=True)
        if not _can_be_wrong(precision):
            return
        channels = 1 if inferer.series else evaluator.state.batch["image"].shape[1]
        found = precision.compare(evaluator.network, _noise((1, channels, *inferer.window)))
        if found.is_wrong or found.is_slower:
            logger.warning("amp: %s, computing in float32.", found)
            inferer.amp = False


def _can_be_wrong(precision: MixedPrecision) -> bool:
    return precision.device.type == "cpu" and precision.dtype == torch.bfloat16


def _noise(shape: Sequence[int]) -> torch.Tensor:
    """Draw standard normal numbers, always the same, from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
