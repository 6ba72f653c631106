"""Runs are compared case by case, and those that cannot be are refused."""

import base64
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, look_at
from conftest import read_csv
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from custom.report.drawing import new_figure
from custom.report.record import data_list_record
from custom.utils.errors import UserError
from tools.compare import compare

CASES = ("a", "b", "c")

#: As the configs name them.
RUNTIME = {"runtime_keys": ["output_dir", "datalist", "dataset_dir", "max_iterations", "runtime_keys"]}


def _keep_figures(monkeypatch, figures: list) -> None:
    monkeypatch.setattr(
        "tools.compare.pictures.new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1]
    )


def _run(
    folder: Path, seed: int, dice: list[float], cases: tuple[str, ...] = CASES, datalist: Path | None = None, **settings
) -> str:
    """What a training and an evaluation leave behind."""
    folder.mkdir(parents=True)
    session = {"started": "2026-01-01T00:00:00+00:00", "devices": ["CPU"], "host": "h", "processes": 1}
    session |= {"versions": {"torch": "2"}, "git_commit": None}
    config = {"seed": seed, "max_iterations": 20, "eta": 0.3, "output_dir": str(folder)} | settings
    data_list = {"path": "d.json", "sha256": "0"} if datalist is None else data_list_record(str(datalist))
    record = {"seed": seed, "data_list": data_list, "sessions": [session], "config": config | RUNTIME}
    (folder / "run.json").write_text(json.dumps(record))
    lines = [f"{case},organ,{value}" for case, value in zip(cases, dice, strict=True)]
    (folder / "metrics.csv").write_text("\n".join(["case,class,dice", *lines, "mean,organ,0.5\n"]))
    with SummaryWriter(str(folder)) as writer:
        for step in (10, 20):
            for name in ("loss", "supervised", "val_mean_dice"):
                writer.add_scalar(name, 0.5, step)
    (folder / "panels").mkdir()
    for case in cases:
        Image.fromarray(np.full((40, 120), 128, np.uint8)).save(folder / "panels" / f"{case}.png")
    return str(folder)


def test_runs_that_no_study_made_are_compared_by_what_differs(tmp_path):
    runs = [_run(tmp_path / f"x{seed}", seed, [0.5, 0.6, 0.7 + 0.1 * seed], eta=0.0) for seed in (1, 2)]
    runs += [_run(tmp_path / f"y{seed}", seed, [0.6, 0.7, 0.8 + 0.1 * seed]) for seed in (1, 2)]
    compare(*runs, output=str(tmp_path / "out"))
    without, with_eta = read_csv(tmp_path / "out" / "summary.csv")
    assert (without["arm"], with_eta["arm"]) == ("eta=0.0", "eta=0.3")
    assert float(without["dice"]) == pytest.approx((1.9 + 2.0) / 6, abs=1e-4)
    assert float(without["dice_sd"]) == pytest.approx(0.1 / 3 / math.sqrt(2), abs=1e-4)
    (difference,) = read_csv(tmp_path / "out" / "differences.csv")
    assert [float(difference[name]) for name in ("difference", "low", "high")] == pytest.approx([0.1] * 3)
    assert (difference["cases"], difference["higher"], difference["lower"]) == ("3", "3", "0")
    assert len(read_csv(tmp_path / "out" / "cases.csv")) == 12
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<td>eta</td><td>0.0</td><td>0.3</td>" in page
    assert "max_iterations" not in page
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine to look at the page")
    shown, _ = look_at(page, tmp_path)
    pictures = re.search(r"<title>(\d+) of 5 pictures, (\d+) wide</title>", shown)
    assert int(pictures[1]) == 5  # curves, cases, three pictures of cases
    assert int(pictures[2]) <= 1200


def test_a_ramp_against_a_number_is_one_setting(tmp_path):
    ramp = {"start": 0.0, "end": 1.0}
    runs = [_run(tmp_path / "x", 1, [0.5] * 3, eta=0.0), _run(tmp_path / "y", 1, [0.5] * 3, eta=ramp)]
    compare(*runs, output=str(tmp_path / "out"))
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<td>eta</td><td>0.0</td><td>start: 0.0, end: 1.0</td>" in page
    assert "eta::" not in page


def test_lists_with_more_labels_give_a_curve_for_each_arm(tmp_path, monkeypatch):
    runs, figures = [], []
    for count in (4, 2):
        datalist = tmp_path / f"list_{count}.json"
        labeled = [{"image": f"{number}.nii.gz", "label": "l.nii.gz"} for number in range(count)]
        datalist.write_text(json.dumps({"training": labeled}))
        for seed in (1, 2):
            dice = 0.1 * count + 0.02 * seed
            runs += [_run(tmp_path / f"x{count}{seed}", seed, [dice] * 3, datalist=datalist)]
            runs += [_run(tmp_path / f"y{count}{seed}", seed, [dice + 0.2] * 3, datalist=datalist, eta=0.0)]
    monkeypatch.setattr(
        "tools.compare.pictures.new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1]
    )
    compare(*runs, output=str(tmp_path / "out"))
    axis = next(axis for figure in figures for axis in figure.axes if axis.get_xlabel() == "labeled cases")
    curves = {container.get_label(): container.lines[0].get_xydata().tolist() for container in axis.containers}
    assert curves["eta=0.3"] == [pytest.approx([2, 0.23]), pytest.approx([4, 0.43])]
    assert curves["eta=0.0"] == [pytest.approx([2, 0.43]), pytest.approx([4, 0.63])]
    assert axis.containers[0].has_yerr
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert base64.b64encode((tmp_path / "out" / "labels.png").read_bytes()).decode() in page
    assert "eta=0.3, 2 labeled" in {line.get_label() for line in figures[0].axes[0].lines}


def test_two_lists_with_as_many_labels_are_two_points_of_a_curve(tmp_path, monkeypatch):
    runs, figures = [], []
    for number, count in enumerate((2, 2, 4)):
        datalist = tmp_path / f"list_{number}.json"
        labeled = [{"image": f"{number}_{case}.nii.gz", "label": "l.nii.gz"} for case in range(count)]
        datalist.write_text(json.dumps({"training": labeled}))
        dice = [0.5 + 0.1 * number] * 3
        runs.append(_run(tmp_path / f"r{number}", 1, dice, datalist=datalist, runtime_keys=["output_dir"]))
    monkeypatch.setattr(
        "tools.compare.pictures.new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1]
    )
    compare(*runs, output=str(tmp_path / "out"))
    axis = next(axis for figure in figures for axis in figure.axes if axis.get_xlabel() == "labeled cases")
    points = axis.containers[0].lines[0].get_xydata().tolist()
    assert points == [pytest.approx([2, 0.5]), pytest.approx([2, 0.6]), pytest.approx([4, 0.7])]


def test_an_arm_has_one_color_in_every_picture(tmp_path, monkeypatch):
    """Also where one arm has no such curve, as the supervised one has no pseudo-labels."""
    runs = [_run(tmp_path / "x", 1, [0.5] * 3, eta=0.0), _run(tmp_path / "y", 1, [0.5] * 3)]
    with SummaryWriter(runs[1]) as writer:
        writer.add_scalar("confident_share", 0.5, 10)
        writer.add_scalar("confident_share", 0.6, 20)
    figures = []
    monkeypatch.setattr(
        "custom.report.pages.new_figure", lambda *size: figures.append(new_figure(*size)) or figures[-1]
    )
    compare(*runs, output=str(tmp_path / "out"))
    colors = {(line.get_label(), line.get_color()) for axis in figures[0].axes for line in axis.lines}
    assert len(figures[0].axes[2].lines) == 1
    assert len(colors) == 2


def test_the_interval_comes_from_the_cases(tmp_path):
    runs = [_run(tmp_path / "x", 1, [0.5, 0.5, 0.5]), _run(tmp_path / "y", 1, [0.4, 0.6, 0.9], eta=0.0)]
    compare(*runs, output=str(tmp_path / "out"), baseline="eta=0.3")
    (row,) = read_csv(tmp_path / "out" / "differences.csv")
    assert row["arm"] == "eta=0.0"
    assert -0.1 <= float(row["low"]) < float(row["difference"]) == pytest.approx(0.4 / 3, abs=1e-4)
    assert float(row["difference"]) < float(row["high"]) <= 0.4


def test_the_interval_is_over_patients_where_they_are_known(tmp_path):
    """Two phases of one heart are not independent: as cases of their own they would make the interval narrower."""
    cases = tuple(f"patient{number}_frame{frame}" for number in range(4) for frame in (1, 2))
    gains = [gain for gain in (0.0, 0.1, 0.2, 0.3) for _ in range(2)]
    rows, pages = [], []
    for pattern in (r"patient\d+", None):
        folder = tmp_path / str(pattern)[:7]
        runs = [_run(folder / "x", 1, [0.5] * 8, cases, patient_pattern=pattern)]
        runs += [_run(folder / "y", 1, [0.5 + gain for gain in gains], cases, patient_pattern=pattern, eta=0.0)]
        compare(*runs, output=str(folder / "out"), baseline="eta=0.3")
        rows += read_csv(folder / "out" / "differences.csv")
        pages.append((folder / "out" / "comparison.html").read_text())
    by_patient, by_case = ({name: float(row[name]) for name in ("low", "high", "difference")} for row in rows)
    assert (rows[0]["patients"], rows[1]["patients"], rows[0]["cases"]) == ("4", "8", "8")
    assert by_patient["difference"] == by_case["difference"] == pytest.approx(0.15)
    assert by_patient["low"] < by_case["low"] < by_case["high"] < by_patient["high"]
    assert "the 4 patients, each with all of its cases" in pages[0]
    assert "the cases, each as a patient of its own" in pages[1]


def test_the_patient_is_found_in_the_folders_of_the_data_list(tmp_path):
    names = [f"patient{number}/{phase}{number}" for number in range(2) for phase in ("ED", "ES")]
    datalist = tmp_path / "list.json"
    datalist.write_text(json.dumps({"test": [{"image": f"{name}.nii.gz", "label": "l.nii.gz"} for name in names]}))
    cases = tuple(Path(name).name for name in names)
    runs = [_run(tmp_path / "x", 1, [0.5] * 4, cases, datalist, patient_pattern=r"patient\d+")]
    runs += [_run(tmp_path / "y", 1, [0.6, 0.6, 0.8, 0.8], cases, datalist, patient_pattern=r"patient\d+", eta=0.0)]
    compare(*runs, output=str(tmp_path / "out"))
    assert read_csv(tmp_path / "out" / "differences.csv")[0]["patients"] == "2"


def test_the_time_of_a_run_is_that_of_all_its_sessions(tmp_path):
    runs = [_run(tmp_path / "x", 1, [0.5] * 3), _run(tmp_path / "y", 2, [0.5] * 3)]
    record = json.loads((tmp_path / "x" / "run.json").read_text())
    record["sessions"] = [record["sessions"][0] | {"seconds": seconds} for seconds in (60.0, 30.0)]
    (tmp_path / "x" / "run.json").write_text(json.dumps(record))
    compare(*runs, output=str(tmp_path / "out"))
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "<td>2</td><td>1.5 min</td>" in page
    assert "<td>1</td><td>unknown</td>" in page


def _remove_metrics(folder: Path) -> None:
    (folder / "metrics.csv").unlink()


def _start_again(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["sessions"][-1]["started"] = "2999-01-01T00:00:00+00:00"
    (folder / "run.json").write_text(json.dumps(record))


def _ask_for_more(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    record["config"]["max_iterations"] = 500
    (folder / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (_remove_metrics, "y: no metrics.csv; run `evaluating` first"),
        (_start_again, "y: metrics.csv is older than the training"),
        (_ask_for_more, "y: the training has not come to its end, iteration 500, but to 20"),
        (lambda folder: (folder / "run.json").write_text("{"), "y: no run.json that can be read"),
        (lambda folder: (folder / "run.json").write_text('{"seed": 1}'), "y: no run.json that can be read"),
        (lambda folder: (folder / "metrics.csv").write_text("id,dice\n1,2\n"), "y: metrics.csv has no columns case"),
    ],
)
def test_runs_that_are_not_finished_are_refused(tmp_path, harm, message):
    runs = [_run(tmp_path / "x", 1, [0.5, 0.5, 0.5]), _run(tmp_path / "y", 2, [0.4, 0.6, 0.9])]
    harm(tmp_path / "y")
    with pytest.raises(UserError, match=message):
        compare(*runs, output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_paired_are_refused(tmp_path):
    first = _run(tmp_path / "x", 1, [0.5, 0.5, 0.5])
    other_cases = _run(tmp_path / "y", 2, [0.5, 0.5, 0.5], cases=("a", "b", "d"))
    with pytest.raises(UserError, match=r"y: other cases were scored than in .*x: c, d"):
        compare(first, other_cases, output=str(tmp_path / "out"))
    shutil.copytree(first, tmp_path / "copy")
    with pytest.raises(UserError, match="seed 1 of all runs is there 2 times"):
        compare(first, str(tmp_path / "copy"), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="is there already"):
        compare(first, output=str(tmp_path / "copy"))
    with pytest.raises(UserError, match="--baseline must be the name of an arm, 'all runs'; found 'other'"):
        compare(first, output=str(tmp_path / "out"), baseline="other")
