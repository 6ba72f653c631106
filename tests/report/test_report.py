import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from browser import CHROMIUM, look_at
from conftest import ROOT, SHORT_AXIS, read_csv
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from custom.report.drawing import COLORS, case_panels, draw_panels, new_figure
from custom.report.page import report
from custom.report.pages import draw_curves, read_curves
from custom.report.record import read_run_record
from custom.utils.errors import UserError


@SHORT_AXIS
def test_evaluating_ends_with_a_page_that_a_browser_shows(run_bundle, tiny_dataset, tmp_path):
    """Every picture of the page is drawn, its tables are those of metrics.csv, and it needs nothing from elsewhere."""
    settings = {"datalist": str(tiny_dataset), "max_iterations": 21, "panel_interval": 10}
    run_bundle("training", ["train"], **settings)
    run_bundle("evaluating", ["train", "evaluate"], **settings)
    folder = tmp_path / "eval"
    page = (folder / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)

    rows = read_csv(folder / "metrics.csv")
    cases = [row["case"] for row in rows if row["class"] == "all" and row["case"] != "mean"]
    assert len(cases) == 4
    assert sorted(path.stem for path in (folder / "panels").iterdir()) == sorted(cases)
    for case in cases:
        assert page.count(f"<figcaption>{case}") == 1
    record = read_run_record(folder)
    assert all(text in page for text in (record["data_list"]["sha256"], record["sessions"][0]["versions"]["monai"]))
    assert "<b>21</b>iterations" in page
    assert "<td>learning_rate</td><td><code>0.01</code>" in page

    os.utime(folder / "metrics.csv", (0, 0))
    report(str(folder))
    later = (folder / "report.html").read_text()
    assert "metrics.csv is older than the training; run `evaluating` again." in later
    assert "mean Dice" not in later

    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine to look at the page")
    shown, picture = look_at(page, tmp_path)
    pictures = re.search(r"<title>(\d+) of 5 pictures, (\d+) wide</title>", shown)
    assert int(pictures[1]) == 5  # four cases and the curves
    assert int(pictures[2]) <= 1200
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    assert pixels.std() > 20
    for color in COLORS[:3]:  # every class is in the legend
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(-1) < 8).sum() > 50, color


def test_a_page_is_made_of_what_there_is(tmp_path, capsys):
    (tmp_path / "metrics.csv").write_text("case,class,dice\n<b>bold</b>,cyst,0.5\nmean,cyst,0.5\n")
    report(str(tmp_path))
    page = (tmp_path / "report.html").read_text()
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold</b>" not in page
    assert "Configuration" not in page
    assert f"Report:  {tmp_path / 'report.html'}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "page"), [("metrics", "report"), ("metrics_ema", "report_ema"), ("m2", "report_m2")])
def test_a_page_says_what_was_scored_and_each_table_has_one(name, page, tmp_path):
    (tmp_path / f"{name}.csv").write_text("case,class,dice\na,cyst,0.5\nmean,cyst,0.5\n")
    (tmp_path / f"{name}.json").write_text(json.dumps({"weights": str(tmp_path / "w" / "ema.pt"), "list": "training"}))
    panels = tmp_path / page.replace("report", "panels")
    panels.mkdir()
    Image.new("RGB", (8, 8)).save(panels / "a.png")
    report(str(tmp_path), str(tmp_path / f"{name}.csv"))
    text = (tmp_path / f"{page}.html").read_text()
    assert "data:image/png" in text
    assert f"weights: w/ema.pt &middot; list: training &middot; table: {name}.csv" in text


@SHORT_AXIS
def test_a_training_without_evaluation_has_a_page(run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train"], datalist=str(tiny_dataset), max_iterations=1)
    report(str(tmp_path / "eval"))
    page = (tmp_path / "eval" / "report.html").read_text()
    assert "No evaluation yet" in page
    assert "Configuration" in page


def test_damaged_notes_beside_a_table_are_named(tmp_path):
    (tmp_path / "metrics.csv").write_text("case,class,dice\na,cyst,0.5\nmean,cyst,0.5\n")
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics.json: is not JSON .* run `evaluating` again"):
        report(str(tmp_path))


def test_the_curves_show_a_class_that_is_lost_at_zero(tmp_path, monkeypatch):
    shares = {"confident_share": 0.9, "confident_share_0": 0.9, "confident_share_1": 3e-4, "confident_share_2": 0.0}
    with SummaryWriter(str(tmp_path)) as writer:
        for step in (10, 20):
            for name, value in {**shares, "threshold": 0.95, "loss": 0.5}.items():
                writer.add_scalar(name, value, step)
    figures = []
    monkeypatch.setattr("custom.report.pages.new_figure", lambda *size: figures.append(new_figure(*size)) or figures[0])
    report(str(tmp_path))
    axes = {axis.get_title(): axis for axis in figures[0].axes}
    lines = {line.get_label(): line for line in axes["Pseudo-labels"].lines}
    assert set(lines) == {*shares, "threshold"}
    assert axes["Pseudo-labels"].get_yscale() == "symlog"
    assert list(lines["confident_share_2"].get_ydata()) == [0, 0]
    assert axes["Pseudo-labels"].get_ylim()[0] <= 0
    assert [line.get_label() for line in axes["Loss"].lines] == ["loss"]


def test_curves_that_a_new_start_has_taken_back_are_left_out(tmp_path):
    for first in (100, 1):  # the second training stops before its first validation
        with SummaryWriter(str(tmp_path), purge_step=first if first == 1 else None) as writer:
            if first == 100:
                writer.add_scalar("val_mean_dice", 0.5, 100)
            writer.add_scalar("loss", 0.5, first)
        time.sleep(1.1)  # the names of the files have seconds
    assert set(read_curves(tmp_path)) == {"loss"}
    report(str(tmp_path))


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither run\.json, metrics\.csv nor"):
        report(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_case_panels_show_the_slice_with_the_largest_structure():
    label = np.zeros((6, 5, 4), int)
    label[1:4, 1:3, 2] = 1
    label[0, 0, 1] = 2
    panels = case_panels(np.random.default_rng(0).random((1, 6, 5, 4)), label, label * 0, (1.0, 2.0))
    assert [panel.title for panel in panels] == ["image, slice 2", "truth", "prediction"]
    assert np.array_equal(panels[1].label, label[..., 2])
    assert [panel.aspect for panel in panels] == [2.0] * 3
    assert panels[0].label is None
    figure = draw_panels([panels], ["patient 1"])
    assert len(figure.axes) == 3
    assert [text.get_text() for text in figure.axes[0].texts] == ["patient 1"]


@pytest.mark.slow
def test_a_page_is_written_where_the_locale_is_ascii(tmp_path):
    folder = tmp_path / "Übung"
    folder.mkdir()
    rows = "case,class,dice\nMüller,Höhle,0.5\nMüller,all,0.5\nmean,all,0.5\n"
    (folder / "metrics.csv").write_text(rows, encoding="utf-8")
    ascii_only = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "tools.report", str(folder)]
    done = subprocess.run(command, env=ascii_only, capture_output=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in ("Übung", "Müller", "Höhle"))


def test_a_curve_of_one_point_shows():
    figure = draw_curves({"Validation": {"dice": [[(4, 0.5)]], "other": [[(4, 0.5), (8, 0.6)]]}})
    assert [line.get_marker() for line in figure.axes[0].get_lines()] == ["o", "None"]
