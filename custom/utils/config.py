"""Take a config as it is meant, or refuse it: settings that nothing reads, of another kind, or out of range.

MONAI's ``run`` accepts any ``--name value`` and stores it as a new top-level key, so ``--etaa 0.9`` would train with
the default ``eta`` and say nothing; and what Fire makes of a value is not always what was typed, see
:mod:`custom.utils.settings`.
"""

import logging
import re
import sys
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar
from weakref import WeakSet

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import version_leq

from .. import __version__
from .arguments import contains_target, did_you_mean, unknown_arguments
from .errors import UserError, show_user_errors_plainly
from .ranges import number_problems, range_problems
from .settings import read_as, shown, typed_settings
from .settling import EXAMPLES, settle_all
from .weights import read_settings

logger = logging.getLogger(__name__)
T = TypeVar("T")

#: Parsers whose config has been checked.
_checked: WeakSet[ConfigParser] = WeakSet()
#: Top-level keys that MONAI's own clients set, whether a bundle reads them or not: federated, Label with tracking.
CLIENT_KEYS = {"run_name", "tracking_uri", "experiment_name", "save_execute_config"}
#: What MONAI's ``run`` reads itself.
MONAI_KEYS = {"imports", "initialize", "run", "finalize", "training", "evaluating", "inference"}
#: What the config files of a bundle can run.
STEPS = ("training", "evaluating", "inference")


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
            words that belong to no setting; a step that these config files do not have; or says that the bundle is
            newer than the code.
    """
    is_command = Path(sys.argv[0]).parts[-3:] == ("monai", "bundle", "__main__.py")
    if is_command:  # a program that runs a bundle shows its errors as it likes
        show_user_errors_plainly()
    parser, workflow = _running(ConfigParser), _running(ConfigWorkflow)
    if parser is None:
        raise RuntimeError("check_config must be called from a MONAI bundle config.")
    config = parser.get()
    folder = workflow.config_root_path if workflow else Path(parser.get_parsed_content("bundle_root"), "configs")
    typed = typed_settings(sys.argv[1:]) if is_command else {}
    if workflow and is_command:
        _refuse_stray_words(workflow, typed)
        _refuse_other_order(_config_files(typed))
    if workflow:
        _refuse_other_step(workflow.run_id, config)
    if "help" in config:
        _show_settings(folder)
    refuse_newer_bundle(config.get(ConfigParser.meta_key) or {})
    files = [ConfigParser.load_config_file(path) for path in sorted(folder.glob("*.yaml"))]
    if not files:
        raise UserError(f"{folder}: no configs; set parser['bundle_root'] to the folder of the bundle.")
    known = (
        {re.split("#|::", key)[0].lstrip("+") for file in files for key in file}
        | _referenced_keys(config)
        | _macros(_config_files(typed))
        | CLIENT_KEYS
        | MONAI_KEYS
    )
    unknown = [key for key in config if key not in known and key != ConfigParser.meta_key]
    defaults = _defaults(files, config)
    problems = [did_you_mean(key, known, "is not a key of this bundle's configs.") for key in unknown]
    known_paths = {key.replace("#", "::") for file in files for key in file} | _referenced_paths(config)
    rest = {key: config[key] for key in config if key not in unknown and key != ConfigParser.meta_key}
    problems += unknown_arguments(rest, defaults, EXAMPLES, known_paths)
    for name in _unused(typed, rest):
        logger.warning("--%s has no effect: nothing in this run uses it.", name)
    problems += settle_all(config, defaults, typed)
    _mend_tracking(parser)
    if "bundle_root" in config:  # whose expression finds it only while a workflow runs
        config["bundle_root"] = parser.get_parsed_content("bundle_root")
    parser.parse(reset=True)  # it had been parsed before the first expression was evaluated
    if problems:  # sizes that hang together cannot be judged where one of them is not known
        problems += number_problems(parser)
    else:
        _take_trained_settings(parser, defaults, typed)
        problems = range_problems(parser, defaults)
    if problems:
        raise UserError("these settings cannot be taken, nothing was run:", problems)
    _checked.add(parser)


def _refuse_stray_words(workflow: ConfigWorkflow, typed: Mapping[str, Any]) -> None:
    """Refuse words that belong to no flag, as of a pattern of files; MONAI takes them for the names of its steps."""
    steps = {"init_id": workflow.init_id, "final_id": workflow.final_id}
    usual = ("initialize", "finalize", "", None)
    stray = [str(word) for name, word in steps.items() if word not in usual and name not in typed]
    if stray:
        raise UserError(
            f"the command line has words that belong to no setting: {' '.join(stray)}; nothing was run. Put a path "
            'with spaces, or a list, into quotes: --stride "[8, 8, 8]"; give several files as --files '
            "\"['a.nii.gz','b.nii.gz']\", or their folder."
        )


def _config_files(typed: Mapping[str, Any]) -> list[str]:
    """List the config files as the command line names them; MONAI keeps their folder alone."""
    given = typed.get("config_file")
    return read_as(given, [["a.yaml"]]) if isinstance(given, str) else []


def _refuse_other_order(files: Sequence[str]) -> None:
    """Refuse config files behind which the bundle's own stands: it would take back what they set."""
    names = [Path(path).name for path in files]
    first = next((name for name in ("train.yaml", "inference.yaml") if name in names[1:]), None)
    if first is not None:
        raise UserError(
            f"--config_file: later files override earlier ones, so {first} comes first; got {', '.join(names)}."
        )


def _refuse_other_step(wanted: str, config: Mapping[str, Any]) -> None:
    """Refuse to run what is no step, such as a section, and to train with the files of an evaluation.

    Its validation would load the weights that are there into the network that is trained.
    """
    steps = [name for name in STEPS if name in config]
    if wanted == "training" and "evaluating" in steps:
        raise UserError("evaluate.yaml is for `run evaluating`; leave it out of the config list of `run training`.")
    found = config.get(wanted)
    if wanted == "evaluating" and found is None and "training" in steps:
        raise UserError("`run evaluating` needs evaluate.yaml; add it to the config list, after train.yaml.")
    if found is None or (isinstance(found, Mapping) and "_target_" not in found):
        raise UserError(f"`run {wanted}`: expected {' or '.join(steps)}, as these config files have them.")


def _show_settings(folder: Path) -> None:
    """Print what can be set, as the config files say it that the command names, and end the program."""
    named = " ".join(sys.argv)
    for path in sorted(path for path in folder.glob("*.yaml") if path.name in named):
        head = path.read_text().partition("\n# ====")[0].splitlines()
        print(f"\n{path}\n")
        print("\n".join(line for line in head if re.match(r"#|$|[a-z]\w*: [^|]", line)))
    raise SystemExit


def client_gives_cases() -> bool:
    """Say whether a client, such as MONAI Label, has put cases, or a data set, in the place of the data list's."""
    parser = _running(ConfigParser)
    if parser is None:
        return False
    dataset = parser["train::dataset"]
    return not isinstance(dataset, Mapping) or isinstance(dataset["data"], list)


def resolved_config() -> dict[str, Any]:
    """Resolve the config that is being run: expressions and references become what they stand for.

    Components (what has a ``_target_``, or refers to something that has) stay as they are written; the references in
    them point to resolved values.

    Raises:
        UserError: when the config has not been checked; the settings of the weights are not in it yet.
    """
    parser = _running(ConfigParser)
    if parser is None or parser not in _checked:
        raise UserError(
            "the config has not been checked, nor the settings of its weights taken; first call "
            "workflow.initialize(), or parser.get_parsed_content('checks')."
        )
    config = {key: value for key, value in parser.get().items() if key != ConfigParser.meta_key}
    resolved = {}
    for key, value in config.items():
        found = value if _has_components(key, config) else parser.get_parsed_content(key)
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
    own = key in ("imports", "bundle_imports", "initialize", "run", "training", "finalize") or contains_target(node)
    return own or any(_has_components(other, config, seen | {key}) for other in _referenced_keys(node))


def _plain(value: Any) -> Any:
    """Turn a value into what JSON can hold; objects that a program has put there become the names of their classes."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    text = str(value)
    return type(value).__qualname__ if callable(value) or " at 0x" in text else text


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


def _take_trained_settings(parser: ConfigParser, defaults: Mapping[str, Any], typed: Mapping[str, str | bool]) -> None:
    """Put settings that the weights were trained with in the place of defaults.

    Raises:
        UserError: names settings that were given and differ from those of the training.
    """
    if "ckpt_path" not in parser:
        return
    weights = parser.get_parsed_content("ckpt_path")
    config, problems = parser.get(), []
    settings = read_settings(weights)
    _refuse_other_bundle(weights, settings, config)
    for name, trained in settings.items():
        given = _plain(parser.get_parsed_content(name)) if name in config else trained
        if given == trained:
            continue
        if name not in typed and config[name] == defaults.get(name):
            config[name] = trained
        elif name not in ("stride", "channels", "patient_pattern"):  # time, and how files are called
            problems.append(f"--{name}: trained with {shown(trained)}, got {shown(given)}.")
    if problems:
        raise UserError(
            f"{weights if isinstance(weights, str) else weights[0]} was trained with other settings; leave these out, "
            "since they are read from the .json file beside it:",
            problems,
        )
    parser.parse(reset=True)


def _refuse_other_bundle(weights: str | Sequence[str], settings: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse weights of another bundle, whose network may be the same, but not what is done to its input."""
    file = weights if isinstance(weights, str) else weights[0]
    trained, ours = settings.get("bundle"), config.get("bundle")
    if trained is not None and ours is not None and trained != ours:
        raise UserError(f"{file}: was trained with {trained}, and this is {ours}; run the configs of {trained}.")
    missing = [f"{name} {shown(value)}" for name, value in settings.items() if name not in config and value is not None]
    if missing and "bundle" not in settings:
        raise UserError(
            f"{file}: was trained with settings that {ours} does not have, {', '.join(missing)}; run the "
            "configs of the bundle that it was trained with."
        )


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


def _running(kind: type[T]) -> T | None:
    """Find the parser or the workflow that is instantiating us; MONAI hands its components no reference to it."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, kind):
            return caller
        frame = frame.f_back
    return None


def _referenced_keys(config: Any) -> set[str]:
    return {key for text in _strings(config) for key in re.findall(r"[@%](\w+)", text)}


def _macros(files: Sequence[str]) -> set[str]:
    """List the keys that config files copy with ``%``; MONAI has replaced them."""
    return _referenced_keys([ConfigParser.load_config_file(path) for path in files if Path(path).is_file()])


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
