from functools import partial

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrizations import weight_norm

from custom.handlers.folding import fold_batch_norm
from custom.networks import DoublingConvolution, MeanEnsemble, PerturbedSegResNet, UNet, VNet

BATCH = ("BATCH", {"affine": True})
#: A network, its number of spatial axes, and how many batch norms are left.
NETWORKS = {
    "VNet": (partial(VNet, base_filters=2), 3, 0),
    "UNet": (partial(UNet, base_filters=2), 2, 0),
    "SegResNet": (partial(PerturbedSegResNet, 3, base_filters=8, in_channels=1, out_channels=2), 3, 0),
    # Its blocks call each layer by itself.
    "SegResNet, batch norm": (
        partial(PerturbedSegResNet, 2, base_filters=4, in_channels=1, out_channels=2, norm=BATCH),
        2,
        25,
    ),
    "MeanEnsemble": (lambda: MeanEnsemble([VNet(base_filters=2), VNet(base_filters=2)]), 3, 0),
    "a stock network": (
        partial(BasicUNet, spatial_dims=3, out_channels=2, features=(4, 4, 4, 4, 4, 4), norm=BATCH),
        3,
        0,
    ),
}


def _with_statistics(network: nn.Module) -> nn.Module:
    """Give batch norms running statistics and affine weights that training might leave."""
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        if norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return network


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in network.modules())


@pytest.mark.parametrize(("build", "spatial_dims", "left"), NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_folded_networks_give_the_same_logits(build, spatial_dims, left):
    torch.manual_seed(0)
    network = _with_statistics(build()).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.randn(2, 1, *[32] * spatial_dims)
    folded = fold_batch_norm(network)
    assert _norms(folded) == left
    expected = network(image)
    assert expected.std() > 0.01
    torch.testing.assert_close(folded(image), expected, rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


@torch.no_grad()
def test_folded_networks_still_drop_features():
    torch.manual_seed(0)
    network = _with_statistics(VNet(base_filters=2, feature_dropout=(0.25, 0.75))).eval()
    image = torch.randn(2, 1, 16, 16, 16)
    logits = []
    for each in (network, fold_batch_norm(network)):
        each.feature_dropout.train()
        torch.manual_seed(1)
        logits.append(each(image, num_perturbed=2))
    assert logits[0].shape[0] == 6
    assert not torch.allclose(*logits[1].split([2, 4])[1].chunk(2))
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2, bias=False),
        nn.Conv3d(4, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 3, bias=False),
        nn.ConvTranspose3d(4, 6, 2, stride=2),
        DoublingConvolution(4, 6),
    ],
    ids=lambda layer: type(layer).__name__,
)
@pytest.mark.parametrize("affine", [True, False])
@torch.no_grad()
def test_batch_norm_is_folded_into_convolutions_of_every_kind(convolution, affine):
    torch.manual_seed(0)
    axes = convolution.weight.ndim - 2
    norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[axes](6, affine=affine)
    network = _with_statistics(nn.Sequential(nn.Sequential(convolution), nn.Sequential(norm, nn.ReLU()))).eval()
    image = torch.randn(2, 4, *[6] * axes)
    folded = fold_batch_norm(network)
    assert _norms(folded) == 0
    torch.testing.assert_close(folded(image), network(image), rtol=0, atol=1e-5)


class _Standardized(nn.Conv2d):
    def forward(self, image):
        return nn.functional.conv2d(image, self.weight / self.weight.std(), self.bias)


def _shared() -> nn.Module:
    layer = nn.Conv2d(4, 4, 1)
    return nn.Sequential(layer, nn.BatchNorm2d(4), layer)


def _hooked() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    network[0].register_forward_hook(lambda module, args, output: output.square())
    return network


@pytest.mark.parametrize(
    "build",
    [
        _shared,
        _hooked,
        lambda: nn.Sequential(_Standardized(4, 4, 1), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(weight_norm(nn.Conv2d(4, 4, 1)), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.ConvTranspose2d(4, 4, 1, groups=2), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    ],
    ids=["shared", "hooked", "subclass", "weight norm", "transposed groups", "not adjacent", "no statistics"],
)
@torch.no_grad()
def test_what_cannot_be_folded_stays_as_it_is(build):
    torch.manual_seed(0)
    network = build()
    for norm in (module for module in network if isinstance(module, nn.BatchNorm2d) and module.track_running_stats):
        _with_statistics(norm)
    network.eval()
    folded, image = fold_batch_norm(network), torch.randn(2, 4, 5, 5)
    assert _norms(folded) == 1
    torch.testing.assert_close(folded(image), network(image))


def test_memory_format_and_type_of_the_weights_stay():
    network = VNet(base_filters=2).to(memory_format=torch.channels_last_3d)
    for layer in (module for module in fold_batch_norm(network).modules() if isinstance(module, nn.Conv3d)):
        assert layer.weight.is_contiguous(memory_format=torch.channels_last_3d)
        assert layer.weight.dtype == torch.float32
