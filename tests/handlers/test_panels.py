"""Pictures of a training step are drawn the way up that people know."""

import pytest
import torch
from conftest import BUNDLES
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.engines.utils import IterationEvents

from custom.handlers.panels import ViewPanels


class _Writer:
    def add_figure(self, tag: str, figure, iteration: int) -> None:
        self.origins = {axis.get_title(): {image.origin for image in axis.images} for axis in figure.axes}


def _origins(channels: int, **settings) -> dict[str, set[str]]:
    """Which way up every picture of a step in 2D is, and what lies on it."""
    image, label, logits = torch.rand(1, channels, 6, 5), torch.zeros(1, 1, 6, 5), torch.rand(1, 2, 6, 5)
    label[..., :2] = 1
    views = dict.fromkeys(("labeled", "weak", "strong_1", "strong_2"), image)
    views |= {"label": label, "pseudo_label": label[:, 0].long()[None], "labeled_logits": logits, "weak_logits": logits}
    writer, engine = _Writer(), Engine(lambda engine, batch: engine.fire_event(IterationEvents.LOSS_COMPLETED))
    engine.register_events(*IterationEvents)
    engine.state.views = views
    ViewPanels(writer, interval=1, **settings).attach(engine)
    engine.run([0])
    return {title: origins for title, origins in writer.origins.items() if title}


@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_are_upright_in_tensorboard_grey_ones_too(channels):
    origins = _origins(channels, photographs=True)
    assert list(origins) == ["labeled: label", "prediction", "weak: pseudo-label", "strong_1", "strong_2"]
    assert set.union(*origins.values()) == {"upper"}


def test_slices_of_volumes_go_upwards():
    assert set.union(*_origins(1).values()) == {"lower"}


@pytest.mark.parametrize("name", BUNDLES)
def test_bundles_say_which_patches_are_of_photographs(name):
    parser = ConfigParser()
    parser.read_config(BUNDLES[name].configs / "train.yaml")
    (place,) = [i for i, h in enumerate(parser["train::handlers"]) if h["_target_"] == "custom.handlers.ViewPanels"]
    assert parser.get_parsed_content(f"train::handlers::{place}::photographs") == (name == "crossmatch_isic")
