"""Time alternatives side by side in one process, and the memory that each of them takes."""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

__all__ = ["Measurement", "machine", "measure", "print_table", "resident_memory", "seconds"]

Call = Callable[[], object]


class Measurement(NamedTuple):
    """Seconds of every call, and the most memory in bytes that one needed beyond what was there."""

    every: list[float]
    memory: int

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.every)


def measure(
    calls: Mapping[str, Call],
    device: torch.device,
    repeats: int = 5,
    before: Mapping[str, Call] | None = None,
    untimed: int = 1,
) -> dict[str, Measurement]:
    """Call the alternatives in turn, so that a machine that slows down slows down all of them.

    Args:
        calls: alternatives by name.
        device: where they compute.
        repeats: how often each is timed.
        before: what to do before an alternative's turn, by its name.
        untimed: calls in each turn before the one that is timed, so that memory finds its place.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    memory = dict.fromkeys(calls, 0)
    for _ in range(repeats):
        for name, call in calls.items():
            if before and name in before:
                before[name]()
            with _PeakMemory(device) as peak:
                for _ in range(untimed):
                    call()
                times[name].append(seconds(call, device))
            memory[name] = max(memory[name], peak.bytes)
    return {name: Measurement(every, memory[name]) for name, every in times.items()}


def seconds(call: Call, device: torch.device) -> float:
    """Time one call."""
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class _PeakMemory:
    """Bytes that are needed at most beyond those in use before; on Linux, or of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> _PeakMemory:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier turns have kept
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
            self.before = resident_memory()
        return self

    def __exit__(self, *_: object) -> None:
        is_gpu = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) if is_gpu else _status("VmHWM")
        self.bytes = peak - self.before


def resident_memory() -> int:
    """Bytes of this process that are in memory, on Linux."""
    return _status("VmRSS")


def _status(name: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def machine(device: torch.device) -> str:
    """Name what was measured on: processor, threads, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        names = [
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ]
        name = f"{names[0]}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def print_table(measured: Mapping[str, Measurement], reference: str) -> None:
    """Print every alternative with how many times faster than the reference it is."""
    for name, found in measured.items():
        every = " ".join(f"{value:.3f}" for value in found.every)
        ratio = measured[reference].median / found.median
        print(f"{name:10s} {found.median:8.3f} s  {ratio:5.2f} x  {found.memory / 1e9:6.2f} GB   [{every}]")
