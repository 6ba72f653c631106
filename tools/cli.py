"""Run our own commands: each argument is read as its annotation says, from what was typed."""

from __future__ import annotations

import difflib
import functools
import inspect
import sys
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import fire

from custom.utils.errors import UserError, show_user_errors_plainly
from custom.utils.settings import UnfitError, below_home, describe, is_flag, read_as, shown, typed_settings

#: By what stands in an annotation, an example of its kind.
_EXAMPLES: dict[Any, Any] = {bool: False, int: 1, float: 0.2, str: "TEXT", type(None): None}
Command = Callable[..., Any]


def run(commands: Command | Mapping[str, Command]) -> None:
    """Run a command as the command line asks, with errors of the user shown plainly.

    Args:
        commands: a function, or several by name.
    """
    show_user_errors_plainly()
    typed, known = sys.argv[1:], commands if isinstance(commands, Mapping) else {}
    words = [word for word in typed[:1] if word in known]
    asks = bool({"--help", "-h"} & set(typed))  # whatever else is typed; behind the dashes no command takes it
    command = commands if callable(commands) else known.get(words[0]) if words else None
    problems = _unknown(typed_settings(typed[len(words) :]), inspect.signature(command)) if command and not asks else []
    if problems:
        raise UserError("the command cannot be understood, nothing was done:", problems)
    fire.Fire(
        _typed(commands) if callable(commands) else {name: _typed(command) for name, command in known.items()},
        command=[*words, "--", "--help"] if asks else [*words, *map(_quoted, typed[len(words) :])],
        name=_program(),
    )


def _quoted(argument: str) -> str:
    """Quote a value, so that Fire takes it for the text that it is."""
    if not is_flag(argument):
        return repr(argument)
    name, equals, value = argument.partition("=")
    return f"{name}={value!r}" if equals else name


def _program() -> str:
    """Say how this program was started, for its help; of ``python -m`` the path of a file is left."""
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec and sys.argv[0].endswith(".py") else sys.argv[0]


def _typed(command: Command) -> Command:
    """Give a command its arguments as its annotations say, where Fire has texts, or True for a flag alone."""
    signature = inspect.signature(command, eval_str=True)

    def read_and_call(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs)
        problems = []
        for name, value in given.arguments.items():
            examples = _examples(signature.parameters[name].annotation)
            value = given.arguments[name] = below_home(value)
            if isinstance(value, (str, bool)) and examples:
                try:
                    given.arguments[name] = read_as(value, examples)
                except UnfitError:
                    example, got = shown(examples[0]), "no value" if value is True else value
                    problems.append(f"--{name}: expected {describe(examples)}, such as {example}; got {got}.")
        if problems:
            raise UserError("the command cannot be understood, nothing was done:", problems)
        return command(*given.args, **given.kwargs)

    functools.update_wrapper(read_and_call, command)
    vars(read_and_call)["__signature__"] = signature  # with kinds instead of their names, for the help
    return read_and_call


def _unknown(typed: Mapping[str, Any], signature: inspect.Signature) -> list[str]:
    """Say which flags a command does not have; Fire would first ask for those that are missing.

    ``-o`` is ``--output``.
    """
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
    lists = {str: ["A", "B"], int: [1]}
    found = [lists[typing.get_args(part)[0]] if typing.get_args(part) else _EXAMPLES.get(part, ...) for part in parts]
    return [example for example in found if example is not ...]
