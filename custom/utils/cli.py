"""Run our own commands: each argument is read as its annotation says, from what was typed."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fire
from fire.decorators import SetParseFn

from .errors import UserError, show_user_errors_plainly
from .settings import UnfitError, describe, read_as, shown, typed_settings

__all__ = ["run"]

#: By what stands in an annotation, an example of its kind.
_EXAMPLES: dict[Any, Any] = {bool: False, int: 1, float: 0.2, str: "TEXT", type(None): None}
Command = Callable[..., Any]


def run(commands: Command | Mapping[str, Command]) -> None:
    """Run a command as the command line asks, with errors of the user shown plainly.

    Args:
        commands: a function, or several by name.
    """
    show_user_errors_plainly()
    typed = sys.argv[1:]
    if typed[-1:] in (["--help"], ["-h"]):
        typed = [*typed[:-1], "--", "--help"]  # else a command that takes any flag takes this one too
    fire.Fire(
        {k: _typed(c) for k, c in commands.items()} if isinstance(commands, Mapping) else _typed(commands),
        command=typed,
    )


def _typed(command: Command) -> Command:
    """Give a command its arguments as its annotations say, where Fire, which is kept from reading them, has texts."""
    signature, kinds = inspect.signature(command), typing.get_type_hints(command)

    @SetParseFn(str)
    @functools.wraps(command)
    def read_and_call(*args: Any, **kwargs: Any) -> Any:
        given, typed = signature.bind(*args, **kwargs), typed_settings(sys.argv[1:])
        problems = _unknown(typed, signature)
        for name, value in given.arguments.items():
            examples = _examples(kinds.get(name))
            if isinstance(value, str) and examples:
                value = True if typed.get(name) is True else value  # a flag without a value
                try:
                    given.arguments[name] = read_as(value, examples)
                except UnfitError:
                    example, got = shown(examples[0]), "no value" if value is True else value
                    problems.append(f"--{name}: expected {describe(examples)}, such as {example}; got {got}.")
        if problems:
            raise UserError("the command cannot be understood, nothing was done:", problems)
        return command(*given.args, **given.kwargs)

    return read_and_call


def _unknown(typed: Mapping[str, Any], signature: inspect.Signature) -> list[str]:
    """Say which flags a command does not have, which Fire would say too late; ``-o`` is ``--output``."""
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values()):
        return []
    letters = Counter(name[0] for name in signature.parameters)
    known = {*signature.parameters, *(letter for letter, count in letters.items() if count == 1)}
    nearest = {name: difflib.get_close_matches(name, signature.parameters, n=1) for name in typed if name not in known}
    hints = {name: f"did you mean --{near[0]}?" if near else "see --help" for name, near in nearest.items()}
    return [f"unknown flag --{name}; {hint}" for name, hint in hints.items()]


def _examples(kind: Any) -> list[Any]:
    """Give an example of every kind in an annotation."""
    parts = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else [kind]
    lists = {Sequence[str]: ["A", "B"], Sequence[int]: [1]}
    found = [lists.get(part, _EXAMPLES.get(part, ...)) for part in parts]
    return [example for example in found if example is not ...]
