"""Every config of every bundle runs on synthetic volumes, from wherever it is started."""

import json
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from by_intensity import ByIntensity
from conftest import BUNDLES, LEARNABLE, LEFT_ATRIUM, ROOT, SHORT_AXIS, Bundle, read_csv, refused
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.handlers import StatsHandler
from monai.inferers import SimpleInferer
from PIL import Image
from starter import Done, run_command
from torch.optim import Adam

from custom.networks import UNet
from custom.utils.names import case_name
from custom.utils.weights import save_weights
from tools.sync_configs import MARKER, SHARED_TAILS, SHARED_WHOLE
from tools.synthetic import make_heart, make_photo

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
    "class_names",
    "max_iterations",
    "val_interval",
    "learning_rate",
    "eta",
    "loss_weights",
    "threshold",
    "feature_dropout",
]
PLACES = {  # where the run is started, and how the configs are named from there
    "repository root": lambda bundle: (ROOT, f"bundles/{bundle.name}/configs"),
    "bundle folder": lambda bundle: (bundle.folder, "configs"),
    "another folder": lambda bundle: (None, bundle.configs),
}


def _cases(datalist: Path, name: str) -> list[dict[str, str]]:
    return json.loads(datalist.read_text())[name]


@pytest.fixture
def trained(run_bundle, tiny_dataset, tmp_path) -> Path:
    """Weights of a training of three iterations."""
    run_bundle("training", ["train"], datalist=str(tiny_dataset))
    return tmp_path / "models" / "model.pt"


@pytest.mark.parametrize("place", PLACES)
def test_training_evaluating_and_inference_run_from_the(place, bundle, run_bundle, tiny_dataset, tmp_path, monkeypatch):
    start, folder = PLACES[place](bundle)
    monkeypatch.chdir(start or tmp_path)
    run_bundle("training", ["train"], folder, datalist=str(tiny_dataset))
    assert (tmp_path / "models" / "model.pt").is_file()

    run_bundle("evaluating", ["train", "evaluate"], folder, datalist=str(tiny_dataset))
    rows = read_csv(tmp_path / "eval" / "metrics.csv")
    tested = [case_name(case["image"]) for case in _cases(tiny_dataset, "test")]
    assert list(dict.fromkeys(row["case"] for row in rows)) == [*tested, "mean"]
    assert {"dice", "jaccard", "hd95", "asd"} <= set(rows[0])
    assert ("hd95_mm" in rows[0]) == (bundle.name != "crossmatch_isic")  # photographs have no scale
    assert set(_config(bundle, "train")["class_names"]) <= {row["class"] for row in rows}

    run_bundle("inference", ["inference"], folder, dataset_dir=str(tiny_dataset.parent))
    predictions = sorted((tmp_path / "eval").glob("*_seg.*"))
    images = sorted((tiny_dataset.parent / "images").iterdir())
    assert len(predictions) == len(images) >= 9
    assert len(read_csv(tmp_path / "eval" / "volumes.csv")) == len(images)


def test_training_leaves_flat_weights_of_the_last_iteration(trained):
    state = torch.load(trained, weights_only=True)
    assert "head.weight" in state
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@LEFT_ATRIUM
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
    trained.with_suffix(".json").unlink()  # else another spacing than the training's is refused
    run_bundle("inference", ["inference"], dataset_dir=str(scans), spacing=[1.5, 1.5, 1.5])
    for name in affines:
        image, pred = nib.load(scans / f"{name}.nii.gz"), nib.load(tmp_path / "eval" / f"{name}_seg.nii.gz")
        np.testing.assert_allclose(pred.affine, image.affine, atol=1e-5)
        assert pred.shape == image.shape
        assert pred.get_data_dtype() == np.uint8
        assert set(np.unique(np.asarray(pred.dataobj))) <= {0, 1}


@LEFT_ATRIUM
def test_a_list_of_files_can_be_segmented(trained, run_bundle, tiny_dataset, tmp_path):
    files = sorted(str(path) for path in (tiny_dataset.parent / "images").iterdir())[:2]
    run_bundle("inference", ["inference"], files=files)
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 2


@pytest.mark.parametrize("overlay", ["quick", "overnight"])
def test_overlays_fit_every_config(overlay, run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train", overlay], datalist=str(tiny_dataset))
    run_bundle("evaluating", ["train", overlay, "evaluate"], datalist=str(tiny_dataset))
    run_bundle("inference", ["inference", overlay], datalist=str(tiny_dataset))
    listed = _cases(tiny_dataset, "validation") + _cases(tiny_dataset, "test")
    assert len(list((tmp_path / "eval").glob("*_seg.*"))) == len(listed)


def test_training_without_unlabeled_cases_is_supervised(run_bundle, bundle, edit, tmp_path):
    datalist = bundle.write(tmp_path / "own", {"training": 2}, size=bundle.size)
    workflow = run_bundle("training", ["train"], datalist=str(datalist))
    trainer = workflow.parser.get_parsed_content("train::trainer")
    assert sorted(trainer.state.output) == ["loss", "supervised"]
    assert (tmp_path / "models" / "model.pt").is_file()


def test_a_client_s_own_cases_take_the_place_of_the_data_list(run_bundle, bundle, tiny_dataset, tmp_path):
    cases = [
        {key: str(tiny_dataset.parent / case[key]) for key in ("image", "label")}
        for case in _cases(tiny_dataset, "training")
    ]
    given = {"train#dataset#data": cases[:1], "validate#dataset#data": cases[1:]}
    absent = str(tmp_path / "absent.json")
    workflow = run_bundle("run", ["train"], datalist=absent, **given)
    assert sorted(workflow.parser.get_parsed_content("train::trainer").state.output) == ["loss", "supervised"]
    assert "val_mean_dice" in workflow.parser.get_parsed_content("validate::evaluator").state.metrics
    unlabeled = run_bundle("run", ["train"], datalist=str(tiny_dataset), **given)
    assert "confident_share" in unlabeled.parser.get_parsed_content("train::trainer").state.output
    with pytest.raises(RuntimeError):
        run_bundle("run", ["train"], datalist=absent)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", list(LEARNABLE), indirect=True)
def test_training_on_a_tiny_set_learns_within_a_minute(learned):
    assert learned.dice > learned.expected_dice


@LEFT_ATRIUM
def test_volumes_smaller_than_the_patch_are_padded(run_bundle, own_dataset, tmp_path):
    settings = {"datalist": str(own_dataset), "patch_size": [32, 16, 32], "stride": [16, 16, 16]}
    run_bundle("training", ["train"], **settings)
    run_bundle("inference", ["inference"], **settings)
    (pred,) = (tmp_path / "eval").glob("*_seg.nii.gz")
    assert nib.load(pred).shape == (16, 16, 16)


@LEFT_ATRIUM
@pytest.mark.parametrize("batches", [0, 3])
def test_last_validation_is_the_score_of_the_saved_weights(batches, run_bundle, own_dataset, tmp_path):
    settings = {"datalist": str(own_dataset), "max_iterations": 4, "val_interval": 4, "spacing": [1.5, 1.5, 1.5]}
    workflow = run_bundle("training", ["train"], **settings, batch_norm_recalibration=batches)
    metrics = workflow.parser.get_parsed_content("validate::evaluator").state.metrics
    run_bundle("evaluating", ["train", "evaluate"], **settings)
    mean = float(read_csv(tmp_path / "eval" / "metrics.csv")[-1]["dice"])
    assert mean == pytest.approx(metrics["val_mean_dice"], abs=1e-4)
    assert 0 < mean < 1


@LEFT_ATRIUM
def test_same_seed_gives_the_same_weights(run_bundle, tiny_dataset, tmp_path):
    states = []
    for name in ("first", "second"):
        places = {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / name)}
        run_bundle("training", ["train"], datalist=str(tiny_dataset), **places)
        states.append(torch.load(tmp_path / name / "model.pt", weights_only=True))
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@SHORT_AXIS
@pytest.mark.parametrize("shape", [(96, 100, 1), (40, 30, 5, 3), (130, 512, 2, 2)], ids=str)
def test_volumes_and_series_of_any_size_keep_their_geometry(shape, trained, run_bundle, tmp_path):
    affine = np.array([[0.0, -1.4, 0, 5], [1.3, 0, 0, 6], [0, 0, 8, 7], [0, 0, 0, 1]])
    (tmp_path / "scans").mkdir()
    noise = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nib.save(nib.Nifti1Image(noise, affine), tmp_path / "scans" / "scan.nii.gz")
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"))
    pred = nib.load(tmp_path / "eval" / "scan_seg.nii.gz")
    assert pred.shape == shape
    np.testing.assert_allclose(pred.affine, affine, atol=1e-5)
    assert len(read_csv(tmp_path / "eval" / "volumes.csv")) == (shape[3] if len(shape) == 4 else 1)


@SHORT_AXIS
def test_frames_of_a_series_are_segmented_as_volumes_of_their_own(trained, run_bundle, tmp_path):
    image, _, _ = make_heart(np.random.default_rng(0), (32, 24, 4), frames=3)
    affine = np.diag([1.4, 1.4, 8, 1])
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "scans" / "series.nii.gz")
    for frame in range(3):
        nib.save(nib.Nifti1Image(image[..., frame], affine), tmp_path / "scans" / f"frame{frame}.nii.gz")
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"))
    series, *frames = (
        np.asarray(nib.load(tmp_path / "eval" / f"{name}_seg.nii.gz").dataobj)
        for name in ("series", "frame0", "frame1", "frame2")
    )
    np.testing.assert_array_equal(series, np.stack(frames, -1))


@SHORT_AXIS
def test_inference_measures_the_ejection_fraction_of_a_beating_heart(run_bundle, tmp_path):
    _, label, fractions = make_heart(np.random.default_rng(1), (96, 96, 10), frames=12)
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(label.astype(np.float32), np.diag([1.4, 1.4, 8, 1])), tmp_path / "scans" / "cine.nii.gz")
    torch.save(ByIntensity().state_dict(), tmp_path / "model.pt")
    run_bundle(
        "inference",
        ["inference"],
        dataset_dir=str(tmp_path / "scans"),
        ckpt_path=str(tmp_path / "model.pt"),
        patch_size=[96, 96],
        network_def={"_target_": "by_intensity.ByIntensity"},
    )
    rows = read_csv(tmp_path / "eval" / "ejection_fraction.csv")
    assert [row["ventricle"] for row in rows] == ["left_ventricle", "right_ventricle"]
    for row in rows:
        assert float(row["ejection_fraction_percent"]) == pytest.approx(100 * fractions[row["ventricle"]], abs=1)


@pytest.mark.parametrize("backbone", ["custom.networks.PerturbedSegResNet"])
def test_another_backbone_is_chosen_by_network_def_alone(backbone, bundle, run_bundle, tiny_dataset, tmp_path):
    definition = {
        "_target_": backbone,
        "spatial_dims": len(bundle.tiny["patch_size"]),
        "in_channels": "@in_channels",
        "out_channels": "@num_classes",
        "base_filters": 8,
        "feature_dropout": "@feature_dropout",
    }
    workflow = run_bundle(
        "training", ["train"], datalist=str(tiny_dataset), network_def=definition, max_iterations=1, val_interval=1
    )
    output = workflow.parser.get_parsed_content("train::trainer").state.output
    assert all(torch.isfinite(value) for value in output.values())
    assert {"strong_1_from_weak", "strong_2_fs_from_weak_fs"} <= set(output)
    assert any(name.startswith("backbone.") for name in torch.load(tmp_path / "models" / "model.pt", weights_only=True))


@SHORT_AXIS
def test_an_epoch_takes_every_unlabeled_slice_once_and_reads_volumes_once(run_bundle, tiny_dataset, monkeypatch):
    reads, load = [], nib.load

    def counting(path, *args, **kwargs):
        reads.append(str(path))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(nib, "load", counting)
    workflow = run_bundle("training", ["train"], datalist=str(tiny_dataset), max_iterations=20, val_interval=20)
    trainer, samples = (workflow.parser.get_parsed_content(name) for name in ("train::trainer", "unlabeled::samples"))
    assert len(samples) == 3 * 2 * 3  # patients, volumes, slices
    assert trainer.state.epoch_length == 9  # two slices per iteration
    unlabeled = [case["image"] for case in _cases(tiny_dataset, "unlabeled")]
    counts = {sum(path.endswith(image) for path in reads) for image in unlabeled}
    assert counts == {2}  # once to check, once to train


def _command_line(bundle: Bundle, run_id: list[str], cwd: Path, **overrides) -> Done:
    command = ["monai.bundle", "run", *run_id, "--config_file", str(bundle.configs / "train.yaml")]
    for name, value in bundle.settings("training", **overrides).items():
        command += [f"--{name}", str(value)]
    return run_command(*command, cwd=cwd)


@pytest.mark.parametrize("bundle", ["crossmatch_isic"], indirect=True)
def test_evaluation_takes_settings_of_inference_and_says_what_has_no_effect(bundle, tmp_path):
    datalist = bundle.write(tmp_path / "data", {"test": 3}, size=(60, 50))
    torch.manual_seed(1)
    network = UNet(in_channels=3, out_channels=2, base_filters=4)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)  # so that what it gives follows the image, in many components
    shape = {"patch_size": [32, 32], "stride": [32, 32], "base_filters": 4}
    save_weights(network, tmp_path / "random.pt", shape)
    configs = [str(bundle.configs / f"{name}.yaml") for name in ("train", "evaluate")]
    dice = []
    settings = (["--uncertainty", "true"], ["--keep_largest", "[1]"], ["--test_time_flips", "[0]"])
    for number, options in enumerate(settings):
        folder = tmp_path / str(number)
        places = ["--datalist", datalist, "--output_dir", folder, "--ckpt_path", tmp_path / "random.pt"]
        command = ["run", "evaluating", "--config_file", str(configs), *places, *options]
        done = run_command("monai.bundle", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        told = "--uncertainty has no effect: nothing in this run uses it." in done.stdout
        assert told == ("--uncertainty" in options)
        assert done.stdout.count("has no effect") == told
        dice.append(read_csv(folder / "metrics.csv"))
    assert dice[0] not in dice[1:]
    assert dice[1] != dice[2]


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_acdc"], indirect=True)
@pytest.mark.parametrize("run_id", [["training"], []], ids=["run training", "run"])
def test_command_line_trains(run_id, bundle, tiny_dataset, tmp_path):
    places = {"ckpt_dir": tmp_path / "models", "output_dir": tmp_path / "eval", "datalist": tiny_dataset}
    done = _command_line(bundle, run_id, tmp_path, **places)
    assert done.returncode == 0, done.stderr
    assert "Training: 100%" in done.stderr
    assert (tmp_path / "models" / "model.pt").is_file()


@pytest.mark.slow
@LEFT_ATRIUM
def test_command_line_refuses_bad_data_in_one_message_and_writes_nothing(bundle, own_dataset, edit, tmp_path):
    weights = tmp_path / "models" / "model.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"precious")
    edit(own_dataset, lambda content: content.update(training=[], unlabeled=[{"image": "images/absent.nii.gz"}]))
    places = {"ckpt_dir": weights.parent, "output_dir": tmp_path / "eval", "datalist": own_dataset}
    done = _command_line(bundle, ["training"], tmp_path, **places)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    assert "2 problem(s), nothing was run:" in done.stderr
    assert "the list 'training' is empty" in done.stderr
    assert "absent.nii.gz: no such file" in done.stderr
    assert weights.read_bytes() == b"precious"
    assert not (tmp_path / "eval").exists()


@pytest.mark.slow
@LEFT_ATRIUM
def test_command_line_refuses_an_unknown_setting(bundle, tiny_dataset, tmp_path):
    done = _command_line(bundle, ["training"], tmp_path, datalist=tiny_dataset, ckpt_dir=tmp_path / "models", etaa=0.9)
    assert done.returncode == 1
    assert "--etaa: did you mean --eta?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "models").exists()


def _config(bundle: Bundle, name: str) -> dict:
    return ConfigParser.load_config_file(bundle.configs / f"{name}.yaml")


def test_train_config_has_the_interface_keys(bundle):
    assert set(INTERFACE) <= set(_config(bundle, "train"))


@pytest.mark.parametrize("name", SHARED_TAILS)
def test_all_bundles_have_the_same_method(name):
    tails = {}
    for bundle in BUNDLES.values():
        head, marker, tail = (bundle.configs / name).read_text().partition(MARKER)
        assert head, bundle.name
        assert marker, bundle.name
        tails[bundle.name] = tail
    assert len(set(tails.values())) == 1, f"{name} differs: run python -m tools.sync_configs"


@pytest.mark.parametrize("name", SHARED_WHOLE)
def test_what_does_not_depend_on_the_data_is_the_same_file_in_all_bundles(name):
    assert len({(bundle.configs / name).read_text() for bundle in BUNDLES.values()}) == 1


def _defaults(bundle: Bundle) -> ConfigParser:
    parser = ConfigParser(_config(bundle, "train"))
    parser["bundle_root"] = str(bundle.folder)
    return parser


@LEFT_ATRIUM
def test_left_atrium_defaults_are_the_paper_s_protocol(bundle):
    config = _config(bundle, "train")
    assert config["network_def"]["_target_"] == "custom.networks.VNet"
    assert config["patch_size"] == [112, 112, 80]
    assert config["stride"] == [18, 18, 4]
    assert (config["batch_size"], config["max_iterations"], config["learning_rate"]) == (2, 14000, 1e-3)
    assert (config["eta"], config["feature_dropout"], config["weight_decay"]) == (0.3, [0.25, 0.75], 1e-4)
    parser = _defaults(bundle)
    assert parser.get_parsed_content("schedule_iterations") == 17000
    assert parser.get_parsed_content("datalist").endswith("/labeled_8.json")


@SHORT_AXIS
def test_short_axis_defaults_are_the_paper_s_protocol(bundle):
    config = _config(bundle, "train")
    assert config["patch_size"] == [256, 256]
    assert (config["batch_size"], config["max_iterations"], config["learning_rate"]) == (12, 29100, 1e-2)
    assert (config["eta"], config["feature_dropout"], config["weight_decay"]) == (0.3, [0.25, 0.75], 1e-4)
    assert config["threshold"] == 0.95
    parser = _defaults(bundle)
    network, optimizer = (parser.get_parsed_content(name) for name in ("network_def", "optimizer"))
    assert sum(parameter.numel() for parameter in network.parameters()) == 1_813_764
    assert (optimizer.defaults["momentum"], optimizer.defaults["nesterov"]) == (0.9, True)
    assert parser.get_parsed_content("stride") == [256, 256]
    assert parser.get_parsed_content("datalist").endswith("/labeled_7.json")


def test_inference_uses_the_network_and_the_numbers_of_training(bundle):
    train, inference = _config(bundle, "train"), _config(bundle, "inference")
    for config in (train, inference):
        config["network_def"].pop("_requires_")  # training also seeds the first weights
    agreeing = {
        "bundle",
        "bundle_root",
        "_code_path",
        "ckpt_dir",
        "device",
        "amp",
        "memory_format",
        "sw_batch_size",
        "keep_memory",
    }
    agreeing |= {
        "class_names",
        "num_classes",
        "in_channels",
        "channels",
        "slice_axis",
        "spacing",
        "window",
        "patch_size",
        "needs_spacing",
    }
    agreeing |= {"stride", "image_interpolation", "base_filters", "feature_dropout", "network_def"}
    shared = sorted(agreeing & set(inference))
    assert {key: inference[key] for key in shared} == {key: train[key] for key in shared}
    options = {"series", "test_time_flips", "uncertainty", "device"}
    inferer = {key: value for key, value in inference["inferer"].items() if key not in options}
    assert inferer["stride"].endswith("if @fast else @stride")
    assert inferer | {"stride": "@stride"} == train["validate"]["inferer"]
    image_only = [step | ({"keys": "image"} if "label" in step["keys"] else {}) for step in train["read_evaluation"]]
    of_labels = {"allow_missing_keys", "num_classes"}
    assert [{k: v for k, v in step.items() if k not in of_labels} for step in image_only] == (
        inference["read_inference"]
    )


@pytest.mark.parametrize(("kind", "files"), [("train", ["train"]), ("infer", ["inference"])])
def test_monai_finds_every_required_property(kind, files, bundle, tiny_dataset, trained, tmp_path):
    run_id = {"train": "training", "infer": "inference"}[kind]
    places = {"ckpt_dir": str(trained.parent), "output_dir": str(tmp_path / "eval")}
    data = {"datalist": str(tiny_dataset), "dataset_dir": str(tiny_dataset.parent)}
    paths = [str(bundle.configs / f"{name}.yaml") for name in files]
    workflow = ConfigWorkflow(paths, workflow_type=kind, **bundle.settings(run_id, **data | places))
    workflow.initialize()
    assert workflow.check_properties() == []


def test_a_program_s_own_objects_take_part_in_a_training(bundle, tiny_dataset, tmp_path):
    """A network, transforms, an inferer, a data set and handlers, set as properties of MONAI's workflow."""
    data = {"datalist": str(tiny_dataset), "ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    paths = [str(bundle.configs / "train.yaml")]
    workflow = ConfigWorkflow(paths, workflow_type="train", **bundle.settings("training", **data))
    workflow.initialize()
    network, iterations = deepcopy(workflow.network_def), []
    handlers = [*workflow.train_handlers, StatsHandler(iteration_print_logger=lambda _: iterations.append(1))]
    workflow.network_def, workflow.train_handlers = network, handlers
    workflow.train_inferer = SimpleInferer()
    workflow.initialize()
    workflow.val_dataset = workflow.val_dataset
    workflow.initialize()
    workflow.run()
    assert len(iterations) == workflow.parser["max_iterations"]
    assert json.loads((tmp_path / "eval" / "run.json").read_text())["config"]["network_def"] == type(network).__name__
    trained = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value.cpu(), trained[name]) for name, value in network.state_dict().items())


def test_handlers_of_a_user_s_own_take_the_place_of_those_that_only_show(bundle, run_bundle, tiny_dataset, tmp_path):
    stats = {"_target_": "StatsHandler", "name": "train", "output_transform": "$lambda terms: terms['loss']"}
    for number, handlers in enumerate(([stats], [])):
        places = {"ckpt_dir": str(tmp_path / str(number)), "output_dir": str(tmp_path / str(number))}
        settings = {"train::handlers": handlers, "threshold": 0.9, "datalist": str(tiny_dataset)}
        trainer = run_bundle("training", ["train"], **settings, **places).parser.get_parsed_content("train::trainer")
        assert trainer.state.threshold == 0.9
        assert trainer.optimizer.param_groups[0]["lr"] < trainer.optimizer.defaults["lr"]
        assert (tmp_path / str(number) / "model_best.pt").is_file()


@SHORT_AXIS
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda w: setattr(w, "trainer", w.trainer), "the trainer has another network and optimizer than those whose"),
        (lambda w: setattr(w, "evaluator", w.evaluator), "another network is validated than trained"),
        (
            lambda w: w.parser.__setitem__("optimizer", Adam(w.parser.get_parsed_content("network").parameters())),
            "optimizer: has parameters that are not of the network that is trained",
        ),
    ],
)
def test_parts_from_before_a_workflow_was_initialized_again_are_refused(how, message, bundle, tiny_dataset, tmp_path):
    data = {"datalist": str(tiny_dataset), "ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
    settings = bundle.settings("training", **data)
    workflow = ConfigWorkflow(str(bundle.configs / "train.yaml"), workflow_type="train", **settings)
    workflow.initialize()
    how(workflow)
    workflow.initialize()
    with refused(message):
        workflow.run()


@SHORT_AXIS
def test_the_same_seed_gives_the_same_first_weights_whatever_was_drawn_before(bundle, tiny_dataset):
    def first_weights(draw: bool) -> dict:
        settings = bundle.settings("training", datalist=str(tiny_dataset))
        workflow = ConfigWorkflow(str(bundle.configs / "train.yaml"), workflow_type="train", **settings)
        workflow.initialize()
        if draw:
            torch.rand(3)
        return workflow.parser.get_parsed_content("network").state_dict()

    plain, drawn = first_weights(False), first_weights(True)
    assert all(torch.equal(value, drawn[name]) for name, value in plain.items())


@SHORT_AXIS
def test_imports_of_a_user_s_own_come_beside_the_bundle_s(bundle, run_bundle, tiny_dataset, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("imports: ['$import random']\nmax_iterations: $random.Random(0).randint(2, 2)\n")
    run_bundle(
        "training", ["train", str(overlay).removesuffix(".yaml")], datalist=str(tiny_dataset), max_iterations=...
    )
    assert torch.load(tmp_path / "models" / "model.pt", weights_only=True)


def test_inference_works_with_an_inferer_of_monai(trained, run_bundle, tiny_dataset, bundle, tmp_path):
    kind = "SlidingWindowInferer" if _config(bundle, "inference")["slice_axis"] is None else "SliceInferer"
    inferer = {"_target_": kind, "roi_size": "@patch_size", "overlap": 0.25, "sw_batch_size": 2}
    run_bundle("inference", ["inference"], dataset_dir=str(tiny_dataset.parent), inferer=inferer)
    assert len(list((tmp_path / "eval").glob("*_seg.*"))) == len(list((tiny_dataset.parent / "images").iterdir()))


def test_metadata_tells_the_version_and_its_change(bundle):
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    config = _config(bundle, "train")
    assert metadata["version"] in metadata["changelog"]
    image = metadata["network_data_format"]["inputs"]["image"]
    pred = metadata["network_data_format"]["outputs"]["pred"]
    assert pred["num_channels"] == len(pred["channel_def"]) == 1 + len(config["class_names"])
    assert image["spatial_shape"] == pred["spatial_shape"] == config["patch_size"]


def test_licences_and_card_are_there(bundle):
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        assert (bundle.folder / name).read_text().strip()


@pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_pancreas"], indirect=True)
def test_patches_can_be_drawn_around_structures_in_whole_scans(bundle, run_bundle, tiny_dataset):
    workflow = run_bundle("training", ["train", "full_volume"], datalist=str(tiny_dataset), patch_size=[16, 16, 16])
    samples = workflow.parser.get_parsed_content("train::samples")
    drawn = [samples[i % len(samples)][0]["label"] for i in range(20)]
    assert {tuple(label.shape) for label in drawn} == {(1, 16, 16, 16)}
    assert sum(bool(label[0, 8, 8, 8]) for label in drawn) > 5  # two thirds are centered on a labeled voxel


@LEFT_ATRIUM
@pytest.mark.parametrize("cache", ["memory", "disk", "none"])
def test_volumes_can_be_kept_in_memory_on_disk_or_not_at_all(cache, run_bundle, tiny_dataset, tmp_path):
    settings = {"datalist": str(tiny_dataset), "cache_dir": str(tmp_path / "cache")}
    for name in ("first", "second"):  # the second run finds what the first one kept
        places = {"ckpt_dir": str(tmp_path / name), "output_dir": str(tmp_path / name)}
        run_bundle("training", ["train"], **settings, cache=cache, **places)
    first, second = (torch.load(tmp_path / name / "model.pt", weights_only=True) for name in ("first", "second"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert (tmp_path / "cache").exists() == (cache == "disk")


@LEFT_ATRIUM
def test_another_kind_of_cache_is_refused(run_bundle, tiny_dataset):
    with refused("--cache must be memory, disk or none, got ram"):
        run_bundle("training", ["train"], datalist=str(tiny_dataset), cache="ram")


@pytest.mark.parametrize("bundle", ["crossmatch_isic"], indirect=True)
def test_masks_of_photographs_have_the_size_that_viewers_show(trained, run_bundle, tmp_path):
    (tmp_path / "photos").mkdir()
    for name, size in {"wide.jpg": (30, 50), "tall.png": (61, 33)}.items():
        Image.fromarray(make_photo(np.random.default_rng(0), size)[0]).save(tmp_path / "photos" / name)
    photo, exif = Image.open(tmp_path / "photos" / "wide.jpg"), Image.Exif()
    exif[0x0112] = 6  # stored on its side; viewers show it upright
    photo.save(tmp_path / "photos" / "turned.jpg", exif=exif)
    photo.convert("L").save(tmp_path / "photos" / "grey.png")
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "photos"))
    for name, size in {"wide": (30, 50), "tall": (61, 33), "turned": (50, 30), "grey": (30, 50)}.items():
        mask = np.asarray(Image.open(tmp_path / "eval" / f"{name}_seg.png"))
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255}


@LEFT_ATRIUM
def test_inference_takes_the_settings_of_the_training_from_beside_the_weights(
    trained, run_bundle, tiny_dataset, tmp_path
):
    settings = json.loads(trained.with_suffix(".json").read_text())
    assert settings["base_filters"] == 2
    assert settings["spacing"] is None
    assert settings == json.loads((tmp_path / "models" / "model_best.json").read_text())
    read = {"patch_size": ..., "stride": ..., "spacing": ..., "base_filters": ..., "datalist": str(tiny_dataset)}
    run_bundle("inference", ["inference"], **read)
    assert len(list((tmp_path / "eval").glob("*_seg.nii.gz"))) == 4
    run_bundle("evaluating", ["train", "evaluate"], **read)
    assert (tmp_path / "eval" / "metrics.csv").is_file()
    workflow = run_bundle("inference", ["inference"], **read | {"stride": [8, 8, 8]})
    assert list(workflow.parser.get_parsed_content("inferer").roi_size) == [16, 16, 16]
    assert workflow.parser["stride"] == [8, 8, 8]
    with refused("--patch_size: trained with [16, 16, 16], got [32, 32, 32]", "--base_filters: trained with 2, got 4"):
        run_bundle("inference", ["inference"], **read | {"patch_size": [32, 32, 32], "base_filters": 4})


def _voxels(path):
    return np.asarray(Image.open(path) if path.suffix in (".png", ".jpg") else nib.load(path).dataobj)


@pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_acdc", "crossmatch_isic"], indirect=True)
def test_a_fresh_clone_segments_a_scan_with_the_weights_of_the_bundle(bundle, tmp_path):
    datalist = bundle.write(
        tmp_path / "data", {"test": 1}, size=(64, 60, 32) if bundle.name == "crossmatch_la" else bundle.size
    )
    config = str(bundle.configs / "inference.yaml")
    workflow = ConfigWorkflow(config, run_id="inference", datalist=str(datalist), output_dir=str(tmp_path / "out"))
    workflow.initialize()
    workflow.run()
    settings = json.loads((bundle.folder / "models" / "model.json").read_text())
    assert workflow.parser["patch_size"] == settings["patch_size"] != _config(bundle, "inference")["patch_size"]
    for case in _cases(datalist, "test"):
        image = _voxels(datalist.parent / case["image"])
        pred = _voxels(tmp_path / "out" / f"{case_name(case['image'])}_seg{workflow.parser['output_ext']}")
        assert pred.shape == image.shape[: pred.ndim]
        assert set(np.unique(pred)) <= ({0, 255} if pred.ndim == 2 else set(range(len(settings["class_names"]) + 1)))
