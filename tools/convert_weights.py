"""Turn weights that were trained with the original CrossMatch code into a bundle's flat ``model.pt``.

``python -m tools.convert_weights --source original.pth --output model.pt``

The original (github.com/AiEson/CrossMatch; doi:10.1109/JBHI.2024.3463711) trains a V-Net on the left atrium
and a U-Net on ACDC. Its V-Net has the names that the literature has used since UA-MT (Yu et al., MICCAI 2019,
doi:10.1007/978-3-030-32245-8_67), so that such weights can be converted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from custom.networks import PerturbedNetwork, UNet, VNet
from custom.utils.errors import UserError
from custom.utils.weight_files import not_finite, read_content, weight_problems
from custom.utils.weights import save_weights, settings_path

from .cli import run

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


def convert_file(source: str, output: str, overwrite: bool = False) -> None:
    """Convert a file of the original's weights; nothing in it is executed.

    Args:
        source: V-Net or U-Net weights: a state dictionary, also inside "model" or "state_dict", and with names that
            start with "module.".
        output: where to write the flat weights, such as original/model.pt; and beside them
            model.json, which says that no setting differs from the bundle's.
        overwrite: replace an output that is there already.

    Raises:
        UserError: when the source is anything else; nothing is written then.
    """
    if not isinstance(overwrite, bool):
        raise UserError(f"--overwrite must be true or false, got {overwrite}.")
    origin, target = Path(str(source)), Path(str(output))
    _check_target(origin, target, overwrite)
    network = convert(_read(origin), str(origin))
    try:
        save_weights(network, target, {})  # the bundle's own settings are the original's
    except OSError as error:
        hint = "give --output a file in a folder that you may write to, with enough space"
        raise UserError(f"{target}: cannot be written ({type(error).__name__}); {hint}.") from error
    print(f"{describe(network)} -> {target}")


def convert(content: Any, source: str = "the checkpoint") -> PerturbedNetwork:
    """Build the network that the original's weights belong to, with these weights.

    Args:
        content: what the original's file holds.
        source: what to call it in messages.

    Returns:
        A :class:`VNet` or :class:`UNet` whose channels, classes and width are those of the weights.

    Raises:
        UserError: when a tensor is missing, is one too many, has another shape than the original's, or holds no
            ordinary floating-point numbers.
    """
    state = _flat_state(content, source)
    family = next((family for family in FAMILIES if _first(family) in state), None)
    if family is None:
        known = " or ".join(f"{_first(family)} ({family.title})" for family in FAMILIES)
        found = ", ".join(list(state)[:3])
        raise UserError(f"{source}: not of the original's networks; expected {known} among its names, found {found}.")
    sizes = _sizes(family, state, source)
    with torch.device("meta"):  # a wrong width must not cost memory
        expected = family.network(**sizes).state_dict()
    names = {ours: _original_name(ours, family) for ours in expected}
    # Older PyTorch wrote no counters.
    counters = {name: torch.tensor(0) for name in names.values() if name.endswith(".num_batches_tracked")}
    state = counters | state
    wanted = {names[ours]: value for ours, value in expected.items()}
    problems = weight_problems(wanted, state) or _value_problems(wanted, state)
    if problems:
        hint = "give a checkpoint of the original's code, unchanged; the first:"
        raise UserError(
            f"{source}: {len(problems)} tensor(s) differ from the original's {family.title}; {hint}", problems[:3]
        )
    network = family.network(**sizes)
    network.load_state_dict({ours: state[name] for ours, name in names.items()})
    return network.eval()


def describe(network: PerturbedNetwork) -> str:
    """Say in a line what network it is."""
    title = next(family.title for family in FAMILIES if isinstance(network, family.network))
    base_filters, in_channels = network.get_parameter("encoder.0.0.weight").shape[:2]
    classes, parameters = network.get_parameter("head.weight").shape[0], sum(p.numel() for p in network.parameters())
    numbers = {"channel": in_channels, "class": classes, "base filter": base_filters, "parameter": parameters}
    return ", ".join([title, *(_count(number, noun) for noun, number in numbers.items())])


def _count(number: int, noun: str) -> str:
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def _check_target(origin: Path, target: Path, overwrite: bool) -> None:
    """Refuse an output that would cost the user a file."""
    if target.is_dir():
        raise UserError(f"{target}: is a folder; give --output a file, such as {target / 'model.pt'}.")
    if target.exists() and origin.exists() and target.samefile(origin):
        raise UserError(f"{target}: is the source too, which would be lost; give --output another name.")
    for path in (target, settings_path(target)):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: is there already; remove it, or give --overwrite true.")


def _read(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give --source a file of the original's weights, such as best.pth.")
    return read_content(path)


def _flat_state(content: Any, source: str) -> State:
    """Take the state dictionary out of what it may be wrapped in."""
    for key in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not _is_state(content):
        hint = "save network.state_dict() where it was trained"
        raise UserError(
            f"{source}: expected a state dictionary, plain or in 'model' or 'state_dict', "
            f"found {_content_text(content)}; {hint}."
        )
    # All or none: of two tensors whose names differ by the prefix alone, one would be lost.
    parallel = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if parallel else name: value for name, value in content.items()}


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and len(content) > 0 and all(map(_is_entry, content.items()))


def _is_entry(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], torch.Tensor)


def _content_text(content: Any) -> str:
    """Say what is there in place of a state dictionary."""
    if not isinstance(content, Mapping):
        return type(content).__name__
    wrong = [f"{item[0]!r} ({type(item[1]).__name__})" for item in content.items() if not _is_entry(item)]
    return f"a dictionary with {', '.join(wrong[:3])}" if wrong else "an empty dictionary"


def _sizes(family: _Family, state: State, source: str) -> dict[str, Any]:
    """Read the network's arguments off its first and last convolution."""
    names = _first(family), f"{family.prefixes['head.']}weight"
    first, last = (tuple(state[name].shape) if name in state else () for name in names)
    if min(len(first), len(last)) < 2 or 0 in first + last:
        found = " and ".join(str(tuple(state[name].shape)) if name in state else "nothing" for name in names)
        raise UserError(
            f"{source}: channels and classes are unknown; expected two convolutions, {names[0]} and {names[1]}, "
            f"found {found}; give a checkpoint of the original's code, unchanged."
        )
    return {"in_channels": first[1], "out_channels": last[0], "base_filters": first[0]}


def _value_problems(expected: State, found: State) -> list[str]:
    """Name tensors whose values would be lost or altered, or are not finite; half precision is fine."""
    lines = []
    for name, wanted in expected.items():
        given = found[name]
        kind = str(given.dtype).removeprefix("torch.")
        if given.layout != torch.strided or given.is_meta or given.is_quantized:
            lines.append(f"{name}: expected a dense tensor with values, found {kind}, {given.layout}, {given.device}.")
        elif given.is_floating_point() != wanted.is_floating_point() or given.is_complex():
            expected_kind = "floating-point numbers" if wanted.is_floating_point() else "whole numbers"
            lines.append(f"{name}: expected {expected_kind}, found {kind}.")
        elif (text := not_finite(given)) is not None:
            lines.append(f"{name}: {text}.")
    return lines


def _first(family: _Family) -> str:
    return f"{family.prefixes['encoder.0.']}0.weight"


def _original_name(ours: str, family: _Family) -> str:
    prefix = next(prefix for prefix in family.prefixes if ours.startswith(prefix))
    return family.prefixes[prefix] + ours.removeprefix(prefix)


if __name__ == "__main__":
    run(convert_file)
