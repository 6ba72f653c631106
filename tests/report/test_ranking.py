"""What is odd about a prediction is measured, and the oddest one comes first."""

import json
import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.predictions import Entropyd
from custom.report.ranking import ReviewMeasuresd, review_measures, review_order, structure_volumes


def _labels(shape=(1, 12, 12, 12), spacing=(1.0, 1.0, 1.0), name="scan") -> MetaTensor:
    affine = torch.diag(torch.tensor([*spacing, 1.0]))
    return MetaTensor(torch.zeros(shape, dtype=torch.uint8), affine=affine, meta={"filename_or_obj": f"{name}.nii.gz"})


def _block(**settings) -> MetaTensor:
    labels = _labels(**settings)
    labels[:, 4:8, 4:8, 4:8] = 1
    return labels


def _measures(pred, before=None, doubt=None, names=("cyst",)):
    doubt = torch.zeros(pred.shape) if doubt is None else doubt
    return review_measures(pred, pred if before is None else before, doubt, names)


def test_entropy_is_0_where_sure_and_1_where_all_classes_are_alike_in_every_frame():
    probs = torch.tensor([1.0, 0, 0, 1 / 3, 1 / 3, 1 / 3]).reshape(6, 1, 1).expand(6, 4, 5)
    uncertainty = Entropyd("pred", num_classes=3)({"pred": probs})["uncertainty"]
    assert uncertainty.shape == (2, 4, 5)
    torch.testing.assert_close(uncertainty[0], torch.zeros(4, 5))
    torch.testing.assert_close(uncertainty[1], torch.ones(4, 5))
    half = torch.full((2, 3, 3), 0.25)
    half[1] = 0.75
    expected = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    torch.testing.assert_close(
        Entropyd("pred", num_classes=2)({"pred": half})["uncertainty"], torch.full((1, 3, 3), expected)
    )


def test_uncertainty_counts_up_to_four_voxels_from_the_boundary():
    pred, doubt = _labels((1, 24, 24, 24)), torch.zeros(1, 24, 24, 24)
    pred[:, 6:18, 6:18, 6:18] = 1
    expected = {1: False, 2: True, 5: True, 6: True, 9: True, 10: False, 13: False, 14: True, 21: True, 22: False}
    for place, counts in expected.items():
        doubt.zero_()
        doubt[0, place, 12, 12] = 1
        assert _measures(pred, doubt=doubt)["boundary_uncertainty"] == (1 / 12**3 if counts else 0), place


def test_neither_distance_nor_edge_counts_across_thick_slices():
    for thickness, counts in {2.0: True, 8.0: False}.items():
        pred, doubt = _block(spacing=(1.0, 1.0, thickness)), torch.zeros(1, 12, 12, 12)
        doubt[0, 5, 5, 9] = 1  # two slices beside it
        assert (_measures(pred, doubt=doubt)["boundary_uncertainty"] > 0) == counts
        pred[0, 5, 5, :] = 1
        assert _measures(pred)["touches_border"] == counts
        pred[0, 5, 0, 5] = 1
        assert _measures(pred)["touches_border"] == 1


def test_a_photograph_has_edges_and_pixels():
    pred = MetaTensor(torch.zeros(1, 6, 5, dtype=torch.uint8), meta={"filename_or_obj": "p.png"})
    pred[0, 2:4, 2:4] = 1
    assert _measures(pred) | {"boundary_uncertainty": 0} == {
        "case": "p",
        "boundary_uncertainty": 0,
        "removed_share": 0,
        "touches_border": 0,
        "empty_classes": "",
        "cyst_pixels": 4,
    }
    pred[0, 5, 2] = 1
    assert _measures(pred)["touches_border"] == 1


def test_the_share_of_removed_components_is_that_of_the_predicted_voxels():
    pred = _block()
    before = pred.clone()
    before[0, 0, 0, :] = 1  # 12 beside 64
    assert _measures(pred, before)["removed_share"] == pytest.approx(12 / 76)
    measured = ReviewMeasuresd("pred", ["cyst"])(
        {"pred": pred, "with_components": before, "uncertainty": torch.zeros(pred.shape)}
    )
    assert "with_components" not in measured
    assert measured["review"] == _measures(pred, before)


def test_the_measures_of_a_series_are_over_its_frames_and_fit_into_json():
    pred = _labels((2, 12, 12, 4), spacing=(1.0, 1.0, 10.0))
    pred[0, 4:8, 4:8], pred[1, 4:8, 4:6] = 1, 1
    row = _measures(pred, names=("cyst", "tumor"))
    assert row["empty_classes"] == "tumor"
    assert row["cyst_ml"] == pytest.approx((64 + 32) / 2 * 0.01)
    assert json.loads(json.dumps(row)) == row


def test_volumes_are_in_millilitres():
    volumes = structure_volumes(_block(spacing=(2.0, 2.0, 10.0))[0], ("cyst", "tumor"))
    assert volumes == {"cyst_ml": pytest.approx(64 * 0.04), "tumor_ml": 0}


def _row(case: str, **changes) -> dict:
    row = {"case": case, "boundary_uncertainty": 0.2, "removed_share": 0.0, "touches_border": 0, "empty_classes": ""}
    return row | {"cyst_ml": 10.0} | changes


def _cohort() -> list[dict]:
    return [
        _row(f"usual_{i}", boundary_uncertainty=0.2 + 0.01 * (i - 3), cyst_ml=10.0 + 0.5 * (i - 3)) for i in range(7)
    ]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"boundary_uncertainty": 0.4}, "uncertain boundary"),
        ({"removed_share": 0.5}, "components removed"),
        ({"cyst_ml": 40.0}, "unusual volume"),
        ({"cyst_ml": 2.5}, "unusual volume"),
        ({"boundary_uncertainty": 0.25, "touches_border": 1}, "uncertain boundary; touches the border"),
    ],
)
def test_every_part_makes_a_prediction_the_worst(changes, why):
    rows = review_order([*_cohort(), _row("odd", **changes)])
    assert (rows[0]["case"], rows[0]["why"]) == ("odd", why)
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert not any(row["why"] for row in rows[3:])


def test_empty_predictions_come_first_then_those_that_lack_a_class():
    worst = {"boundary_uncertainty": 9.0, "removed_share": 1.0, "cyst_ml": 900.0, "touches_border": 1}
    measures = [_row("all_odd", tumor_ml=1.0, **worst)]
    measures += [row | {"tumor_ml": 2.0} for row in _cohort()]
    measures.append(_row("lacking", tumor_ml=0.0, empty_classes="tumor"))
    empty = {"boundary_uncertainty": "", "cyst_ml": 0.0, "tumor_ml": 0.0, "empty_classes": "cyst;tumor"}
    measures.append(_row("nothing", **empty))
    rows = review_order(measures)
    assert rows[0]["case"] == "nothing"
    assert rows[0]["why"] == "empty"
    assert rows[0]["score"] == pytest.approx(100)
    assert rows[0]["volume_deviation"] == ""  # not 0, which is the usual volume
    assert {row["case"]: row["why"] for row in rows}["lacking"] == "no tumor"
    assert all(isinstance(row["volume_deviation"], float) for row in rows[1:])
    assert [row["case"] for row in rows].index("lacking") <= 2


def test_among_few_scans_no_volume_is_unusual():
    rows = review_order([_row(str(i), cyst_ml=volume) for i, volume in enumerate((1.0, 10.0, 1.0, 1.0))])
    assert [row["volume_deviation"] for row in rows] == [0.0] * 4


@pytest.mark.parametrize("count", [0, 1, 2])
def test_one_scan_or_none_has_an_order_too(count):
    rows = review_order([_row(str(i), boundary_uncertainty="" if i else 0.1) for i in range(count)])
    assert all(np.isfinite(row["score"]) for row in rows)
    assert len(rows) == count
