"""Take a config as it is meant, or refuse it: settings that nothing reads, of another kind, or out of range.

MONAI's ``run`` accepts any ``--name value`` and stores it as a new top-level key, so ``--etaa 0.9`` would train with
the default ``eta`` and say nothing; and what Fire makes of a value is not always what was typed, see
:mod:`custom.utils.settings`.
"""

import logging
import os
import re
import shlex
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeGuard

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import version_leq

from .. import __version__
from .arguments import contains_target, did_you_mean, unknown_arguments
from .errors import UserError, show_user_errors_plainly
from .ranges import number_problems, range_problems
from .settings import UnfitError, guess, is_expression, read_as, shown, typed_settings
from .weights import read_settings

logger = logging.getLogger(__name__)

#: Top-level keys that MONAI's own clients set, whether a bundle reads them or not: federated, Label with tracking.
CLIENT_KEYS = {"run_name", "tracking_uri", "experiment_name"}
#: What MONAI's ``run`` reads itself.
MONAI_KEYS = {"imports", "initialize", "run", "finalize", "training", "evaluating", "inference"}
_RAMP = {"start": 0.0, "end": 1.0, "delay": 0, "rampup_iterations": 1}
#: Examples of what settings may be whose default does not tell: it is computed, or null, or one of several kinds.
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "bundle_root": ("bundles/crossmatch_la",),
    "datalist": ("data/la/labeled_8.json", None),
    "output_dir": ("out",),
    "ckpt_dir": ("models",),
    "ckpt_path": ("models/model.pt", ["fold_0/model.pt", "fold_1/model.pt"]),
    "init_weights": ("models/model.pt", None),
    "cache_dir": ("cache",),
    "metrics_file": ("out/metrics.csv",),
    "files": ("scans", ["a.nii.gz", "b.nii.gz"], [["a_t1.nii.gz", "a_t2.nii.gz"]]),
    "channels": (["t1", "t2"], None),
    "series": (True,),
    "shard": ("2/8", None),
    "device": ("cuda:0",),
    "num_workers": (4,),
    "resume": (True,),
    "ema_decay": (0.99, None),
    "planned_for": ("3f2a", ["3f2a", "9c1e"], None),
    "class_names": (["liver", "tumor"],),
    "num_classes": (3,),
    "patient_pattern": (r"patient\d+", None),
    "phases": ({"*": "_ED"},),
    "slice_axis": (2, None),
    "spacing": ([1.0, 1.0, 1.0], None),
    "window": ([-125.0, 275.0],),
    "pad_to": ({"size": [96, 96, 96], "spacing": [1.0, 1.0, 1.0]}, None),
    "schedule_iterations": (14000,),
    "threshold": (0.95, _RAMP),
    "unsupervised_weight": (1.0, _RAMP),
    "network_def::dropout": (0.5, [0.1, 0.5]),
    "evaluation_list": ("test",),
    "keep_largest": ([1], None),
    "test_time_flips": ([0],),
    "densities": ({"*": 1.05},),
    "ventricles": (["left_ventricle"],),
    "terminology": ({"*": {"category": ["value", "scheme", "meaning"], "type": ["value", "scheme", "meaning"]}},),
}
#: Settings that name files and folders.
PLACES = (
    *("bundle_root", "dataset_dir", "datalist", "output_dir", "ckpt_dir", "ckpt_path", "init_weights", "cache_dir"),
    *("metrics_file", "files"),
)
_ABSENT = object()


def check_config() -> None:
    """Check the config that is being run, and give its settings their kinds.

    Call it first, from ``initialize``, and again from what is run: MONAI skips ``initialize`` where a word on the
    command line stands in the place of its name.

    A top-level key is known when one of the bundle's own config files has it, or when something in the config refers to
    it (so that a user's overlay may bring helpers of its own); for what is within see :mod:`custom.utils.arguments`. A
    setting is of the kind of its default; what was typed is taken from the command line itself. On MONAI's command line
    it also lets user errors end the program plainly from here on.

    Raises:
        UserError: names every unknown key with the nearest known one; every setting of another kind, or out of range;
            words that belong to no setting; or says that the bundle is newer than the code.
    """
    is_command = Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")
    if is_command:  # a program that runs a bundle shows its errors as it likes
        show_user_errors_plainly()
    workflow = _running_workflow()
    if workflow is None:
        raise RuntimeError("check_config must be called from a MONAI bundle config.")
    config = workflow.parser.get()
    _refuse_stray_words(workflow)
    if "help" in config:
        _show_settings(workflow.config_root_path)
    refuse_newer_bundle(config.get(ConfigParser.meta_key) or {})
    files = [ConfigParser.load_config_file(path) for path in sorted(workflow.config_root_path.glob("*.yaml"))]
    known = (
        {re.split("#|::", key)[0].lstrip("+") for file in files for key in file}
        | _referenced_keys(config)
        | CLIENT_KEYS
    )
    unknown = [key for key in config if key not in known and key != ConfigParser.meta_key]
    defaults = _defaults(files, config)
    problems = [did_you_mean(key, known, "is not a key of this bundle's configs.") for key in unknown]
    known_paths = {key.replace("#", "::") for file in files for key in file} | _referenced_paths(config)
    rest = {key: config[key] for key in config if key not in unknown and key != ConfigParser.meta_key}
    problems += unknown_arguments(rest, defaults, EXAMPLES, known_paths)
    typed = typed_settings(sys.argv[1:]) if is_command else {}
    for name in _unused(typed, rest):
        logger.warning("--%s has no effect: nothing in this run uses it.", name)
    problems += _settle_all(config, defaults, typed)
    _mend_tracking(workflow.parser)
    workflow.parser.parse(reset=True)  # it had been parsed before the first expression was evaluated
    if problems:  # sizes that hang together cannot be judged where one of them is not known
        problems += number_problems(workflow.parser)
    else:
        _take_trained_settings(workflow.parser, defaults, typed)
        problems = range_problems(workflow.parser, defaults)
    if problems:
        raise UserError("these settings cannot be taken, nothing was run:", problems)


def _refuse_stray_words(workflow: ConfigWorkflow) -> None:
    """Refuse words that belong to no flag, as of a pattern of files; MONAI takes them for the names of its steps."""
    steps = {workflow.init_id, workflow.final_id} - {"initialize", "finalize", "", None}
    stray = sorted(word for word in steps if word not in workflow.parser)
    if stray:
        raise UserError(
            f"the command line has words that belong to no setting: {' '.join(stray)}; nothing was run. Put a path "
            "with spaces into quotes; give several files as --files \"['a.nii.gz','b.nii.gz']\", or their folder."
        )


def _show_settings(folder: Path) -> None:
    """Print what can be set, as the config files say it that the command names, and end the program."""
    named = " ".join(sys.argv)
    for path in sorted(path for path in folder.glob("*.yaml") if path.name in named):
        head = path.read_text().partition("\n# ====")[0].splitlines()
        print(f"\n{path}\n")
        print("\n".join(line for line in head if re.match(r"#|$|[a-z]\w*: [^|]", line)))
    raise SystemExit


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


def flat_config(config: Mapping[str, Any], leave_out: Container[str] = (), prefix: str = "") -> dict[str, Any]:
    """Name every value of a config by its path, such as ``train::handlers``, without the paths to leave out."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        path = f"{prefix}{name}"
        if path in leave_out:
            continue
        if isinstance(value, Mapping) and value:
            flat |= flat_config(value, leave_out, f"{path}::")
        else:
            flat[path] = value
    return flat


def _has_components(key: str, config: Mapping[str, Any], seen: frozenset[str] = frozenset()) -> bool:
    """Say whether a key is a component or depends on one."""
    if key in seen or key not in config:
        return key not in config  # a reference that this cannot follow
    node = config[key]
    own = key in ("imports", "initialize", "run", "training", "finalize") or contains_target(node)
    return own or any(_has_components(other, config, seen | {key}) for other in _referenced_keys(node))


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


def _defaults(files: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of the bundle's own files: of the one that the config is made from, else of any other."""
    base = max((file for file in files if set(file) <= set(config)), key=len, default={})
    return {key: value for file in (*files, base) for key, value in file.items() if "::" not in key and "#" not in key}


def _settle_all(config: dict[str, Any], defaults: Mapping[str, Any], typed: Mapping[str, str | bool]) -> list[str]:
    """Give every setting of a config the kind of its default; name those of another kind, which become the default."""
    settling = _Settling(defaults, typed)
    for key in config:
        if key != ConfigParser.meta_key:
            config[key] = settling.settle(config[key], defaults.get(key, _ABSENT), key)
    places = [key for key in PLACES if _is_nowhere(config, key)]
    return [*settling.problems, *(f"--{key}: expected a path; got {config[key] or 'nothing'}." for key in places)]


def _is_nowhere(config: Mapping[str, Any], key: str) -> bool:
    """Say whether a path is empty, or the word with which a user may have meant that there should be none."""
    return config.get(key, "a path") in ("", "None", [])


def _take_trained_settings(parser: ConfigParser, defaults: Mapping[str, Any], typed: Mapping[str, str | bool]) -> None:
    """Put settings that the weights were trained with in the place of defaults.

    Raises:
        UserError: names settings that were given and differ from those of the training.
    """
    if "ckpt_path" not in parser:
        return
    weights = parser.get_parsed_content("ckpt_path")
    config, problems = parser.get(), []
    for name, trained in read_settings(weights).items():
        given = _plain(parser.get_parsed_content(name)) if name in config else trained
        if given == trained:
            continue
        if name not in typed and config[name] == defaults.get(name):
            config[name] = trained
        elif name not in ("stride", "channels"):  # which trades time for accuracy, and says how files are called
            problems.append(f"--{name}: trained with {shown(trained)}, got {shown(given)}.")
    if problems:
        raise UserError(
            f"{weights if isinstance(weights, str) else weights[0]} was trained with other settings; leave these out, "
            "since they are read from the .json file beside it:",
            problems,
        )
    parser.parse(reset=True)


class _Settling:
    """Walk through a config beside its defaults.

    Args:
        defaults: of the bundle.
        typed: what the command line says, by path.
    """

    def __init__(self, defaults: Mapping[str, Any], typed: Mapping[str, str | bool]) -> None:
        self.defaults = ConfigParser(dict(defaults))
        self.typed = typed
        self.problems: list[str] = []

    def settle(self, node: Any, default: Any, path: str, in_component: bool = False) -> Any:
        """Give a node of the config, and what lies below it, the kinds of the defaults."""
        examples = self._examples(default, path)
        typed, is_place = self.typed.get(path), path.partition("::")[0] in PLACES
        if typed is not None and not _is_structure(node) and not is_expression(typed):
            node = self._read(typed, examples, default, path, in_component)
            return _keep_number_sign(_below_home(node) if is_place else node)
        if is_expression(node) or not isinstance(node, (str, int, float, list, tuple, dict, os.PathLike, type(None))):
            return node
        if isinstance(node, dict):
            return self._settle_mapping(node, examples, default, path, in_component)
        if _is_structure(node):
            known = default if isinstance(default, list) and len(default) == len(node) else [_ABSENT] * len(node)
            return [self.settle(*pair, f"{path}::{i}", True) for i, pair in enumerate(zip(node, known, strict=True))]
        if isinstance(node, str) or not in_component:
            node = self._read(node, examples, default, path, in_component)
        return _keep_number_sign(_below_home(_with_number_sign(node)) if is_place else node)

    def _settle_mapping(
        self, node: dict[str, Any], examples: Sequence[Any], default: Any, path: str, in_component: bool
    ) -> Any:
        is_component = "_target_" in node
        example = next((example for example in examples if isinstance(example, dict)), None)
        if examples and example is None and not is_component and not in_component:
            return self._read(node, examples, default, path, in_component)
        if example is None and isinstance(default, dict) and default.get("_target_") == node.get("_target_"):
            example = default
        inside = in_component or is_component
        known = example if example is not None and is_component == ("_target_" in example) else {}
        return {
            key: self.settle(item, known.get(key, known.get("*", _ABSENT)), f"{path}::{key}", inside)
            for key, item in node.items()
        }

    def _examples(self, default: Any, path: str) -> tuple[Any, ...]:
        """Find examples of a setting, following references; none where its kind is unknown."""
        seen = {path}
        while path not in EXAMPLES and isinstance(default, str) and default.startswith("@") and default[1:] not in seen:
            path = default[1:]
            seen.add(path)
            default = self.defaults.get(path, _ABSENT)
        unknown = default is _ABSENT or default is None or is_expression(default)
        structure = _is_structure(default) and (isinstance(default, list) or any(map(_is_structure, default.values())))
        is_component = isinstance(default, dict) and "_target_" in default
        return EXAMPLES.get(path, () if unknown or structure or is_component else (default,))

    def _read(self, value: Any, examples: Sequence[Any], default: Any, path: str, in_component: bool) -> Any:
        """Read a value that is no mapping, or note that it is of another kind."""
        guessed = guess(value) if isinstance(value, str) and path in self.typed else value
        if not examples and not _is_structure(default):
            return guessed
        try:
            if examples:
                return read_as(value, examples)
            expected = "expected a component or a list of them, as in the bundle's config"
        except UnfitError as error:
            expected = f"{str(error).rpartition(', got ')[0]}, such as --{path} {shlex.quote(shown(examples[0]))}"
        # Arguments of stock parts may be of several kinds; but a text for a boolean is always wrong, as is another kind
        # for what is a number of the bundle's own, such as the optimizer's `lr: '@learning_rate'`.
        is_own_number = isinstance(default, str) and examples and isinstance(examples[0], (int, float))
        if in_component and not (examples and (isinstance(examples[0], bool) or is_own_number)):
            return guessed
        got = "no value" if self.typed.get(path) is True else shown(value)
        self.problems.append(f"--{path}: {expected}; got {got}.")
        return value if default is _ABSENT else default


def _is_structure(node: Any) -> TypeGuard[dict | list]:
    """Say whether a node is a mapping, or a list that has some."""
    return isinstance(node, dict) or (isinstance(node, list) and any(isinstance(item, (dict, list)) for item in node))


def _with_number_sign(node: Any) -> Any:
    """Undo what MONAI does to every text of a config: it writes ``::`` for ``#``, also in the name of a folder."""
    if isinstance(node, list):
        return list(map(_with_number_sign, node))
    return node.replace("::", "#") if isinstance(node, str) and not is_expression(node) else node


def _below_home(node: Any) -> Any:
    """Write the user's folder for ``~``, which shells leave in ``--output_dir=~/out``."""
    if isinstance(node, list):
        return list(map(_below_home, node))
    return os.path.expanduser(node) if isinstance(node, str) and not is_expression(node) else node


def _keep_number_sign(node: Any) -> Any:
    """Write a text with ``#`` as an expression without, which MONAI then evaluates to the text."""
    if isinstance(node, dict):
        return {key: _keep_number_sign(item) for key, item in node.items()}
    if isinstance(node, list):
        return list(map(_keep_number_sign, node))
    if isinstance(node, str) and "#" in node and not is_expression(node):
        return "$" + repr(node).replace("#", "\\x23").replace("@", "\\x40")
    return node


def _mend_tracking(parser: ConfigParser) -> None:
    """Put right what MONAI 1.6.1's ``--tracking`` adds to the config (bundle/workflows.py, patch_bundle_tracking).

    It appends an expression to ``output_dir`` as text, which names no file when that is a plain path; and it reads the
    loss in a way that fits a list of outputs only, at every iteration.
    """
    config = parser.get()
    handlers = config.get("train", {}).get("handlers") or []  # may be, or hold, references
    mlflow = [h for h in handlers if isinstance(h, dict) and h.get("_target_") == "MLFlowHandler"]
    path, folder = config.get("save_execute_config"), config.get("output_dir")
    if isinstance(path, str) and isinstance(folder, str) and not folder.startswith("$"):
        config["save_execute_config"] = path.replace(f"{folder} + '", folder).removesuffix("'")
    for handler in mlflow:
        handler |= {"output_transform": "@scalars", "iteration_log": "$lambda engine, event: event % 10 == 0"}


def _running_workflow() -> ConfigWorkflow | None:
    """Find the workflow that is instantiating us; MONAI hands its components no reference to it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller
        frame = frame.f_back
    return None


def _referenced_keys(config: Any) -> set[str]:
    return {key for text in _strings(config) for key in re.findall(r"[@%](\w+)", text)}


def _unused(typed: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """List the typed settings that the config has, as another run of the bundle takes them, and nothing refers to."""
    used = _referenced_keys(config) | CLIENT_KEYS | MONAI_KEYS
    return [name for name in typed if (key := name.partition("::")[0]) in config and key not in used]


def _referenced_paths(config: Any) -> set[str]:
    return {path for text in _strings(config) for path in re.findall(r"[@%](\w+(?:::\w+)+)", text)}


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
