"""What processes that train one network together exchange; with one process, nothing.

Each process (rank) draws its share of both streams (:mod:`custom.streams`). The loss is that of all shares put
together.
"""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce

__all__ = ["any_rank", "mean_over_ranks", "share_buffers", "sum_over_ranks"]


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


@torch.no_grad()
def share_buffers(network: nn.Module) -> None:
    """Give every rank the buffers of rank 0, whose running statistics are those that are kept."""
    if _together():
        for buffer in network.buffers():
            distributed.broadcast(buffer, 0)
