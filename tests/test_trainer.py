import weakref
from functools import partial

import pytest
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents

from custom.handlers.guards import SizeAdvice
from custom.handlers.schedule import SigmoidRampUp
from custom.losses import STUDENTS, TEACHERS, CrossMatchLoss, mix_teachers, pseudo_label
from custom.networks import VNet
from custom.perturbations import CutMix, paste
from custom.trainer import FIRST_PASS, SECOND_PASS, CrossMatchTrainer
from custom.utils.errors import UserError
from custom.utils.randomness import derived_seed

WEIGHTS = {"supervised": 0.5, "image_perturbation": 0.25, "distillation": 0.5}
SIZE = (16, 16, 16)


def _stream(batch_size: int, *names: str) -> dict[str, torch.Tensor]:
    stream = {name: torch.randn(batch_size, 1, *SIZE) for name in names}
    if "label" in stream:
        stream["label"] = (stream["image"] > 0).float()
    return stream


def _batch(labeled: int = 1, unlabeled: int = 3) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        "labeled": _stream(labeled, "image", "label"),
        "unlabeled": _stream(unlabeled, "image", "strong_1", "strong_2"),
    }


def _trainer(batches, **arguments) -> CrossMatchTrainer:
    torch.manual_seed(1)
    network = arguments.pop("network", None) or VNet(base_filters=2)
    threshold = arguments.pop("threshold", 0.0)
    defaults = {
        "max_epochs": 1,
        "optimizer": torch.optim.SGD(network.parameters(), lr=0.1),
        "loss_function": CrossMatchLoss(WEIGHTS),
    }
    trainer = CrossMatchTrainer(
        device="cpu", train_data_loader=batches, network=network, cutmix=CutMix(), **defaults | arguments
    )
    trainer.state.threshold = threshold
    return trainer


class _Recorder(VNet):
    """A V-Net that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(base_filters=2)
        self.calls: list[tuple[torch.Tensor, int]] = []

    def forward(self, image, num_perturbed=0):
        self.calls.append((image.detach().clone(), num_perturbed))
        return super().forward(image, num_perturbed)


def test_a_network_that_cannot_decode_perturbed_features_is_refused_before_the_first_step():
    network = torch.nn.Conv3d(1, 2, 1)
    with pytest.raises(UserError, match=r"network_def: Conv3d cannot .* docs/backbone.md"):
        _trainer([_batch()], network=network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss_function": torch.nn.CrossEntropyLoss()}, "loss: CrossEntropyLoss is not of pairs of predictions"),
        ({"network": VNet(base_filters=2, feature_dropout=(0.25,))}, r"feature_dropout: expected two, .* VNet has 1"),
        ({"optimizer": torch.optim.Adam(VNet(base_filters=2).parameters())}, "parameters that are not of the network"),
        ({"prepare_batch": print, "optim_set_to_none": True}, "prepare_batch, optim_set_to_none would have no effect"),
        ({"postprocessing": print}, "postprocessing would have no effect"),
    ],
)
def test_what_the_step_cannot_use_is_refused_before_it(arguments, message):
    with pytest.raises(UserError, match=message):
        _trainer([_batch()], **arguments)


def test_no_step_is_done_without_a_threshold():
    with pytest.raises(UserError, match=r"nothing has set the threshold .* train::method_handlers"):
        _trainer([_batch()], threshold=None).run()


def test_streams_may_have_different_batch_sizes():
    trainer = _trainer([_batch(labeled=1, unlabeled=3)])
    trainer.run()
    assert trainer.state.output["loss"].isfinite()


def test_a_step_changes_the_weights_and_reports_every_term():
    trainer = _trainer([_batch()])
    trainer.state.threshold = 0.6
    before = [parameter.clone() for parameter in trainer.network.parameters()]
    trainer.run()
    changed = [not torch.equal(a, b) for a, b in zip(before, trainer.network.parameters(), strict=True)]
    output = trainer.state.output
    assert any(changed)
    assert {"loss", "supervised", "strong_1_from_weak", "weak_fs_from_weak", "confident_share", "threshold"} <= set(
        output
    )
    assert output["threshold"].item() == pytest.approx(0.6)
    assert 0 < output["confident_share"].item() <= 1
    assert not any(value.requires_grad for value in output.values())


@pytest.mark.parametrize("threshold", [0.5, 0.6])
def test_the_shares_of_the_classes_are_those_of_the_confident_voxels(threshold):
    trainer, seen = _trainer([_batch()]), []
    trainer.state.threshold = threshold
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda engine: seen.append(engine.state.views["weak_logits"].softmax(1))
    )
    trainer.run()
    confidence, label = seen[0].max(1)
    for index in (0, 1):
        expected = ((label == index) & (confidence >= threshold)).float().mean().item()
        assert 0 < expected < 1
        assert trainer.state.output[f"confident_share_{index}"].item() == pytest.approx(expected)
    kept = (confidence >= threshold).float().mean().item()
    assert (kept < 1) == (threshold > 0.5)
    assert trainer.state.output["confident_share"].item() == pytest.approx(kept)


def test_weak_and_strong_views_go_through_the_network_in_passes_of_their_own():
    network, batch = _Recorder(), _batch(labeled=1, unlabeled=2)
    _trainer([batch], network=network).run()
    (first, perturbed_first), (second, perturbed_second) = network.calls
    assert torch.equal(first, torch.cat([batch["labeled"]["image"], batch["unlabeled"]["image"]]))
    assert (len(second), perturbed_first, perturbed_second) == (4, 2, 2)


def test_features_of_the_first_pass_are_gone_before_the_second():
    kept, alive = [], []

    class Saved:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor
            kept.append(weakref.ref(self))

    trainer = _trainer([_batch()])
    trainer.network.register_forward_pre_hook(lambda *_: alive.append(sum(saved() is not None for saved in kept)))
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        trainer.run()
    assert alive == [0, 0]
    assert len(kept) > 100


def test_two_passes_learn_what_one_backward_pass_through_both_does():
    torch.manual_seed(0)
    networks = [VNet(base_filters=2) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    batch = _batch(labeled=2, unlabeled=2)
    trainer = _trainer([batch], network=networks[0])
    trainer.state.threshold = 0.55
    trainer.run()

    torch.manual_seed(derived_seed(0, 99, 1, 0))
    boxes = {number: trainer.cutmix.sample(2, SIZE) for number in (1, 2)}
    labeled, unlabeled = batch["labeled"], batch["unlabeled"]
    strong = [
        paste(boxes[number], unlabeled[f"strong_{number}"], unlabeled[f"strong_{number}"].flip(0)) for number in boxes
    ]
    logits = {}
    for names, images in {FIRST_PASS: [labeled["image"], unlabeled["image"]], SECOND_PASS: strong}.items():
        logits |= dict(zip(names, networks[1].train()(torch.cat(images), num_perturbed=2).chunk(4), strict=True))
    teachers = {name: pseudo_label(logits[name], 0.55) for name in TEACHERS}
    pseudo_labels = mix_teachers(teachers, {name: value.flip(0) for name, value in teachers.items()}, boxes)
    terms = CrossMatchLoss(WEIGHTS)(logits, labeled["label"], pseudo_labels)
    terms["loss"].backward()

    assert any(box.any() for box in boxes.values())
    assert 0 < trainer.state.output["confident_share"] < 1
    for name, value in terms.items():
        torch.testing.assert_close(trainer.state.output[name], value.detach())
    largest = 0.0
    for found, expected in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        largest = max(largest, expected.grad.abs().max().item())
        torch.testing.assert_close(found.grad, expected.grad, atol=1e-6, rtol=1e-4)
    assert largest > 0.01


def test_both_passes_learn_at_one_scale_of_the_gradients():
    weights = []
    for enabled in (False, True):
        trainer = _trainer([_batch()])
        trainer.mixed_precision.scaler = torch.amp.GradScaler("cpu", init_scale=1024, enabled=enabled)
        trainer.run()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.network.parameters()]))
    torch.testing.assert_close(*weights)


@pytest.mark.parametrize("unlabeled", [True, False])
def test_handlers_are_told_of_the_step_when_gradients_are_there_and_weights_are_not_updated(unlabeled):
    trainer, seen = _trainer([_batch(labeled=2) if unlabeled else {"labeled": _batch(labeled=2)["labeled"]}]), []
    head = trainer.network.head.weight
    before = head.detach().clone()
    for event in IterationEvents:
        trainer.add_event_handler(
            event, lambda _, name: seen.append((name, head.grad is not None, torch.equal(head, before))), event.name
        )
    trainer.run()
    told = [(name, True, True) for name in ("FORWARD_COMPLETED", "LOSS_COMPLETED", "BACKWARD_COMPLETED")]
    assert seen == [*told, ("MODEL_COMPLETED", True, False)]


def test_the_step_predicts_every_teacher_in_its_first_pass_and_every_student_in_either():
    assert set(TEACHERS) <= set(FIRST_PASS)
    assert set(STUDENTS) <= {*FIRST_PASS, *SECOND_PASS}


def test_strong_views_are_cutmixed_with_the_partner_s_same_view():
    network, batch = _Recorder(), _batch(unlabeled=2)
    trainer = _trainer([batch], network=network)
    trainer.cutmix = CutMix(prob=1.0)
    trainer.run()
    strong = network.calls[1][0].split(2)
    for number, mixed in enumerate(strong, start=1):
        own = batch["unlabeled"][f"strong_{number}"]
        partner = own.flip(0)  # of two patches, the other one
        assert torch.all((mixed == own) | (mixed == partner))
        assert (mixed == partner).any()
        assert (mixed == own).any()


def test_without_unlabeled_data_the_step_is_supervised():
    network = _Recorder()
    trainer = _trainer([{"labeled": _batch(labeled=2)["labeled"]}], network=network)
    trainer.run()
    assert [perturbed for _, perturbed in network.calls] == [0]
    assert sorted(trainer.state.output) == ["loss", "supervised"]


def test_zero_unsupervised_weight_saves_the_unlabeled_passes():
    network = _Recorder()
    trainer = _trainer([_batch(labeled=2)], network=network)
    trainer.state.unsupervised_weight = 0.0
    trainer.run()
    assert len(network.calls) == 1


def test_the_loss_is_one_function_of_its_weights_on_both_sides_of_the_end_of_a_delay():
    trainer = _trainer([_batch(2, 2)] * 4)
    SigmoidRampUp("unsupervised_weight", {"start": 0.0, "end": 1.0, "delay": 2, "rampup_iterations": 2}).attach(trainer)
    steps = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: steps.append((engine.state.unsupervised_weight, engine.state.output)),
    )
    trainer.run()
    assert [weight > 0 for weight, _ in steps] == [False, False, True, True]
    for weight, terms in steps:
        distillation = 0.7 * terms.get("teacher_distillation", 0) + 0.3 * terms.get("decoder_distillation", 0)
        unsupervised = 0.25 * terms.get("image_perturbation", 0) + 0.5 * distillation
        assert terms["loss"].item() == pytest.approx(float(0.5 * terms["supervised"] + weight * unsupervised))


@pytest.mark.parametrize(("max_iterations", "expected"), [(4, 4), (3, 3), (None, 6), (9, 6)])
def test_training_stops_at_max_iterations_even_within_an_epoch(max_iterations, expected):
    trainer = _trainer([_batch(1, 2)] * 2, max_epochs=3, max_iterations=max_iterations)
    completed = []
    trainer.add_event_handler(Events.COMPLETED, completed.append)
    trainer.run()
    assert trainer.state.iteration == expected
    assert completed == [trainer]  # what waits for the end, such as batch-norm recalibration, runs


def test_16_bit_training_gives_about_the_same_loss():
    losses = []
    for amp in (False, True):
        trainer = _trainer([_batch()], amp=amp)
        trainer.mixed_precision.dtype = torch.bfloat16 if amp else torch.float32  # also where it is not fast
        trainer.run()
        losses.append(trainer.state.output["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]


@pytest.mark.slow
def test_compiled_training_gives_the_same_loss_and_keeps_the_names_of_the_weights(monkeypatch):
    """Over a supervised and a CrossMatch step, with dropout off, which compiled networks draw in their own way.

    Traced and differentiated, but run without generated code: what that computes, test_distributed.py compares.
    """
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    losses = []
    for compiled in (False, True):
        torch.manual_seed(0)
        network = VNet(base_filters=2, dropout=0.0, feature_dropout=[0.0, 0.0])
        supervised = {"labeled": _stream(2, "image", "label")}
        trainer = _trainer([supervised, _batch(2, 2)], network=network, compile=compiled)
        trainer.run()
        losses.append(trainer.state.output["loss"].item())
        assert list(trainer.network.state_dict()) == list(VNet(base_filters=2).state_dict())
    assert trainer.predictor is not trainer.network
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_errors_end_a_training_whatever_its_handlers_do():
    batch = _batch()
    del batch["unlabeled"]["strong_1"]
    trainer = _trainer([batch], train_handlers=[SizeAdvice(SIZE, 2, 2)])
    with pytest.raises(KeyError, match="strong_1"):
        trainer.run()


def test_a_batch_too_small_for_batch_norm_is_told_with_what_to_change():
    trainer = _trainer([{"labeled": _stream(1, "image", "label")}], train_handlers=[SizeAdvice(SIZE, 1, 1)])
    with pytest.raises(UserError, match=r"iteration 1: batch norm needs more than one value.*give --batch_size 2,"):
        trainer.run()
