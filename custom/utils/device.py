"""What ``amp: true`` means on each device. MONAI's engines know CUDA only (MONAI 1.6.1, engines/trainer.py)."""

from __future__ import annotations

import ctypes
import errno
import logging
import math
import sys
import time
from functools import lru_cache
from typing import NamedTuple

import torch
from monai.networks.utils import eval_mode
from torch import nn

from .errors import causes

#: Errors of logits and gradients that rounding does not reach: the networks here, trained or not, are 0.005 to 0.04 and
#: 0.001 to 0.03 off.
_ROUNDING, _GRADIENT_ROUNDING = 0.2, 0.5
#: Calls, and seconds, after which a comparison is enough.
_LEAST_CALLS, _ENOUGH = 3, 0.3
#: Times in which a difference is no matter of chance.
_SLOWER = 1.2
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

    def compare(self, network: nn.Module, patch: torch.Tensor, gradients: bool = False) -> TypeCheck:
        """Compute a patch in bfloat16 and in float32 in turn, in eval mode.

        Args:
            network: returns logits, BNH[WD].
            patch: BCH[WD].
            gradients: compare those of the weights too, and time the backward pass.
        """
        weights = [weight for weight in network.parameters() if weight.requires_grad] if gradients else []
        seconds: dict[bool, list[float]] = {True: [], False: []}

        def compute(low: bool) -> list[torch.Tensor]:
            _fill_freed_memory()
            start = time.perf_counter()
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=low):
                logits = network(patch).float()
            found = torch.autograd.grad(_varying(logits).square().sum(), weights, allow_unused=True) if weights else ()
            seconds[low].append(time.perf_counter() - start)
            return [logits.detach(), *(gradient for gradient in found if gradient is not None)]

        with eval_mode(network), torch.set_grad_enabled(gradients):
            expected = compute(False)
            errors = [_errors(compute(True), expected)]  # the first calls prepare what the others use, and do not count
            began = time.perf_counter()
            while len(errors) < _LEAST_CALLS or time.perf_counter() - began < _ENOUGH:
                compute(False)
                errors.append(_errors(compute(True), expected))
        worst = torch.tensor(errors).amax(0).tolist()  # not a number where one is not
        return TypeCheck(*worst, *(min(seconds[low][1:]) for low in (True, False)))

    def backward(self, loss: torch.Tensor) -> None:
        """Backpropagate, scaled where float16 needs it."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the weights."""
        self.scaler.step(optimizer)
        self.scaler.update()


class TypeCheck(NamedTuple):
    """What :meth:`MixedPrecision.compare` found: errors of bfloat16, and seconds in both types."""

    error: float  #: of the logits, as a share of how much they vary
    gradient_error: float  #: as a share of the gradient; 0 where it was not asked for
    seconds: float
    float32_seconds: float

    @property
    def is_wrong(self) -> bool:
        """Whether an error is more than rounding, or not a number."""
        return not (self.error <= _ROUNDING and self.gradient_error <= _GRADIENT_ROUNDING)

    @property
    def is_slower(self) -> bool:
        """Whether float32 is faster by more than a busy machine makes it."""
        return self.seconds > _SLOWER * self.float32_seconds

    def __str__(self) -> str:
        """Say what is wrong, or else how fast it is."""
        if self.is_wrong:
            what = "the gradient" if self.error <= _ROUNDING else "the result"
            return f"bfloat16 computes {what} of a patch wrong here"
        return f"bfloat16 takes {self.seconds / self.float32_seconds:.2f} times as long as float32 on a patch"


def _varying(logits: torch.Tensor) -> torch.Tensor:
    """Take the mean of each class from logits, BNH[WD], most of which is the last layer's bias."""
    return logits - logits.mean(dim=tuple(range(2, logits.ndim)), keepdim=True)


def _errors(found: list[torch.Tensor], expected: list[torch.Tensor]) -> tuple[float, float]:
    """Compare the logits, which come first, and the gradients."""
    scale = [_varying(expected[0])]
    return _relative_error(found[:1], expected[:1], scale), _relative_error(found[1:], expected[1:], expected[1:])


def _relative_error(found: list[torch.Tensor], expected: list[torch.Tensor], scale: list[torch.Tensor]) -> float:
    difference = sum(float((a - b).double().square().sum()) for a, b in zip(found, expected, strict=True))
    size = sum(float(value.double().square().sum()) for value in scale)
    return 0.0 if difference == 0 else math.sqrt(difference / size) if size else math.inf


def _fill_freed_memory() -> None:
    """Leave large numbers in memory that is free, so that a kernel that forgets to clear its own shows it."""
    for exponent in range(8, 22):
        torch.full((2**exponent,), 1e30)


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


def release_freed_memory() -> None:
    """Let the C library return to the system what it keeps of freed memory, see :func:`keep_freed_memory`."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, of a GPU or of the machine."""
    return any(
        isinstance(cause, (MemoryError, torch.OutOfMemoryError))
        or (isinstance(cause, OSError) and cause.errno == errno.ENOMEM)  # of a file mapped into memory
        or (isinstance(cause, RuntimeError) and any(words in str(cause) for words in _NO_MEMORY))
        for cause in causes(error)
    )
