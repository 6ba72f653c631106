from functools import partial

import pytest
import torch
from conftest import COMPILES
from torch import nn

from custom.networks import DoublingConvolution, MeanEnsemble, PerturbedNetwork, PerturbedSegResNet, UNet, VNet
from custom.utils.errors import UserError

#: Every backbone, small, with its number of spatial axes.
BACKBONES = {
    "VNet": (lambda: VNet(base_filters=2), 3),
    "UNet": (lambda: UNet(out_channels=2, base_filters=2), 2),
    "SegResNet 2D": (lambda: PerturbedSegResNet(2, base_filters=8, in_channels=1, out_channels=2), 2),
    "SegResNet 3D": (lambda: PerturbedSegResNet(3, base_filters=8, in_channels=1, out_channels=2), 3),
}


class _Transparent(PerturbedNetwork):
    """A network whose logits are its features, so that one sees what was dropped."""

    def encode(self, image):
        return [image]

    def decode(self, features):
        return features[0]


@pytest.fixture(params=list(BACKBONES))
def backbone(request) -> tuple[PerturbedNetwork, int]:
    torch.manual_seed(0)
    build, spatial_dims = BACKBONES[request.param]
    return build(), spatial_dims


@pytest.fixture
def network(backbone) -> PerturbedNetwork:
    return backbone[0]


@pytest.fixture
def image(backbone) -> torch.Tensor:
    """Three images."""
    return torch.randn(3, 1, *[16] * backbone[1])


def test_vnet_and_unet_have_the_published_number_of_parameters():
    assert sum(p.numel() for p in VNet().parameters()) == 9_448_866
    assert sum(p.numel() for p in UNet().parameters()) == 1_813_764


def test_eval_mode_is_deterministic(network, image):
    network.eval()
    assert torch.equal(network(image, num_perturbed=1), network(image, num_perturbed=1))


def test_eval_mode_turns_feature_dropout_off(network, image):
    clean, weak, strong = network.eval()(image, num_perturbed=3).split(3)
    torch.testing.assert_close(weak, clean)
    torch.testing.assert_close(strong, clean)


def test_perturbed_decodings_follow_the_clean_ones_and_differ_from_them(network, image):
    logits = network.train()(image, num_perturbed=2)
    clean, weak, strong = logits.split([3, 2, 2])
    assert logits.shape == (7, 2, *image.shape[2:])
    assert not torch.allclose(clean[1:], weak)
    assert not torch.allclose(weak, strong)


def test_only_the_last_images_are_perturbed(network, image):
    seen = []
    network.feature_dropout[0].register_forward_hook(lambda module, inputs, output: seen.extend(inputs[0]))
    network(image, num_perturbed=1)
    assert {len(level) for level in seen} == {1}
    assert len(seen) == len(network.encode(image)) >= 4  # every feature map is dropped


def test_every_weight_learns(network, image):
    network.train()(image, num_perturbed=3).square().mean().backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize(("build", "size"), [(VNet, (16, 16, 8)), (VNet, (20, 16, 16)), (UNet, (16, 24))])
def test_a_size_that_cannot_be_halved_four_times_is_refused(build, size):
    with pytest.raises(ValueError, match="multiple of 16"):
        build(base_filters=2)(torch.randn(1, 1, *size))


@pytest.mark.parametrize(("bfloat16", "tolerance"), [(False, 1e-12), (True, 0.01)])
def test_the_doubling_convolution_is_a_transposed_convolution_forward_and_backward(bfloat16, tolerance):
    torch.manual_seed(0)
    ours = DoublingConvolution(3, 5).double()
    stock = nn.ConvTranspose3d(3, 5, kernel_size=2, stride=2).double()
    stock.load_state_dict(ours.state_dict())
    if bfloat16:
        ours = ours.float()
    image = torch.randn(2, 3, 4, 3, 5).double().contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(2, 5, 8, 6, 10).double()
    results = []
    for convolution in (ours, stock):
        x = image.to(convolution.weight.dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16 and convolution is ours):
            y = convolution(x)
        (y * weight).sum().backward()
        results.append((y, x.grad, convolution.weight.grad, convolution.bias.grad))
    assert results[0][0].is_contiguous(memory_format=torch.channels_last_3d)
    assert results[0][0].dtype == (torch.bfloat16 if bfloat16 else torch.float64)
    for found, expected in zip(*results, strict=True):
        assert (found - expected).norm() <= tolerance * expected.norm()
    with torch.no_grad():
        assert (ours(image.to(ours.weight.dtype)) - results[1][0]).norm() <= tolerance * results[1][0].norm()


@pytest.mark.slow
@COMPILES
def test_compiled_networks_drop_as_others_do():
    """Whole channels, at their rates, another time others, and the same again with the same seed."""
    compiled = torch.compile(_Transparent(feature_dropout=[0.25, 0.75]))
    image = torch.ones(2, 4000, 2, 2)

    def decode(seed: int) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(seed)
        return compiled(image, num_perturbed=2).flatten(2).split(2)

    clean, *perturbed = decode(seed=0)
    assert torch.equal(clean, image.flatten(2))
    for dropped, probability in zip(perturbed, (0.25, 0.75), strict=True):
        assert torch.equal(dropped.amin(2), dropped.amax(2))
        assert (dropped[..., 0] == 0).float().mean().item() == pytest.approx(probability, abs=0.02)
        assert dropped.amax().item() == pytest.approx(1 / (1 - probability))
        assert not torch.equal(dropped[0], dropped[1])
    assert all(torch.equal(a, b) for a, b in zip(perturbed, decode(seed=0)[1:], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(perturbed, decode(seed=1)[1:], strict=True))
    compiled.eval()
    assert all(torch.equal(part, image.flatten(2)) for part in decode(seed=0))


#: Every network, small, with its number of resolutions.
NETWORKS = [
    (partial(VNet, base_filters=2), 3, 5),
    (partial(UNet, base_filters=2), 2, 5),
    (partial(PerturbedSegResNet, 2, in_channels=1), 2, 4),
    (partial(PerturbedSegResNet, 3, in_channels=1, blocks_down=(1, 1, 1), blocks_up=(1, 1)), 3, 3),
]


@pytest.mark.parametrize(("build", "axes", "levels"), NETWORKS)
def test_dropout_is_one_number_or_one_per_resolution(build, axes, levels):
    image = torch.randn(2, 1, *[16] * axes)
    for dropout in (0.2, [0.2] * levels, [0.0] * (levels - 1) + [0.5]):
        network = build(dropout=dropout).train()
        assert not torch.equal(network(image), network(image))
        assert torch.equal(network.eval()(image), network(image))
    still = build(dropout=[0] * levels).train()
    assert torch.equal(still(image), still(image))
    assert build(dropout=0.1).state_dict().keys() == still.state_dict().keys()


def test_one_dropout_of_the_vnet_is_that_of_its_bottleneck():
    logits = []
    for dropout in (0.5, [0, 0, 0, 0, 0.5]):
        torch.manual_seed(0)
        logits.append(VNet(base_filters=2, dropout=dropout).train()(torch.ones(2, 1, 16, 16, 16)))
    assert torch.equal(*logits)


@pytest.mark.parametrize(("build", "axes", "levels"), NETWORKS)
def test_another_number_of_dropouts_and_a_dropout_of_everything_are_refused(build, axes, levels):
    for dropout in ([0.1, 0.2], 1.0, -0.1, [1.5] * levels):
        with pytest.raises(
            UserError, match=rf"dropout must be a number in \[0, 1\), or a list of {levels}, one per resol"
        ):
            build(dropout=dropout)


def test_segresnet_refuses_a_size_that_it_cannot_halve_as_often_as_it_does():
    with pytest.raises(UserError, match="multiple of 8"):
        PerturbedSegResNet(2, in_channels=1)(torch.randn(1, 1, 16, 12))
    PerturbedSegResNet(2, in_channels=1, blocks_down=(1, 1), blocks_up=(1,))(torch.randn(1, 1, 16, 14))


def test_segresnet_refuses_a_width_that_its_norm_does_not_divide():
    with pytest.raises(UserError, match=r"base_filters 12 .*multiples of 8"):
        PerturbedSegResNet(2, base_filters=12, in_channels=1)


def test_network_can_be_scripted(network, image):
    torch.testing.assert_close(torch.jit.script(network.eval())(image), network(image))


def test_backbone_must_supply_encode_and_decode():
    with pytest.raises(NotImplementedError, match=r"PerturbedNetwork must implement encode\(\)"):
        PerturbedNetwork()(torch.zeros(1))
    with pytest.raises(NotImplementedError, match=r"must implement decode\(\)"):
        PerturbedNetwork().decode([])


@pytest.mark.parametrize("num_perturbed", [0, 2, 3])
def test_an_ensemble_gives_the_mean_probabilities_and_what_each_member_decodes(num_perturbed):
    members = [UNet(base_filters=2, out_channels=3).eval() for _ in range(2)]
    image = torch.rand(3, 1, 32, 32)
    with torch.no_grad():
        probs = MeanEnsemble(members)(image, num_perturbed=num_perturbed).softmax(1)
        alone = [member(image).softmax(1) for member in members]
    torch.testing.assert_close(probs[:3], (alone[0] + alone[1]) / 2)
    assert len(probs) == 3 + (2 * 3 * num_perturbed if num_perturbed else 0)
    for number in range(2 if num_perturbed else 0):  # clean, weak and strong: the same where no dropout acts
        first = 3 + number * 3 * num_perturbed
        torch.testing.assert_close(probs[first : first + num_perturbed], alone[number][3 - num_perturbed :])


def test_an_ensemble_that_is_sure_of_nothing_of_a_class_stays_finite():
    class Sure(torch.nn.Module):
        def forward(self, image):
            return torch.tensor([[1000.0, -1000.0]]).reshape(1, 2, 1, 1).expand(len(image), 2, *image.shape[2:])

    assert MeanEnsemble([Sure(), Sure()])(torch.rand(1, 1, 2, 2)).isfinite().all()
