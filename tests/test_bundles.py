"""Every config of the bundle runs on synthetic volumes, from wherever it is started."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLE, ROOT, TINY
from monai.bundle import ConfigParser, ConfigWorkflow

from custom.synthetic import write_dataset

INTERFACE = [
    "bundle_root",
    "dataset_dir",
    "datalist",
    "output_dir",
    "ckpt_dir",
    "device",
    "amp",
    "seed",
    "patch_size",
    "batch_size",
    "num_workers",
    "cache_rate",
    "max_iterations",
    "val_interval",
    "learning_rate",
    "eta",
    "loss_weights",
    "threshold",
    "feature_dropout",
]
CONFIGS = BUNDLE / "configs"
PLACES = {  # where the run is started, and how the configs are named from there
    "repository root": (ROOT, "bundles/crossmatch_la/configs"),
    "bundle folder": (BUNDLE, "configs"),
    "another folder": (None, CONFIGS),
}


def _rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def trained(run_bundle, tiny_dataset, tmp_path) -> Path:
    """Weights of a training of three iterations."""
    run_bundle("training", ["train"], datalist=str(tiny_dataset))
    return tmp_path / "models" / "model.pt"


@pytest.mark.parametrize("place", PLACES)
def test_training_evaluating_and_inference_run_from_the(place, run_bundle, tiny_dataset, tmp_path, monkeypatch):
    start, folder = PLACES[place]
    monkeypatch.chdir(start or tmp_path)
    run_bundle("training", ["train"], folder, datalist=str(tiny_dataset))
    assert (tmp_path / "models" / "model.pt").is_file()

    run_bundle("evaluating", ["train", "evaluate"], folder, datalist=str(tiny_dataset))
    rows = _rows(tmp_path / "eval" / "metrics.csv")
    assert [row["case"] for row in rows] == ["case_007", "case_008", "mean"]  # the test list
    assert {"dice", "jaccard", "hd95", "asd", "hd95_mm", "asd_mm"} <= set(rows[0])

    run_bundle("inference", ["inference"], folder, dataset_dir=str(tiny_dataset.parent))
    predictions = sorted((tmp_path / "eval").glob("*_seg.nii.gz"))
    assert len(predictions) == 9


def test_training_leaves_flat_weights_of_the_last_iteration(trained):
    state = torch.load(trained, weights_only=True)
    network = ConfigParser(_config("train"))["network_def"]
    assert network["_target_"] == "custom.networks.VNet"
    assert "head.weight" in state
    assert all(isinstance(value, torch.Tensor) for value in state.values())


def test_predictions_lie_on_the_grid_of_their_images(trained, run_bundle, tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    angle = np.deg2rad(20)  # oblique, left-handed, anisotropic, with the axes in another order than RAS
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affines = {"plain": np.eye(4), "oblique": np.eye(4), "swapped": np.eye(4)}
    affines["oblique"][:3] = np.c_[turn @ np.diag([-0.9, 1.1, 2.5]), [10, -20, 30]]
    affines["swapped"][:3] = np.c_[np.diag([1.0, 1.0, 1.0])[[2, 0, 1]], [1, 2, 3]]
    for name, affine in affines.items():
        volume = np.random.default_rng(0).normal(size=(20, 18, 14)).astype(np.float32)
        nib.save(nib.Nifti1Image(volume, affine), scans / f"{name}.nii.gz")
    run_bundle("inference", ["inference"], dataset_dir=str(scans), spacing=[1.5, 1.5, 1.5])
    for name in affines:
        image, pred = nib.load(scans / f"{name}.nii.gz"), nib.load(tmp_path / "eval" / f"{name}_seg.nii.gz")
        np.testing.assert_allclose(pred.affine, image.affine, atol=1e-5)
        assert pred.shape == image.shape
        assert pred.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(pred.dataobj))) <= {0, 1}


def test_a_list_of_files_can_be_segmented(trained, run_bundle, tiny_dataset, tmp_path):
    files = sorted(str(path) for path in (tiny_dataset.parent / "images").iterdir())[:2]
    run_bundle("inference", ["inference"], files=files)
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 2


def test_quick_overlay_fits_every_config(run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train", "quick"], datalist=str(tiny_dataset), spacing=...)
    run_bundle("evaluating", ["train", "quick", "evaluate"], datalist=str(tiny_dataset), spacing=...)
    run_bundle("inference", ["inference", "quick"], datalist=str(tiny_dataset), spacing=...)
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 4  # validation and test


def test_training_without_unlabeled_cases_is_supervised(run_bundle, own_dataset, edit, tmp_path):
    edit(own_dataset, lambda content: content.update(unlabeled=[], validation=[]))
    workflow = run_bundle("training", ["train"], datalist=str(own_dataset))
    trainer = workflow.parser.get_parsed_content("train::trainer")
    assert sorted(trainer.state.output) == ["loss", "supervised"]
    assert (tmp_path / "models" / "model.pt").is_file()


def test_training_on_a_tiny_set_learns_within_a_minute(run_bundle, tmp_path):
    counts = {"training": 4, "unlabeled": 6, "validation": 4}
    datalist = write_dataset(tmp_path / "learn", counts, size=(32, 32, 32))
    workflow = run_bundle(
        "training",
        ["train"],
        datalist=str(datalist),
        patch_size=[32, 32, 32],
        stride=[32, 32, 32],
        base_filters=4,
        learning_rate=5.0e-3,
        max_iterations=90,
        val_interval=90,
        unsupervised_weight={"start": 0.0, "end": 1.0, "delay": 40, "rampup_iterations": 20},
        batch_norm_recalibration=10,
    )
    evaluator = workflow.parser.get_parsed_content("validate::evaluator")
    assert evaluator.state.metrics["val_mean_dice"] > 0.7


def test_volumes_smaller_than_the_patch_are_padded(run_bundle, own_dataset, tmp_path):
    settings = {"datalist": str(own_dataset), "patch_size": [32, 16, 32], "stride": [16, 16, 16]}
    run_bundle("training", ["train"], **settings)
    run_bundle("inference", ["inference"], **settings)
    (pred,) = (tmp_path / "eval").glob("*_seg.nii.gz")
    assert nib.load(pred).shape == (16, 16, 16)


@pytest.mark.parametrize("batches", [0, 3])
def test_last_validation_is_the_score_of_the_saved_weights(batches, run_bundle, own_dataset, tmp_path):
    settings = {"datalist": str(own_dataset), "max_iterations": 4, "val_interval": 4, "spacing": [1.5, 1.5, 1.5]}
    workflow = run_bundle("training", ["train"], **settings, batch_norm_recalibration=batches)
    metrics = workflow.parser.get_parsed_content("validate::evaluator").state.metrics
    run_bundle("evaluating", ["train", "evaluate"], **settings)
    mean = float(_rows(tmp_path / "eval" / "metrics.csv")[-1]["dice"])
    assert mean == pytest.approx(metrics["val_mean_dice"], abs=1e-4)
    assert 0 < mean < 1


def test_same_seed_gives_the_same_weights(run_bundle, tiny_dataset, tmp_path):
    states = []
    for name in ("first", "second"):
        run_bundle("training", ["train"], datalist=str(tiny_dataset), ckpt_dir=str(tmp_path / name))
        states.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def _command_line(run_id: list[str], cwd: Path, **overrides) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "monai.bundle", "run", *run_id, "--config_file", str(CONFIGS / "train.yaml")]
    for name, value in (TINY | overrides).items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("run_id", [["training"], []], ids=["run training", "run"])
def test_command_line_trains(run_id, tiny_dataset, tmp_path):
    places = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval", "datalist": tiny_dataset}
    done = _command_line(run_id, tmp_path, **places)
    assert done.returncode == 0, done.stderr
    assert "Training: 100%" in done.stderr
    assert (tmp_path / "models" / "model.pt").is_file()


def test_command_line_refuses_bad_data_in_one_message_and_writes_nothing(own_dataset, edit, tmp_path):
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"precious")
    edit(own_dataset, lambda content: content.update(training=[], unlabeled=[{"image": "images/absent.nii.gz"}]))
    places = {"ckpt_dir": weights.parent, "output_dir": tmp_path / "eval", "datalist": own_dataset}
    done = _command_line(["training"], tmp_path, **places)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert "2 problem(s), nothing was run:" in done.stderr
    assert "the list 'training' is empty" in done.stderr
    assert "absent.nii.gz: no such file" in done.stderr
    assert weights.read_bytes() == b"precious"
    assert not (tmp_path / "eval").exists()


def test_command_line_refuses_an_unknown_setting(tiny_dataset, tmp_path):
    done = _command_line(["training"], tmp_path, datalist=tiny_dataset, ckpt_dir=tmp_path / "models", etaa=0.9)
    assert done.returncode == 1
    assert "--etaa: did you mean --eta?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


def _config(name: str) -> dict:
    return ConfigParser.load_config_file(CONFIGS / f"{name}.yaml")


def test_train_config_has_the_interface_keys():
    assert set(INTERFACE) <= set(_config("train"))


def test_defaults_are_the_paper_s_protocol():
    config = _config("train")
    assert config["patch_size"] == [112, 112, 80]
    assert config["stride"] == [18, 18, 4]
    assert (config["batch_size"], config["max_iterations"], config["learning_rate"]) == (2, 14000, 1e-3)
    assert (config["eta"], config["feature_dropout"], config["weight_decay"]) == (0.3, [0.25, 0.75], 1e-4)
    parser = ConfigParser(config)
    parser["bundle_root"] = str(BUNDLE)
    assert parser.get_parsed_content("schedule_iterations") == 17000
    assert parser.get_parsed_content("datalist").endswith("/labeled_8.json")


def test_inference_uses_the_network_and_the_numbers_of_training():
    train, inference = _config("train"), _config("inference")
    shared = ["network_def", "bundle_root", "_code_path", "class_names", "in_channels", "num_classes", "spacing"]
    shared += ["patch_size", "stride", "base_filters", "feature_dropout", "memory_format", "ckpt_dir", "device", "amp"]
    assert {key: inference[key] for key in shared} == {key: train[key] for key in shared}
    assert inference["inferer"] == train["validate"]["inferer"]
    image_only = [step | ({"keys": "image"} if "label" in step["keys"] else {}) for step in train["read_evaluation"]]
    assert [{k: v for k, v in step.items() if k != "allow_missing_keys"} for step in image_only] == (
        inference["read_inference"]
    )


@pytest.mark.parametrize(("kind", "files"), [("train", ["train"]), ("infer", ["inference"])])
def test_monai_finds_every_required_property(kind, files, tiny_dataset, trained, tmp_path):
    settings = TINY | {"datalist": str(tiny_dataset), "dataset_dir": str(tiny_dataset.parent)}
    if kind == "infer":
        settings = {key: settings[key] for key in settings if key not in ("max_iterations", "val_interval")}
    places = {"ckpt_dir": str(trained.parent), "output_dir": str(tmp_path / "eval")}
    paths = [str(CONFIGS / f"{name}.yaml") for name in files]
    workflow = ConfigWorkflow(paths, workflow_type=kind, **settings, **places)
    workflow.initialize()
    assert workflow.check_properties() == []


def test_metadata_tells_the_version_and_its_change():
    metadata = json.loads((CONFIGS / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    outputs = metadata["network_data_format"]["outputs"]["pred"]
    assert outputs["num_channels"] == len(outputs["channel_def"]) == 1 + len(_config("train")["class_names"])
    assert metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] == _config("train")["patch_size"]


def test_licences_and_card_are_there():
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        assert (BUNDLE / name).read_text().strip()
