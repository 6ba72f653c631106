"""Several processes that work together, started by ``torchrun``; see ``multi_gpu_train.yaml``.

In training, each process (rank) draws its share of both streams (:mod:`custom.data.streams`). The loss is that of all
shares put together, so two ranks with a batch of B learn as one with a batch of 2 B does. In inference each segments
scans of its own, see ``multi_gpu_inference.yaml``. With one process nothing is exchanged.
"""

import functools
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from itertools import chain, zip_longest
from typing import Any, NoReturn, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .errors import UserError

Item = TypeVar("Item")


def start(patience_hours: float | None = None) -> None:
    """Join the other processes; only rank 0 prints and shows progress.

    Args:
        patience_hours: how long one waits for the others before it takes them for dead; None for PyTorch's half hour.
            Where a process dies, torchrun ends the others at once.

    Raises:
        UserError: when the process was not started by ``torchrun``, or by one whose restarts would fail.
    """
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "several processes need torchrun: torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
        )
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and os.environ["TORCHELASTIC_USE_AGENT_STORE"] == "True":
        # Restarted processes would find the addresses of those from before (github.com/pytorch/pytorch/issues/135712).
        raise UserError(
            "for --max_restarts set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun, and give it --standalone or "
            "--rdzv_backend=c10d; without, PyTorch cannot restart."
        )
    if torch.cuda.is_available():
        torch.cuda.set_device(local_device())
    # gloo carries tensors of the CPU, among them the processes' agreement to stop.
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=None if patience_hours is None else timedelta(hours=patience_hours),
    )
    if distributed.get_rank() > 0:
        # Put into its place, since its variable is read on import only.
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # type: ignore[method-assign,assignment]
        logging.getLogger().setLevel(logging.ERROR)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop() -> None:
    """Leave the others, when all have come to this point."""
    distributed.barrier()
    distributed.destroy_process_group()


def local_device() -> torch.device:
    """Name this process's GPU, or the CPU where there is none."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def to_ddp(network: nn.Module) -> DistributedDataParallel:
    """Average the gradients over the ranks.

    Buffers are not exchanged before each pass, since training does not use running statistics; validation and the end
    take those of rank 0, see :func:`share_buffers`.
    """
    device = next(network.parameters()).device
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def no_sync(network: nn.Module) -> AbstractContextManager[None]:
    """Leave out the exchange of gradients, for passes that are not a step's last; the last one exchanges the sum."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_first() -> bool:
    """Say whether this process is the one that writes what all of them have: the only one, or rank 0."""
    return not _together() or distributed.get_rank() == 0


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over the ranks, for a loss; the tensor itself where there is one process.

    The gradient reaches every rank's share.
    """
    return all_reduce(values) if _together() else values


def all_reduce_mean(values: torch.Tensor) -> torch.Tensor:
    """Average a tensor over the ranks, for a loss; the tensor itself where there is one process."""
    return all_reduce_sum(values) / distributed.get_world_size() if _together() else values


def any_rank(flag: bool) -> bool:
    """Say whether the flag is set on any rank; all ranks must ask."""
    if not _together():
        return flag
    flags = torch.tensor(int(flag))
    distributed.all_reduce(flags, distributed.ReduceOp.MAX)
    return bool(flags)


def gather_in_turn(items: Iterable[Item]) -> list[Item]:
    """Put together what the ranks have, the first of each rank first; all ranks must ask, and all get it."""
    if not _together():
        return list(items)
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, list(items))
    return [item for item in chain.from_iterable(zip_longest(*found)) if item is not None]


def raise_in_first(error: Exception) -> NoReturn:
    """End all processes with an error, which rank 0 raises; the others end after it, and say nothing.

    Raises:
        Exception: the error, in rank 0.
        SystemExit: with exit code 1, in the others.
    """
    if is_first():
        raise error
    with suppress(RuntimeError):  # that rank 0 has left
        any_rank(False)
    raise SystemExit(1)


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose running statistics are those that are kept."""
    if _together():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
