"""Read values as what they stand for: an example says whether a text is a number, a list, or just a text.

Fire, through which MONAI and our own commands read the command line, makes booleans of ``True`` and ``False`` only, so
that ``--amp false`` is a text, which is true. It reads ``20240611`` as a number where a folder is meant, and ``a,b`` as
a tuple; and it takes ``#`` for the start of a comment.
"""

import math
import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import yaml

_NULL = ("", "~", "null", "none")
_BOOLEANS = {
    **dict.fromkeys(("true", "yes", "on", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "n", "0"), False),
}


class UnfitError(ValueError):
    """A value is not of the kind that is meant."""


def read_as(value: Any, examples: Sequence[Any]) -> Any:
    """Read a value as the kind of one of the examples.

    A text is read as YAML reads it where something else than a text is meant: no, off, 1e-3, [1, 2]; ``a,b`` and ``a``
    are lists where a list is meant. Expressions and references of MONAI stay as they are.

    Args:
        value: what was given.
        examples: values of the kinds that are meant: booleans, numbers, texts, lists, mappings, None. Entries of a list
            are of the kind of its first one, those of a mapping of the entry of that name, or of ``*``.

    Returns:
        The value, of one of these kinds.

    Raises:
        UnfitError: when it is of none of them.
    """
    if is_expression(value):
        return value
    if None in examples and (value is None or (isinstance(value, str) and value.strip().lower() in _NULL)):
        return None
    is_list = isinstance(value, str) and value.startswith(("[", "("))
    kinds = [example for example in examples if example is not None]
    for example in sorted(kinds, key=lambda example: is_list and not isinstance(example, list)):
        try:
            return _READERS[type(example)](value, example)
        except UnfitError:
            continue
    raise UnfitError(f"expected {describe(examples)}, got {shown(value)}")


def describe(examples: Sequence[Any]) -> str:
    """Say in words what kinds are meant."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", dict: "a mapping"}
    words = [
        names.get(type(example)) or ("null" if example is None else _kind_of_list(example)) for example in examples
    ]
    return " or ".join(dict.fromkeys(words))


def shown(value: Any) -> str:
    """Write a value as it is typed."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {shown(item)}" for name, item in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "nothing" if value == "" else f"{value:g}" if isinstance(value, float) else str(value)


def quoted(word: str) -> str:
    """Quote a word for a shell; a list in double quotes where nothing in it needs others, since it has single ones."""
    return f'"{word}"' if word.startswith("[") and not set(word) & set('"$`!\\') else shlex.quote(word)


def guess(text: str) -> Any:
    """Read a text of which nothing is known, as YAML reads it."""
    for example in (None, 0.5, True):
        try:
            return text if text.lower() in ("y", "n") else read_as(text, [example])
        except UnfitError:
            continue
    if text.lstrip().startswith(("[", "{", "(")):
        try:
            return _guess_all(_load(text))
        except UnfitError:
            pass
    return text


def below_home(value: Any) -> Any:
    """Write the user's folder for ``~``, which shells leave in ``--output_dir=~/out``, in all of a value."""
    if isinstance(value, str):
        return os.path.expanduser(value)
    if isinstance(value, (list, tuple)):
        return type(value)(map(below_home, value))
    return {name: below_home(item) for name, item in value.items()} if isinstance(value, dict) else value


def is_expression(value: Any) -> bool:
    """Say whether MONAI evaluates or replaces a text."""
    return isinstance(value, str) and value.startswith(("$", "@", "%"))


def is_object(value: Any) -> bool:
    """Say whether a value is none that a config file holds, but an object that a program has put there."""
    if isinstance(value, (list, tuple)):
        return any(map(is_object, value))
    return not isinstance(value, (str, int, float, dict, os.PathLike, type(None)))


def is_flag(argument: str) -> bool:
    """Say whether an argument of a command line is a flag, as Fire sees it; a negative number is none."""
    return re.match("--|-[a-zA-Z]", argument) is not None


def typed_settings(arguments: Sequence[str]) -> dict[str, str | bool]:
    """Find the flags of a command line as they were typed, the last where one is given twice.

    Args:
        arguments: of the program, without its name.

    Returns:
        Texts by name, whose levels are joined by ``::``; True for a flag without a value.
    """
    found: dict[str, str | bool] = {}
    for place, argument in enumerate(arguments):
        if not is_flag(argument):
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        follows = place + 1 < len(arguments) and not is_flag(arguments[place + 1])
        found[name.replace("-", "_").replace("#", "::")] = (
            value if equals else arguments[place + 1] if follows else True
        )
    return found


def _read_boolean(value: Any, _: Any) -> bool:
    if isinstance(value, (bool, int, str)):
        word = str(value).strip().lower()
        if word in _BOOLEANS:
            return _BOOLEANS[word]
    raise UnfitError


def _read_number(value: Any, _: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise UnfitError
    for kind in (int, float):
        try:
            number = kind(value) if isinstance(value, str) else value
        except ValueError:
            continue
        if math.isfinite(number):
            return number
    raise UnfitError


def _read_whole(value: Any, _: Any) -> int:
    number = _read_number(value, 0)
    if number != int(number):
        raise UnfitError
    return int(number)


def _read_text(value: Any, _: Any) -> str:
    """Take a text, or a whole number that YAML or Fire made of one; of 0.10 or true the text is lost."""
    if isinstance(value, (str, os.PathLike)):
        return os.fspath(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise UnfitError


def _read_list(value: Any, example: Sequence[Any]) -> list[Any]:
    if isinstance(value, Mapping) or value is None or value is True:
        raise UnfitError
    if isinstance(value, str):
        is_one = not value.strip().startswith(("[", "(")) and "," not in value
        items = _load(value) if value.strip().startswith(("[", "(")) else [item.strip() for item in value.split(",")]
        items = items[:-1] if not is_one and items and items[-1] == "" else items  # a comma at the end
    else:
        is_one = not isinstance(value, (list, tuple))
        items = [value] if is_one else list(value)
    if not isinstance(items, list) or "" in items:
        raise UnfitError
    if is_one and len(example) > 1 and isinstance(example[0], (int, float)):
        raise UnfitError  # one number where there is one per axis, or a range
    if not example or isinstance(example[0], (Mapping, list)):
        return _guess_all(items) if isinstance(value, str) else items
    return [read_as(item, example[:1]) for item in items]


def _read_mapping(value: Any, example: Mapping[str, Any]) -> dict[str, Any]:
    content = _load(value) if isinstance(value, str) else value
    if not isinstance(content, Mapping):
        raise UnfitError
    read = {}
    for name, item in content.items():
        wanted = example.get(name, example.get("*"))
        known = wanted is not None and not is_expression(wanted)
        unread = _guess_all(item) if isinstance(value, str) else item
        read[name] = read_as(item, [wanted]) if known else unread
    return read


_READERS: dict[type, Callable[[Any, Any], Any]] = {
    bool: _read_boolean,
    int: _read_whole,
    float: _read_number,
    str: _read_text,
    list: _read_list,
    tuple: _read_list,
    dict: _read_mapping,
}


def _load(text: str) -> Any:
    """Read a list or a mapping, all of whose entries are texts."""
    text = text.strip()
    if text.startswith("(") and text.endswith(")"):
        text = f"[{text[1:-1]}]"
    try:
        return yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UnfitError from error


def _guess_all(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {name: _guess_all(item) for name, item in node.items()}
    if isinstance(node, (list, tuple)):
        return [_guess_all(item) for item in node]
    return guess(node) if isinstance(node, str) and not is_expression(node) else node


def _kind_of_list(example: Sequence[Any]) -> str:
    kinds = {int: " of whole numbers", float: " of numbers", str: " of texts"}
    return "a list" + (kinds.get(type(example[0]), "") if example else "")
