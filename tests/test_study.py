"""A study trains, scores and compares its arms, goes on after a kill, and refuses what would mean nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from conftest import BUNDLES, ROOT

from custom.errors import UserError
from custom.losses import PAIRS
from custom.study import study
from custom.synthetic import write_hearts

TINY = BUNDLES["crossmatch_acdc"].settings("training", max_iterations=10, val_interval=10, ckpt_interval=2)
ARMS = {"supervised": {"unsupervised_weight": 0.0}, "crossmatch": {}}


@pytest.fixture
def hearts(tmp_path) -> Path:
    return write_hearts(tmp_path / "data", {"training": 2, "unlabeled": 2, "validation": 2}, size=(24, 20, 3))


def _write(folder: Path, hearts: Path, name: str = "study.yaml", **changes) -> Path:
    content = {"bundle": "crossmatch_acdc", "datalist": str(hearts), "seeds": [1], "settings": TINY, "arms": ARMS}
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in (content | changes).items() if v is not ...}, sort_keys=False))
    return path


def _start(path: Path, output: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "custom.study", str(path), "--output", str(output), *flags]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_study_that_was_killed_goes_on_and_ends_with_a_comparison(tmp_path, hearts):
    other = _start(_write(tmp_path, hearts, arms={"supervised": ARMS["supervised"]}), tmp_path / "whole")
    path, output = _write(tmp_path, hearts, name="killed.yaml"), tmp_path / "runs"
    first = _start(path, output)
    run = output / "supervised" / "seed_1"
    for _ in range(900):
        if list((run / "models" / "checkpoints").glob("iteration_*.pt")):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    printed, _ = _start(path, output).communicate(timeout=200)
    assert printed.count("$ python -m monai.bundle run") == 4, printed
    printed_too, _ = other.communicate(timeout=200)
    assert other.returncode == 0, printed_too
    tables = [
        (out / "supervised" / "seed_1" / "eval" / "metrics.csv").read_text() for out in (output, tmp_path / "whole")
    ]
    assert tables[0] == tables[1]
    assert (output / "comparison" / "comparison.html").is_file(), printed
    again = _start(path, output)
    printed, _ = again.communicate(timeout=100)
    assert again.returncode == 0
    assert printed.count("finished before") == 2


def test_a_dry_run_prints_one_command_a_line_and_trains_nothing(tmp_path, hearts, capsys):
    study(str(_write(tmp_path, hearts, seeds=[1, 2])), str(tmp_path / "runs"), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("run training" in line and "&& python -m monai.bundle run evaluating" in line for line in lines)
    assert (tmp_path / "runs" / "jobs.txt").read_text().splitlines() == lines
    assert not (tmp_path / "runs" / "supervised").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"etaa": 0.1}}}, "arm a: the setting etaa is unknown; did you mean eta?"),
        ({"arms": {"a": {"loss_weights::distilation": 0.1}}}, "there is no loss_weights::distilation"),
        ({"arms": {"a": {"seed": 3}}}, "arm a: seed is given to each run by the study"),
        ({"arms": {"a": {}, "b": {"eta": 0.3}}}, "the arms a and b are equal"),
        ({"arms": {"a": {"unsupervised_weight": 0}, "b": {"unsupervised_weight": 0.0}}}, "a and b are equal"),
        ({"arms": {"../a": {}}}, "an arm's name is that of its folder"),
        ({"arms": ...}, "'arms' must give settings by name"),
        ({"seeds": [1, 2, 1]}, "the seed 1 is given twice"),
        ({"seeds": "1"}, "'seeds' must be a list of whole numbers"),
        ({"bundle": "crossmatch_liver"}, "'bundle' must be one of"),
        ({"overlays": ["fast.yaml"]}, "the overlay fast.yaml is neither"),
        ({"datalist": "absent.json"}, "absent.json: no such data list"),
        ({"baseline": "other"}, "'baseline' must be one of supervised, crossmatch; found other"),
        ({"arm": {}}, "the key 'arm' is unknown; did you mean arms?"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(tmp_path, hearts, changes, message):
    with pytest.raises(UserError) as error:
        study(str(_write(tmp_path, hearts, **changes)), str(tmp_path / "runs"))
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_data_lists_with_other_evaluation_cases_are_refused(tmp_path, hearts):
    content = json.loads(hearts.read_text())
    other = hearts.with_name("other.json")
    other.write_text(json.dumps(content | {"validation": content["validation"][:1]}))
    with pytest.raises(UserError, match="its evaluation cases differ from those of"):
        study(str(_write(tmp_path, hearts, datalist=..., datalists=[str(hearts), str(other)])), str(tmp_path / "runs"))


def test_another_study_s_output_is_refused_and_kept(tmp_path, hearts, capsys):
    output = tmp_path / "runs"
    study(str(_write(tmp_path, hearts)), str(output), dry_run=True)
    before = (output / "study.json").read_text()
    study(str(_write(tmp_path, hearts)), str(output), dry_run=True, num_workers=1)  # computes the same
    with pytest.raises(UserError, match=r"holds another study.*\n.*crossmatch/seed_1: settings there"):
        study(str(_write(tmp_path, hearts, arms=ARMS | {"crossmatch": {"eta": 0.9}})), str(output), dry_run=True)
    with pytest.raises(UserError, match="holds no study"):
        study(str(_write(tmp_path, hearts)), str(hearts.parent), dry_run=True)
    assert (output / "study.json").read_text() == before


#: What the loss and the views are made of.
METHOD = {"unsupervised_weight", "loss_weights", "loss", "eta", "threshold", "cutmix", "strong_view", "feature_dropout"}


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_in_the_repository_can_be_run_and_its_arms_differ_in_the_method(path, tmp_path, hearts, capsys):
    study(
        str(path), str(tmp_path / "runs"), dry_run=True, datalist=str(hearts), max_iterations=20
    )  # refuses equal arms
    content = yaml.safe_load(path.read_text())
    assert len(path.read_text().splitlines()) <= 30
    assert len(capsys.readouterr().out.splitlines()) == len(content["arms"]) * len(content["seeds"])
    keys = {key.split("::")[0] for arm in content["arms"].values() for key in arm}
    assert keys <= METHOD
    names = [pair.name for pairs in PAIRS.values() for pair in pairs]
    assert all(set(arm.get("loss::pair_weights", {})) <= set(names) for arm in content["arms"].values())
