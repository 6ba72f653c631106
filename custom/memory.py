"""Memory of a CPU, which is faster to use again than to get anew."""

from __future__ import annotations

import ctypes
import sys

import torch

__all__ = ["keep_freed_memory"]

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
