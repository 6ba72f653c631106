"""The step in the order of the original code, to compare with: what it computes, not how it is written.

Four passes: the partners' weak view clean, and once more behind the labeled patches with perturbed features, both
without gradient; labeled with weak; both strong views. CutMix and Dice pick their voxels with boolean masks, and every
term of the loss takes a softmax of its own. float32, memory as it comes. The original's newest commit makes the first
two passes in eval mode; here they are in train mode, as for its author's best figures. See the table of departures in
the bundles' cards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from custom.losses import PAIRS, CrossMatchLoss, Pair
from custom.perturbations import CutMix
from custom.trainer import FIRST_PASS, SECOND_PASS


class _Teacher(NamedTuple):
    """Class indices and confidence of a prediction, BH[WD]."""

    label: torch.Tensor
    confidence: torch.Tensor


class OriginalStep:
    """A training step on one batch.

    Args:
        network: :class:`custom.networks.PerturbedNetwork` with two feature dropouts.
        loss: whose weights and smoothing are used.
        optimizer: of the network.
        cutmix: draws the boxes.
        threshold: of the pseudo-labels.
    """

    def __init__(
        self,
        network: nn.Module,
        loss: CrossMatchLoss,
        optimizer: torch.optim.Optimizer,
        cutmix: CutMix,
        threshold: float,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.cutmix = cutmix
        self.threshold = threshold

    def __call__(self, labeled: Mapping[str, torch.Tensor], unlabeled: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Make a step with as many labeled as unlabeled patches; those in reverse order stand for the partners."""
        self.network.train()
        partner = {name: view.flip(0) for name, view in unlabeled.items()}
        size, device = unlabeled["image"].shape, labeled["image"].device
        boxes = {k: self.cutmix.sample(size[0], size[2:]).to(device) for k in (1, 2)}

        with torch.no_grad():
            partners = {"weak": self.network(partner["image"])}
            decoded = self._decode(FIRST_PASS, labeled["image"], partner["image"])
            partners |= {name: decoded[name] for name in ("weak_fw", "weak_fs")}
        strong = [_cutmix(boxes[k], unlabeled[f"strong_{k}"], partner[f"strong_{k}"]) for k in (1, 2)]
        logits = self._decode(FIRST_PASS, labeled["image"], unlabeled["image"]) | self._decode(SECOND_PASS, *strong)

        loss = self.loss_of(logits, labeled["label"], partners, boxes)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _decode(self, names: tuple[str, ...], first: torch.Tensor, second: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.network(torch.cat([first, second]), num_perturbed=len(second))
        return dict(zip(names, logits.chunk(len(names)), strict=True))

    def loss_of(
        self,
        logits: Mapping[str, torch.Tensor],
        label: torch.Tensor,
        partners: Mapping[str, torch.Tensor],
        boxes: Mapping[int, torch.Tensor],
    ) -> torch.Tensor:
        """Compute the total.

        Args:
            logits: by name, each BNH[WD].
            label: of the labeled patches, B1H[WD].
            partners: logits of the partners by the teachers' names, each BNH[WD].
            boxes: CutMix mask of each strong view, B1H[WD], by its number.
        """
        label = label.squeeze(1).long()
        everywhere = torch.ones_like(label, dtype=torch.bool)
        supervised = (cross_entropy(logits["labeled"], label) + self._dice(logits["labeled"], label, everywhere)) / 2
        teachers = {name: _teacher(logits[name].detach()) for name in partners}
        others = {name: _teacher(value) for name, value in partners.items()}

        def term(pair: Pair) -> torch.Tensor:
            teacher = teachers[pair.teacher]
            if pair.box is not None:
                mixed = zip(teacher, others[pair.teacher], strict=True)
                teacher = _Teacher(*(_cutmix(boxes[pair.box].squeeze(1), a, b) for a, b in mixed))
            return self._dice(logits[pair.student], teacher.label, teacher.confidence >= self.threshold)

        mean = {group: torch.stack([term(pair) for pair in pairs]).mean() for group, pairs in PAIRS.items()}
        weights = self.loss.term_weights
        return weights["supervised"] * supervised + sum(weights[group] * value for group, value in mean.items())

    def _dice(self, logits: torch.Tensor, label: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        probs, smooth = logits.softmax(1), self.loss.dice["smooth"]
        first = 0 if self.loss.dice["include_background"] else 1
        truth = one_hot(label, probs.shape[1]).movedim(-1, 1).float()
        terms = []
        for index in range(first, probs.shape[1]):
            found, true = probs[:, index][kept], truth[:, index][kept]
            overlap, size = (found * true).sum(), (found * found).sum() + (true * true).sum()
            terms.append(1 - (2 * overlap + smooth) / (size + smooth))
        return torch.stack(terms).mean()


def _teacher(logits: torch.Tensor) -> _Teacher:
    return _Teacher(logits.argmax(1), logits.softmax(1).amax(1))


def _cutmix(mask: torch.Tensor, base: torch.Tensor, partner: torch.Tensor) -> torch.Tensor:
    mask, mixed = mask.expand_as(base), base.clone()
    mixed[mask] = partner[mask]
    return mixed
