"""The card of a packaged bundle is one that the Hugging Face Hub reads, and what is uploaded is whole."""

import shutil
import zipfile
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import ROOT
from monai.bundle import push_to_hf_hub
from monai.bundle import scripts as monai_scripts

from tools.package import check_archive, package

LICENCES = {
    "crossmatch_la": "other",  # research only
    "crossmatch_acdc": "cc-by-nc-sa-4.0",  # of the data
    "crossmatch_isic": "apache-2.0",  # its data are CC0
    "crossmatch_pancreas": "apache-2.0",  # without weights, that of the code
}


class LocalHub:
    """The Hub's interface as ``push_to_hf_hub`` uses it, on a folder instead of the network."""

    folder: Path
    tags: list[str]

    def __init__(self, token=None):
        self.token = token

    def create_repo(self, repo_id, private, exist_ok):
        (self.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, repo_id, folder_path, **options):
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return str(self.folder / repo_id)

    def create_tag(self, repo_id, tag, exist_ok):
        self.tags.append(tag)


def _unzipped(bundle, folder, **options):
    package(str(ROOT / "bundles" / bundle), str(folder / "dist"), **options)
    archive = folder / "dist" / f"{bundle}.zip"
    check_archive(archive)
    zipfile.ZipFile(archive).extractall(folder)
    return folder / bundle


@pytest.mark.parametrize(("bundle", "licence"), LICENCES.items())
def test_the_card_says_which_licence_and_figures_the_weights_have(bundle, licence, tmp_path):
    card = huggingface_hub.ModelCard.load(_unzipped(bundle, tmp_path) / "README.md")
    assert card.data.license == licence
    assert card.data.library_name == "monai"
    assert card.text.lstrip().startswith("# CrossMatch")
    dice = [result.metric_value for result in card.data.eval_results or ()]
    assert len(dice) == (bundle != "crossmatch_pancreas")
    assert all(0.8 < value < 1 for value in dice)


def test_without_the_weights_there_are_no_figures_of_them(tmp_path):
    card = huggingface_hub.ModelCard.load(_unzipped("crossmatch_acdc", tmp_path, weights=None) / "README.md")
    assert card.data.license == "apache-2.0"
    assert not card.data.eval_results


def test_other_weights_have_neither_the_licence_nor_the_figures_of_the_shipped_ones(tmp_path, capsys):
    weights = torch.load(ROOT / "bundles" / "crossmatch_acdc" / "models" / "model.pt", weights_only=True)
    torch.save({name: value * 0.5 for name, value in weights.items()}, tmp_path / "own.pt")
    (tmp_path / "own.json").write_text("{}")
    unzipped = _unzipped("crossmatch_acdc", tmp_path, weights=str(tmp_path / "own.pt"))
    card = huggingface_hub.ModelCard.load(unzipped / "README.md")
    assert card.data.license == "unknown"
    assert not card.data.eval_results
    assert "own.pt: not the weights that configs/metadata.json describes" in capsys.readouterr().out


def test_a_bundle_that_monai_pushes_is_whole_and_our_card_can_go_over_its_own(tmp_path, monkeypatch):
    bundle = _unzipped("crossmatch_acdc", tmp_path)
    card = (bundle / "README.md").read_text()
    monkeypatch.setattr(LocalHub, "folder", tmp_path / "hub", raising=False)
    monkeypatch.setattr(LocalHub, "tags", [], raising=False)
    monkeypatch.setattr(monai_scripts.huggingface_hub, "HfApi", LocalHub)
    pushed = Path(push_to_hf_hub("lab/crossmatch_acdc", "crossmatch_acdc", str(tmp_path), version="0.3.0"))
    assert LocalHub.tags == ["0.3.0"]
    assert huggingface_hub.ModelCard.load(pushed / "README.md").data.license == "apache-2.0"  # MONAI's: of the code
    (pushed / "README.md").write_text(card)
    assert huggingface_hub.ModelCard.load(pushed / "README.md").data.license == "cc-by-nc-sa-4.0"
    left = {path.relative_to(bundle) for path in bundle.rglob("*")}
    assert {path.relative_to(pushed) for path in pushed.rglob("*")} == left
    assert (pushed / "models" / "model.pt").read_bytes() == (bundle / "models" / "model.pt").read_bytes()
