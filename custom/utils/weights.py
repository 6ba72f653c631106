"""Weights as plain tensors, and beside them the settings that inference must share with their training."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from monai.networks.utils import copy_model_state
from torch import nn

from .distributed import is_first
from .errors import UserError, first_cause
from .files import atomic_write, write_json
from .weight_files import read_content, refuse_not_finite, refuse_wrapped, weight_problems

logger = logging.getLogger(__name__)

#: Share of a network's parameters that must fit for its training to start from other weights.
LEAST_SHARE = 0.5


class Stateful(Protocol):
    """Anything whose state can be taken and given back."""

    def state_dict(self) -> dict[str, Any]:
        """Take the state: tensors, numbers, texts, and lists and dictionaries of them."""

    def load_state_dict(self, state: Mapping[str, Any], /) -> Any:
        """Give it back."""


def save_weights(network: Stateful, path: str | Path, settings: Mapping[str, Any] | None = None) -> None:
    """Write a flat state dictionary, whole or not at all.

    Args:
        network: whose weights are written.
        path: of the file.
        settings: that inference must share, such as ``spacing``; they are written beside it, as ``model.json``.
    """
    save_tensors(network.state_dict(), Path(path))
    if settings is not None:
        write_json(settings_path(path), settings)


def save_tensors(content: Any, path: Path) -> None:
    """Write what ``torch.save`` writes, whole or not at all.

    Raises:
        OSError: with the name of the file, such as when the disk is full, for which PyTorch raises a RuntimeError.
    """
    with atomic_write(path) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            raise first_cause(error, OSError) or error from None


def settings_path(weights: str | Path) -> Path:
    """Name the file that holds the settings of weights: ``model.json`` beside ``model.pt``.

    Raises:
        UserError: when the weights themselves are called so.
    """
    path = Path(weights).with_suffix(".json")
    if path == Path(weights):
        raise UserError(f"{path}: weights in a file that ends in .json, where their settings belong; call it model.pt.")
    return path


def read_settings(weights: str | Path | Sequence[str]) -> dict[str, Any]:
    """Read the settings that weights were trained with; empty where none lie beside them, which is told.

    Args:
        weights: a file, or those of an ensemble, which must agree in all settings but ``stride``.

    Raises:
        UserError: when a file of settings cannot be read, and when the members of an ensemble differ.
    """
    paths = dict.fromkeys([weights] if isinstance(weights, (str, Path)) else weights)
    known = {path: found for path in paths if (found := _read_settings(settings_path(path)))}
    first = next(iter(known.values()), {})
    problems = [
        f"{name}: {', '.join(f'{found.get(name)} in {path}' for path, found in known.items())}"
        for name in sorted({name for found in known.values() for name in found} - {"stride"})
        if any(found.get(name) != first.get(name) for found in known.values())
    ]
    if problems:
        raise UserError("--ckpt_path: the weights of an ensemble must be trained alike, but differ in", problems)
    for path in paths:
        if Path(path).is_file() and not settings_path(path).is_file():
            logger.warning(
                "%s: there is no %s beside it, which says with which spacing, patch and filters it was trained; the "
                "settings of %s are taken. Copy it along, or give the settings.",
                *(path, settings_path(path).name, next(iter(known), "the config")),
            )
    return first


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path}: is not JSON ({error}); expected settings by name, as training writes them."
        ) from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected settings by name, as training writes them.")
    return settings


def refuse_missing_weights(path: str | Path | Sequence[str]) -> None:
    """Say that there are no weights, before a thousand scans are read.

    Args:
        path: of a file, or of several.

    Raises:
        UserError: names the first that does not exist.
    """
    for file in [path] if isinstance(path, (str, Path)) else path:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such weights; train first, or set --ckpt_path.")


def read_weights(
    path: str | Path,
    network: nn.Module,
    advice: str = "give the configs that it was trained with, such as quick.yaml",
) -> dict[str, torch.Tensor]:
    """Read a flat state dictionary that fits a network; nothing in the file is executed.

    Args:
        path: of the file.
        network: that the weights must fit.
        advice: what to do when they do not.

    Raises:
        UserError: when the file does not exist, cannot be read, belongs to another network, or holds values that are
            not finite.
    """
    refuse_missing_weights(path)
    found, own = read_content(path), network.state_dict()
    refuse_wrapped(path, own, found)
    problems = weight_problems(own, found)
    if problems:
        raise UserError(f"{path} was trained with another network; {advice}:", problems[:3])
    refuse_not_finite(path, found)
    return found


def start_from(path: str | Path, network: nn.Module) -> None:
    """Give a network the weights of another one, as far as they fit by name and shape, and name the others.

    So a training may start from another organ's, from one on other classes or channels, or from a supervised one.

    Args:
        path: of a flat state dictionary; nothing in the file is executed.
        network: that is to be trained.

    Raises:
        UserError: when the file does not exist, cannot be read or holds values that are not finite, and when fewer than
            half of the network's parameters would be taken.
    """
    if not Path(path).is_file():
        raise UserError(f"--init_weights {path}: no such file.")
    found, own = read_content(path), network.state_dict()
    refuse_wrapped(path, own, found)
    content = found if isinstance(found, Mapping) else {}
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
    state, taken, _ = copy_model_state(network, tensors, inplace=False)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    share = sum(size for name, size in sizes.items() if name in taken) / sum(sizes.values())
    others = [line for line in weight_problems(own, found) if line.partition(":")[0] not in taken]
    if share < LEAST_SHARE:
        reason = f"fits {share:.0%} of the network's parameters, at least {LEAST_SHARE:.0%} are needed"
        raise UserError(f"--init_weights {path}: {reason}; give weights of the same kind of network:", others[:3])
    refuse_not_finite(path, {name: tensors[name] for name in taken})
    network.load_state_dict(state)
    if is_first():
        lines = "".join(f"\n  not taken: {other}" for other in others)
        print(f"Starting from {path}, {len(taken)} of {len(own)} tensors{lines}")
