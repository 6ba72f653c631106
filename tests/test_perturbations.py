import math

import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoise

from custom.perturbations import CutMix, FeatureDropout, RandLogGamma, StrongViewsd, paste

SIZES = [(30, 50), (112, 112, 80)]


@pytest.mark.parametrize("size", SIZES)
def test_cutmix_box_lies_inside_the_patch_and_has_the_drawn_extent_on_every_axis(size):
    torch.manual_seed(0)
    cutmix = CutMix(prob=1.0)
    for _ in range(200):
        state = torch.get_rng_state()
        mask = cutmix.sample(1, size)[0, 0]
        torch.set_rng_state(state)
        torch.rand(())  # the draw that decided for a box
        box = cutmix.sample_box(size)
        assert all(0 <= side.start < side.stop <= n for side, n in zip(box, size, strict=True))
        inside = mask.nonzero()
        assert inside.min(0).values.tolist() == [side.start for side in box]
        assert (inside.max(0).values + 1).tolist() == [side.stop for side in box]
        assert len(inside) == math.prod(side.stop - side.start for side in box)


@pytest.mark.parametrize("size", SIZES)
def test_cutmix_box_has_a_share_of_the_patch_within_the_given_range(size):
    torch.manual_seed(0)
    shares = [CutMix(prob=1.0, fraction=(0.1, 0.3)).sample(1, size).float().mean().item() for _ in range(200)]
    assert min(shares) > 0.08
    assert max(shares) < 0.33
    assert np.mean(shares) == pytest.approx(0.2, abs=0.02)


def test_cutmix_box_is_drawn_with_the_given_probability():
    torch.manual_seed(0)
    boxes = CutMix(prob=0.5).sample(2000, (8, 8)).flatten(1).any(1).float().mean().item()
    assert boxes == pytest.approx(0.5, abs=0.03)


def test_image_and_pseudo_label_are_pasted_along_the_same_box():
    torch.manual_seed(0)
    mask = CutMix(prob=1.0).sample(2, (8, 8, 8))
    image = paste(mask, torch.zeros(2, 3, 8, 8, 8), torch.ones(2, 3, 8, 8, 8))
    label = paste(mask, torch.zeros(2, 1, 8, 8, 8, dtype=torch.uint8), torch.ones(2, 1, 8, 8, 8, dtype=torch.uint8))
    assert torch.equal(image.bool(), mask.expand(2, 3, 8, 8, 8))
    assert torch.equal(label.bool(), mask)
    assert label.dtype == torch.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prob": 1.5}, r"prob must lie in \[0, 1\], got 1.5"),
        ({"fraction": (0.4, 0.02)}, "fraction must be an ascending range"),
        ({"fraction": (0, 0.4)}, "fraction must be an ascending range"),
        ({"aspect": (2, 3)}, "aspect must be a range of positive numbers around 1"),
    ],
)
def test_cutmix_refuses_ranges_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        CutMix(**arguments)


@pytest.mark.parametrize("shape", [(400, 50, 4, 4), (400, 50, 2, 2, 2)])
@pytest.mark.parametrize("probability", [0.25, 0.75])
def test_feature_dropout_drops_whole_channels_at_its_rate(shape, probability):
    torch.manual_seed(0)
    dropped = FeatureDropout(probability)([torch.ones(shape)])[0].flatten(2)
    assert torch.equal(dropped.amin(2), dropped.amax(2))  # a channel is kept or dropped as one
    assert (dropped[..., 0] == 0).float().mean().item() == pytest.approx(probability, abs=0.01)
    assert dropped.amax().item() == pytest.approx(1 / (1 - probability))


def test_feature_dropout_gives_every_feature_map_a_mask_of_its_own():
    torch.manual_seed(0)
    first, second = FeatureDropout(0.5)([torch.ones(1, 64, 2, 2)] * 2)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_feature_dropout_refuses_a_rate_outside_its_range(probability):
    with pytest.raises(ValueError, match="feature_dropout must lie in"):
        FeatureDropout(probability)


def test_gamma_is_log_uniform():
    transform = RandLogGamma(log_gamma=0.5)
    transform.set_random_state(0)
    draws = []
    for _ in range(2000):
        transform.randomize()
        draws.append(math.log(transform.gamma_value))
    assert -0.5 <= min(draws) < -0.45
    assert 0.45 < max(draws) <= 0.5
    assert np.mean(draws) == pytest.approx(0, abs=0.02)


def test_the_two_strong_views_differ_and_the_weak_view_is_left_alone():
    image = torch.rand(1, 8, 8, 8)
    views = StrongViewsd("image", [RandGaussianNoise(prob=1.0)])
    sample = views.set_random_state(0)({"image": image.clone()})
    assert sorted(sample) == ["image", "strong_1", "strong_2"]
    assert torch.equal(sample["image"], image)
    assert not torch.equal(sample["strong_1"], sample["strong_2"])
    assert not torch.equal(sample["strong_1"], image)


def test_strong_views_repeat_with_the_same_seed():
    views = StrongViewsd("image", [RandGaussianNoise(prob=1.0)])
    first, second = (views.set_random_state(5)({"image": torch.zeros(1, 4, 4)})["strong_2"] for _ in range(2))
    assert torch.equal(first, second)
