"""Ignite handlers that MONAI and Ignite lack; those that write tables are in :mod:`custom.tables`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai.networks.utils import eval_mode
from torch import nn
from tqdm import tqdm

from .weights import read_weights

__all__ = ["BatchNormRecalibration", "ProgressBar", "RampUp", "WeightsCheckpointLoader"]


class RampUp:
    """Write a scheduled number into ``engine.state`` before each iteration.

    ``start + (end - start) * exp(-5 (1 - t / rampup_iterations)^2)``, the sigmoid ramp of Laine & Aila, ICLR 2017
    (arXiv:1610.02242), where t counts iterations after a delay; ``start`` during the delay, ``end`` after the ramp.

    Args:
        name: attribute of ``engine.state``.
        value: a number, held for the whole run; or a mapping with ``start``, ``end``, ``rampup_iterations`` and
            optionally ``delay``.

    Raises:
        ValueError: when the mapping has other keys, or a duration is negative.
    """

    def __init__(self, name: str, value: float | Mapping[str, float]) -> None:
        self.name = name
        ramp = dict(value) if isinstance(value, Mapping) else {"start": value, "end": value, "rampup_iterations": 0}
        self.delay = ramp.pop("delay", 0)
        if sorted(ramp) != ["end", "rampup_iterations", "start"]:
            raise ValueError(f"{name} must be a number or give start, end, rampup_iterations, got {value}.")
        if self.delay < 0 or ramp["rampup_iterations"] < 0:
            raise ValueError(f"{name}: delay and rampup_iterations must not be negative, got {value}.")
        self.start, self.end, self.iterations = ramp["start"], ramp["end"], ramp["rampup_iterations"]

    def attach(self, engine: Engine) -> None:
        """Register on ``ITERATION_STARTED``."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the value of the iteration that starts; the first one is t = 0."""
        setattr(engine.state, self.name, self.value_at(engine.state.iteration - 1))

    def value_at(self, iteration: int) -> float:
        """Value after ``iteration`` completed iterations."""
        t = iteration - self.delay
        if t < 0:
            return float(self.start)
        if t >= self.iterations:
            return float(self.end)
        return self.start + (self.end - self.start) * math.exp(-5 * (1 - t / self.iterations) ** 2)


class ProgressBar:
    """One bar for the whole run of an engine, with scalars of its output.

    Args:
        title: what the engine does.
        names: entries of ``engine.state.output`` to show.
        total: number of iterations of the run; None takes it from the engine's epochs.
        every: iterations between two readings of the scalars; each reading waits for the device.
    """

    def __init__(self, title: str, names: Sequence[str] = (), total: int | None = None, every: int = 10) -> None:
        self.title = title
        self.names = tuple(names)
        self.total = total
        self.every = every

    def attach(self, engine: Engine) -> None:
        """Open the bar at the start of the run, close it at its end."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: Engine) -> None:
        planned = (engine.state.max_epochs - engine.state.epoch) * engine.state.epoch_length
        total = planned if self.total is None else min(self.total, planned)
        self.bar = tqdm(total=total, desc=self.title, unit="it", dynamic_ncols=True)

    def _advance(self, engine: Engine) -> None:
        self.bar.update()
        if self.names and (engine.state.iteration % self.every == 0 or engine.state.iteration == 1):
            output = engine.state.output
            self.bar.set_postfix({name: f"{output[name].item():.3f}" for name in self.names if name in output})

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        self.bar.close()
        if error is not None:
            raise error  # Ignite hands an exception to its handlers instead of raising it


class BatchNormRecalibration:
    """Estimate batch-norm statistics anew on clean images, with dropout off, for validation and for the final weights.

    The running averages of training mix dropout, perturbed features and strong views, none of which is there at
    inference. Validation runs with the new statistics and training goes on with the old ones; the end of training
    keeps the new ones.

    Args:
        network: whose batch-norm layers are re-estimated.
        num_batches: how many of the most recent training batches to use; 0 turns the handler off.
        validator: engine that validates during training, if any.
    """

    def __init__(self, network: nn.Module, num_batches: int, validator: Engine | None = None) -> None:
        self.network = network
        self.norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        self.batches: deque[list[torch.Tensor]] = deque(maxlen=num_batches)
        self.validator = validator

    def attach(self, engine: Engine) -> None:
        """Remember clean batches while ``engine`` trains; recalibrate around validation and at the end."""
        if self.batches.maxlen == 0:
            return
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._remember)
        engine.add_event_handler(Events.COMPLETED, lambda trainer: self._recalibrate(trainer.state.device))
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._enter_validation)
            self.validator.add_event_handler(Events.COMPLETED, self._leave_validation)

    def _remember(self, engine: Engine) -> None:
        self.batches.append([stream["image"] for stream in engine.state.batch.values()])

    def _enter_validation(self, engine: Engine) -> None:
        self.training_buffers = [{name: b.clone() for name, b in norm.named_buffers()} for norm in self.norms]
        self._recalibrate(engine.state.device)

    def _leave_validation(self, engine: Engine) -> None:
        for norm, buffers in zip(self.norms, self.training_buffers, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])

    @torch.no_grad()
    def _recalibrate(self, device: torch.device) -> None:
        """Average the statistics of the remembered batches."""
        momenta = [norm.momentum for norm in self.norms]
        with eval_mode(self.network):
            for norm in self.norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            for images in self.batches:
                self.network(torch.cat(images).to(device))
        for norm, momentum in zip(self.norms, momenta, strict=True):
            norm.momentum = momentum
            norm.train(self.network.training)


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` that says what to do when there are no weights yet.

    Its name ends as MONAI's does, because clients of bundles recognize checkpoint loaders by it.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights.

        Raises:
            UserError: when the file does not exist, cannot be read, or belongs to another network.
        """
        (network,) = self.load_dict.values()
        read_weights(self.load_path, network)
        super().__call__(engine)
