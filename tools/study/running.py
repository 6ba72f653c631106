"""Work through the runs of a study, some side by side, with MONAI's own commands."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from custom.handlers import EXIT_STOPPED

from .planning import Run

LOCK = ".lock"
#: Seconds between two looks at the runs.
PAUSE = 0.2
#: Seconds between two lines that say how far they are.
PROGRESS = 30
_PR_SET_PDEATHSIG = 1  # Linux's prctl.h


def take_lock(lock: TextIO, folder: Path) -> None:
    """Wait until no other study, and no training that a killed one has left behind, works in the folder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: waiting for another study, or for trainings that it left behind, to end", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _tail(path: Path, size: int = 1000) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


class Runner:
    """Work through the runs.

    Args:
        runs: in their order.
        jobs: how many at once.
        lock: file that the runs keep open, so that it stays locked until the last one has ended.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, lock: int) -> None:
        self.runs = list(runs)
        self.jobs = jobs
        self.lock = lock
        self.active: dict[str, tuple[Run, str, subprocess.Popen, float]] = {}
        self.failed: list[str] = []
        self.stop = False
        self.next_progress = time.monotonic() + PROGRESS
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
        self.libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> list[str]:
        """Run all that is not finished, and say which failed.

        Raises:
            SystemExit: with 75 after SIGTERM or Ctrl-C, when the runs have stopped.
        """
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            waiting = []
            for run in self.runs:
                if run.finished:
                    print(f"[{self._place(run)}] {run.name}: finished before", flush=True)
                else:
                    waiting.append(run)
            while self.active or (waiting and not self.stop):
                while waiting and len(self.active) < self.jobs and not self.stop:
                    self._start(waiting.pop(0), "training")
                time.sleep(PAUSE)
                self._print_progress()
                for name in list(self.active):
                    self._look(name)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.stop:
            print(f"\nStopped on request; the same command goes on. Exit code {EXIT_STOPPED}.", flush=True)
            raise SystemExit(EXIT_STOPPED)
        return self.failed

    def _start(self, run: Run, run_id: str) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        command, log = run.command(run_id), run.folder / "log.txt"
        print(f"\n[{self._place(run)}] {run.name}: {run_id}, see {log}\n$ python {shlex.join(command)}", flush=True)
        with open(log, "a") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.lock],
                start_new_session=True,  # the terminal's Ctrl-C comes to us, and we hand it on
                preexec_fn=self._die_with_parent if self.libc else None,
            )
        self.active[run.name] = (run, run_id, process, time.monotonic())

    def _die_with_parent(self) -> None:
        """Let a training write its checkpoint and end when the study is killed, so that the next start finds it."""
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _print_progress(self) -> None:
        """Say from time to time how far the runs are, as the bars in their logs do."""
        if time.monotonic() < self.next_progress:
            return
        self.next_progress = time.monotonic() + PROGRESS
        shown = []
        for name, (run, run_id, *_) in self.active.items():
            if bars := re.findall(rf"{run_id.capitalize()}:\s+(\d+%)\|", _tail(run.folder / "log.txt")):
                shown.append(f"{name} {run_id} {bars[-1]}")
        if shown:
            print("  " + ", ".join(shown), flush=True)

    def _look(self, name: str) -> None:
        run, run_id, process, start = self.active[name]
        code = process.poll()
        if code is None:
            return
        del self.active[name]
        minutes = (time.monotonic() - start) / 60
        if code == 0:
            print(f"[{self._place(run)}] {name}: {run_id} done in {minutes:.1f} minutes", flush=True)
            if run_id == "training" and not self.stop:
                self._start(run, "evaluating")
        elif code == EXIT_STOPPED:
            self.stop = True  # a cluster may have asked the training itself
            self._terminate()
        elif not self.stop:
            self.failed.append(f"{name}: {run_id} ended with exit code {code}, see {run.folder / 'log.txt'}")
            print(f"[{self._place(run)}] {self.failed[-1]}", flush=True)

    def _place(self, run: Run) -> str:
        return f"{self.runs.index(run) + 1}/{len(self.runs)}"

    def _request_stop(self, *_: Any) -> None:
        self.stop = True
        self._terminate()

    def _terminate(self) -> None:
        for _, _, process, _ in self.active.values():
            process.terminate()
