"""The benchmarks run, in small, and say what they measured."""

import json
import re
import runpy
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import starter
import torch
from conftest import BUNDLES, LEFT_ATRIUM, SHORT_AXIS, read_csv
from scipy.stats import spearmanr

import benchmarks.suggest
import benchmarks.timing
from benchmarks.bundle import bundle_config
from benchmarks.cohort import cohort
from benchmarks.data_loading import data_loading
from benchmarks.inference import inference
from benchmarks.review import first_fifth, review
from benchmarks.suggest import patients_by_chance, suggested
from benchmarks.timing import measure
from benchmarks.training_step import training_step
from custom.data.datalist import read_lists
from custom.utils.errors import UserError
from custom.utils.tables import write_csv
from custom.utils.weights import save_weights


@pytest.fixture
def forks(monkeypatch) -> None:
    """Processes that have imported all already."""
    monkeypatch.setattr(benchmarks.timing, "CONTEXT", starter.CONTEXT)


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(("bundle", "size"), [("la", [16, 16, 16]), ("acdc", [16, 16])])
def test_both_orders_of_the_step_are_timed(bundle, size, capsys):
    training_step(bundle, patch_size=size, repeats=1, device="cpu")
    shown = capsys.readouterr().out
    assert f"patches of {size}" in shown
    assert "median of 1" in shown
    assert re.search(r"original +\d+\.\d{3} s +1\.00 x +\d+\.\d\d GB +\[\d+\.\d{3}\]\n", shown)
    types = re.findall(r"ours, (\w+) +\d+\.\d{3} s +\d+\.\d\d x", shown)
    assert types == (["float32", "bfloat16"] if torch.cpu._is_avx512_bf16_supported() else ["float32"])


def test_the_steps_can_share_a_process(capsys):
    training_step("la", patch_size=[16, 16, 16], repeats=1, device="cpu", one_process=True)
    shown = capsys.readouterr().out
    assert re.search(r"original +\d+\.\d{3} s +1\.00 x +shared +\[\d+\.\d{3}\]\n", shown)


@pytest.mark.usefixtures("forks")
@SHORT_AXIS
def test_labels_of_a_series_are_compared_frame_by_frame(bundle, tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(bundle_config("acdc", ["inference", "quick"], {}).get_parsed_content("network"), tmp_path / "model.pt")
    series = np.random.default_rng(0).random((20, 18, 3, 2), dtype=np.float32)
    nib.save(nib.Nifti1Image(series, np.diag([1.5, 1.5, 8, 1])), tmp_path / "cine.nii.gz")
    settings = {"bundle": "acdc", "overlay": "quick", "repeats": 1, "device": "cpu"}
    inference(str(tmp_path / "cine.nii.gz"), str(tmp_path / "model.pt"), **settings)
    shown = capsys.readouterr().out
    assert "2 image(s) of [96, 96, 3] voxels" in shown
    assert f"of {2 * 96 * 96 * 3} voxels" in shown


@pytest.mark.usefixtures("forks")
@LEFT_ATRIUM
def test_inference_is_timed_and_its_labels_compared(bundle, tiny_dataset, tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(bundle_config("la", ["inference", "quick"], {}).get_parsed_content("network"), tmp_path / "model.pt")
    image = sorted((tiny_dataset.parent / "images").iterdir())[0]
    settings = {"overlay": "quick", "repeats": 1, "device": "cpu"}
    inference(str(image), str(tmp_path / "model.pt"), **settings)
    shown = capsys.readouterr().out
    assert re.search(r"ours +\d+\.\d{3} s", shown)
    different, voxels = map(int, re.search(r"labels differ in (\d+) of (\d+) voxels", shown).groups())
    assert 0 <= different < 0.05 * voxels
    with pytest.raises(UserError, match="was trained with another network"):
        inference(str(image), str(tmp_path / "model.pt"), repeats=1, device="cpu")


@pytest.mark.usefixtures("forks")
@LEFT_ATRIUM
def test_a_folder_of_scans_is_timed_from_reading_to_writing(bundle, tiny_dataset, capsys):
    cohort("la", dataset_dir=str(tiny_dataset.parent), overlay="quick", device="cpu", class_names="[a,b]")
    shown = capsys.readouterr().out
    scans = len(list((tiny_dataset.parent / "images").iterdir()))
    assert f"crossmatch_la, {scans} scans" in shown
    for name in ("bundle", "fast"):
        seconds = float(re.search(rf"^{name} +(\d+\.\d+) s", shown, re.MULTILINE)[1])
        rate = float(re.search(rf"^{name} +(\d+\.\d+) scans per minute", shown, re.MULTILINE)[1])
        assert rate == pytest.approx(60 * scans / seconds, rel=0.01)
    with pytest.raises(UserError, match="there are no synthetic scans for isic"):
        cohort("isic", device="cpu")
    with pytest.raises(UserError, match=r"did you mean --stride\?"):
        cohort("la", dataset_dir=str(tiny_dataset.parent), overlay="quick", device="cpu", strid="[16,16,16]")


@LEFT_ATRIUM
@pytest.mark.parametrize("num_workers", [0, 1])
def test_loading_is_timed(num_workers, bundle, tiny_dataset, capsys):
    small = {"patch_size": [16, 16, 16], "iterations": 1, "rounds": 2, "num_workers": num_workers, "device": "cpu"}
    data_loading(str(tiny_dataset.parent), datalist=str(tiny_dataset), **small)
    shown = capsys.readouterr().out
    assert f"{num_workers} worker(s) per stream; median of 2 times 1 iterations" in shown
    memory, loader, ratio = map(float, re.findall(r"^(?:memory|loader|ratio) +(\d+\.\d+)", shown, re.MULTILINE))
    assert ratio == pytest.approx(loader / memory, rel=0.01)


def _small():
    return lambda: time.time()


def _large():
    return lambda: (torch.ones(2**24), time.time())[1]  # 64 MiB


def test_alternatives_take_turns_and_their_peak_is_measured():
    found = measure({"small": _small, "large": _large}, torch.device("cpu"), 2, untimed=1)
    assert [len(value.every) for value in found.values()] == [2, 2]
    assert found["small"].result < found["large"].result  # the second turn of each
    assert found["large"].memory > 60e6 > 10e6 > found["small"].memory


def _without_a_file():
    raise UserError("scan.nii.gz: no such file")


def _broken():
    return lambda: 1 / 0


@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize(("builder", "error"), [(_without_a_file, UserError), (_broken, RuntimeError)])
def test_what_goes_wrong_in_an_alternative_is_raised(builder, error):
    with pytest.raises(error, match="no such file" if error is UserError else "ZeroDivisionError"):
        measure({"small": _small, "wrong": builder}, torch.device("cpu"), 1, untimed=1)


def test_the_first_fifth_is_compared_with_the_worst_fifth():
    dice = [0.9, 0.1, 0.8, 0.7, 0.2, 0.95, 0.85, 0.75, 0.65, 0.6]
    assert first_fifth([0, 9, 0, 0, 8, 0, 0, 0, 0, 1], dice) == (2, 2)
    assert first_fifth([0, 9, 10, 0, 8, 0, 0, 0, 0, 1], dice) == (1, 2)
    assert first_fifth([3, 2, 1], [0.9, 0.8, 0.1]) == (0, 1)


@LEFT_ATRIUM
def test_the_order_of_the_review_is_compared_with_the_true_dice(bundle, tmp_path, capsys):
    settings = {"base_filters": 2, "patch_size": [16, 16, 16], "stride": [16, 16, 16], "spacing": [2.5, 2.5, 2.5]}
    torch.manual_seed(0)
    save_weights(bundle_config("la", ["inference"], settings).get_parsed_content("network"), tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(settings))
    counts = {"training": 0, "unlabeled": 1, "validation": 5, "test": 2}
    datalist = str(bundle.write(tmp_path / "data", counts, size=(24, 24, 20)))
    out = tmp_path / "out"
    review(datalist, ckpt_path=str(tmp_path / "model.pt"), output=str(out))
    shown = capsys.readouterr().out
    dice = []
    for row in read_csv(out / "review.csv"):
        pred, label = (
            np.asarray(nib.load(path).dataobj) == 1
            for path in (out / f"{row['case']}_seg.nii.gz", tmp_path / "data" / "labels" / f"{row['case']}.nii.gz")
        )
        dice.append(2 * (pred & label).sum() / (pred.sum() + label.sum()))
    assert f"validation: 5 cases, Dice {min(dice):.3f} to {max(dice):.3f}, mean {np.mean(dice):.3f}" in shown
    rho = spearmanr(range(5), dice).statistic  # of the rows, which are in the order of the score
    assert (
        f"score                 Spearman with 1 - Dice {rho:.3f}; of the worst fifth {int(np.argmin(dice) == 0)} of 1"
        in shown
    )
    with pytest.raises(UserError, match="test has 2 case"):
        review(datalist, part="test", labels=str(tmp_path / "data" / "labels"))
    with pytest.raises(UserError, match="unlabeled has image"):
        review(datalist, part="unlabeled")
    with pytest.raises(UserError, match="--part: a data list has training"):
        review(datalist, part="validate")


def test_suggested_patients_are_compared_with_as_many_by_chance(own_hearts, tmp_path, monkeypatch, capsys):
    trained = {}

    def train(file: str, output: str, datalist: str, seeds: list[int], **settings: object) -> None:
        for seed in seeds:
            lists = read_lists(Path(datalist))
            trained[Path(output).name, seed] = {case["case"][:10] for case in lists["training"]}
            assert len(lists["training"]) + len(lists["unlabeled"]) == 8
            row = {"case": "a", "class": "all", "dice": len(trained) / 10}
            write_csv(Path(output) / "crossmatch" / f"seed_{seed}" / "eval" / "metrics.csv", [row])

    monkeypatch.setattr(benchmarks.suggest, "study", train)
    before = read_lists(own_hearts)
    images = [case["image"] for case in before["unlabeled"]]
    write_csv(tmp_path / "suggestions.csv", [{"rank": 1, "files": ";".join(images[2:])}])
    labels = tmp_path / "labels"
    with pytest.raises(UserError, match="label\\(s\\) missing"):
        suggested(str(own_hearts), str(labels), str(tmp_path / "out"), count=1)
    labels.mkdir()
    for image in images:
        (labels / Path(image).name).touch()
    suggested(str(own_hearts), str(labels), str(tmp_path / "out"), str(tmp_path / "suggestions.csv"), count=1)
    drawn = [{Path(image).name[:10] for image in patients_by_chance(images, r"patient\d+", 1, seed)} for seed in (1, 2)]
    known = {"patient001", "patient002"}
    assert trained == {
        ("chance_1", 1): known | drawn[0],
        ("chance_2", 2): known | drawn[1],
        ("suggested", 1): known | {"patient004"},
        ("suggested", 2): known | {"patient004"},
    }
    assert "suggested   seed 2: 0.4000 (1 cases)" in capsys.readouterr().out
    assert read_lists(tmp_path / "out" / "suggested.json")["validation"] == before["validation"]
    with pytest.raises(UserError, match="--count 3: there are 2 patients"):
        patients_by_chance(images, r"patient\d+", 3, 1)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_bundle_has_the_settings_that_benchmarks_read(bundle):
    config = bundle_config(bundle.removeprefix("crossmatch_"), ["train", "quick"], {"num_workers": None, "seed": 5})
    assert config["seed"] == 5
    assert config["num_workers"] is not None
    assert config.get_parsed_content("ckpt_dir") == str(Path(config["bundle_root"]) / "models")


def test_wrong_use_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such config: .*crossmatch_heart"):
        training_step("heart")
    with pytest.raises(UserError, match=r"no such config: .*quik\.yaml"):
        inference(str(tmp_path), str(tmp_path), overlay="quik")
    with pytest.raises(UserError, match="--device: there is no gpu here"):
        training_step(device="gpu")


@pytest.mark.parametrize("name", ["training_step", "inference", "data_loading"])
def test_flags_are_read_as_those_of_the_tools(name, monkeypatch):
    required = {"training_step": [], "inference": ["a.nii.gz", "model.pt"], "data_loading": ["data"]}[name]
    monkeypatch.setattr(sys, "argv", [name, *required, "--repeats", "no", "--devise", "cpu", "--one_process", "off"])
    with pytest.raises(UserError, match=r"unknown flag --devise; did you mean --device\?"):
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
