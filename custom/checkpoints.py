"""Turn weights that were trained with the original CrossMatch code into a bundle's flat ``model.pt``.

``python -m custom.checkpoints --source original.pth --output model.pt``

The original (github.com/AiEson/CrossMatch; doi:10.1109/JBHI.2024.3463711) trains a V-Net on the left atrium
and a U-Net on ACDC. Its V-Net has the names that the literature has used since UA-MT (Yu et al., MICCAI 2019,
doi:10.1007/978-3-030-32245-8_67), so that such weights can be converted too.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import fire
import torch

from .errors import UserError, show_user_errors_plainly
from .files import whole_file
from .networks import PerturbedNetwork, UNet, VNet
from .weights import weight_problems

__all__ = ["convert", "convert_file"]

State = dict[str, torch.Tensor]


class _Family(NamedTuple):
    """A network of the original: our class, and the original's prefix by ours."""

    title: str
    network: type[VNet] | type[UNet]
    prefixes: Mapping[str, str]


def _vnet_prefixes() -> dict[str, str]:
    """Blocks one to five go down, six to nine go up."""
    numbers = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    prefixes = {f"encoder.{i}.": f"block_{numbers[i]}.conv." for i in range(5)}
    prefixes |= {f"down.{i}.": f"block_{numbers[i]}_dw.conv." for i in range(4)}
    prefixes |= {f"up.{i}.": f"block_{numbers[i + 4]}_up.conv." for i in range(4)}
    prefixes |= {f"decoder.{i}.": f"block_{numbers[i + 5]}.conv." for i in range(4)}
    return prefixes | {"head.": "out_conv."}


def _unet_prefixes() -> dict[str, str]:
    prefixes = {"encoder.0.": "encoder.in_conv.conv_conv."}
    prefixes |= {f"encoder.{i}.": f"encoder.down{i}.maxpool_conv.1.conv_conv." for i in range(1, 5)}
    prefixes |= {f"reduce.{i}.": f"decoder.up{i + 1}.conv1x1." for i in range(4)}
    prefixes |= {f"decoder.{i}.": f"decoder.up{i + 1}.conv.conv_conv." for i in range(4)}
    return prefixes | {"head.": "decoder.out_conv."}


FAMILIES = (_Family("V-Net", VNet, _vnet_prefixes()), _Family("U-Net", UNet, _unet_prefixes()))


def convert_file(source: str, output: str, overwrite: bool = False, **unknown: Any) -> None:
    """Convert a file of the original's weights; nothing in it is executed.

    Args:
        source: V-Net or U-Net weights: a state dictionary, also inside "model" or "state_dict", and with names that
            start with "module.".
        output: where to write the flat weights, such as bundles/crossmatch_la/models/model.pt.
        overwrite: replace an output that is there already.
        unknown: refused.

    Raises:
        UserError: when the source is anything else; nothing is written then.
    """
    if unknown:
        raise UserError(f"unknown flag --{', --'.join(unknown)}; see --help.")
    target = Path(str(output))
    if target.exists() and not overwrite:
        raise UserError(f"{target}: is there already; remove it, or give --overwrite True.")
    network = convert(_read(Path(str(source))), str(source))
    with whole_file(target) as part:
        torch.save(network.state_dict(), part)
    print(f"{describe(network)} -> {target}")


def convert(content: Any, source: str = "the checkpoint") -> PerturbedNetwork:
    """Build the network that the original's weights belong to, with these weights.

    Args:
        content: what the original's file holds.
        source: what to call it in messages.

    Returns:
        A :class:`VNet` or :class:`UNet` whose channels, classes and width are those of the weights.

    Raises:
        UserError: when a tensor is missing, is one too many, or has another shape than the original's.
    """
    state = _flat_state(content, source)
    family = next((family for family in FAMILIES if _first(family) in state), None)
    if family is None:
        expected = " or ".join(f"{_first(family)} ({family.title})" for family in FAMILIES)
        found = ", ".join(list(state)[:3])
        raise UserError(
            f"{source}: not of the original's networks; expected {expected} among its names, found {found}."
        )
    network = _build(family, state, source)
    names = {ours: _original_name(ours, family) for ours in network.state_dict()}
    wanted = {names[ours]: value for ours, value in network.state_dict().items()}
    counters = {name: value for name, value in wanted.items() if name.endswith(".num_batches_tracked")}
    state = counters | state  # older PyTorch wrote none
    problems = weight_problems(wanted, state)
    if problems:
        raise UserError(
            f"{source}: {len(problems)} tensor(s) differ from the original's {family.title}; the first:", problems[:3]
        )
    network.load_state_dict({ours: state[name] for ours, name in names.items()})
    return network.eval()


def describe(network: PerturbedNetwork) -> str:
    """Say in a line what network it is."""
    title = next(family.title for family in FAMILIES if isinstance(network, family.network))
    base_filters, in_channels = network.encoder[0][0].weight.shape[:2]
    classes, parameters = network.head.out_channels, sum(p.numel() for p in network.parameters())
    return (
        f"{title}, {in_channels} channel(s), {classes} classes, {base_filters} base filters, {parameters:,} parameters"
    )


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "save its state dictionary alone, torch.save(network.state_dict(), ...), where it was trained"
        raise UserError(
            f"{path}: holds more than tensors, or is damaged; reading it could run code; {hint}."
        ) from error
    except Exception as error:  # torch fails in many ways on a file that is not its own
        raise UserError(f"{path}: cannot be read as PyTorch weights ({type(error).__name__}).") from error


def _flat_state(content: Any, source: str) -> State:
    """Take the state dictionary out of what it may be wrapped in."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if (
        not isinstance(content, Mapping)
        or not content
        or not all(isinstance(v, torch.Tensor) for v in content.values())
    ):
        found = (
            f"a dictionary of {', '.join(list(content)[:3])}"
            if isinstance(content, Mapping)
            else type(content).__name__
        )
        raise UserError(f"{source}: expected a state dictionary, plain or in 'model' or 'state_dict', found {found}.")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _build(family: _Family, state: State, source: str) -> PerturbedNetwork:
    first, last = state[_first(family)], state.get(f"{family.prefixes['head.']}weight")
    if last is None or min(first.ndim, last.ndim) < 2:
        raise UserError(f"{source}: its first or last convolution is missing, so its channels and classes are unknown.")
    base_filters, in_channels = first.shape[:2]
    return family.network(in_channels=in_channels, out_channels=last.shape[0], base_filters=base_filters)


def _first(family: _Family) -> str:
    return f"{family.prefixes['encoder.0.']}0.weight"


def _original_name(ours: str, family: _Family) -> str:
    prefix = next(prefix for prefix in family.prefixes if ours.startswith(prefix))
    return family.prefixes[prefix] + ours.removeprefix(prefix)


if __name__ == "__main__":
    show_user_errors_plainly()
    fire.Fire(convert_file)
