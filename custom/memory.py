"""Memory of a CPU, which is faster to use again than to get anew."""

from __future__ import annotations

import ctypes
import sys

import torch

from .mixed_precision import MixedPrecision

__all__ = ["keep_freed_memory", "keep_where_it_pays"]

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_where_it_pays(device: torch.device | str, amp: bool) -> bool:
    """Keep freed memory where a CPU computes in a 16-bit type.

    Blocks that are kept leave gaps; in float32 a training step would take more memory than one in the original's order.

    Args:
        device: where the network runs.
        amp: whether it may run in the device's fastest 16-bit type.

    Returns:
        Whether memory is kept.
    """
    device = torch.device(device)
    return device.type == "cpu" and MixedPrecision(device, amp).dtype != torch.float32 and keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that are freed, and give them out again.

    By default it returns them to the system, which clears every page of the next one: a sixth of the time of a training
    step on a CPU (docs/performance.md). The process then stays as large as it once was. Only glibc, the library of most
    Linux systems, can be told so; others are left as they are.

    Returns:
        Whether it could be told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1}
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
