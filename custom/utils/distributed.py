"""Several processes that train one network together, started by ``torchrun``; see ``multi_gpu_train.yaml``.

Each process (rank) draws its share of both streams (:mod:`custom.data.streams`). The loss is that of all shares put
together, so two ranks with a batch of B learn as one with a batch of 2 B does. With one process nothing is exchanged.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, zip_longest
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .errors import UserError

__all__ = [
    "CPUSyncBatchNorm",
    "any_rank",
    "gather_in_turn",
    "local_device",
    "mean_over_ranks",
    "share_buffers",
    "start",
    "stop",
    "sum_over_ranks",
    "synchronize_batch_norm",
    "without_exchange",
    "wrap",
]

Item = TypeVar("Item")


def start() -> None:
    """Join the other processes; only rank 0 shows progress and writes files.

    Raises:
        UserError: when the process was not started by ``torchrun``, or by one whose restarts would fail.
    """
    if "LOCAL_RANK" not in os.environ:
        raise UserError(
            "multi_gpu_train.yaml needs torchrun: torchrun --standalone --nproc_per_node=2 -m monai.bundle run ..."
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
    distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    if distributed.get_rank() > 0:
        tqdm.__init__ = functools.partialmethod(tqdm.__init__, disable=True)  # its variable is read on import only
        logging.getLogger().setLevel(logging.ERROR)


def stop() -> None:
    """Leave the others, when all have come to this point."""
    distributed.barrier()
    distributed.destroy_process_group()


def local_device() -> torch.device:
    """Name this process's GPU, or the CPU where there is none."""
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")


def wrap(network: nn.Module) -> DistributedDataParallel:
    """Average the gradients over the ranks.

    Buffers are not exchanged before each pass, since training does not use running statistics; validation and the end
    take those of rank 0, see :func:`share_buffers`.
    """
    device = next(network.parameters()).device
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )


def without_exchange(network: nn.Module) -> AbstractContextManager[None]:
    """Leave out the exchange of gradients, for passes that are not a step's last; the last one exchanges the sum."""
    return network.no_sync() if isinstance(network, DistributedDataParallel) else nullcontext()


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Add up a tensor over the ranks, for a loss; the tensor itself where there is one process.

    The gradient reaches every rank's share.
    """
    return all_reduce(values) if _together() else values


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Average a tensor over the ranks, for a loss; the tensor itself where there is one process."""
    return sum_over_ranks(values) / distributed.get_world_size() if _together() else values


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


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose running statistics are those that are kept."""
    if _together():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)


def synchronize_batch_norm(network: nn.Module) -> nn.Module:
    """Let every batch norm take its statistics over the batches of all ranks, PyTorch's way on GPUs."""
    if next(network.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm) and not isinstance(norm, CPUSyncBatchNorm):
                setattr(parent, name, CPUSyncBatchNorm.like(norm))
    return network


class CPUSyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all ranks, BCH[WD], on the CPU; PyTorch's own refuses CPU tensors.

    The ranks must have batches of the same size.
    """

    @classmethod
    def like(cls, norm: _BatchNorm) -> CPUSyncBatchNorm:
        """Take the place of a batch norm: the same settings, and the very same parameters and buffers."""
        twin = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        twin._parameters, twin._buffers, twin.training = norm._parameters, norm._buffers, norm.training
        return twin

    def _check_input_dim(self, x: torch.Tensor) -> None:
        if x.ndim < 2:
            raise ValueError(f"expected BCH[WD], got shape {tuple(x.shape)}.")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize; with running statistics in eval mode, as any batch norm."""
        if not self.training or not _together():
            return super().forward(x)
        dtype, x = x.dtype, x.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        mean = mean_over_ranks(x.mean(axes))
        variance = mean_over_ranks((x - mean.view(shape)).square().mean(axes))
        self._update(mean.detach(), variance.detach(), x.numel() // x.shape[1] * distributed.get_world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(dtype)

    def _update(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)
