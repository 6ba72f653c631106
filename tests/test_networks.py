import pytest
import torch

from custom.networks import PerturbedNetwork, VNet


@pytest.fixture
def network() -> VNet:
    torch.manual_seed(0)
    return VNet(base_filters=2)


def test_vnet_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in VNet().parameters()) == 9_448_866


def test_eval_mode_is_deterministic(network):
    image = torch.randn(2, 1, 16, 16, 16)
    network.eval()
    assert torch.equal(network(image, num_perturbed=1), network(image, num_perturbed=1))


def test_eval_mode_turns_feature_dropout_off(network):
    image = torch.randn(2, 1, 16, 16, 16)
    clean, weak, strong = network.eval()(image, num_perturbed=2).split(2)
    torch.testing.assert_close(weak, clean)
    torch.testing.assert_close(strong, clean)


def test_perturbed_decodings_follow_the_clean_ones_and_differ_from_them(network):
    image = torch.randn(3, 1, 16, 16, 16)
    logits = network.train()(image, num_perturbed=2)
    clean, weak, strong = logits.split([3, 2, 2])
    assert logits.shape == (7, 2, 16, 16, 16)
    assert not torch.allclose(clean[1:], weak)
    assert not torch.allclose(weak, strong)


def test_only_the_last_images_are_perturbed(network):
    seen = []
    network.feature_dropout[0].register_forward_hook(lambda module, inputs, output: seen.extend(inputs[0]))
    network(torch.randn(3, 1, 16, 16, 16), num_perturbed=1)
    assert {len(level) for level in seen} == {1}
    assert len(seen) == 5  # every feature map is dropped


@pytest.mark.parametrize("size", [(16, 16, 8), (20, 16, 16)])
def test_a_size_that_cannot_be_halved_four_times_is_refused(network, size):
    with pytest.raises(ValueError, match="multiple of 16"):
        network(torch.randn(1, 1, *size))


def test_network_can_be_scripted(network):
    image = torch.randn(1, 1, 16, 16, 16)
    torch.testing.assert_close(torch.jit.script(network.eval())(image), network(image))


def test_backbone_must_supply_encode_and_decode():
    with pytest.raises(NotImplementedError, match=r"PerturbedNetwork must implement encode\(\)"):
        PerturbedNetwork()(torch.zeros(1))
    with pytest.raises(NotImplementedError, match=r"must implement decode\(\)"):
        PerturbedNetwork().decode([])
