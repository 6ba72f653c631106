"""What ``amp: true`` means on each device. MONAI's engines know CUDA only (MONAI 1.6.1, engines/trainer.py)."""

from __future__ import annotations

import ctypes
import logging
import sys
from functools import lru_cache

import torch

from .errors import causes

__all__ = ["MixedPrecision", "is_out_of_memory", "keep_freed_memory"]

#: What PyTorch's CPU allocator says, on Linux and on Windows, in errors of no kind of their own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "DefaultCPUAllocator")


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

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagate, scaled where float16 needs it."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        self.scaler.step(optimizer)
        self.scaler.update()


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


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, of a GPU or of the machine."""
    return any(
        isinstance(cause, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _NO_MEMORY))
        for cause in causes(error)
    )
