"""Ignite handlers that MONAI and Ignite lack; those that write tables are in :mod:`custom.tables`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai.networks.utils import eval_mode
from torch import nn
from tqdm import tqdm

from .distributed import mean_over_ranks, share_buffers
from .errors import UserError
from .streams import StreamLoader
from .weights import read_weights, save_weights

__all__ = [
    "BatchNormRecalibration",
    "BestWeights",
    "ProgressBar",
    "RampUp",
    "WeightAverage",
    "WeightsCheckpointLoader",
]


class RampUp:
    """Write a scheduled number into ``engine.state`` before each iteration.

    ``start + (end - start) * exp(-5 (1 - t / rampup_iterations)^2)``, the sigmoid ramp of Laine & Aila, ICLR 2017
    (arXiv:1610.02242), where t counts iterations after a delay; ``start`` during the delay, ``end`` after the ramp.

    Args:
        name: attribute of ``engine.state``.
        value: a number, held for the whole run; or a mapping with ``start``, ``end``, ``rampup_iterations`` and
            optionally ``delay``.

    Raises:
        UserError: when the mapping has other keys, or a duration is negative.
    """

    def __init__(self, name: str, value: float | Mapping[str, float]) -> None:
        self.name = name
        ramp = dict(value) if isinstance(value, Mapping) else {"start": value, "end": value, "rampup_iterations": 0}
        self.delay = ramp.pop("delay", 0)
        if sorted(ramp) != ["end", "rampup_iterations", "start"]:
            raise UserError(f"{name} must be a number or give start, end, rampup_iterations, got {value}.")
        if self.delay < 0 or ramp["rampup_iterations"] < 0:
            raise UserError(f"{name}: delay and rampup_iterations must not be negative, got {value}.")
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
        planned = engine.state.max_epochs * engine.state.epoch_length
        total = planned if self.total is None else min(self.total, planned)
        done = engine.state.iteration
        self.bar = tqdm(total=total, initial=done, desc=self.title, unit="it", dynamic_ncols=True)

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
    keeps the new ones. Of processes that train together all validate with the same statistics.

    Args:
        network: whose batch-norm layers are re-estimated.
        num_batches: how many of the most recent training batches to use; 0 takes the running averages as they are.
        validator: engine that validates during training, if any.
        average: averaged network, whose layers are re-estimated too at the end.
    """

    def __init__(
        self, network: nn.Module, num_batches: int, validator: Engine | None = None, average: nn.Module | None = None
    ) -> None:
        self.network = network
        self.norms = _batch_norms(network)
        self.batches: deque[list[torch.Tensor]] = deque(maxlen=num_batches)
        self.validator = validator
        self.average = average

    def attach(self, engine: Engine) -> None:
        """Remember clean batches while ``engine`` trains; recalibrate around validation and at the end."""
        if self.validator is not None:
            self.validator.add_event_handler(Events.STARTED, self._enter_validation)
            self.validator.add_event_handler(Events.COMPLETED, self._leave_validation)
        if self.batches.maxlen:
            engine.add_event_handler(Events.STARTED, self._remember_earlier)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._remember)
            engine.add_event_handler(Events.COMPLETED, self._finish)

    def _remember(self, engine: Engine) -> None:
        self.batches.append(_images(engine.state.batch))

    def _remember_earlier(self, engine: Engine) -> None:
        """Draw again what a training that was cut off had remembered."""
        loader, last = getattr(engine, "data_loader", None), engine.state.iteration
        if last == 0 or self.batches or not isinstance(loader, StreamLoader):
            return
        loader.iteration = max(0, last - self.batches.maxlen)
        for batch in islice(loader, last - loader.iteration):
            self.batches.append(_images(batch))

    def _enter_validation(self, engine: Engine) -> None:
        share_buffers(self.network)
        self.training_buffers = [{name: b.clone() for name, b in norm.named_buffers()} for norm in self.norms]
        if self.batches.maxlen:
            self._recalibrate(self.network, engine.state.device)

    def _leave_validation(self, engine: Engine) -> None:
        for norm, buffers in zip(self.norms, self.training_buffers, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])

    def _finish(self, engine: Engine) -> None:
        for network in (self.network, self.average):
            if network is not None:
                self._recalibrate(network, engine.state.device)

    @torch.no_grad()
    def _recalibrate(self, network: nn.Module, device: torch.device) -> None:
        """Average the statistics of the remembered batches."""
        norms = _batch_norms(network)
        momenta = [norm.momentum for norm in norms]
        was_training = network.training
        with eval_mode(network):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # cumulative average
                norm.train()
            for images in self.batches:
                network(torch.cat(images).to(device))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.train(was_training)
            _average_over_ranks(norm)


def _batch_norms(network: nn.Module) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def _images(batch: Mapping[str, Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [stream["image"] for stream in batch.values()]


def _average_over_ranks(norm: nn.Module) -> None:
    """Pool the running statistics of equally many voxels on each rank."""
    mean = mean_over_ranks(norm.running_mean)
    square = mean_over_ranks(norm.running_var + norm.running_mean.square())
    norm.running_var.copy_(norm.running_var if mean is norm.running_mean else square - mean.square())
    norm.running_mean.copy_(mean)


class BestWeights:
    """Keep the weights with the best validation metric, exactly as they were validated.

    The state that goes into checkpoints is the best metric so far and its iteration, so that a training that goes on
    does not take a worse network for the best one.

    Args:
        network: whose weights are written.
        validator: engine that validates during training; its key metric is compared, larger is better. None when there
            is no validation list: nothing is written then.
        path: the weights' file.
        rank: number of this process among those that train together; only 0 writes.
    """

    def __init__(self, network: nn.Module, validator: Engine | None, path: str, rank: int = 0) -> None:
        self.network = network
        self.validator = validator
        self.path = Path(path)
        self.rank = rank
        self.best: dict[str, Any] = {"metric": None, "iteration": 0}

    def attach(self, trainer: Engine) -> None:
        """Compare after each validation of ``trainer``, before batch norm goes back to the statistics of training."""
        if self.validator is not None:
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._compare, trainer)

    def _compare(self, validator: Engine, trainer: Engine) -> None:
        metric = float(validator.state.metrics[validator.state.key_metric_name])
        if self.best["metric"] is None or metric > self.best["metric"]:
            self.best = {"metric": metric, "iteration": trainer.state.iteration}
            if self.rank == 0:
                save_weights(self.network, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Best metric so far and its iteration."""
        return dict(self.best)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best = dict(state)


class WeightAverage:
    """Follow the weights with a moving average.

    Args:
        average: ``torch.optim.swa_utils.AveragedModel`` of the network, whose function says how to average.
        network: what it follows.
    """

    def __init__(self, average: torch.optim.swa_utils.AveragedModel, network: nn.Module) -> None:
        self.average = average
        self.network = network

    def attach(self, engine: Engine) -> None:
        """Average after each iteration of ``engine``."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self.average.update_parameters(self.network))


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
