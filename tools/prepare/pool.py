"""Worker processes for preparing and checking data."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

import torch

from custom.utils.errors import UserError


@contextmanager
def process_pool() -> Iterator[ProcessPoolExecutor]:
    """Start one process per core, each computing on one thread.

    Never as a fork of this process: once OpenMP or ITK have run threads in it, a fork may wait for them for ever.

    Raises:
        UserError: when the system has killed one of them.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["tools.prepare.commands"])  # imported once, not once per process
    with ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool
        except BrokenProcessPool as error:
            hint = "perhaps because memory ran out; run the same command again when there is more"
            raise UserError(f"one of {os.cpu_count()} processes that read scans was killed, {hint}.") from error
