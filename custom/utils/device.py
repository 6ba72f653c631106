"""What ``amp: true`` means on each device. MONAI's engines know CUDA only (MONAI 1.6.1, engines/trainer.py)."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from functools import lru_cache
from typing import NamedTuple

import torch
from monai.networks.utils import eval_mode
from torch import nn

__all__ = ["MixedPrecision", "TypeCheck", "keep_freed_memory"]

#: Error of logits that rounding does not reach: the networks here, trained or not, are 0.005 to 0.04 off.
_ROUNDING = 0.2
#: Seconds after which a comparison of speed is enough.
_ENOUGH = 0.3


class MixedPrecision:
    """Autocast and gradient scaling for one device.

    bfloat16 where the hardware computes in it, float16 with loss scaling on older GPUs, float32 elsewhere.

    Args:
        device: where the network runs.
        enabled: False for float32.
    """

    def __init__(self, device: torch.device | str, enabled: bool) -> None:
        self.device = torch.device(device)
        self.dtype = _fastest_dtype(self.device) if enabled else torch.float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def autocast(self) -> torch.autocast:
        """Context in which the network runs."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def compare(self, network: nn.Module, patch: torch.Tensor) -> TypeCheck:
        """Compute a patch, BCH[WD], in bfloat16 and in float32 in turn, in eval mode."""
        seconds: dict[bool, list[float]] = {True: [], False: []}

        def compute(low: bool) -> torch.Tensor:
            start = time.perf_counter()
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
                logits = network(patch)
            seconds[low].append(time.perf_counter() - start)
            return logits.float()

        with eval_mode(network), torch.no_grad():
            found, expected = compute(True), compute(False)  # the first calls prepare what the others use
            error = _relative_error(found, expected)
            began = time.perf_counter()
            while len(seconds[True]) < 2 or time.perf_counter() - began < _ENOUGH:
                compute(True), compute(False)
        return TypeCheck(error, *(min(seconds[low][1:]) for low in (True, False)))

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagate, scaled where float16 needs it."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        self.scaler.step(optimizer)
        self.scaler.update()


class TypeCheck(NamedTuple):
    """What :meth:`MixedPrecision.compare` found: error of logits as a share of how much they vary, and seconds."""

    error: float
    seconds: float
    float32_seconds: float

    @property
    def is_wrong(self) -> bool:
        """Whether the error is more than rounding, or not a number."""
        return not self.error <= _ROUNDING

    @property
    def is_slower(self) -> bool:
        """Whether float32 is faster."""
        return self.seconds > self.float32_seconds

    def __str__(self) -> str:
        """Say what is wrong, or else how fast it is."""
        if self.is_wrong:
            return f"bfloat16 is {self.error:.0%} off on a patch, more than rounding"
        return f"bfloat16 takes {self.seconds / self.float32_seconds:.2f} times as long as float32 on a patch"


def _relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Compare logits, BNH[WD]; their mean, much of which is the last layer's bias, does not count."""
    if torch.equal(found, expected):
        return 0.0
    varying = expected - expected.mean(dim=tuple(range(2, expected.ndim)), keepdim=True)
    return float((found - expected).norm() / varying.norm())


@lru_cache  # so that the fallback is reported once per device
def _fastest_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    logging.getLogger(__name__).warning("amp: %s has no fast 16-bit type, computing in float32.", device)
    return torch.float32


# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed_memory(device: torch.device | str = "cpu") -> bool:
    """Let the C library keep large blocks that are freed, and give them out again.

    By default it returns them to the system, which clears every page of the next one: a sixth to a quarter of the time
    of a training step on a CPU (docs/performance.md). The process then stays as large as it once was. Only glibc, the
    library of most Linux systems, can be told so; others are left as they are.

    Args:
        device: where the network runs; what a GPU computes with is not the C library's.

    Returns:
        Whether memory is kept.
    """
    if torch.device(device).type != "cpu" or sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
