"""The weights with the best validation, and loading of weights."""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader
from monai.utils import ensure_tuple
from torch import nn

from ..networks import MeanEnsemble
from ..utils.distributed import is_first
from ..utils.errors import UserError
from ..utils.weights import read_weights, save_weights
from .folding import fold_batch_norm


class BestWeights:
    """Keep the weights with the best validation metric, exactly as they were validated.

    Unlike MONAI's ``CheckpointSaver(save_key_metric=True)``, it remembers the best metric when a training resumes.

    The state that goes into checkpoints is the best metric so far and its iteration, so that a training that goes on
    does not take a worse network for the best one.

    Args:
        network: whose weights are written.
        validator: engine that validates during training; its key metric is compared, larger is better. None when there
            is no validation list: nothing is written then.
        path: the weights' file.
        settings: written beside the weights, for inference.
    """

    def __init__(
        self,
        network: nn.Module,
        validator: Engine | None,
        path: str,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.network = network
        self.validator = validator
        self.path = Path(path)
        self.settings = settings
        self.best: dict[str, Any] = {"metric": None, "iteration": 0}

    def attach(self, trainer: Engine) -> None:
        """Compare after each validation of ``trainer``, before batch norm goes back to the statistics of training.

        Raises:
            UserError: when another network is validated.
        """
        if self.validator is not None:
            if getattr(self.validator, "network", self.network) is not self.network:
                raise UserError(
                    "another network is validated than trained; initialize() makes all parts anew, so do not put back "
                    "an evaluator from before it."
                )
            self.validator.add_event_handler(Events.EPOCH_COMPLETED, self._compare, trainer)

    def _compare(self, validator: Engine, trainer: Engine) -> None:
        metric = float(validator.state.metrics[validator.state.key_metric_name])
        if self.best["metric"] is None or metric > self.best["metric"]:
            self.best = {"metric": metric, "iteration": trainer.state.iteration}
            if is_first():
                save_weights(self.network, self.path, self.settings)

    def state_dict(self) -> dict[str, Any]:
        """Best metric so far and its iteration."""
        return dict(self.best)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.best = dict(state)


class WeightsCheckpointLoader(CheckpointLoader):
    """MONAI's ``CheckpointLoader`` for inference: it says what to do when there are no weights, and makes an ensemble.

    The engine computes with a copy whose batch norm is folded into its convolutions, see
    :func:`custom.handlers.folding.fold_batch_norm`; the network that is loaded into keeps its layers, and their names.

    Its name ends as MONAI's does, because clients of bundles recognize checkpoint loaders by it.
    """

    def __call__(self, engine: Engine) -> None:
        """Load the weights, and give the engine the network to compute with.

        With several files that is their :class:`custom.networks.MeanEnsemble`.

        Raises:
            UserError: when a file does not exist, cannot be read, or belongs to another network.
        """
        (network,) = self.load_dict.values()
        paths = ensure_tuple(self.load_path)
        members = [network, *(deepcopy(network) for _ in paths[1:])]
        for path, member in zip(paths, members, strict=True):
            member.load_state_dict(read_weights(path, member))
        engine.network = fold_batch_norm(network if len(members) == 1 else MeanEnsemble(members))
