import json
import re
import shlex
import sys

import pytest
import torch
import yaml
from conftest import BUNDLES, TINY_3D, refused
from fire.parser import DefaultParseValue
from monai.bundle import ConfigWorkflow

from custom.utils.errors import UserError
from custom.utils.settings import typed_settings


def _workflow(tmp_path, text: str = "", **overrides):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "metadata.json").write_text("{}")
    (tmp_path / "configs" / "run.yaml").write_text(
        "eta: 0.3\n"
        "initialize: ['$@checks']\n"
        "run: ['$print(@eta)']\n"
        "checks: {_target_: custom.utils.config.check_config}\n" + text
    )
    return ConfigWorkflow(str(tmp_path / "configs" / "run.yaml"), **overrides)


def _causes(error: BaseException) -> list[str]:
    return [] if error is None else [str(error), *_causes(error.__cause__)]


@pytest.mark.parametrize(
    ("unknown", "message"),
    [({"etaa": 0.9}, "--etaa: did you mean --eta?"), ({"zzz": 1}, "--zzz is not a key of this bundle's configs.")],
)
def test_unknown_setting_is_refused_with_the_nearest_known_one(tmp_path, unknown, message):
    with pytest.raises(RuntimeError) as caught:
        _workflow(tmp_path, **unknown).initialize()
    assert any(message in cause for cause in _causes(caught.value))


def test_help_shows_the_settings_of_the_files_that_are_named_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run", "--config_file", str(tmp_path / "configs" / "run.yaml"), "--help"])
    text = "other:\n  within: 1\npatch: [8, 8]  # voxels\n# ==== the rest\nhidden: 2\n"
    workflow = _workflow(tmp_path, text, help=True)
    (tmp_path / "configs" / "beside.yaml").write_text("beside: 1\n")
    with pytest.raises(SystemExit) as ended:
        workflow.initialize()
    assert not ended.value.code
    shown = capsys.readouterr().out
    assert "patch: [8, 8]  # voxels" in shown
    assert not any(word in shown for word in ("within", "hidden", "beside"))


def test_several_unknown_settings_are_listed_together(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        _workflow(tmp_path, etaa=1, zzz=1).initialize()
    (text,) = [cause for cause in _causes(caught.value) if "these settings cannot be taken" in cause]
    assert text.count("\n  - ") == 2


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize(
    ("run", "files", "word"),
    [
        ("training", ["train"], "b.nii.gz"),
        ("evaluating", ["train", "evaluate"], 8),
        ("inference", ["inference"], "dataset"),
    ],
)
def test_a_word_that_belongs_to_no_setting_is_refused(name, run, files, word, tmp_path, monkeypatch):
    """As of ``--dataset_dir scans/*.nii.gz``, whose second file takes the place of ``initialize``."""
    configs = [str(BUNDLES[name].configs / f"{file}.yaml") for file in files]
    places = {"output_dir": str(tmp_path / "out"), "ckpt_dir": str(tmp_path / "models")}
    _as_on_a_command_line(monkeypatch)
    with refused(f"the command line has words that belong to no setting: {word}; nothing was run"):
        ConfigWorkflow(configs, run_id=run, init_id=word, dataset_dir="a.nii.gz", **places).run()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_an_overlay_before_the_bundle_s_own_file_is_refused(bundle, tmp_path, monkeypatch):
    configs = [str(BUNDLES[bundle].configs / f"{file}.yaml") for file in ("quick", "train")]
    _as_on_a_command_line(monkeypatch, "--config_file", str(configs))
    with refused("so train.yaml comes first; got quick.yaml, train.yaml."):
        ConfigWorkflow(configs, run_id="training", output_dir=str(tmp_path / "out")).run()
    assert not list(tmp_path.iterdir())


def _as_on_a_command_line(monkeypatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["monai/bundle/__main__.py", "run", *words])


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(
    ("run", "files", "message"),
    [
        ("training", ["train", "evaluate"], "evaluate.yaml is for `run evaluating`; leave it out of the config list"),
        ("evaluating", ["train"], "`run evaluating` needs evaluate.yaml; add it to the config list, after train.yaml."),
        ("train", ["train"], "`run train`: expected training"),
        ("validate", ["train", "evaluate"], "`run validate`: expected training or evaluating"),
        ("inferenc", ["inference"], "`run inferenc`: expected inference"),
    ],
)
def test_a_step_that_the_files_do_not_have_is_refused_before_anything_is_read(bundle, run, files, message, tmp_path):
    configs = [str(BUNDLES[bundle].configs / f"{file}.yaml") for file in files]
    places = {"output_dir": str(tmp_path / "out"), "ckpt_dir": str(tmp_path / "models")}
    with refused(message):
        ConfigWorkflow(configs, run_id=run, **places).initialize()
    assert not list(tmp_path.iterdir())


def test_a_program_that_runs_a_bundle_keeps_its_own_way_to_show_errors(tmp_path):
    before = sys.excepthook
    _workflow(tmp_path).initialize()
    assert sys.excepthook is before


def test_known_settings_and_referenced_helpers_pass(tmp_path):
    _workflow(tmp_path, eta="$@helper * 2", helper=0.2).initialize()


def test_a_helper_that_a_user_s_file_copies_with_a_macro_passes(tmp_path, monkeypatch):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("helper: 0.2\neta: '%helper'\n")
    workflow = _workflow(tmp_path)
    command = ["/lib/monai/bundle/__main__.py", "run", "run", "--config_file", f"['run.yaml','{overlay}']"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    config = ConfigWorkflow([str(tmp_path / "configs" / "run.yaml"), str(overlay)], meta_file=workflow.meta_file)
    config.initialize()
    assert config.parser["eta"] == 0.2


def test_objects_of_a_program_are_taken_as_they_are(tmp_path):
    handlers, metric = [object()], object()
    workflow = _workflow(tmp_path, "train: {handlers: [{_target_: a.B}], metrics: {mean: {_target_: a.C}}}\n")
    workflow.parser["train::handlers"] = handlers
    workflow.parser["train::metrics"] = {"other": metric}
    workflow.initialize()
    assert workflow.parser["train::handlers"] is handlers
    assert workflow.parser["train::metrics"]["other"] is metric


def test_user_error_lists_its_problems():
    assert str(UserError("file.json:", ["first", "second"])) == "file.json:\n  - first\n  - second"


def test_a_bundle_newer_than_the_code_does_not_run(tmp_path):
    workflow = _workflow(tmp_path)
    workflow.parser.read_meta({"version": "99.0.0"})
    with pytest.raises(RuntimeError) as caught:
        workflow.initialize()
    assert any("the bundle is version 99.0.0, newer than the code" in cause for cause in _causes(caught.value))


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Initialize a run of a bundle as `monai.bundle run` does with what is typed: Fire reads it, and drops None."""

    def initialize(
        *line: str, bundle: str = "crossmatch_la", run: str = "training", overlay: str = "", **api
    ) -> ConfigWorkflow:
        monkeypatch.setattr(sys, "argv", ["/lib/monai/bundle/__main__.py", "run", run, *line])
        values = {key: DefaultParseValue(str(value)) for key, value in typed_settings(["run", run, *line]).items()}
        config = "inference" if run == "inference" else "train"
        files = [str(BUNDLES[bundle].configs / f"{config}.yaml")]
        if run == "evaluating":
            files.append(str(BUNDLES[bundle].configs / "evaluate.yaml"))
        if overlay:
            (tmp_path / "overlay.yaml").write_text(overlay)
            files.append(str(tmp_path / "overlay.yaml"))
        given = {key: value for key, value in values.items() if value is not None}
        root = str(BUNDLES[bundle].folder)  # or MONAI looks through the stack for it
        workflow = ConfigWorkflow(files, run_id=run, bundle_root=root, **given, **api)
        workflow.initialize()
        return workflow

    return initialize


def _problems(typed, *line: str, **how) -> str:
    with pytest.raises(RuntimeError) as caught:
        typed(*line, **how)
    (text,) = {cause for cause in _causes(caught.value) if "nothing was run" in cause and "Failed" not in cause}
    return text


#: What is typed, in which bundle, and what is computed with.
TYPED = [
    ("--amp false", "la", "amp", False),
    ("--amp no", "la", "validate::inferer::amp", False),
    ("--amp=OFF", "la", "amp", False),
    ("--amp 1", "la", "amp", True),
    ("--amp", "la", "amp", True),
    ("--resume false", "la", "resume", False),
    ("--compile yes", "la", "compile", True),
    ("--class_names liver", "la", "class_names", ["liver"]),
    ("--class_names liver", "la", "num_classes", 2),
    ("--class_names liver,tumor", "la", "num_classes", 3),
    ("--class_names [no,tumor]", "la", "class_names", ["no", "tumor"]),
    ("--in_channels 2 --channels t1,t2", "la", "channels", ["t1", "t2"]),
    ("--channels null", "la", "channels", None),
    ("--output_dir 20240611", "la", "metrics", "20240611/metrics.csv"),
    ("--output_dir 1e3", "la", "output_dir", "1e3"),
    ("--output_dir true", "la", "output_dir", "true"),
    ("--output_dir a,b", "la", "output_dir", "a,b"),
    ("--output_dir 0.10", "la", "cache_dir", "0.10/cache"),
    ("--output_dir out#1", "la", "output_dir", "out#1"),
    ("--ckpt_dir a/b#c@d", "la", "best_weights::path", "a/b#c@d/model_best.pt"),
    ("--dataset_dir a::b", "la", "datalist", "a::b/labeled_8.json"),
    ("--learning_rate 1e-3", "la", "optimizer::lr", 0.001),
    ("--max_iterations 1e3", "la", "schedule_iterations", 1214),
    ("--ema_decay null", "la", "ema_decay", None),
    ("--ema_decay 0.99", "la", "ema_decay", 0.99),
    ("--spacing None", "la", "spacing", None),
    ("--spacing 1,1,2.5", "la", "spacing", [1, 1, 2.5]),
    ("--slice_axis None --patch_size 64,64", "acdc", "slice_axis", None),
    ("--patch_size 96,96", "acdc", "stride", [96, 96]),
    ("--patch_size [96,96]", "acdc", "patch_size", [96, 96]),
    ("--patch_size (96,96)", "acdc", "patch_size", [96, 96]),
    ("--window -200,300.5", "pancreas", "window", [-200, 300.5]),
    ("--num_workers 0", "la", "num_workers", 0),
    ("--loss_weights::distillation 0.25", "la", "loss_weights::distillation", 0.25),
    ("--loss_weights#distillation 0", "la", "loss_weights::distillation", 0),
    ("--train::dataset::cache_rate 5e-1", "la", "train::dataset::cache_rate", 0.5),
    ("--loss::include_background no", "acdc", "loss::include_background", False),
    ("--network_def::dropout 0.1,0.1,0.1,0.1,0.1", "la", "network_def::dropout", [0.1] * 5),
    ("--network_def::dropout 0.2", "acdc", "network_def::dropout", 0.2),
    ("--unsupervised_weight '{start: 0}'", "la", "unsupervised_weight", {"start": 0}),
    ("--threshold 0.9", "la", "threshold", 0.9),
    ("--experiment_name 12", "la", "experiment_name", 12),
    ("--cache none", "la", "cache", "none"),
    ("--patient_pattern 'p#\\d'", "la", "patient_pattern", "p#\\d"),
]


@pytest.mark.parametrize(("line", "bundle", "key", "expected"), TYPED)
def test_settings_mean_what_was_typed(line, bundle, key, expected, typed):
    run = "evaluating" if key == "metrics" else "training"
    key = "metrics_file" if key == "metrics" else key
    found = typed(*shlex.split(line), bundle=f"crossmatch_{bundle}", run=run).parser
    keyword = "instantiate" if "::" in key else "lazy"
    value = found.get_parsed_content(key, **{keyword: True})
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("--uncertainty false", "inferer::uncertainty", False),
        ("--keep_largest 1", "keep_largest", [1]),
        ("--keep_largest []", "keep_largest", []),
        ("--test_time_flips 0", "test_time_flips", [0]),
        ("--files scans", "files", "scans"),
        ("--files [a#1.nii,b.nii]", "files", ["a#1.nii", "b.nii"]),
        ("--dataset_dir 7", "files", "7"),
        ("--datalist null", "datalist", None),
        ("--densities '{left_atrium: 1e0}'", "densities", {"left_atrium": 1.0}),
        ("--terminology '{a: {type: [0123, SCT, b]}}'", "terminology", {"a": {"type": ["0123", "SCT", "b"]}}),
        ("--output dicom_seg", "scans::dicom_seg", True),
    ],
)
def test_settings_of_inference_mean_what_was_typed(line, key, expected, typed):
    assert typed(*shlex.split(line), run="inference").parser.get_parsed_content(key) == expected


def test_texts_in_an_overlay_and_from_a_program_are_read_alike(typed):
    overlay = """
amp: "false"
learning_rate: 1e-4
output_dir: 20240611
ckpt_dir: models#2
class_names: liver
patch_size: 64,64,32
train::dataset::cache_rate: "0.5"
"""
    parser = typed(overlay=overlay, compile="no", num_workers="2", ema_decay="none", dataset_dir="a#b").parser
    expected = {
        "amp": False,
        "learning_rate": 1e-4,
        "output_dir": "20240611",
        "ckpt_dir": "models#2",
        "num_classes": 2,
        "patch_size": [64, 64, 32],
        "compile": False,
        "num_workers": 2,
        "ema_decay": None,
        "datalist": "a#b/labeled_8.json",
        "train::dataset::cache_rate": 0.5,
    }
    assert {key: parser.get_parsed_content(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--amp maybe", "--amp: expected true or false, such as --amp true; got maybe."),
        ("--amp null", "--amp: expected true or false, such as --amp true; got null."),
        ("--amp 2", "got 2"),
        ("--max_iterations ten", "--max_iterations: expected a whole number, such as --max_iterations 14000; got ten."),
        ("--max_iterations true", "got true"),
        ("--max_iterations", "got no value"),
        ("--seed 1.5", "--seed: expected a whole number"),
        ("--eta 0,3", "--eta: expected a number, such as --eta 0.3; got 0,3."),
        ("--learning_rate high", "--learning_rate: expected a number, such as --learning_rate 0.001; got high."),
        ("--output_dir", "--output_dir: expected a text, such as --output_dir out; got no value."),
        (
            "--patch_size 96",
            "--patch_size: expected a list of whole numbers, such as --patch_size '[112, 112, 80]'; got 96",
        ),
        ("--patch_size big", "got big"),
        (
            "--class_names",
            "--class_names: expected a list of texts, such as --class_names '[liver, tumor]'; got no value",
        ),
        ("--loss_weights 0.5", "--loss_weights: expected a mapping"),
        ("--loss_weights::distillation some", "--loss_weights::distillation: expected a number"),
        ("--resume perhaps", "--resume: expected true or false"),
        ("--num_workers many", "--num_workers: expected a whole number"),
        ("--optimizer adam", "--optimizer: expected a component"),
        ("--optimizer::fused maybe", "--optimizer::fused: expected true or false"),
    ],
)
def test_a_setting_of_another_kind_is_refused_with_flag_kind_and_example(line, message, typed):
    assert message in _problems(typed, *line.split())


def test_all_settings_of_another_kind_are_listed_together(typed):
    assert _problems(typed, "--amp", "maybe", "--seed", "x", "--eta", "y").count("\n  - ") == 3


def test_unknown_settings_and_those_of_another_kind_or_out_of_range_are_told_at_once(typed):
    line = "--etaa 1 --amp maybe --patch_size big --learning_rate -1 --batch_size 0"
    told = _problems(typed, *line.split())
    lines = ("--etaa: did", "--amp: expected", "--patch_size: expected", "--learning_rate: must", "--batch_size: must")
    assert all(f"\n  - {line}" in told for line in lines)
    assert told.count("\n  - ") == len(lines)


@pytest.mark.parametrize(
    "line",
    ["--in_channels two --channels t1,t2", '--patch_size big --stride "[128,128,96]"', "--etaa 1 --channels t1,t2"],
)
def test_beside_a_mistake_settings_are_not_compared_with_defaults(typed, line, caplog):
    assert _problems(typed, *shlex.split(line)).count("\n  - ") == 1
    assert "has no effect" not in caplog.text


def test_a_number_that_follows_from_one_out_of_range_is_not_told(typed):
    assert _problems(typed, "--max_iterations", "0").count("\n  - ") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--batch_size 0", "--batch_size: must be at least 1, got 0."),
        ("--max_iterations -5", "--max_iterations: must be at least 1, got -5."),
        ("--schedule_iterations 0", "--schedule_iterations: must be at least 1, got 0."),
        ("--learning_rate 0", "--learning_rate: must be more than 0, got 0."),
        ("--eta 1.5", "--eta: must be at least 0 and at most 1, got 1.5."),
        ("--feature_dropout 0.25,1", "--feature_dropout: must be at least 0 and below 1, got [0.25, 1]."),
        (
            "--feature_dropout 0.2,0.5,0.7",
            "--feature_dropout: must have 2 numbers, weak and strong, such as [0.25, 0.75]; got",
        ),
        ("--slice_axis 1", "--slice_axis: must be 2, got 1."),
        ("--ema_decay 1", "--ema_decay: must be more than 0 and below 1, got 1."),
        ("--n_saved 1", "--n_saved: must be at least 2, got 1."),
        ("--num_workers -1", "--num_workers: must be at least 0, got -1."),
        ("--seed -1", "--seed: must be at least 0 and at most 4294967295, got -1."),
        ("--spacing 1,0,1", "--spacing: must be more than 0, got [1, 0, 1]."),
        ("--loss_weights::distillation -1", "--loss_weights: must be at least 0"),
        ("--threshold 95", "--threshold: must be at least 0 and at most 1, got 95."),
        (
            "--unsupervised_weight '{start: 0, end: 1, delay: -5, rampup_iterations: 5}'",
            "must be at least 0, got {start",
        ),
        ("--optimizer::lr fast", "--optimizer::lr: expected a number, such as"),
        ("--output dicomseg", "--output: must be nifti or dicom_seg, got dicomseg."),
        ("--memory_format channels_last", "--memory_format: expected one of torch's, such as"),
        ("--device gpu", "--device: there is no gpu here, but cpu"),
        ("--device cuda:77", "--device: there is no cuda:77 here, but cpu"),
        ("--device cpu:7", "--device: there is no cpu:7 here, but cpu"),
        ("--device meta", "--device: there is no meta here, but cpu"),
        ("--patch_size 96,96", "--patch_size: must have 3 numbers, one per axis, got [96, 96]."),
        ("--patch_size 100,96,96", "--patch_size: every size must be a multiple of 16, for the network; got"),
        ("--stride 18,18", "--stride: must have 3 numbers, one per axis, got [18, 18]."),
        ("--stride 18,18,96", "--stride: must not be larger than the patch, [112, 112, 80], on any axis"),
        ("--class_names 2", "--class_names: must be the names of the structures labeled 1, 2, ..., all different"),
        ("--class_names a,a", "--class_names: must be the names"),
        ("--num_classes 4", "--num_classes: is 2, background and [left_atrium]; give --class_names, got 4."),
        ("--class_names liver,all", "--class_names: must be the names"),
        (
            "--channels t1,t2",
            "one for each of the in_channels, 1, all different, such as --in_channels 2 --channels t1,t2",
        ),
        ("--in_channels 2 --channels t1,T1", "--channels: must be the ends of the names of a case's files"),
    ],
)
def test_a_setting_out_of_range_is_refused_before_anything_runs(line, message, typed):
    assert message in _problems(typed, *shlex.split(line))


@pytest.mark.parametrize(
    ("flag", "run"), [("output_dir", "training"), ("ckpt_dir", "training"), ("files", "inference")]
)
def test_paths_may_begin_with_the_users_folder_and_must_not_be_empty(flag, run, typed, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    given = {"files": "['~/a.nii.gz']"}.get(flag, "~/a.nii.gz")
    expected = str(tmp_path / "a.nii.gz")
    parser = typed(f"--{flag}={given}", run=run).parser
    assert parser.get_parsed_content(flag) == ([expected] if flag == "files" else expected)
    for nothing in ("None", ""):
        assert f"--{flag}: expected" in _problems(typed, f"--{flag}", nothing, run=run)


@pytest.mark.parametrize(
    ("bundle", "line", "message"),
    [
        ("acdc", "--keep_largest [9]", "--keep_largest: must be labels out of [1, 2, 3]; got [9]."),
        ("la", "--test_time_flips [0,0]", "must be axes of the patch out of [0, 1, 2], each once; got [0, 0]."),
        ("acdc", "--test_time_flips [2]", "must be axes of the patch out of [0, 1], each once; got [2]."),
        ("la", "--test_time_flips [-1]", "each once; got [-1]."),
        ("la", "--ckpt_path []", "--ckpt_path: expected a path; got nothing."),
        ("la", "--stitch_device cpu:7", "--stitch_device: there is no cpu:7 here, but cpu"),
        ("la", "--output_ext .mha", "--output_ext: must be .nii.gz or .nii, as custom.data.SeriesWriter writes labels"),
        ("la", "--output_ext nii", "without loss; got nii."),
        ("la", "--output_ext .NII.GZ", "without loss; got .NII.GZ."),
        ("acdc", "--output_ext .png", "without loss; got .png."),
        ("la", "--output_ext .mhd --writer ITKWriter", "must be .nii.gz or .nii or .nrrd or .mha, as ITKWriter writes"),
        ("la", "--output_ext npy --writer mine.Writer", "--output_ext: must begin with a dot, such as .nii.gz; got"),
        ("isic", "--output_ext .nii.gz", "--output_ext: must be .png or .bmp or .tif or .tiff, as custom.predictions"),
        ("isic", "--output_ext .jpg --class_names a,b --ckpt_path no.pt", "PILWriter writes labels without loss"),
    ],
)
def test_a_setting_that_inference_cannot_take_is_refused_before_anything_runs(bundle, line, message, typed):
    assert message in _problems(typed, *shlex.split(line), bundle=f"crossmatch_{bundle}", run="inference")


@pytest.mark.parametrize(
    ("bundle", "line"),
    [
        ("acdc", "--class_names lesion --ckpt_path none.pt"),
        ("acdc", "--keep_largest 3 --test_time_flips 0,1"),
        ("la", "--device cpu:0"),
        ("la", "--output_ext .nii"),
        ("la", "--output_ext .mha --writer ITKWriter"),
        ("la", "--output_ext .npy --writer mine.Writer"),
        ("isic", "--output_ext .tif"),
    ],
)
def test_settings_that_inference_can_take_pass(bundle, line, typed):
    typed(*shlex.split(line), bundle=f"crossmatch_{bundle}", run="inference")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--evaluation_list val", "must be training, validation or test, lists of a data list; got val."),
        ("--evaluation_list unlabeled", "--evaluation_list: must be training, validation or test"),
        ("--test_time_flips [1,1]", "--test_time_flips: must be axes of the patch out of [0, 1, 2], each once"),
        ("--keep_largest 2", "--keep_largest: must be labels out of [1]; got [2]."),
        ("--ckpt_path []", "--ckpt_path: expected a path; got nothing."),
    ],
)
def test_a_setting_that_evaluation_cannot_take_is_refused_before_anything_runs(line, message, typed):
    assert message in _problems(typed, *shlex.split(line), run="evaluating")


def test_files_of_channels_are_lists_in_a_list(typed):
    expected = [["a_t1.nii", "a#t2.nii"], ["b_t1.nii", "b_t2.nii"]]
    line = ("--files", "[[a_t1.nii,a#t2.nii],[b_t1.nii,b_t2.nii]]")
    assert typed(*line, run="inference").parser.get_parsed_content("files") == expected
    overlay = f"files: {json.dumps(expected)}\n"
    assert typed(run="inference", overlay=overlay).parser.get_parsed_content("files") == expected


def test_files_may_be_called_otherwise_than_in_training(typed, tmp_path):
    (tmp_path / "model.json").write_text(json.dumps({"in_channels": 2, "channels": ["t1", "t2"]}))
    weights = ("--ckpt_path", str(tmp_path / "model.pt"))
    assert typed(*weights, run="inference").parser["channels"] == ["t1", "t2"]
    assert typed(*weights, "--channels", "a,b", run="inference").parser["channels"] == ["a", "b"]


@pytest.mark.parametrize("channels", [1, 2])
def test_frames_of_a_series_are_segmented_by_networks_of_one_channel(channels, typed, tmp_path):
    line = ("--in_channels", str(channels), "--ckpt_path", str(tmp_path / "model.pt"))
    workflow = typed(*line, bundle="crossmatch_acdc", run="inference")
    assert workflow.parser.get_parsed_content("series") == (channels == 1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--max_iteration 5", "--max_iteration: did you mean --max_iterations?"),
        (
            "--train::dataset::cache_ratee 1",
            "--train::dataset::cache_ratee: did you mean --train::dataset::cache_rate?",
        ),
        ("--train#dataset#cache_ratee 1", "did you mean --train::dataset::cache_rate?"),
        ("--train::datasett 1", "--train::datasett: did you mean --train::dataset?"),
        ("--train::epochs 5", "--train::epochs is not an entry of train: dataloader, dataset, handlers"),
        ("--loss_weights::distilation 0", "--loss_weights::distilation: did you mean --loss_weights::distillation?"),
        (
            "--threshold::rampup_iteration 5",
            "--threshold::rampup_iteration: did you mean --threshold::rampup_iterations?",
        ),
        ("--unsupervised_weight '{start: 0, stop: 1}'", "--unsupervised_weight::stop"),
        ("--optimizer::momentum 0.9", "--optimizer::momentum is not an argument of torch.optim.AdamW."),
        ("--optimizer::beta 0.9,0.99", "--optimizer::beta: did you mean --optimizer::betas?"),
        ("--weak_view::0::probb 1", "--weak_view::0::probb: did you mean --weak_view::0::prob?"),
        ("--train::trainer::max_epoch 1", "--train::trainer::max_epoch: did you mean --train::trainer::max_epochs?"),
        ("--train::dataloader::prefetch_facto 2", "did you mean --train::dataloader::prefetch_factor?"),
        (
            "--network_def::_target_ custom.networks.PerturbedSegResNet --network_def::base_filter 8",
            "--network_def::base_filter: did you mean --network_def::base_filters?",
        ),
    ],
)
def test_an_unknown_setting_within_another_is_refused_with_the_nearest_known_one(line, message, typed):
    assert message in _problems(typed, *shlex.split(line))


@pytest.mark.parametrize(
    ("line", "key", "expected"),
    [
        ("--optimizer::betas 0.8,0.99", "optimizer::betas", "0.8,0.99"),
        ("--train::dataloader::prefetch_factor 4", "train::dataloader::prefetch_factor", 4),
        ("--train::trainer::accumulation_steps 2", "train::trainer::accumulation_steps", 2),
        ("--threshold::delay 7", "threshold::delay", 7),
        ("--phases '{ED: _ED}'", "phases", {"ED": "_ED"}),
        ("--validate::inferer::padding_mode reflect", "validate::inferer::padding_mode", "reflect"),
        ("--optimizer::_desc_ mine", "optimizer::_desc_", "mine"),
    ],
)
def test_arguments_that_a_component_takes_pass_though_no_config_gives_them(line, key, expected, typed):
    assert typed(*shlex.split(line)).parser[key] == expected


def test_an_overlay_may_bring_components_and_helpers_within_others(typed):
    overlay = """
optimizer: {_target_: torch.optim.SGD, params: $@network.parameters(), lr: 0.1, momentum: "$@train::helper * 2"}
train::helper: 0.45
train::extra: {_target_: RandFlipd, keys: image, prob: 0.1}
weak_view: [{_target_: LoadImaged, keys: image, reader: NibabelReader, as_closest_canonical: true}]
"""
    assert typed(overlay=overlay).parser.get_parsed_content("optimizer::momentum") == 0.9


@pytest.mark.parametrize("handlers", ["'@extra'", "['@extra', {_target_: ignite.handlers.TerminateOnNan}]"])
def test_handlers_may_be_references(handlers, typed):
    overlay = f"extra: []\ntrain::handlers: {handlers}\n"
    assert typed(overlay=overlay).parser["train::handlers"] == yaml.safe_load(handlers)


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("run", ["training", "evaluating", "inference"])
def test_the_bundles_own_settings_pass(name, run, typed):
    typed(bundle=name, run=run, device=torch.device("cpu"))


def test_components_are_left_alone(typed):
    scheduler = {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "betas": [0.9, 0.99]}
    parser = typed(optimizer=scheduler, weak_view=[{"_target_": "Identityd", "keys": ["image"]}], **TINY_3D).parser
    assert parser["optimizer"] == scheduler
    assert parser["weak_view"] == [{"_target_": "Identityd", "keys": ["image"]}]


@pytest.mark.parametrize(
    ("run", "settings", "message"),
    [
        (
            "crossmatch_la",
            {"bundle": "crossmatch_pancreas"},
            "was trained with crossmatch_pancreas, and this is crossm",
        ),
        ("crossmatch_pancreas", {"bundle": "crossmatch_la"}, "run the configs of crossmatch_la"),
        ("crossmatch_la", {"window": [-100, 200]}, r"settings that crossmatch_la does not have, window \[-100, 200\]"),
    ],
)
def test_weights_of_another_bundle_are_refused(run, settings, message, tmp_path):
    torch.save({}, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(settings))
    places = {
        "ckpt_path": str(tmp_path / "model.pt"),
        "dataset_dir": str(tmp_path),
        "output_dir": str(tmp_path / "out"),
    }
    config = str(BUNDLES[run].configs / "inference.yaml")
    with pytest.raises(RuntimeError) as error:
        ConfigWorkflow(config, run_id="inference", **places).initialize()
    assert re.search(message, " ".join(_causes(error.value)))
