"""Running statistics of batch norm for evaluation."""

from collections import deque
from collections.abc import Mapping
from itertools import islice

import torch
from ignite.engine import Engine, Events
from monai.networks.utils import eval_mode
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..data.streams import TwoStreamLoader
from ..utils.distributed import all_reduce_mean, share_buffers


class BatchNormRecalibration:
    """Estimate batch-norm statistics anew on clean images, with dropout off, for validation and for the final weights.

    Unlike PyTorch's ``swa_utils.update_bn``, it switches dropout off and can go back to the statistics of training.

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
        if last == 0 or self.batches or not isinstance(loader, TwoStreamLoader):
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


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def _images(batch: Mapping[str, Mapping[str, torch.Tensor]]) -> list[torch.Tensor]:
    return [stream["image"] for stream in batch.values()]


def _average_over_ranks(norm: _BatchNorm) -> None:
    """Pool the running statistics of equally many voxels on each rank."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        return  # it keeps none
    pooled, square = all_reduce_mean(mean), all_reduce_mean(var + mean.square())
    var.copy_(var if pooled is mean else square - pooled.square())
    mean.copy_(pooled)
