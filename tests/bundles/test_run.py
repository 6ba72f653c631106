"""What a training reads, repeats and leaves behind."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import BUNDLES, LEFT_ATRIUM, SHORT_AXIS
from monai.bundle import ConfigWorkflow
from starter import finish, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from custom.report.record import read_run_record

SETTINGS = {"max_iterations": 30, "val_interval": 15, "panel_interval": 30, "ckpt_interval": 1000}


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = _events(folder)
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@SHORT_AXIS
def test_the_same_seed_gives_the_same_curves_with_and_without_workers(run_bundle, tiny_dataset, tmp_path):
    curves = []
    for name, changes in {"first": {}, "workers": {"num_workers": 2}, "seed": {"seed": 1}}.items():
        places = {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / f"eval_{name}")}
        run_bundle("training", ["train"], datalist=str(tiny_dataset), **SETTINGS | places | changes)
        curves.append(_curves(tmp_path / f"eval_{name}"))
    first, workers, other_seed = curves
    assert {"loss", "confident_share", "threshold", "learning_rate", "val_mean_dice"} <= set(first)
    assert [step for step, _ in first["loss"]] == [10, 20, 30]
    assert workers == first
    assert other_seed["loss"] != first["loss"]


@LEFT_ATRIUM
def test_a_device_may_be_given_as_text(run_bundle, tiny_dataset, tmp_path):
    """As MONAI Label gives it."""
    run_bundle("training", ["train"], datalist=str(tiny_dataset), device="cpu")
    assert (tmp_path / "models" / "model.pt").is_file()


@LEFT_ATRIUM
def test_tensorboard_shows_what_the_network_saw(run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train"], datalist=str(tiny_dataset), max_iterations=4, panel_interval=2)
    images = _events(tmp_path / "eval").Images("views")
    assert [image.step for image in images] == [1, 2, 4]
    assert all(image.encoded_image_string.startswith(b"\x89PNG") for image in images)
    assert images[0].width > images[0].height > 400  # two rows of four


@SHORT_AXIS
def test_the_record_of_a_run_says_what_repeats_it(run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train"], datalist=str(tiny_dataset), eta=0.25, seed=5)
    record = read_run_record(tmp_path / "eval")
    assert (record["seed"], record["config"]["eta"], record["config"]["max_iterations"]) == (5, 0.25, 3)
    assert record["data_list"]["sha256"] == hashlib.sha256(tiny_dataset.read_bytes()).hexdigest()
    (session,) = record["sessions"]
    assert session["versions"]["torch"] == torch.__version__
    assert session["command"].startswith(sys.executable)
    assert {"host", "platform", "devices", "processes", "git_commit", "started"} <= set(session)
    assert record["config"]["loss_weights"] == {"supervised": 0.5, "image_perturbation": 0.25, "distillation": 0.25}


@pytest.mark.slow
@SHORT_AXIS
@pytest.mark.parametrize("num_workers", [0, 1])
def test_test_cases_are_never_opened_in_training(num_workers, tiny_dataset, tmp_path):
    """Every file that the training opens, as Python's audit hook tells; its workers inherit the hook."""
    places = {"datalist": str(tiny_dataset), "ckpt_dir": str(tmp_path / "m"), "output_dir": str(tmp_path / "eval")}
    settings = BUNDLES["crossmatch_acdc"].settings("training", **places, num_workers=num_workers)
    opened = tmp_path / "opened.txt"
    process = start(_train_audited, settings, opened, log=tmp_path / "log.txt")
    assert finish(process) == 0, (tmp_path / "log.txt").read_text()
    found = set(opened.read_text().splitlines())
    lists = json.loads(tiny_dataset.read_text())
    files = {
        name: {str(tiny_dataset.parent / path) for case in lists[name] for path in case.values()}
        for name in ("training", "unlabeled", "validation", "test")
    }
    assert files["training"] | files["validation"] <= found
    assert {path for path in files["unlabeled"] if "/images/" in path} <= found
    assert len(files["test"]) == 8
    assert not files["test"] & found
    assert not {path for path in found if "/labels/" in path} - files["training"] - files["validation"]


def _train_audited(settings: dict, opened: Path) -> None:
    log = open(opened, "a", buffering=1)  # noqa: SIM115 - open to the end

    def hook(event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            log.write(f"{os.fspath(arguments[0])}\n")

    sys.addaudithook(hook)
    workflow = ConfigWorkflow(str(BUNDLES["crossmatch_acdc"].configs / "train.yaml"), run_id="training", **settings)
    workflow.initialize()
    workflow.run()
