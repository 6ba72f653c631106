"""What a file of weights holds, and why a network cannot take it."""

import pickle
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import UserError

#: How names of layers begin in the original CrossMatch code: those of its V-Net and of its U-Net.
ORIGINAL = re.compile(r"(module\.)?(block_one\.|encoder\.in_conv\.)")
#: How many of the tensors that are wrong are named.
NAMED = 3

State = Mapping[str, torch.Tensor]


def read_content(path: str | Path) -> Any:
    """Read what ``torch.save`` wrote; nothing in the file is executed.

    Raises:
        UserError: when it cannot be read, or holds more than tensors, texts and numbers.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        hint = "save its state dictionary alone, torch.save(network.state_dict(), ...), where it was trained"
        raise UserError(
            f"{path}: holds more than tensors, or is damaged; reading it could run code; {hint}."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except Exception as error:  # torch fails in many ways on a file that is not its own
        reason = f"probably truncated or not PyTorch weights ({type(error).__name__})"
        raise UserError(f"{path}: cannot be read, {reason}; copy or download it again.") from error


def weight_problems(expected: State, found: Any) -> list[str]:
    """Compare two flat state dictionaries by name and shape."""
    if not isinstance(found, Mapping):
        return [f"expected a dictionary of tensors, found {type(found).__name__}."]
    lines = []
    for name in dict.fromkeys([*expected, *found]):
        wanted, given = (_shape_text(state.get(name)) for state in (expected, found))
        if wanted != given:
            lines.append(f"{name}: expected {wanted}, found {given}.")
    return lines


def refuse_wrapped(path: str | Path, expected: State, content: Any) -> None:
    """Say that a state dictionary lies within another one, or has other names, as training codes save it.

    Args:
        path: of the file, for messages.
        expected: state of the network that is to take it.
        content: what the file holds.

    Raises:
        UserError: says what the file holds, and how to save it plainly.
    """
    states = dict(_states(content))
    if not states:
        return
    # A checkpoint also holds the optimizer's tensors, under other names.
    keys = max(states, key=lambda keys: (_fitting(expected, states[keys]), len(states[keys])))
    state, prefix = states[keys], _prefix(expected, states[keys])
    if any(map(ORIGINAL.match, state)):
        raise UserError(
            f"{path}: weights of the original CrossMatch code, whose layers have other names; `crossmatch convert "
            f"--source {path} --output model.pt` makes a bundle's of them."
        )
    if not keys and not prefix:
        return
    plain = f"torch.load({str(path)!r}, weights_only=True)" + "".join(f"[{key!r}]" for key in keys)
    found = f"its weights in {' within '.join(map(repr, reversed(keys)))}" if keys else "weights"
    if prefix:
        found += f" with names that begin with {prefix!r}"
        plain = f"{{name.removeprefix({prefix!r}): value for name, value in {plain}.items()}}"
    raise UserError(
        f"{path}: holds {found}; expected a state dictionary alone, as network.state_dict() gives it. Save it so: "
        f"torch.save({plain}, 'model.pt')"
    )


def refuse_not_finite(path: str | Path, state: Mapping[str, Any]) -> None:
    """Refuse weights with which every prediction would be nonsense, most often an empty one.

    Raises:
        UserError: names the tensors, and how many of their values are NaN or infinite.
    """
    lines = [f"{name}: {text}." for name, value in state.items() if (text := not_finite(value)) is not None]
    if lines:
        more = [f"and {len(lines) - NAMED} more tensors."] if len(lines) > NAMED else []
        raise UserError(
            f"{path}: values in {len(lines)} of {len(state)} tensors are not finite, so nothing can be predicted; give "
            "other weights, such as those of an earlier checkpoint:",
            [*lines[:NAMED], *more],
        )


def not_finite(value: Any) -> str | None:
    """Say how many values of a dense tensor are NaN or infinite, as float32, in which networks take them; or None."""
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    if not is_dense or not value.is_floating_point():
        return None
    count = int((~value.float().isfinite()).sum())
    return f"{count} of {value.numel()} values are NaN or infinite" if count else None


def _states(content: Any, keys: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], State]]:
    """Find the state dictionaries in nested dictionaries, by the keys that lead to them."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items()):
        yield keys, content
    for key, value in content.items():
        yield from _states(value, (*keys, key))


def _prefix(expected: Collection[str], names: Collection[str]) -> str:
    """Give what stands in front of all names, such as the ``module.`` of a network in several processes."""
    first = next(iter(expected))
    prefixes = (name.removesuffix(first) for name in names if name.endswith(f".{first}"))
    return next((prefix for prefix in prefixes if all(name.startswith(prefix) for name in names)), "")


def _fitting(expected: Collection[str], names: Collection[str]) -> int:
    prefix = _prefix(expected, names)
    return sum(name.removeprefix(prefix) in expected for name in names)


def _shape_text(value: Any) -> str:
    return "nothing" if value is None else str(tuple(getattr(value, "shape", ())))
