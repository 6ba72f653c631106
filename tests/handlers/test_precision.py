"""On a processor that computes in bfloat16: what it computes wrong, or slowly, is computed in float32."""

import re

import pytest
import torch

from custom.data.loading import Unreadable
from custom.handlers.precision import PrecisionCheck
from custom.inference import ScanEvaluator, SlidingWindowProbabilities
from custom.losses import CrossMatchLoss
from custom.networks import UNet, VNet
from custom.perturbations import CutMix
from custom.trainer import CrossMatchTrainer
from custom.utils.device import MixedPrecision

pytestmark = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 on this processor")
SIZE = (16, 16)
WEIGHTS = {"supervised": 0.5, "image_perturbation": 0.25, "distillation": 0.5}


class _Fine(UNet):
    """A network that is faster in bfloat16, since it computes less there."""

    slow_type = torch.float32

    def __init__(self):
        super().__init__(out_channels=2, base_filters=2)

    def decode(self, features):
        low = torch.is_autocast_enabled("cpu")
        if low == (self.slow_type == torch.bfloat16):
            work = torch.ones(800, 800)
            for _ in range(10):
                work @ work
        return super().decode(features)


class _Slow(_Fine):
    slow_type = torch.bfloat16


class _Wrong(_Fine):
    """A network that subtracts large numbers, of which bfloat16 keeps eight bits."""

    def decode(self, features):
        return super().decode(features) + 1000 - 1000


def _network(kind) -> UNet:
    torch.manual_seed(0)
    return kind()


def _segment(network, amp=True, handlers=(), before=()) -> torch.Tensor:
    inferer = SlidingWindowProbabilities(SIZE, SIZE, amp=amp)
    image = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    scans = [*before, {"image": image}]
    evaluator = ScanEvaluator("cpu", scans, network, inferer=inferer, decollate=False, val_handlers=list(handlers))
    evaluator.run()
    return evaluator.state.output["pred"]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_Wrong, r"amp: bfloat16 computes the result of a patch wrong here, computing in float32."),
        (_Slow, r"amp: bfloat16 takes \d+\.\d\d times as long as float32 on a patch, computing in float32."),
        (_Fine, None),
    ],
)
def test_segmenting_takes_float32_where_bfloat16_is_wrong_or_slower(kind, message, caplog):
    network = _network(kind)
    low, full = (_segment(network, amp=amp) for amp in (True, False))
    assert not torch.equal(low, full)
    checked = _segment(network, handlers=[PrecisionCheck()])
    assert torch.equal(checked, low if message is None else full)
    assert len(caplog.messages) == (message is not None)
    if message is not None:
        assert re.fullmatch(message, caplog.messages[0])


def test_the_first_scan_that_can_be_read_is_looked_at():
    network = _network(_Wrong)
    checked = _segment(network, handlers=[PrecisionCheck()], before=[Unreadable("a.nii.gz: cannot be read.")])
    assert torch.equal(checked, _segment(network, amp=False))


def _trainer(network, check: PrecisionCheck, amp: bool = True) -> CrossMatchTrainer:
    torch.manual_seed(2)
    image = torch.randn(2, 1, *SIZE)
    stream = {"image": image, "label": (image > 0).float()}
    trainer = CrossMatchTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"labeled": stream}] * 2,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=CrossMatchLoss(WEIGHTS),
        cutmix=CutMix(),
        amp=amp,
    )
    check.attach(trainer)
    return trainer


@pytest.mark.parametrize(("kind", "expected"), [(_Wrong, torch.float32), (_Slow, torch.bfloat16)])
def test_training_takes_float32_only_where_bfloat16_is_wrong(kind, expected, caplog):
    network = _network(kind)
    check = PrecisionCheck(network)
    trainer = _trainer(network, check)
    trainer.run()
    assert trainer.mixed_precision.dtype == expected
    assert check.state_dict() == {"fell_back": expected == torch.float32}
    assert len(caplog.messages) == 1
    twin = _network(kind)
    _trainer(twin, PrecisionCheck(), amp=expected == torch.bfloat16).run()
    assert network.training
    assert all(torch.equal(mine, other) for mine, other in zip(network.parameters(), twin.parameters(), strict=True))


class _WrongGradient(torch.autograd.Function):
    """The gradient of another function."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient.flip(-1) * 3


class _LearnsWrong(_Fine):
    def decode(self, features):
        logits = super().decode(features)
        return _WrongGradient.apply(logits) if torch.is_autocast_enabled("cpu") else logits


def test_training_takes_float32_where_only_the_gradient_is_wrong(caplog):
    network = _network(_LearnsWrong)
    trainer = _trainer(network, PrecisionCheck(network))
    trainer.run()
    assert trainer.mixed_precision.dtype == torch.float32
    assert caplog.messages == ["amp: bfloat16 computes the gradient of a patch wrong here, computing in float32."]


def test_training_goes_on_in_the_type_that_it_had():
    network = _network(_Fine)
    check = PrecisionCheck(network)
    check.load_state_dict({"fell_back": True})
    trainer = _trainer(network, check)
    trainer.run()
    assert trainer.mixed_precision.dtype == torch.float32


def test_validation_computes_in_the_type_of_training():
    inferer = SlidingWindowProbabilities(SIZE, SIZE, amp=True)
    network = _network(_Wrong)
    validator = ScanEvaluator("cpu", [], network, inferer=inferer)
    _trainer(network, PrecisionCheck(network, validator)).run()
    assert not inferer.amp


def test_nothing_is_compared_in_float32(caplog):
    network = _network(_Wrong)
    check = PrecisionCheck(network)
    _trainer(network, check, amp=False).run()
    _segment(_network(_Wrong), amp=False, handlers=[check])
    assert not check.fell_back
    assert caplog.messages == []


def _adds_to_what_is_in_memory() -> bool:
    """Whether this processor and this PyTorch have the error of small maps that the handler tells of."""
    layer, maps = torch.nn.Conv3d(16, 16, 3, padding=1), torch.randn(1, 16, 2, 2, 2)
    gradients = []
    for low in (False, *[True] * 8):
        for _ in range(3):
            torch.full((10**6,), 1e30)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            gradients += torch.autograd.grad(layer(maps).float().square().sum(), [layer.weight])
    return not all(torch.allclose(gradients[0], gradient, rtol=0.5, atol=10) for gradient in gradients)


def test_an_error_of_this_processor_is_found():
    if not _adds_to_what_is_in_memory():
        pytest.skip("this processor, or this PyTorch, computes small maps right")
    torch.manual_seed(0)
    found = MixedPrecision("cpu", enabled=True).compare(VNet(), torch.randn(1, 1, 32, 32, 32), gradients=True)
    assert found.error < 0.1
    assert found.is_wrong
