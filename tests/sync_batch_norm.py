"""Batch norm in sync on CPUs, so that what ranks learn can be compared with one process; PyTorch's own needs GPUs."""

from __future__ import annotations

import torch
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from custom.utils.distributed import all_reduce_mean


def synchronize_batch_norm(network: nn.Module) -> nn.Module:
    """``nn.SyncBatchNorm.convert_sync_batchnorm`` for CPUs; the network keeps its parameters."""
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
        if not self.training or not distributed.is_initialized():
            return super().forward(x)
        dtype, x = x.dtype, x.float()
        axes = [0, *range(2, x.ndim)]
        shape = [1, -1, *[1] * (x.ndim - 2)]
        mean = all_reduce_mean(x.mean(axes))
        variance = all_reduce_mean((x - mean.view(shape)).square().mean(axes))
        self._update(mean.detach(), variance.detach(), x.numel() // x.shape[1] * distributed.get_world_size())
        scale = self.weight * (variance + self.eps).rsqrt()
        return ((x - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(dtype)

    def _update(self, mean: torch.Tensor, variance: torch.Tensor, count: int) -> None:
        self.num_batches_tracked.add_(1)
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), momentum)
