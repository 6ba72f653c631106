"""Memory of a CPU, which is faster to use again than to get anew."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory", "return_freed_memory"]

# Names and numbers of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8


def keep_freed_memory() -> bool:
    """Let the C library keep large blocks that are freed, and give them out again.

    By default it returns them to the system, which clears every page of the next one: a fifth of the time of a training
    step on a CPU (docs/performance.md). The process then stays as large as it once was. Only glibc, the library of most
    Linux systems, can be told so; others are left as they are.

    Returns:
        Whether it could be told.
    """
    return _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _ARENA_MAX: 1})


def return_freed_memory() -> bool:
    """Let the C library return large blocks again, from the size on at which its own adjustment ends, 32 MiB.

    Returns:
        Whether it could be told.
    """
    if not _set({_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26}):
        return False
    ctypes.CDLL(None).malloc_trim(0)  # what was kept so far
    return True


def _set(settings: dict[int, int]) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(name, value) for name, value in settings.items())
