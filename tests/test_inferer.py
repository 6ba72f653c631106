import pytest
import torch

from custom.inference import SlidingWindowProbabilities, disagreement
from custom.networks import UNet
from custom.utils.errors import UserError


def _starts(size: int, roi: int, stride: int) -> list[int]:
    """First voxel of every window along one axis."""
    starts = []

    def network(window):
        starts.append(int(window[0, 0, 0, 0]))
        return torch.cat([window, -window], 1)

    image = torch.arange(size).float()[None, None, :, None].expand(1, 1, size, 4)
    SlidingWindowProbabilities((roi, 4), (stride, 4))(image, network)
    return starts


def test_windows_advance_by_the_given_stride():
    assert _starts(150, 112, 18) == [0, 18, 36, 38]  # the last one is clamped to the border
    assert _starts(128, 96, 16) == [0, 16, 32]  # 1 - 16/96 as an overlap would give steps of 15


def test_stride_of_a_whole_window_tiles_the_image():
    assert _starts(32, 16, 16) == [0, 16]


def test_softmax_is_averaged_not_logits():
    scales = iter([1.0, 8.0])

    def network(window):
        return torch.cat([window, -window], 1) * next(scales)

    image = torch.ones(1, 1, 6, 4)
    probs = SlidingWindowProbabilities((4, 4), (2, 4))(image, network)
    expected = (torch.sigmoid(torch.tensor(2.0)) + torch.sigmoid(torch.tensor(16.0))) / 2
    assert probs[0, 0, 2, 0].item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(probs.sum(1), torch.ones(1, 6, 4))


@pytest.mark.parametrize("stride", [(5, 4), (0, 4), (4,)])
def test_a_stride_that_does_not_fit_the_window_is_refused(stride):
    with pytest.raises(ValueError, match=r"stride must lie between 1 and patch_size \(4, 4\)"):
        SlidingWindowProbabilities((4, 4), stride)


def test_an_image_smaller_than_the_window_keeps_its_size():
    probs = SlidingWindowProbabilities((8, 8), (4, 4))(torch.rand(1, 1, 5, 8), lambda x: torch.cat([x, x], 1))
    assert probs.shape == (1, 2, 5, 8)


def _threshold(images: torch.Tensor) -> torch.Tensor:
    """Logits of a 2D network that tells bright from dark."""
    assert images.ndim == 4
    return torch.cat([0.5 - images, images - 0.5], 1)


@pytest.mark.parametrize("axis", [0, 2])
def test_a_2d_network_segments_a_volume_slice_by_slice(axis):
    volume = torch.rand(2, 1, 5, 6, 7)
    size = [n for i, n in enumerate((5, 6, 7)) if i != axis]
    probs = SlidingWindowProbabilities(size, size, sw_batch_size=3, slice_axis=axis)(volume, _threshold)
    assert probs.shape == (2, 2, 5, 6, 7)
    torch.testing.assert_close(probs[:, 1:], torch.sigmoid(2 * volume - 1))


def test_frames_of_a_series_are_segmented_one_by_one():
    series = torch.rand(1, 4, 6, 6, 3)
    inferer = SlidingWindowProbabilities((6, 6), (6, 6), slice_axis=2, series=True)
    probs = inferer(series, _threshold)
    assert probs.shape == (1, 4 * 2, 6, 6, 3)
    torch.testing.assert_close(probs[:, 1::2], torch.sigmoid(2 * series - 1))


class Lopsided(torch.nn.Module):
    """Logits that depend on the place in the window, not on the image alone."""

    def forward(self, window: torch.Tensor) -> torch.Tensor:
        ramp = torch.arange(window.shape[-1], dtype=torch.float32)
        return torch.cat([window * ramp, -window], 1)


def test_mirrored_windows_are_averaged_over_all_combinations_of_axes():
    image = torch.rand(1, 1, 4, 4)
    network = Lopsided()
    probs = SlidingWindowProbabilities((4, 4), (4, 4), test_time_flips=[0, 1])(image, network)
    views = [network(image.flip(axes)).softmax(1).flip(axes) for axes in ((), (2,), (3,), (2, 3))]
    torch.testing.assert_close(probs, torch.stack(views).mean(0))
    torch.testing.assert_close(probs.flip(3), SlidingWindowProbabilities((4, 4), (4, 4), test_time_flips=[0, 1])(
        image.flip(3), network
    ))  # fmt: skip


def test_an_axis_that_is_not_there_or_given_twice_cannot_be_mirrored():
    with pytest.raises(ValueError, match=r"each once; got \[0, 0\]"):
        SlidingWindowProbabilities((4, 4), (4, 4), test_time_flips=[0, 0])
    with pytest.raises(ValueError, match=r"test_time_flips must be spatial axes out of \[0, 1\], each once; got \[2\]"):
        SlidingWindowProbabilities((4, 4), (4, 4), test_time_flips=[2])


def test_disagreement_is_0_for_equal_and_1_for_disjoint_decodings():
    clean = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1)
    assert disagreement(clean, [clean, clean]).item() == 0
    assert disagreement(clean, [clean.flip(1), clean.flip(1)]).item() == 1
    assert disagreement(clean, [clean, clean.flip(1)]).item() == 0.5


def test_uncertainty_of_a_network_without_feature_dropout_is_refused():
    with pytest.raises(UserError, match="--uncertainty true: Conv2d has no feature dropout"):
        SlidingWindowProbabilities((8, 8), (8, 8), uncertainty=True)(torch.rand(1, 1, 8, 8), torch.nn.Conv2d(1, 2, 1))


def test_uncertainty_is_the_same_twice_and_leaves_probabilities_network_and_generator_as_they_are():
    torch.manual_seed(0)
    network, image = UNet(out_channels=3, base_filters=4).eval(), torch.randn(1, 1, 32, 48)
    plain = SlidingWindowProbabilities((32, 32), (16, 16))(image, network)
    state = torch.random.get_rng_state()
    first, second = (SlidingWindowProbabilities((32, 32), (16, 16), uncertainty=True)(image, network) for _ in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first[:, :3], plain)
    assert first.shape == (1, 4, 32, 48)
    assert first[:, 3].min() > 0
    assert first[:, 3].max() <= 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module.training for module in network.modules())
