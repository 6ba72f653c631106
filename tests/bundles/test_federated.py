"""MONAI's federated client trains and evaluates the packaged bundle, with or without unlabeled cases at the site."""

from pathlib import Path

import numpy as np
import pytest
from conftest import BUNDLES, Bundle
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems
from monai.fl.utils.exchange_object import ExchangeObject


@pytest.fixture(params=["with unlabeled cases", "without unlabeled cases"])
def site(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Path:
    """Data list of a site."""
    counts = {"training": 2, "validation": 1} | ({"unlabeled": 3} if request.param.startswith("with ") else {})
    return bundle.write(tmp_path / "site", counts, size=bundle.size)


def _travel(sent: ExchangeObject) -> dict[str, np.ndarray]:
    """Weights as a server gets and sends them: arrays of their own."""
    return {name: value.numpy().copy() for name, value in sent.weights.items()}


@pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_acdc"], indirect=True)
def test_rounds_of_training_start_from_the_server_s_weights_and_are_scored(site, bundle, unzipped, tmp_path):
    settings = bundle.settings("training", datalist=str(site), output_dir=str(tmp_path / "eval"), max_iterations=100)
    client = MonaiAlgo(
        bundle_root=unzipped.name,
        local_epochs=1,
        train_kwargs=dict(settings),
        eval_kwargs=dict(settings),
        send_weight_diff=False,
    )
    client.initialize({ExtraItems.CLIENT_NAME: "hospital", ExtraItems.APP_ROOT: str(unzipped.parent)})
    weights = _travel(client.get_weights())
    for _ in range(2):
        before = weights
        client.train(ExchangeObject(weights=before))
        sent = client.get_weights()
        weights = _travel(sent)
        assert sent.statistics["num_executed_iterations"] == client.trainer.state.epoch_length
        assert set(weights) == set(before)
        assert any((weights[name] != before[name]).any() for name in before)
    assert client.trainer.state.epoch == 2
    semi_supervised = {"strong_1_from_weak", "confident_share"} <= set(client.trainer.state.output)
    assert semi_supervised == ("unlabeled" in site.read_text() and '"unlabeled": []' not in site.read_text())
    metrics = client.evaluate(ExchangeObject(weights=weights)).metrics
    assert 0 <= metrics["val_mean_dice"] <= 1
    client.finalize()


def test_every_bundle_has_the_configs_that_the_client_takes_by_default(unzipped):
    assert unzipped.name in BUNDLES
    assert (unzipped / "configs" / "train.json").is_file()
    assert (unzipped / "configs" / "evaluate.json").is_file()
