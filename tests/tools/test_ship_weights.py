"""Trained weights are put into a bundle, in half the size, with the settings that they were trained with."""

import json
import shutil

import pytest
import torch
from conftest import BUNDLES

from custom.networks import VNet
from custom.utils.errors import UserError
from custom.utils.weights import read_weights, save_weights
from tools.ship_weights import ship_weights


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(BUNDLES["crossmatch_la"].configs, tmp_path / "bundle" / "configs")
    return tmp_path / "bundle"


@pytest.mark.parametrize("half", [True, False])
def test_weights_and_settings_arrive_and_load_as_float32(half, copy, tmp_path):
    network = VNet()
    save_weights(network, tmp_path / "run.pt", {"spacing": [1.25, 1.25, 1.25]})
    ship_weights(str(tmp_path / "run.pt"), str(copy), half)
    stored = read_weights(copy / "models" / "model.pt", network)
    assert {value.dtype for value in stored.values()} == {torch.float16 if half else torch.float32, torch.int64}
    assert json.loads((copy / "models" / "model.json").read_text()) == {"spacing": [1.25, 1.25, 1.25]}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(stored)
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=1e-3 if half else 0, atol=1e-6 if half else 0)


def test_weights_that_a_bundle_cannot_take_are_refused_and_nothing_is_written(copy, tmp_path):
    save_weights(VNet(), tmp_path / "bare.pt")
    with pytest.raises(UserError, match=r"bare\.json: no such file"):
        ship_weights(str(tmp_path / "bare.pt"), str(copy))
    save_weights(VNet(base_filters=2), tmp_path / "narrow.pt", {"base_filters": 2})
    with pytest.raises(UserError, match="was trained with another network"):
        ship_weights(str(tmp_path / "narrow.pt"), str(copy))
    large = VNet()
    with torch.no_grad():
        next(large.parameters()).fill_(1e6)
    save_weights(large, tmp_path / "large.pt", {"base_filters": 16})
    with pytest.raises(UserError, match="not representable in float16"):
        ship_weights(str(tmp_path / "large.pt"), str(copy))
    assert not (copy / "models").exists()
