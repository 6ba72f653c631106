"""Nothing that comes from elsewhere is executed, except a config, which must be trusted (README)."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import LEFT_ATRIUM, ROOT, refused
from monai.bundle import ConfigParser
from monai.networks.nets import BasicUNet

from custom.data.caching import cached_dataset
from custom.utils.errors import UserError
from custom.utils.weights import read_weights
from tools.package import package


@pytest.fixture
def hostile(tmp_path):
    """An object that leaves a mark when it is unpickled; the mark must not be there at the end."""
    mark = tmp_path / "executed"

    class Hostile:
        def __reduce__(self):
            return Path.touch, (mark,)

    pickle.loads(pickle.dumps(Hostile()))
    assert mark.exists()  # it does what it should
    mark.unlink()
    yield Hostile()
    assert not mark.exists()


@LEFT_ATRIUM
@pytest.mark.parametrize("ending", [".npy", ".npz", ".nii.gz"])
def test_an_array_that_would_run_code_is_refused(ending, hostile, run_bundle, own_dataset, edit):
    path = own_dataset.parent / "images" / f"hostile{ending}"
    with open(path, "wb") as file:
        array = np.array([hostile], dtype=object)
        np.savez(file, array) if ending == ".npz" else np.save(file, array, allow_pickle=True)
    edit(own_dataset, lambda content: content["unlabeled"][0].update(image=f"images/{path.name}"))
    with refused(f"{path}: cannot be read"):
        run_bundle("training", ["train"], datalist=str(own_dataset))


def test_weights_that_would_run_code_are_refused(hostile, tmp_path):
    network = BasicUNet(features=[2] * 6)
    torch.save({**network.state_dict(), "extra": hostile}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt: holds more than tensors, or is damaged"):
        read_weights(tmp_path / "model.pt", network)


def test_a_cache_on_disk_that_would_run_code_is_made_anew(hostile, tmp_path):
    data = [{"image": "a"}]
    settings = {"transform": _read, "cache": "disk", "cache_dir": str(tmp_path / "cache")}
    assert cached_dataset(data, **settings)[0]["image"].sum() == 4
    (kept,) = (tmp_path / "cache").glob("*.pt")
    torch.save({"image": hostile}, kept)
    assert cached_dataset(data, **settings)[0]["image"].sum() == 4


def _read(case: dict) -> dict:
    return {"image": torch.ones(4)}


@pytest.mark.parametrize("place", ["../outside.txt", "crossmatch_la/../../outside.txt", "/outside.txt"])
def test_an_archive_that_reaches_outside_its_folder_is_refused(place, tmp_path):
    archive = tmp_path / "crossmatch_la.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("crossmatch_la/configs/train.yaml", "a: 1")
        file.writestr(place, "escaped")
    with pytest.raises(UserError, match=r"everything must lie in one folder named crossmatch_la/"):
        package(str(archive))
    assert [path.name for path in tmp_path.iterdir()] == [archive.name]


def test_a_yaml_file_makes_no_objects(tmp_path):
    mark = tmp_path / "executed"
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:pathlib.Path.touch [{mark}]\n")
    with pytest.raises(yaml.constructor.ConstructorError):
        ConfigParser.load_config_file(tmp_path / "config.yaml")
    assert not mark.exists()


@LEFT_ATRIUM
def test_names_in_a_data_list_are_no_expressions(run_bundle, own_dataset, edit, tmp_path):
    mark = tmp_path / "executed"
    name = f"$open({str(mark)!r}, 'w')"
    edit(own_dataset, lambda content: content["unlabeled"][0].update(image=name))
    with refused("no such file"):
        run_bundle("training", ["train"], datalist=str(own_dataset))
    assert not mark.exists()


def test_the_readme_says_that_configs_must_be_trusted():
    text = (ROOT / "README.md").read_text()
    assert "MONAI configs execute Python expressions: run only configs that you trust." in text
