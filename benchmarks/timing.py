"""Time alternatives side by side, and the memory that each of them takes."""

from __future__ import annotations

import multiprocessing
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from custom.utils.errors import UserError

Call = Callable[[], Any]
#: How processes are started: anew, so that none has memory of another.
CONTEXT = multiprocessing.get_context("spawn")


class Measurement(NamedTuple):
    """Seconds of every call, most memory in bytes beyond what was there before the first, and what the last gave.

    Memory is None where alternatives share a process.
    """

    every: list[float]
    memory: int | None
    result: Any

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.every)


def measure(
    builders: Mapping[str, Callable[[], Call]],
    device: torch.device,
    repeats: int = 5,
    untimed: int = 2,
    one_process: bool = False,
) -> dict[str, Measurement]:
    """Call the alternatives in turn, so that a machine that slows down slows down all of them.

    Each of them lives in a process of its own, since how memory is taken and returned is a matter of the process; while
    one computes, the others wait.

    Args:
        builders: by name, what makes a call ready, in its process; functions that can be pickled. What
            a call returns must be picklable too: numbers and arrays, not tensors, which end with their process.
        device: where they compute.
        repeats: how often each is timed.
        untimed: calls of each before the first that is timed.
        one_process: put all into this process, where what one does to memory is done to all.

    Raises:
        Exception: what an alternative raised in its process.
    """
    place = _here if one_process else _in_a_process
    ask = {name: place(build, device) for name, build in builders.items()}
    for answer in ask.values():
        for _ in range(untimed):
            answer(True)
    times: dict[str, list[float]] = {name: [] for name in builders}
    for _ in range(repeats):
        for name, answer in ask.items():
            times[name].append(answer(True))
    found = {}
    for name, answer in ask.items():
        memory, result = answer(False)
        found[name] = Measurement(times[name], None if one_process else memory, result)
    return found


def _here(build: Callable[[], Call], device: torch.device) -> Callable[[bool], Any]:
    answers = _answers(build(), device)
    next(answers)
    return answers.send


def _in_a_process(build: Callable[[], Call], device: torch.device) -> Callable[[bool], Any]:
    pipe, other = CONTEXT.Pipe()
    CONTEXT.Process(target=_serve, args=(other, build, device), daemon=True).start()
    other.close()

    def ask(once_more: bool) -> Any:
        with suppress(BrokenPipeError):  # it has ended already, and its error waits to be read
            pipe.send(once_more)
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    return ask


def _serve(pipe: Connection, build: Callable[[], Call], device: torch.device) -> None:
    """Answer until all is told; what goes wrong is an answer, too."""
    try:
        answer, once_more = _here(build, device), True
        while once_more:
            once_more = pipe.recv()
            pipe.send(answer(once_more))
    except EOFError:
        return  # who asked has ended, since another alternative failed
    except Exception as error:
        pipe.send(error if isinstance(error, UserError) else RuntimeError(traceback.format_exc()))


def _answers(call: Call, device: torch.device) -> Generator[Any, bool, None]:
    """Give the seconds of a call, for as long as one more is wanted; then memory and the last result."""
    memory = _PeakMemory(device)
    result = None

    def keep_result() -> None:
        nonlocal result
        result = call()

    once_more = yield
    while once_more:
        once_more = yield seconds(keep_result, device)
    yield memory.bytes(), result


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
    """Bytes that are needed at most from now on, beyond those in use now; on Linux, or of a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before = torch.cuda.memory_allocated(device)
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew
            self.before = resident_memory()

    def bytes(self) -> int:
        is_gpu = self.device.type == "cuda"
        return (torch.cuda.max_memory_allocated(self.device) if is_gpu else _status("VmHWM")) - self.before


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
        memory = "shared" if found.memory is None else f"{found.memory / 1e9:6.2f} GB"
        print(f"{name:14s} {found.median:8.3f} s  {ratio:5.2f} x  {memory:>9s}   [{every}]")
