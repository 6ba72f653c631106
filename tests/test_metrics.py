import math

import pytest
import torch

from custom.metrics import case_metrics


def _mask(*voxels: tuple[int, ...], size: tuple[int, ...] = (8, 8)) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.bool)
    for voxel in voxels:
        mask[voxel] = True
    return mask


def test_overlap_by_hand():
    metrics = case_metrics(_mask((1, 1), (1, 2), (1, 3)), _mask((1, 2), (1, 3), (1, 4)))
    assert metrics["dice"] == pytest.approx(4 / 6)
    assert metrics["jaccard"] == pytest.approx(2 / 4)


def test_distances_by_hand():
    # prediction to label: 0 and 3; label to prediction: 0
    metrics = case_metrics(_mask((1, 1), (1, 4)), _mask((1, 1)))
    assert metrics["asd"] == pytest.approx(1.5)
    assert metrics["hd95"] == pytest.approx(2.7)  # 95th percentile of 0, 0, 3: 0.9 of the way from 0 to 3
    assert metrics["hd95_monai"] == pytest.approx(2.85)  # of 0, 3: the larger of the two directions


def test_distances_in_millimetres_follow_the_spacing_of_each_axis():
    pred, label = _mask((1, 1), size=(8, 8, 8)[:2]), _mask((1, 4))
    metrics = case_metrics(pred, label, spacing=(1.0, 0.5))
    assert metrics["asd"] == pytest.approx(3)
    assert metrics["asd_mm"] == pytest.approx(1.5)
    assert "asd_mm" not in case_metrics(pred, label)


def test_a_perfect_prediction_has_overlap_one_and_distance_zero():
    mask = _mask((2, 2, 2), (2, 3, 2), size=(5, 5, 5))
    assert case_metrics(mask, mask) == {"dice": 1, "jaccard": 1, "hd95": 0, "asd": 0, "hd95_monai": 0}


@pytest.mark.parametrize("empty_is_prediction", [True, False])
def test_empty_prediction_is_not_a_perfect_distance(empty_is_prediction):
    pair = [_mask(size=(3, 4)), _mask((1, 1), size=(3, 4))]
    metrics = case_metrics(*(pair if empty_is_prediction else reversed(pair)), spacing=(2.0, 2.0))
    assert metrics["dice"] == metrics["jaccard"] == 0
    assert metrics["hd95"] == metrics["asd"] == metrics["hd95_monai"] == 5  # the diagonal of 3 x 4 voxels
    assert metrics["hd95_mm"] == 10


def test_a_structure_that_is_nowhere_is_found_perfectly():
    metrics = case_metrics(_mask(), _mask())
    assert metrics["dice"] == metrics["jaccard"] == 1
    assert metrics["hd95"] == 0


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match=r"must have one shape, got \(8, 8\) and \(4, 4\)"):
        case_metrics(_mask(), _mask(size=(4, 4)))


def test_distances_match_brute_force_on_random_blobs():
    torch.manual_seed(0)
    pred, label = (torch.nn.functional.avg_pool2d(torch.rand(1, 1, 20, 20), 5, 1)[0, 0] > 0.5 for _ in range(2))

    def edge(mask):
        padded = torch.nn.functional.pad(mask.float(), (1, 1, 1, 1))
        inside = (padded[2:, 1:-1] * padded[:-2, 1:-1] * padded[1:-1, 2:] * padded[1:-1, :-2]).bool()
        return (mask & ~inside).nonzero().float()

    distances = torch.cdist(edge(pred), edge(label))
    pooled = torch.cat([distances.amin(1), distances.amin(0)])
    metrics = case_metrics(pred, label)
    assert metrics["hd95"] == pytest.approx(torch.quantile(pooled, 0.95).item(), abs=1e-5)
    assert metrics["asd"] == pytest.approx(distances.amin(1).mean().item(), abs=1e-5)
    assert math.isfinite(metrics["hd95_monai"])
