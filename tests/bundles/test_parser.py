"""Programs that take a bundle apart: MONAI's parser, with a workflow and without."""

import json
import shutil

import pytest
import torch
from conftest import LEFT_ATRIUM, refused
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.data import decollate_batch


@pytest.fixture
def trained(bundle, run_bundle, tiny_dataset, tmp_path):
    """A copy of a bundle with tiny weights, and their settings beside them."""
    run_bundle("training", ["train"], datalist=str(tiny_dataset))
    folder = tmp_path / bundle.name
    shutil.copytree(bundle.configs, folder / "configs")
    shutil.copytree(tmp_path / "models", folder / "models")
    return folder


def _parser(folder, name: str, **settings) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / f"{name}.yaml"))
    parser.update({"bundle_root": str(folder), **settings})
    return parser


def test_a_program_that_reads_the_config_itself_segments(trained, tiny_dataset, tmp_path):
    places = {"dataset_dir": str(tiny_dataset.parent / "images"), "output_dir": str(tmp_path / "out")}
    parser = _parser(trained, "inference", **places)
    with refused("first call workflow.initialize(), or parser.get_parsed_content('checks')"):
        parser.get_parsed_content("evaluator")
    parser.get_parsed_content("checks")
    assert parser["patch_size"] == json.loads((trained / "models" / "model.json").read_text())["patch_size"]
    parser.get_parsed_content("evaluator").run()
    scans = len(list((tiny_dataset.parent / "images").iterdir()))
    assert len(list((tmp_path / "out").glob("*_seg.*"))) == scans


@LEFT_ATRIUM
def test_a_program_that_reads_the_config_itself_is_told_where_the_bundle_must_be_named(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parser = _parser(trained, "inference", bundle_root=".")
    with refused("set parser['bundle_root'] to the folder of the bundle"):
        parser.get_parsed_content("checks")


def test_a_program_that_reads_the_config_itself_trains(bundle, tiny_dataset, tmp_path):
    places = {"output_dir": str(tmp_path / "eval"), "ckpt_dir": str(tmp_path / "models")}
    settings = bundle.settings("training", datalist=str(tiny_dataset), **places)
    parser = _parser(bundle.folder, "train", **settings)
    parser.get_parsed_content("checks")
    trainer = parser.get_parsed_content("train::trainer")
    trainer.run()
    assert trainer.state.iteration == bundle.tiny["max_iterations"]


def test_parts_of_a_workflow_can_be_used_before_it_runs(trained, tiny_dataset, tmp_path):
    places = {"dataset_dir": str(tiny_dataset.parent / "images"), "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(str(trained / "configs" / "inference.yaml"), workflow_type="infer", **places)
    workflow.initialize()
    part = workflow.parser.get_parsed_content
    network = part("network").eval()
    network.load_state_dict(torch.load(part("ckpt_path"), weights_only=True))
    with torch.no_grad():
        for batch in part("dataloader"):
            batch["pred"] = part("inferer")(batch["image"], network)
            [sample] = [part("postprocessing")(sample) for sample in decollate_batch(batch)]
            assert list(sample["pred"].shape[1:]) == sample["image"].meta["spatial_shape"].tolist()
