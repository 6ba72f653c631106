"""Processes that have imported everything already, as forks of a server that has computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch

#: Processes of it are forks of one that has imported these.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "starter",
        "custom.trainer",
        "custom.handlers",
        "custom.inference",
        "custom.predictions",
        "monai.bundle",
        "monai.handlers",
        "tools.prepare",
    ]
)


def start(target: Callable[..., Any], *arguments: Any, log: Path) -> BaseProcess:
    """Call ``target`` in a process of its own, with one thread and what it prints in ``log``."""
    process = CONTEXT.Process(target=_call, args=(target, arguments, log))
    process.start()
    return process


def finish(process: BaseProcess, seconds: float = 120) -> int | None:
    """Wait for a process and give its exit code; None when it still runs."""
    process.join(seconds)
    return process.exitcode


class Done(NamedTuple):
    """What a command has left: its exit code and what it printed."""

    returncode: int
    stdout: str
    stderr: str


def run_command(module: str, *arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """Do what ``python -m module arguments`` does, without the seconds that the imports take."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        process = CONTEXT.Process(
            target=_run_module, args=(module, [*map(str, arguments)], cwd, dict(env or {}), files)
        )
        process.start()
        process.join(300)
        return Done(process.exitcode, *(file.read_text() for file in files))


def _run_module(module: str, arguments: list[str], cwd: Path, env: Mapping[str, str], files: list[Path]) -> None:
    for number, file in enumerate(files, start=1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
    _prepare()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except Exception:
        sys.excepthook(*sys.exc_info())  # as the interpreter does; here it would be multiprocessing's own way
        sys.exit(1)


def _call(target: Callable[..., Any], arguments: tuple[Any, ...], log: Path) -> None:
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    _prepare()
    target(*arguments)


def _prepare() -> None:
    sys.stdout.reconfigure(line_buffering=True)
    multiprocessing.set_start_method("fork", force=True)  # the default of the command line, for workers
    torch.set_num_threads(1)
