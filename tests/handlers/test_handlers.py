import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.networks.nets import BasicUNet

from custom.handlers.batch_norm import BatchNormRecalibration
from custom.handlers.best_weights import WeightsCheckpointLoader
from custom.handlers.progress import ProgressBar
from custom.handlers.schedule import SigmoidRampUp
from custom.networks import VNet
from custom.utils.errors import UserError

ORIGINAL = {"start": 0.75 * math.log(2), "end": math.log(2), "rampup_iterations": 17000}


@pytest.mark.parametrize("iteration", [0, 1000, 14000, 17000, 20000])
def test_threshold_follows_the_original_formula(iteration):
    t = min(iteration, 17000)
    expected = (0.75 + 0.25 * math.exp(-5 * (1 - t / 17000) ** 2)) * math.log(2)
    assert SigmoidRampUp("threshold", ORIGINAL).value_at(iteration) == pytest.approx(expected)


def test_a_number_is_held():
    assert SigmoidRampUp("threshold", 0.95).value_at(0) == SigmoidRampUp("threshold", 0.95).value_at(10**6) == 0.95


def test_delay_keeps_the_start_value():
    ramp = SigmoidRampUp("unsupervised_weight", {"start": 0.0, "end": 1.0, "delay": 10, "rampup_iterations": 5})
    assert [ramp.value_at(t) for t in (0, 9)] == [0, 0]
    assert 0 < ramp.value_at(10) < ramp.value_at(14) < 1
    assert ramp.value_at(15) == 1


def test_the_first_iteration_is_time_zero():
    seen = []
    engine = Engine(lambda engine, batch: seen.append(engine.state.threshold))
    SigmoidRampUp("threshold", {"start": 0, "end": 1, "rampup_iterations": 1}).attach(engine)
    engine.run([0, 0, 0])
    assert seen == [pytest.approx(math.exp(-5)), 1, 1]


@pytest.mark.parametrize("value", [{"start": 0, "end": 1}, {"start": 0, "end": 1, "rampup_iterations": 1, "warm": 1}])
def test_ramp_with_wrong_keys_is_refused(value):
    with pytest.raises(ValueError, match="threshold must be a number or give start, end, rampup_iterations"):
        SigmoidRampUp("threshold", value)


def test_ramp_of_negative_length_is_refused():
    with pytest.raises(ValueError, match="must not be negative"):
        SigmoidRampUp("threshold", {"start": 0, "end": 1, "rampup_iterations": -1})


def _trainer(network):
    """An engine that trains on shifted images, as perturbed views are."""

    def step(engine, batch):
        with torch.no_grad():
            network.train()(batch["labeled"]["image"] * 3 + 5)

    engine = Engine(step)
    engine.state.device = torch.device("cpu")
    return engine


def _batches():
    torch.manual_seed(0)
    return [{"labeled": {"image": torch.randn(2, 1, 16, 16, 16)}} for _ in range(4)]


def test_recalibrated_statistics_are_those_of_clean_images():
    network, batches = VNet(base_filters=2), _batches()
    engine = _trainer(network)
    BatchNormRecalibration(network, num_batches=4).attach(engine)
    engine.run(batches)
    images = torch.cat([batch["labeled"]["image"] for batch in batches])
    features = network.encoder[0][0](images)
    torch.testing.assert_close(network.encoder[0][1].running_mean, features.mean((0, 2, 3, 4)))


def test_training_goes_on_with_its_own_statistics_after_validation():
    network = VNet(base_filters=2)
    trainer, validator = _trainer(network), Engine(lambda engine, batch: None)
    validator.state.device = torch.device("cpu")
    means = []
    norm = network.encoder[0][1]
    BatchNormRecalibration(network, num_batches=2, validator=validator).attach(trainer)
    validator.add_event_handler(Events.ITERATION_COMPLETED, lambda _: means.append(norm.running_mean.clone()))

    def validate(engine):
        before = norm.running_mean.clone()
        validator.run([0])
        assert torch.equal(norm.running_mean, before)
        assert not torch.equal(means[-1], before)
        assert norm.momentum == 0.1
        assert network.training

    trainer.add_event_handler(Events.ITERATION_COMPLETED, validate)
    trainer.run(_batches())
    assert len(means) == 4


def test_recalibration_of_zero_batches_changes_nothing():
    network, twin = VNet(base_filters=2), VNet(base_filters=2)
    twin.load_state_dict(network.state_dict())
    for net, recalibrate in ((network, True), (twin, False)):
        engine = _trainer(net)
        if recalibrate:
            BatchNormRecalibration(net, num_batches=0).attach(engine)
        torch.manual_seed(1)
        engine.run(_batches())
    assert all(torch.equal(a, b) for a, b in zip(network.buffers(), twin.buffers(), strict=True))


def test_progress_bar_shows_the_scalars(capsys):
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(0.25)})
    ProgressBar("Training", ["loss", "absent"], total=2).attach(engine)
    engine.run([0, 0])
    shown = capsys.readouterr().err
    assert "Training: 100%" in shown
    assert "loss=0.250" in shown
    assert "absent" not in shown


def test_progress_bar_lets_errors_through():
    def fail(engine, batch):
        raise RuntimeError("broken step")

    engine = Engine(fail)
    ProgressBar("Training").attach(engine)
    with pytest.raises(RuntimeError, match="broken step"):
        engine.run([0])


def test_progress_bar_lets_the_error_of_a_handler_before_it_through():
    engine = Engine(lambda engine, batch: None)

    @engine.on(Events.STARTED)
    def fail():
        raise RuntimeError("broken start")

    ProgressBar("Training").attach(engine)
    with pytest.raises(RuntimeError, match="broken start"):
        engine.run([0])


def _load(path, network):
    engine = Engine(lambda engine, batch: None)
    WeightsCheckpointLoader(load_path=str(path), load_dict={"model": network}).attach(engine)
    engine.run([0])
    return engine


def test_the_engine_computes_without_batch_norm_and_the_network_keeps_its_own(tmp_path):
    torch.manual_seed(0)
    source, target = VNet(base_filters=2), VNet(base_filters=2)
    _trainer(source).run(_batches())
    torch.save(source.state_dict(), tmp_path / "model.pt")
    names = list(target.state_dict())
    computing = _load(tmp_path / "model.pt", target).network
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in computing.modules())
    assert list(target.state_dict()) == names
    image = torch.randn(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(computing(image), source.eval()(image), rtol=0, atol=1e-5)


def test_weights_are_loaded(tmp_path):
    source, target = VNet(base_filters=2), VNet(base_filters=2)
    torch.save(source.state_dict(), tmp_path / "model.pt")
    _load(tmp_path / "model.pt", target)
    assert torch.equal(source.head.weight, target.head.weight)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(UserError, match=r"model.pt: no such weights; train first, or set --ckpt_path"):
        _load(tmp_path / "model.pt", VNet(base_filters=2))


def test_truncated_weights_are_named(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match=r"model.pt: cannot be read, probably truncated or not PyTorch weights \("):
        _load(tmp_path / "model.pt", VNet(base_filters=2))


def test_weights_of_another_width_or_network_say_where_they_differ(tmp_path):
    torch.save(VNet(base_filters=4).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(UserError, match=r"(?s)quick.yaml:.*encoder.0.0.weight: expected \(2, 1, 3, 3, 3\), found \(4,"):
        _load(tmp_path / "wide.pt", VNet(base_filters=2))
    torch.save(BasicUNet(features=[2] * 6).state_dict(), tmp_path / "unet.pt")
    with pytest.raises(UserError, match=r"encoder.0.0.weight: expected \(2, 1, 3, 3, 3\), found nothing"):
        _load(tmp_path / "unet.pt", VNet(base_filters=2))
