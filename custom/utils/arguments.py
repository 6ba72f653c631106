"""Find settings inside a config that nothing takes: arguments that a component lacks, entries that a group lacks.

MONAI stores ``--train::dataset::cache_ratee 1`` as it stores any other; the component then fails with a traceback, and
an entry of a mapping that no component is, such as ``--loss_weights::distilation 0``, would be ignored.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigComponent
from monai.utils import optional_import

from .settings import is_expression, is_object

#: How alike a name must be to a known one to be a slip, where a component passes on arguments that only others know.
SLIP = 0.85


def unknown_arguments(
    config: Mapping[str, Any],
    defaults: Mapping[str, Any],
    examples: Mapping[str, Sequence[Any]],
    elsewhere: Collection[str],
) -> list[str]:
    """Say which settings within the top-level ones nothing takes.

    Args:
        config: what is run; its top-level keys are not looked at.
        defaults: the bundle's own settings, which are taken as they are.
        examples: by the path of a setting; an entry ``*`` of a mapping stands for any.
        elsewhere: paths that something refers to, or that the bundle's overlays bring.

    Returns:
        One line for each, with the nearest known name.
    """
    walk = _Walk(examples, elsewhere)
    return [text for key, node in config.items() for text in walk.problems(node, defaults.get(key), key)]


def did_you_mean(path: str, known: Collection[str], otherwise: str) -> str:
    """Name a flag, and the nearest of the known ones, or say what else is to say."""
    parent, colons, name = path.rpartition("::")
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f"--{path}: did you mean --{parent}{colons}{nearest[0]}?" if nearest else f"--{path} {otherwise}"


def contains_target(node: Any) -> bool:
    """Say whether a component is in a part of a config."""
    if isinstance(node, Mapping):
        return "_target_" in node or any(map(contains_target, node.values()))
    return isinstance(node, list) and any(map(contains_target, node))


class _Walk:
    """Compare a config with the bundle's own; only what differs is looked up, since that imports its target."""

    def __init__(self, examples: Mapping[str, Sequence[Any]], elsewhere: Collection[str]) -> None:
        self.examples = examples
        self.elsewhere = elsewhere

    def problems(self, node: Any, default: Any, path: str, in_component: bool = False) -> Iterator[str]:
        """Look at a node of the config, and at what lies below it."""
        if isinstance(node, list):
            known = default if isinstance(default, list) and len(default) == len(node) else [None] * len(node)
            for index, pair in enumerate(zip(node, known, strict=True)):
                yield from self.problems(*pair, f"{path}::{index}", in_component)
        elif isinstance(node, Mapping):
            same = default if isinstance(default, Mapping) and default.get("_target_") == node.get("_target_") else {}
            new = [key for key in node if key not in same and f"{path}::{key}" not in self.elsewhere]
            if "_target_" in node:
                yield from _component_problems(node, new, path)
            elif not in_component:
                yield from self._group_problems(node, new, same, path)
            for key, item in node.items():
                yield from self.problems(item, same.get(key), f"{path}::{key}", in_component or "_target_" in node)

    def _group_problems(
        self, node: Mapping[str, Any], new: Sequence[str], same: Mapping[str, Any], path: str
    ) -> Iterator[str]:
        examples = [example for example in self.examples.get(path, ()) if isinstance(example, dict)]
        known = {*same, *(key for example in examples for key in example)}
        if not known or "*" in known:
            return
        for key in [key for key in new if key not in known]:
            if not (contains_target(node[key]) or is_expression(node[key]) or is_object(node[key])):
                yield did_you_mean(f"{path}::{key}", known, f"is not an entry of {path}: {', '.join(sorted(known))}.")


def _component_problems(node: Mapping[str, Any], new: Sequence[str], path: str) -> Iterator[str]:
    new = [key for key in new if key not in ConfigComponent.non_arg_keys]
    found = _arguments(node["_target_"]) if new and not is_expression(node["_target_"]) else None
    if found is None:
        return
    known, takes_others = found
    for key in new:
        if key not in known and (not takes_others or difflib.get_close_matches(key, known, cutoff=SLIP)):
            yield did_you_mean(f"{path}::{key}", known, f"is not an argument of {node['_target_']}.")


def _arguments(target: str) -> tuple[set[str], bool] | None:
    """List the arguments of a target and whether it passes others on, or nothing where that cannot be told.

    Of a class that passes others on, those of the classes that it is made from are listed too.
    """
    module, _, name = str(ConfigComponent({"_target_": target}).resolve_module_name()).rpartition(".")
    function, is_there = optional_import(module, name=name)
    if not is_there:
        return None
    try:
        known, takes_others = _parameters(function)
        for parent in getattr(function, "__mro__", ())[1:-1] if takes_others else ():
            known |= _parameters(parent.__init__)[0]
    except (TypeError, ValueError):  # written in C
        return None
    return known, takes_others


def _parameters(function: Callable) -> tuple[set[str], bool]:
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return names - {"self"}, any(p.kind is p.VAR_KEYWORD for p in parameters)
