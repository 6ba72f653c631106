import pytest
import torch

from custom.inferer import SlidingWindowProbabilities


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
