"""Processes that have imported everything already, as forks of a server that has computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["starter", "custom.trainer", "custom.handlers.panels", "monai.bundle", "monai.handlers"]
)


def start(target: Callable[..., Any], *arguments: Any, log: Path) -> BaseProcess:
    """Call ``target`` in a process of its own, with one thread and what it prints in ``log``."""
    process = _CONTEXT.Process(target=_call, args=(target, arguments, log))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int | None:
    """Wait for a process and give its exit code; None when it still runs."""
    process.join(seconds)
    return process.exitcode


def _call(target: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    multiprocessing.set_start_method("fork", force=True)  # the default of the command line, for workers
    torch.set_num_threads(1)
    target(*arguments)
