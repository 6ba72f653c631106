"""Our numbers against those of the original implementation, stored in golden files.

``CROSSMATCH_GOLDEN`` may name another folder with files of the same kinds. Every file in the folder must be understood.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.original_order import OriginalStep
from custom.losses import PAIRS, CrossMatchLoss, mix_teachers, pseudo_label
from custom.networks import UNet, VNet
from tools.convert_weights import convert

GOLDEN = Path(os.environ.get("CROSSMATCH_GOLDEN") or Path(__file__).parent / "golden")

LOGITS = {
    "labeled": "labeled",
    "weak": "unlabeled",
    "weak_fw": "unlabeled_weak",
    "weak_fs": "unlabeled_strong",
    "strong_1": "strong1",
    "strong_2": "strong2",
    "strong_2_fw": "strong2_weak",
    "strong_2_fs": "strong2_strong",
}
TERMS = {
    "supervised": "supervised",
    "strong_1_from_weak": "image_strong1",
    "strong_2_from_weak": "image_strong2",
    "weak_fw_from_weak": "teacher_to_unlabeled_weak",
    "weak_fs_from_weak": "teacher_to_unlabeled_strong",
    "strong_2_fw_from_weak": "teacher_to_strong2_weak",
    "strong_2_fs_from_weak": "teacher_to_strong2_strong",
    "strong_2_fw_from_weak_fw": "weak_to_strong2_weak",
    "strong_2_fs_from_weak_fs": "strong_to_strong2_strong",
    "teacher_distillation": "teacher_distillation",
    "decoder_distillation": "decoder_distillation",
    "loss": "total",
}
# method of each original code: LA `(L_sup + 0.5 L_ip + K) / 2`, ACDC `(L_sup + 0.5 L_ip + 0.5 K) / 2`
LOSSES = {
    "la": {"distillation": 0.5, "include_background": False, "smooth": 1e-5},
    "acdc": {"distillation": 0.25, "include_background": True, "smooth": 1e-4},
}


def _files(pattern: str) -> list[Path]:
    return sorted(GOLDEN.glob(pattern))


def test_every_golden_file_is_understood():
    known = {path.name for path in _files("*vnet*.pt") + _files("*unet*.pt") + _files("*loss*.npz")}
    assert known, f"no golden files in {GOLDEN}"
    assert {path.name for path in GOLDEN.iterdir() if path.suffix in (".pt", ".npz")} == known


NETWORKS = {"vnet": VNet, "unet": UNet}


@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in NETWORKS for path in _files(f"*{kind}*.pt")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_converted_weights_give_the_logits_of_the_original(kind: str, path: Path):
    golden = torch.load(path, weights_only=True)
    network = convert(golden["state_dict"])
    assert isinstance(network, NETWORKS[kind])
    with torch.no_grad():
        logits = golden["logits"]
        difference = (network(golden["input"]) - logits).abs().max()
    assert difference <= 1e-5 * (logits.max() - logits.min())


class GoldenLoss(NamedTuple):
    """A golden file of the loss: what goes in, and what every term must be."""

    loss: CrossMatchLoss
    threshold: float
    logits: dict[str, torch.Tensor]
    partners: dict[str, torch.Tensor]
    label: torch.Tensor
    boxes: dict[int, torch.Tensor]
    expected: dict[str, float]


def _read_loss(path: Path) -> GoldenLoss:
    golden = {name: torch.as_tensor(value) for name, value in np.load(path, allow_pickle=False).items()}
    settings = dict(LOSSES["la" if golden["logits_labeled"].shape[1] == 2 else "acdc"])
    weights = {"supervised": 0.5, "image_perturbation": 0.25, "distillation": settings.pop("distillation")}
    mix = {"weak": "mix", "weak_fw": "mix_weak", "weak_fs": "mix_strong"}
    return GoldenLoss(
        CrossMatchLoss(weights, golden["eta"].item(), **settings),
        golden["threshold"].item(),
        {ours: golden[f"logits_{theirs}"] for ours, theirs in LOGITS.items()},
        {ours: golden[f"logits_{theirs}"] for ours, theirs in mix.items()},
        golden["label"][:, None],
        {number: golden[f"box{number}"][:, None].bool() for number in (1, 2)},
        {ours: golden[f"expected_{theirs}"].item() for ours, theirs in TERMS.items()},
    )


GOLDEN_LOSSES = pytest.mark.parametrize("path", _files("*loss*.npz"), ids=lambda path: path.stem)


@GOLDEN_LOSSES
def test_every_loss_term_is_that_of_the_original(path: Path):
    golden = _read_loss(path)
    names = {pair.teacher for pairs in PAIRS.values() for pair in pairs}
    teachers, partners = (
        {name: pseudo_label(logits[name], golden.threshold) for name in names}
        for logits in (golden.logits, golden.partners)
    )
    terms = golden.loss(golden.logits, golden.label, mix_teachers(teachers, partners, golden.boxes))
    for name, value in golden.expected.items():
        assert terms[name].item() == pytest.approx(value, abs=1e-6), name


@GOLDEN_LOSSES
def test_what_we_time_ourselves_against_has_the_loss_of_the_original(path: Path):
    golden = _read_loss(path)
    step = OriginalStep(nn.Identity(), golden.loss, None, None, golden.threshold)
    loss = step.loss_of(golden.logits, golden.label, golden.partners, golden.boxes)
    assert loss.item() == pytest.approx(golden.expected["loss"], abs=1e-6)
