"""Handlers that notice when a training goes wrong, and say what to do."""

import logging
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from ignite.engine import Engine, Events

from ..utils.device import is_out_of_memory
from ..utils.errors import UserError

logger = logging.getLogger(__name__)

#: Shares of the voxels below which hardly one is confident, and hardly one confidently of a class.
LEAST_CONFIDENT, LEAST_OF_CLASS = 0.01, 1e-4


class _Step(NamedTuple):
    iteration: int
    terms: dict[str, torch.Tensor]
    cases: list[str]


class NonFiniteGuard:
    """Stop when the loss is not a finite number, and name the iteration, the cases and the terms.

    Unlike Ignite's ``TerminateOnNan``, which ends the run with exit code 0, it fails, says where, and does not wait for
    a GPU at every iteration.

    Attach it before whatever writes checkpoints or validates.

    Args:
        every: iterations between two looks at a GPU's results, each of which waits for the device; on a CPU every one
            is looked at. No iteration is missed.
        before: intervals at whose iterations it looks as well, such as those of checkpoints and validation.
    """

    def __init__(self, every: int = 10, before: Sequence[int] = ()) -> None:
        self.every = every
        self.before = tuple(before)
        self.steps: list[_Step] = []

    def attach(self, engine: Engine) -> None:
        """Look after an iteration, and at the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._remember)
        engine.add_event_handler(Events.COMPLETED, self._look)

    def _remember(self, engine: Engine) -> None:
        streams = engine.state.batch.values() if isinstance(engine.state.batch, dict) else ()
        cases = [case for stream in streams for case in stream.get("case", [])]
        self.steps.append(_Step(engine.state.iteration, engine.state.output, cases))
        due = any(engine.state.iteration % interval == 0 for interval in (self.every, *self.before))
        if due or engine.state.output["loss"].device.type == "cpu":
            self._look(engine)

    def _look(self, _: Engine) -> None:
        """Look at what was remembered.

        Raises:
            UserError: for the first step whose loss is not finite.
        """
        steps, self.steps = self.steps, []
        finite = torch.stack([step.terms["loss"] for step in steps]).isfinite().tolist() if steps else []
        for step, fine in zip(steps, finite, strict=True):
            if not fine:
                terms = [f"{name}: {value.item():g}" for name, value in step.terms.items()]
                raise UserError(
                    f"the loss of iteration {step.iteration} is not a finite number; training stopped, the checkpoints "
                    "from before are kept. Look at these cases, lower "
                    "--learning_rate, or compute in float32 with --amp false. "
                    f"Cases in the batch: {', '.join(step.cases) or 'unknown'}. Terms:",
                    terms,
                )


class CollapseWarning:
    """Warn once when pseudo-labels do harm: hardly any is confident, or hardly one of a certain class.

    A class that the teacher hardly ever gives with confidence is one that the students unlearn: Dice counts it as
    absent. In "Why the threshold is 0.7" of docs/results/2026-11-acdc.md, a class that was lost had a mean share of 0
    from the first hundred iterations on; in the trainings that lost none, no mean over a hundred was below 0.004.

    Args:
        class_names: foreground classes, in the order of the labels 1, 2, ...
        patience: iterations over which the shares are averaged.
        every: iterations between two looks, each of which waits for the device.
    """

    def __init__(self, class_names: Sequence[str], patience: int = 500, every: int = 10) -> None:
        self.class_names = ["background", *class_names]
        self.every = every
        #: What the last looks found: the share of each class.
        self.recent: deque[list[float]] = deque(maxlen=max(1, patience // every))

    def attach(self, engine: Engine) -> None:
        """Look at every so many iterations."""
        self.handle = engine.add_event_handler(Events.ITERATION_COMPLETED(every=self.every), self._look)

    def _look(self, engine: Engine) -> None:
        if "confident_share" not in engine.state.output:
            return
        shares = [engine.state.output[f"confident_share_{index}"] for index in range(len(self.class_names))]
        self.recent.append(torch.stack(shares).tolist())
        trouble = self._trouble() if len(self.recent) == self.recent.maxlen else None
        if trouble is not None:
            logger.warning(
                "Pseudo-labels have collapsed: over the last %d iterations, up to %d, %s. Lower --threshold, or let "
                "the network learn from labels first: a longer delay in --unsupervised_weight. Where patches are cut "
                "out of large volumes, draw them around structures (full_volume.yaml).",
                *(len(self.recent) * self.every, engine.state.iteration, trouble),
            )
            self.handle.remove()

    def _trouble(self) -> str | None:
        means = [sum(shares) / len(shares) for shares in zip(*self.recent, strict=True)]
        if sum(means) < LEAST_CONFIDENT:
            return f"{sum(means):.2%} of the voxels were confident, so the unlabeled cases teach hardly anything"
        share, index = min((share, index) for index, share in enumerate(means))
        if share < LEAST_OF_CLASS:
            found = f"{share:.4%} of the voxels were confidently {self.class_names[index]} (class {index})"
            return f"{found}, so the unlabeled cases teach that there is none"
        return None


class SizeAdvice:
    """When a batch is too large for the memory, or too small for batch norm, say which setting to change.

    Args:
        patch_size: voxels per axis.
        batch_size: labeled patches per iteration.
        unlabeled_batch_size: unlabeled patches per iteration.
    """

    def __init__(self, patch_size: Sequence[int], batch_size: int, unlabeled_batch_size: int) -> None:
        self.patch_size = list(patch_size)
        self.batch_size = batch_size
        self.unlabeled_batch_size = unlabeled_batch_size

    def attach(self, engine: Engine) -> None:
        """Translate the error; attach it before other handlers of exceptions."""
        engine.add_event_handler(Events.EXCEPTION_RAISED, self._advise)

    def _advise(self, engine: Engine, error: BaseException) -> None:
        """Raise the error again, in words.

        Raises:
            UserError: when memory ran out, or batch norm has a single value per channel.
        """
        if "Expected more than 1 value per channel" in str(error):  # torch.nn.functional.batch_norm
            raise UserError(
                f"iteration {engine.state.iteration}: batch norm needs more than one value per channel, but of a batch "
                f"of {self.batch_size} with patches of {self.patch_size} the network's coarsest level has one; give "
                "--batch_size 2, or a larger --patch_size."
            ) from error
        if not is_out_of_memory(error):
            return
        now = f"iteration {engine.state.iteration} ran out of memory on {engine.state.device}"
        if max(self.batch_size, self.unlabeled_batch_size) > 2:
            half = max(2, self.batch_size // 2), max(2, self.unlabeled_batch_size // 2)
            advice = (
                f"lower the batches, now {self.batch_size} labeled and {self.unlabeled_batch_size} unlabeled: "
                f"--batch_size {half[0]} --unlabeled_batch_size {half[1]}"
            )
        else:
            smaller = [max(16, n * 3 // 4 // 16 * 16) for n in self.patch_size]
            advice = (
                f"lower the patch, now {self.patch_size}: --patch_size '{smaller}' (multiples of 16); the batch of "
                f"{self.batch_size} is as small as CutMix allows"
            )
        raise UserError(f"{now}; {advice}. What was trained up to the last checkpoint is kept.") from error
