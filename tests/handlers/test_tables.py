import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import read_csv
from ignite.engine import Engine
from monai.data import MetaTensor
from PIL import Image

from custom.data.geometry import lacks_spacing
from custom.data.readers import LoadScan
from custom.handlers.tables import CaseTable, VolumeTable
from tools.synthetic import HEART_SPACING, make_heart

VENTRICLES = {"right_ventricle": 1, "left_ventricle": 3}


def _header(name: str, spacing: Sequence[float], code: int = 1) -> dict[str, object]:
    codes = {"qform_code": code, "sform_code": code, "pixdim": np.array([1.0, *spacing])}
    return {"filename_or_obj": f"somewhere/{name}.nii.gz", "original_affine": np.diag([*spacing, 1.0]), **codes}


def _one_hot(label: torch.Tensor, name: str, spacing: float, code: int) -> MetaTensor:
    one_hot = torch.nn.functional.one_hot(label, 3).movedim(-1, 0).float()
    affine = torch.diag(torch.tensor([spacing] * 3 + [1.0]))
    return MetaTensor(one_hot, affine=affine, meta=_header(name, [spacing] * 3, code))


def _evaluate(tmp_path, spacing, names=("a", "b"), codes=(1, 1), **settings):
    label = torch.zeros(4, 4, 4, dtype=torch.long)
    label[1, 1, 1], label[2, 2, 2] = 1, 2
    missed = label.clone()
    missed[2, 2, 2] = 0
    outputs = [
        [{"pred": _one_hot(pred, name, spacing, code), "label": _one_hot(label, name, spacing, code)}]
        for name, pred, code in zip(names, (label, missed), codes, strict=True)
    ]
    engine = Engine(lambda engine, output: output)
    CaseTable(str(tmp_path / "new" / "metrics.csv"), ["one", "two"], **settings).attach(engine)
    engine.run(outputs)
    return read_csv(tmp_path / "new" / "metrics.csv")


def test_table_has_a_row_per_case_and_class_and_the_means(tmp_path, capsys):
    rows = _evaluate(tmp_path, spacing=2.0)
    assert [(row["case"], row["class"]) for row in rows] == [
        *(("a", "one"), ("a", "two"), ("a", "all"), ("b", "one"), ("b", "two"), ("b", "all")),
        *(("mean", "one"), ("mean", "two"), ("mean", "all")),
    ]
    assert [float(row["dice"]) for row in rows] == [1, 1, 1, 1, 0, 0.5, 1, 0.5, 0.75]
    assert float(rows[4]["hd95"]) == pytest.approx(math.sqrt(48), abs=1e-4)
    assert float(rows[4]["hd95_mm"]) == pytest.approx(2 * math.sqrt(48), abs=1e-4)
    assert [row["empty_prediction"] for row in rows] == ["0", "0", "0", "0", "1", "1", "0", "1", "1"]
    assert "metrics.csv" in capsys.readouterr().out


def test_table_has_no_millimetres_where_the_header_declares_no_spacing(tmp_path):
    assert "hd95_mm" not in _evaluate(tmp_path, spacing=1.0, codes=(0, 0))[0]


def test_millimetres_that_a_header_declares_count_also_where_they_are_1(tmp_path):
    rows = _evaluate(tmp_path, spacing=1.0)
    assert float(rows[4]["hd95_mm"]) == pytest.approx(math.sqrt(48), abs=1e-4)


def test_a_mean_says_over_how_many_cases_it_is(tmp_path):
    means = [row for row in _evaluate(tmp_path, spacing=1.0, codes=(1, 0)) if row["case"] == "mean"]
    assert [(row["cases"], row["cases_mm"]) for row in means] == [("2", "1")] * 3
    assert float(means[2]["hd95_mm"]) == 0  # of the first case, whose header declares its spacing


def test_a_photograph_has_no_millimetres(tmp_path):
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "p.png")
    assert lacks_spacing(LoadScan()(tmp_path / "p.png").meta)


def test_phases_are_told_apart_and_averaged_apart(tmp_path):
    names = ("patient001_frame01", "patient001_frame12")
    rows = _evaluate(tmp_path, 2.0, names, phases={"ED": "_frame01", "ES": r"_frame(?!01)\d+"})
    assert [row["phase"] for row in rows[:6]] == ["ED"] * 3 + ["ES"] * 3
    means = {(row["phase"], row["class"]): float(row["dice"]) for row in rows if row["case"] == "mean"}
    assert means["ED", "all"] == 1
    assert means["ES", "all"] == 0.5
    assert means["", "all"] == 0.75


def _measure(folder, labels: np.ndarray, spacing=HEART_SPACING, code=1, **settings) -> None:
    pred = MetaTensor(
        np.moveaxis(labels, -1, 0), affine=np.diag([*spacing, 1.0]), meta=_header("beating", spacing, code)
    )
    engine = Engine(lambda engine, output: output)
    names = ["right_ventricle", "myocardium", "left_ventricle"]
    table = VolumeTable(str(folder), names, **settings)
    table.attach(engine)
    engine.run([[{"pred": pred}]])
    table.finish()


def test_volumes_are_in_millilitres_and_grams(tmp_path):
    labels = np.zeros((10, 10, 5, 1), np.uint8)
    labels[:5, :4, 0], labels[5:, :2, 1] = 2, 3
    _measure(tmp_path, labels, spacing=(2.0, 2.0, 10.0), densities={"myocardium": 1.05})
    (row,) = read_csv(tmp_path / "volumes.csv")
    assert row["case"] == "beating"
    assert float(row["myocardium_ml"]) == pytest.approx(20 * 0.04)
    assert float(row["myocardium_g"]) == pytest.approx(20 * 0.04 * 1.05)
    assert float(row["left_ventricle_ml"]) == pytest.approx(10 * 0.04)
    assert float(row["right_ventricle_ml"]) == 0
    assert not (tmp_path / "ejection_fraction.csv").exists()  # one frame


@pytest.mark.parametrize("seed", range(3))
def test_ejection_fraction_of_a_beating_heart_is_the_analytic_one(seed, tmp_path):
    _, labels, fractions = make_heart(np.random.default_rng(seed), (96, 96, 10), frames=12)
    _measure(tmp_path, labels, ventricles=list(VENTRICLES))
    assert len(read_csv(tmp_path / "volumes.csv")) == 12
    for row in read_csv(tmp_path / "ejection_fraction.csv"):
        assert (row["end_diastolic_frame"], row["end_systolic_frame"]) == ("1", "7")
        assert float(row["ejection_fraction_percent"]) == pytest.approx(100 * fractions[row["ventricle"]], abs=1)
        stroke = float(row["end_diastolic_ml"]) - float(row["end_systolic_ml"])
        assert float(row["stroke_ml"]) == pytest.approx(stroke, abs=2e-4)


def test_a_ventricle_that_was_not_found_has_no_ejection_fraction(tmp_path):
    _measure(tmp_path, np.zeros((4, 4, 2, 3), np.uint8), ventricles=["left_ventricle"])
    (row,) = read_csv(tmp_path / "ejection_fraction.csv")
    assert row["ejection_fraction_percent"] == "nan"


def test_a_lost_spacing_is_reported(tmp_path, caplog):
    _measure(tmp_path, np.zeros((4, 4, 2, 1), np.uint8), spacing=(1.0, 1.0, 10.0), code=0)
    assert "1 scan(s) have no spacing in their headers" in caplog.text
    assert "beating" in caplog.text


def test_pixels_of_1_mm_are_no_reason_to_warn(tmp_path, caplog):
    _measure(tmp_path, np.zeros((4, 4, 2, 1), np.uint8), spacing=(1.0, 1.0, 3.0))
    assert not caplog.text


def test_volumes_of_the_scans_before_one_that_fails_are_kept(tmp_path):
    pred = MetaTensor(np.zeros((1, 4, 4, 2), np.uint8), affine=np.eye(4), meta=_header("first", (1, 1, 1)))
    engine = Engine(lambda engine, output: output)
    VolumeTable(str(tmp_path), ["one"]).attach(engine)
    with pytest.raises(AttributeError):
        engine.run([[{"pred": pred}], [{"pred": None}]])
    assert [row["case"] for row in read_csv(tmp_path / "volumes.csv")] == ["first"]


def test_measures_of_unknown_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must name classes"):
        VolumeTable(str(tmp_path), ["atrium"], ventricles=["left_ventricle"])
