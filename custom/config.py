"""Refuse a config that this code cannot run as it is meant: settings that nothing reads, a bundle newer than the code.

MONAI's ``run`` accepts any ``--name value`` and stores it as a new top-level key, so ``--etaa 0.9`` would train with
the default ``eta`` and say nothing.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import version_leq

from . import __version__
from .errors import UserError, show_user_errors_plainly

__all__ = ["check_config", "client_gives_cases", "refuse_newer_bundle", "resolved_config"]

#: Top-level keys that MONAI's own clients set, whether a bundle reads them or not: federated, Label with tracking.
CLIENT_KEYS = {"run_name", "tracking_uri", "experiment_name"}


def check_config() -> None:
    """Check the config that is being run; call it first, from ``initialize``.

    A top-level key is known when one of the bundle's own config files has it, or when something in the config refers to
    it (so that a user's overlay may bring helpers of its own). Also lets user errors end the program plainly from here
    on.

    Raises:
        UserError: names every unknown key with the nearest known one; or says that the bundle is newer than the code.
    """
    show_user_errors_plainly()
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError("check_config must be called from a MONAI bundle config.")
    config = workflow.parser.get()
    _mend_tracking(workflow.parser)
    refuse_newer_bundle(config.get(ConfigParser.meta_key) or {})
    known = _keys_of_files(workflow.config_root_path) | _referenced_keys(config) | CLIENT_KEYS
    unknown = [key for key in config if key not in known and key != ConfigParser.meta_key]
    if unknown:
        raise UserError("unknown setting, nothing was run:", [_describe(key, known) for key in unknown])


def client_gives_cases() -> bool:
    """Say whether a client, such as MONAI Label, has put its own cases in the place of the data list's."""
    workflow = _running_workflow()
    return workflow is not None and isinstance(workflow.parser["train::dataset::data"], list)


def resolved_config() -> dict[str, Any]:
    """Resolve the config that is being run: expressions and references become what they stand for.

    Components (what has a ``_target_``, or refers to something that has) stay as they are written; the references in
    them point to resolved values.
    """
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError("resolved_config must be called from a MONAI bundle config.")
    parser = workflow.parser
    config = {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}
    resolved = {}
    for key, value in config.items():
        found = value if _has_components(key, config) else _plain(parser.get_parsed_content(key))
        resolved[key] = _plain(value if callable(found) else found)
    return resolved


def _has_components(key: str, config: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Say whether a key is a component or depends on one."""
    if key in seen or key not in config:
        return key not in config  # a reference that this cannot follow
    node = config[key]
    own = key in ("imports", "initialize", "run", "training", "finalize") or _contains_target(node)
    return own or any(_has_components(other, config, seen | {key}) for other in _referenced_keys(node))


def _contains_target(node: Any) -> bool:
    if isinstance(node, dict):
        return "_target_" in node or any(map(_contains_target, node.values()))
    return isinstance(node, list) and any(map(_contains_target, node))


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold, or leave it when it is a function."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if callable(value) or isinstance(value, (str, int, float, bool, type(None))) else str(value)


def refuse_newer_bundle(metadata: Mapping[str, Any]) -> None:
    """Compare a bundle's version with that of the package that would run it; they are released together.

    Raises:
        UserError: when the bundle is newer.
    """
    version = str(metadata.get("version", __version__))
    if not version_leq(version, __version__):
        code = Path(__file__).parent
        raise UserError(
            f"the bundle is version {version}, newer than the code that would run it, {__version__} in {code}; "
            "update that package, or run the bundle in an environment without it."
        )


def _describe(key: str, known: set[str]) -> str:
    nearest = difflib.get_close_matches(key, sorted(known), n=1)
    return f"--{key}" + (f": did you mean --{nearest[0]}?" if nearest else " is not a key of this bundle's configs.")


def _mend_tracking(parser: ConfigParser) -> None:
    """Put right what MONAI 1.6.1's ``--tracking`` adds to the config (bundle/workflows.py, patch_bundle_tracking).

    It appends an expression to ``output_dir`` as text, which names no file when that is a plain path; and it reads the
    loss in a way that fits a list of outputs only, at every iteration.
    """
    config = parser.get()
    handlers = [h for h in config.get("train", {}).get("handlers", []) if h.get("_target_") == "MLFlowHandler"]
    path, folder = config.get("save_execute_config"), config.get("output_dir")
    if isinstance(path, str) and isinstance(folder, str) and not folder.startswith("$"):
        config["save_execute_config"] = path.replace(f"{folder} + '", folder).removesuffix("'")
    for handler in handlers:
        handler |= {"output_transform": "@scalars", "iteration_log": "$lambda engine, event: event % 10 == 0"}
    if path or handlers:
        parser.parse(reset=True)  # it had been parsed before the first expression was evaluated


def _running_workflow() -> ConfigWorkflow | None:
    """Find the workflow that is instantiating us; MONAI hands its components no reference to it."""
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller
        frame = frame.f_back
    return None


def _keys_of_files(folder: Path) -> set[str]:
    return {
        re.split("#|::", key)[0].lstrip("+")
        for path in folder.glob("*.yaml")
        for key in ConfigParser.load_config_file(path)
    }


def _referenced_keys(config: Any) -> set[str]:
    return {key for text in _strings(config) for key in re.findall(r"[@%](\w+)", text)}


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
