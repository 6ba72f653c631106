"""Moving averages of the weights."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from torch import nn

__all__ = ["WeightAverage"]


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
