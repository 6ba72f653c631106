"""The CrossMatch training step on MONAI's Ignite engine (Zhao et al., doi:10.1109/JBHI.2024.3463711)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from .data.streams import TwoStreamLoader
from .losses import TEACHERS, CrossMatchLoss, add_terms, mix_teachers, pseudo_label
from .networks import PerturbedNetwork
from .perturbations import CutMix, paste
from .utils.device import MixedPrecision
from .utils.distributed import no_sync
from .utils.errors import UserError
from .utils.randomness import derived_seed

#: What the network predicts in the first pass and in the second: both inputs, then the last one's perturbed features.
FIRST_PASS = ("labeled", "weak", "weak_fw", "weak_fs")
SECOND_PASS = ("strong_1", "strong_2", "strong_2_fw", "strong_2_fs")

#: Arguments of MONAI's trainer that the step does not use.
UNUSED = (
    *("prepare_batch", "iteration_update", "postprocessing", "key_train_metric", "additional_metrics"),
    *("metric_cmp_fn", "optim_set_to_none", "amp_kwargs"),
)

_Tensors = dict[str, torch.Tensor]
#: Tells the step's random numbers from those of the streams, which count from 0.
_STEP = 99


class CrossMatchTrainer(SupervisedTrainer):
    """Train a network on labeled and unlabeled patches.

    A batch is a dictionary of streams, see :class:`custom.data.TwoStreamLoader`: ``labeled`` with ``image`` BCH[WD] and
    ``label`` B1H[WD], and optionally ``unlabeled`` with ``image`` (the weak view), ``strong_1`` and ``strong_2``. The
    streams may differ in batch size. Without unlabeled patches, or while ``unsupervised_weight`` is 0, the step is the
    supervised one.

    The step reads ``engine.state.threshold`` and ``engine.state.unsupervised_weight``, which
    :class:`custom.handlers.SigmoidRampUp` writes, and leaves in ``engine.state.output`` a dictionary of detached
    scalars: every term of the loss, ``confident_share`` (of the voxels, those where the weak view's pseudo-label is
    kept), ``confident_share_0``, ``confident_share_1``, ... (the same by class) and ``threshold``.

    The step predicts and learns in two passes. When both are done, and the weights not yet updated, the events
    ``FORWARD_COMPLETED``, ``LOSS_COMPLETED`` and ``BACKWARD_COMPLETED`` are fired one after the other;
    ``MODEL_COMPLETED`` when the weights are. While ``LOSS_COMPLETED`` is fired, ``engine.state.views`` holds what the
    step saw and predicted, for handlers that draw it.

    Args:
        loss_function: the pair table's loss.
        cutmix: draws the boxes that are pasted into strong views and pseudo-labels.
        max_iterations: where to stop, in the middle of an epoch if need be; None to finish ``max_epochs``.
        amp: compute the network in the fastest 16-bit type of the device, see :class:`MixedPrecision`.
        compile: compile the network; ``network`` stays as it is, and so do the names of its weights.
        seed: of dropout and CutMix, which are drawn anew from the seed and the number of the iteration.
        rank: number of this process among those that train together; their dropout differs.
        kwargs: other arguments, see :class:`monai.engines.SupervisedTrainer`. ``network`` must satisfy
            :class:`custom.networks.PerturbedNetwork` with two feature dropouts, weak and strong.

    Raises:
        UserError: for arguments that would have no effect, another kind of network or loss, and an optimizer of
            another network's parameters.
    """

    def __init__(
        self,
        loss_function: CrossMatchLoss,
        cutmix: CutMix,
        max_iterations: int | None = None,
        amp: bool = False,
        compile: bool = False,  # noqa: A002 - MONAI's name for it
        seed: int = 0,
        rank: int = 0,
        **kwargs: Any,
    ) -> None:
        _refuse_unused(kwargs)
        # Streams of different batch size cannot be decollated, and our scalars need not be.
        super().__init__(loss_function=loss_function, amp=False, decollate=False, **kwargs)
        _refuse_plain_network(self.network)
        _refuse_plain_loss(loss_function)
        _refuse_other_optimizer(self.optimizer, self.network)
        self.cutmix = cutmix
        self.predictor = torch.compile(self.network) if compile else self.network
        self.mixed_precision = MixedPrecision(self.state.device, amp)
        self.seed = seed
        self.rank = rank
        self.state.views = {}
        self.state.threshold = None
        self.state.unsupervised_weight = 1.0
        # Ignite hands an exception to the handlers of the event instead of raising it; this one comes last.
        self.add_event_handler(Events.EXCEPTION_RAISED, _raise)
        if max_iterations is not None:
            # A lambda, since terminate() would take the engine for its argument `skip_completed`.
            self.add_event_handler(Events.ITERATION_COMPLETED(once=max_iterations), lambda engine: engine.terminate())

    def run(self) -> None:
        """Train, from the iteration on that ``state.iteration`` counts as done."""
        if isinstance(self.data_loader, TwoStreamLoader):
            self.data_loader.iteration = self.state.iteration
        super().run()

    def _iteration(self, engine: CrossMatchTrainer, batchdata: Mapping[str, Any]) -> _Tensors:
        torch.manual_seed(derived_seed(self.seed, _STEP, self.state.iteration, self.rank))
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)

        unlabeled = batchdata.get("unlabeled") if self.state.unsupervised_weight > 0 else None
        terms, views = self._supervised_step(batchdata) if unlabeled is None else self._crossmatch_step(batchdata)
        self._tell_handlers(views)

        self.mixed_precision.step(self.optimizer)
        engine.state.output = terms
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return engine.state.output

    def _supervised_step(self, batchdata: Mapping[str, Any]) -> tuple[_Tensors, _Tensors]:
        image, label = self._to_device(batchdata["labeled"], "image", "label")
        with self.mixed_precision.autocast():
            logits = {"labeled": self.inferer(image, self.predictor).float()}
        terms = self._learn(logits, label)
        return terms, {"labeled": image, "label": label, "labeled_logits": logits["labeled"]}

    def _crossmatch_step(self, batchdata: Mapping[str, Any]) -> tuple[_Tensors, _Tensors]:
        """Predict and learn in two passes, so that batch statistics do not mix weak with strong views.

        Pseudo-labels carry no gradient, so the first pass need not wait for the students of the second: it is
        backpropagated at once, and the features of only one pass are in memory at a time.
        """
        if self.state.threshold is None:
            raise UserError(
                "nothing has set the threshold of pseudo-labels; keep train::method_handlers, or attach "
                "custom.handlers.SigmoidRampUp(name='threshold', value=0.95)."
            )
        image, label = self._to_device(batchdata["labeled"], "image", "label")
        weak, *strong = self._to_device(batchdata["unlabeled"], "image", "strong_1", "strong_2")

        boxes = {number: self._sample_boxes(weak) for number in (1, 2)}
        strong = [paste(boxes[number], view, _partner(view)) for number, view in enumerate(strong, start=1)]

        with no_sync(self.network):
            logits = self._predict(FIRST_PASS, image, weak)
            teachers = {name: pseudo_label(logits[name], self.state.threshold) for name in TEACHERS}
            partners = {name: _partner(teacher) for name, teacher in teachers.items()}
            pseudo_labels = mix_teachers(teachers, partners, boxes)
            terms = self._learn(logits, label, pseudo_labels)
        terms = add_terms(terms, self._learn(self._predict(SECOND_PASS, *strong), pseudo_labels=pseudo_labels))

        terms |= {**_shares(logits["weak"], teachers["weak"]), "threshold": torch.tensor(self.state.threshold)}
        views = {"labeled": image, "label": label, "weak": weak, "strong_1": strong[0], "strong_2": strong[1]}
        views |= {"pseudo_label": teachers["weak"], "labeled_logits": logits["labeled"], "weak_logits": logits["weak"]}
        return terms, views

    def _predict(self, names: Sequence[str], first: torch.Tensor, second: torch.Tensor) -> _Tensors:
        """Decode two inputs, and the second's perturbed features, in one pass."""
        n = len(second)
        with self.mixed_precision.autocast():
            logits = self.inferer(torch.cat([first, second]), self.predictor, num_perturbed=n)
        return dict(zip(names, logits.float().split([len(first), n, n, n]), strict=True))

    def _learn(
        self,
        logits: _Tensors,
        label: torch.Tensor | None = None,
        pseudo_labels: Mapping[tuple[str, int | None], torch.Tensor] | None = None,
    ) -> _Tensors:
        """Backpropagate what the predictions teach; their gradients are added to those that are there."""
        terms = self.loss_function(logits, label, pseudo_labels, self.state.unsupervised_weight)
        self.mixed_precision.backward(terms["loss"])
        return {name: value.detach() for name, value in terms.items()}

    def _tell_handlers(self, views: _Tensors) -> None:
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.state.views = {name: value.detach() for name, value in views.items()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self.state.views = {}
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)

    def _sample_boxes(self, patches: torch.Tensor) -> torch.Tensor:
        return self.cutmix.sample(len(patches), patches.shape[2:]).to(patches.device, non_blocking=self.non_blocking)

    def _to_device(self, batch: Mapping[str, torch.Tensor], *names: str) -> list[torch.Tensor]:
        return [batch[name].to(self.state.device, non_blocking=self.non_blocking, **self.to_kwargs) for name in names]


def _refuse_unused(arguments: Mapping[str, Any]) -> None:
    """Refuse what MONAI's trainer takes and this step has no use for; None and the like may be given."""
    found = [name for name in UNUSED if arguments.get(name)]
    if found:
        raise UserError(
            f"train::trainer: {', '.join(found)} would have no effect: the step takes two streams, and its output is "
            "the terms of the loss; score in validate::evaluator, and attach handlers for the rest."
        )


def _refuse_plain_network(network: torch.nn.Module) -> None:
    bare = getattr(network, "module", network)  # of several processes' DistributedDataParallel
    if hasattr(bare, "_orig_mod"):
        raise UserError("network: is compiled; give the network itself, and compile=True.")
    if not isinstance(bare, PerturbedNetwork):
        raise UserError(
            f"network_def: {type(bare).__name__} cannot decode perturbed features; expected a subclass of "
            "custom.networks.PerturbedNetwork, as docs/backbone.md makes one."
        )
    if len(bare.feature_dropout) != 2:
        raise UserError(
            f"feature_dropout: expected two, weak and strong, such as [0.25, 0.75]; {type(bare).__name__} has "
            f"{len(bare.feature_dropout)}."
        )


def _refuse_plain_loss(loss: Any) -> None:
    if not isinstance(loss, CrossMatchLoss):
        raise UserError(
            f"loss: {type(loss).__name__} is not of pairs of predictions; expected custom.losses.CrossMatchLoss, or a "
            "subclass of it."
        )


def _refuse_other_optimizer(optimizer: torch.optim.Optimizer, network: torch.nn.Module) -> None:
    """Refuse an optimizer that would leave the network as it is."""
    own = {id(parameter) for parameter in network.parameters()}
    if not all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UserError(
            "optimizer: has parameters that are not of the network that is trained; build it with "
            "$@network.parameters(), and again where the network is another."
        )


def _shares(logits: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
    """How much of the voxels a pseudo-label keeps, in all and by class."""
    shares = torch.stack([(label == index).sum() for index in range(logits.shape[1])]) / label.numel()
    return {"confident_share": shares.sum(), **{f"confident_share_{i}": share for i, share in enumerate(shares)}}


def _raise(_: CrossMatchTrainer, error: BaseException) -> None:
    raise error


def _partner(batch: torch.Tensor) -> torch.Tensor:
    """The other patches of the same batch: each patch meets its predecessor."""
    return batch.roll(1, dims=0)
