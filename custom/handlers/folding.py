"""Batch norm folded into the convolutions before it: the same function, computed with fewer passes over memory."""

from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from itertools import pairwise
from typing import TypeGuard

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized

from ..networks import DoublingConvolution

#: Exactly these, since a subclass may do something else with its weights, such as standardize them.
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, DoublingConvolution)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Copy a network for inference, with each batch norm folded that follows a convolution in an ``nn.Sequential``.

    ``torch.fx.experimental.optimization.fuse`` needs a network that can be traced, which ours cannot for their checks
    of sizes, and knows no transposed convolutions. What is called one by one in a ``forward`` stays as it is, and so
    does what is used in several places. The names of the weights change, so keep the network itself to save it.

    Args:
        network: with its weights loaded; it is not changed.

    Returns:
        The copy, in eval mode.
    """
    folded = deepcopy(network).eval()
    uses = Counter(module for _, module in folded.named_modules(remove_duplicate=False))
    for sequential in [module for module in folded.modules() if _is_plain(module)]:
        for first, second in pairwise(_flatten(sequential)):
            convolution, norm = getattr(*first), getattr(*second)
            if uses[convolution] == uses[norm] == 1 and _can_fold(convolution, norm):
                transposed = isinstance(convolution, _TRANSPOSED)
                setattr(*first, fuse_conv_bn_eval(convolution, norm, transpose=transposed))
                setattr(*second, nn.Identity())
    return folded


def _is_plain(module: nn.Module | None) -> TypeGuard[nn.Sequential]:
    """Say whether a module calls its children one after the other, and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward and _is_bare(module)


def _is_bare(module: nn.Module) -> bool:
    return not (module._forward_hooks or module._forward_pre_hooks or is_parametrized(module))


def _flatten(sequential: nn.Sequential) -> Iterator[tuple[nn.Module, str]]:
    """Give the owner and the name of each module in the order of their calls, through nested sequences."""
    for name, module in sequential._modules.items():
        if _is_plain(module):
            yield from _flatten(module)
        else:
            yield sequential, name


def _can_fold(convolution: nn.Module, norm: nn.Module) -> bool:
    groups = getattr(convolution, "groups", 1)
    known = type(convolution) in _CONVOLUTIONS or (type(convolution) in _TRANSPOSED and groups == 1)
    has_statistics = type(norm) in _NORMS and norm.running_mean is not None
    return known and has_statistics and _is_bare(convolution) and _is_bare(norm)
