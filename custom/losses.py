"""The CrossMatch loss as a table of student-teacher pairs (Zhao et al., doi:10.1109/JBHI.2024.3463711).

``L = w_sup L_sup + u (w_ip L_ip + w_kd ((1 - eta) L_tkd + eta L_dkd))``; each group is the mean over its pairs of a
Dice loss between a student's softmax and a teacher's pseudo-label. ``u`` is the unsupervised weight, which may follow a
schedule; the supervised part has the same factor throughout, also while ``u`` is 0. Weights differ between the paper
and the two original codes; each bundle's config says which it takes.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from .perturbations import paste
from .utils.distributed import all_reduce_mean, all_reduce_sum
from .utils.errors import UserError

#: Label of the voxels that a loss leaves out.
IGNORE_INDEX = 255


class Pair(NamedTuple):
    """A student learns from a teacher.

    ``box`` is the strong view (1 or 2) whose CutMix box was pasted into the teacher. Suffix ``_fw`` is a decoding
    under weak, ``_fs`` under strong feature dropout.
    """

    student: str
    teacher: str
    box: int | None = None

    @property
    def name(self) -> str:
        """How the pair's term is logged, such as ``strong_1_from_weak``."""
        return f"{self.student}_from_{self.teacher}"


#: Who learns from whom. Names are those of :mod:`custom.trainer`; teachers are predictions of its first pass.
PAIRS: dict[str, tuple[Pair, ...]] = {
    "image_perturbation": (
        Pair("strong_1", "weak", box=1),
        Pair("strong_2", "weak", box=2),
    ),
    "teacher_distillation": (
        Pair("weak_fw", "weak"),
        Pair("weak_fs", "weak"),
        Pair("strong_2_fw", "weak", box=2),
        Pair("strong_2_fs", "weak", box=2),
    ),
    "decoder_distillation": (
        Pair("strong_2_fw", "weak_fw", box=2),
        Pair("strong_2_fs", "weak_fs", box=2),
    ),
}
#: Predictions that learn from pseudo-labels, and those that pseudo-labels are made of.
STUDENTS = sorted({pair.student for pairs in PAIRS.values() for pair in pairs})
TEACHERS = sorted({pair.teacher for pairs in PAIRS.values() for pair in pairs})


@torch.no_grad()
def pseudo_label(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """Turn a teacher's logits into class indices where it is confident.

    Args:
        logits: BNH[WD].
        threshold: softmax probability in [0, 1]; a voxel is kept where the largest softmax value reaches it.

    Returns:
        Class indices, B1H[WD], ``uint8``, :data:`IGNORE_INDEX` where the teacher is not confident.
    """
    confidence, label = logits.float().softmax(1).max(1, keepdim=True)
    return label.to(torch.uint8).masked_fill_(confidence < threshold, IGNORE_INDEX)


def mix_teachers(
    teachers: Mapping[str, torch.Tensor], partners: Mapping[str, torch.Tensor], boxes: Mapping[int, torch.Tensor]
) -> dict[tuple[str, int | None], torch.Tensor]:
    """Paste the partners' pseudo-labels into the teachers', wherever :data:`PAIRS` asks for it.

    Args:
        teachers: pseudo-labels by name, each B1H[WD].
        partners: the same names for the partner patches.
        boxes: CutMix mask of each strong view, B1H[WD], by its number.

    Returns:
        Pseudo-labels by (teacher, box).
    """
    wanted = {(pair.teacher, pair.box) for pairs in PAIRS.values() for pair in pairs}
    return {
        (name, box): teachers[name] if box is None else paste(boxes[box], teachers[name], partners[name])
        for name, box in wanted
    }


def dice_loss(
    probs: torch.Tensor, label: torch.Tensor, include_background: bool = True, smooth: float = 1e-5
) -> torch.Tensor:
    """Dice loss with squared denominator, sums over the batch, mean over classes; ignored voxels left out.

    It is MONAI's ``DiceLoss(squared_pred=True, batch=True, smooth_nr=smooth, smooth_dr=smooth, ignore_index=255)``,
    except that the batch is that of all processes that train together, and probabilities are given.

    Args:
        probs: softmax, BNH[WD].
        label: class indices, B1H[WD], :data:`IGNORE_INDEX` where a voxel is left out.
        include_background: whether the mean is over class 0 too.
        smooth: added to numerator and denominator.
    """
    first = 0 if include_background else 1
    probs = probs[:, first:]
    classes = torch.arange(first, first + probs.shape[1], device=label.device).view(1, -1, *[1] * (probs.ndim - 2))
    is_class = label == classes
    axes = [0, *range(2, probs.ndim)]
    overlap = (probs * is_class).sum(axes)
    predicted = (probs.square() * (label != IGNORE_INDEX)).sum(axes)
    true = is_class.sum(axes)
    overlap, predicted, true = all_reduce_sum(torch.stack([overlap, predicted, true.to(probs.dtype)]))
    return (1 - (2 * overlap + smooth) / (predicted + true + smooth)).mean()


class CrossMatchLoss(nn.Module):
    """Supervised loss plus Dice to pseudo-labels, pair by pair.

    Processes that train together get the same loss, that of their batches put together.

    Args:
        weights: ``supervised``, ``image_perturbation`` and ``distillation``, all not negative.
        eta: share in [0, 1] of decoder distillation within the distillation; the rest is teacher distillation.
        include_background: whether Dice averages over the background class too.
        smooth: added to numerator and denominator of Dice.
        pair_weights: of pairs within their group, by :attr:`Pair.name`, 1 unless given; a group is their weighted mean,
            and 0 when all of its pairs have the weight 0.

    Raises:
        UserError: when a weight is missing, unknown or negative, or ``eta`` lies outside [0, 1].
    """

    _weight_names = ("supervised", "image_perturbation", "distillation")

    def __init__(
        self,
        weights: Mapping[str, float],
        eta: float = 0.3,
        include_background: bool = False,
        smooth: float = 1e-5,
        pair_weights: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        if sorted(weights) != sorted(self._weight_names) or any(value < 0 for value in weights.values()):
            raise UserError(
                f"loss_weights must give a number >= 0 for each of {', '.join(self._weight_names)}, "
                f"got {dict(weights)}."
            )
        if not 0 <= eta <= 1:
            raise UserError(f"eta must lie in [0, 1], got {eta}.")
        names = [pair.name for pairs in PAIRS.values() for pair in pairs]
        given = dict(pair_weights or {})
        if not set(given) <= set(names) or any(value < 0 for value in given.values()):
            raise UserError(f"pair_weights must give numbers >= 0 for any of {', '.join(names)}; got {given}.")
        self.pair_weights = dict.fromkeys(names, 1.0) | given
        distillation = weights["distillation"]
        #: Of the terms that the loss is the sum of.
        self.term_weights = {
            "supervised": weights["supervised"],
            "image_perturbation": weights["image_perturbation"],
            "teacher_distillation": (1 - eta) * distillation,
            "decoder_distillation": eta * distillation,
        }
        self.dice: dict[str, Any] = {"include_background": include_background, "smooth": smooth}

    def forward(
        self,
        logits: Mapping[str, torch.Tensor],
        label: torch.Tensor | None = None,
        pseudo_labels: Mapping[tuple[str, int | None], torch.Tensor] | None = None,
        unsupervised_weight: float = 1.0,
    ) -> dict[str, torch.Tensor]:
        """Compute the terms of the given predictions, and their weighted sum.

        Predictions may come in several calls: a student that is missing adds nothing, and :func:`add_terms` makes the
        terms of all predictions from those of each call. So do their gradients add up.

        Args:
            logits: by name, each BNH[WD]: ``labeled`` and students, in one call or several; teachers are left aside.
            label: class indices of the labeled patches, B1H[WD]; needed with ``labeled``.
            pseudo_labels: result of :func:`mix_teachers`; None when nothing is learned from unlabeled data, then the
                loss is the supervised part alone.
            unsupervised_weight: factor in [0, 1] on everything that is learned from unlabeled data.

        Returns:
            Scalars: ``loss``; ``supervised``, groups and pairs, by name, as far as their predictions are given. A group
            is the weighted sum over its pairs that are given, divided by the weights of all.

        Raises:
            ValueError: for a prediction of an unknown name, a label of another shape, logits of a single class, and
                when nothing can be learned from what is given.
        """
        self._check(logits, label, pseudo_labels)
        terms: dict[str, Any] = {}
        if "labeled" in logits and label is not None:
            terms["supervised"] = self._supervised(logits["labeled"], label)
        if pseudo_labels is None:
            return {"loss": self.term_weights["supervised"] * terms["supervised"], **terms}
        probs = {name: logits[name].softmax(1) for name in STUDENTS if name in logits}
        for group, pairs in PAIRS.items():
            values = {
                pair.name: dice_loss(probs[pair.student], pseudo_labels[pair.teacher, pair.box], **self.dice)
                for pair in pairs
                if pair.student in probs
            }
            if values:
                total = sum(self.pair_weights[pair.name] for pair in pairs) or 1.0
                part = torch.stack([self.pair_weights[name] * value for name, value in values.items()]).sum()
                terms |= {**values, group: part / total}
        weighted = {name: weight * terms[name] for name, weight in self.term_weights.items() if name in terms}
        loss = weighted.pop("supervised", 0) + unsupervised_weight * sum(weighted.values())
        return {"loss": loss, **terms}

    def _supervised(self, logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        entropy = all_reduce_mean(cross_entropy(logits, label.squeeze(1).long()))
        return (entropy + dice_loss(logits.softmax(1), label, **self.dice)) / 2

    @staticmethod
    def _check(logits: Mapping[str, Any], label: torch.Tensor | None, pseudo_labels: Mapping[Any, Any] | None) -> None:
        unknown = sorted(set(logits) - {"labeled", *STUDENTS, *TEACHERS})
        if unknown:
            raise ValueError(f"unknown predictions {unknown}; PAIRS has the students {STUDENTS}.")
        if "labeled" in logits and label is None:
            raise ValueError("the prediction 'labeled' needs a label.")
        if label is not None and "labeled" in logits:
            found, expected = tuple(label.shape), (len(logits["labeled"]), 1, *logits["labeled"].shape[2:])
            if found != expected:  # others would be broadcast
                raise ValueError(f"expected a label of class indices, B1H[WD], {expected}; got {found}.")
        if any(prediction.shape[1] < 2 for prediction in logits.values()):
            raise ValueError("expected logits of two classes or more, with the background; got one.")
        if "labeled" not in logits and (pseudo_labels is None or not set(logits) & set(STUDENTS)):
            raise ValueError(
                f"expected the prediction 'labeled', or students with pseudo-labels; got {sorted(logits)} "
                f"{'without' if pseudo_labels is None else 'with'} pseudo-labels."
            )


def add_terms(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Add what :class:`CrossMatchLoss` gave for one part of the predictions to what it gave for another.

    Args:
        first: scalars by name.
        second: scalars by name; a name may be in one of them only.

    Returns:
        Scalars by name, the terms of both parts together.
    """
    return {**first, **{name: first[name] + value if name in first else value for name, value in second.items()}}
