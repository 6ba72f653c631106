"""Worker processes for preparing and checking data."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import torch


def process_pool() -> ProcessPoolExecutor:
    """Start one process per core, each computing on one thread.

    Never as a fork of this process: once OpenMP or ITK have run threads in it, a fork may wait for them for ever.
    """
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    if "forkserver" in methods:
        context.set_forkserver_preload(["tools.prepare.commands"])  # imported once, not once per process
    return ProcessPoolExecutor(os.cpu_count(), context, initializer=torch.set_num_threads, initargs=(1,))
