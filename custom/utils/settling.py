"""Give settings the kinds that they are meant to have, or say which are of another kind."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from monai.bundle import ConfigParser

from .settings import UnfitError, below_home, guess, is_expression, is_object, read_as, shown

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
    "needs_spacing": (True,),
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


def settle_all(config: dict[str, Any], defaults: Mapping[str, Any], typed: Mapping[str, str | bool]) -> list[str]:
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
            return _keep_number_sign(below_home(node) if is_place else node)
        if is_expression(node) or is_object(node):
            return node
        if isinstance(node, dict):
            return self._settle_mapping(node, examples, default, path, in_component)
        if _is_structure(node):
            known = default if isinstance(default, list) and len(default) == len(node) else [_ABSENT] * len(node)
            return [self.settle(*pair, f"{path}::{i}", True) for i, pair in enumerate(zip(node, known, strict=True))]
        if isinstance(node, str) or not in_component:
            node = self._read(node, examples, default, path, in_component)
        return _keep_number_sign(below_home(_with_number_sign(node)) if is_place else node)

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
        if not examples and (not _is_structure(default) or value == []):
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


def _keep_number_sign(node: Any) -> Any:
    """Write a text with ``#`` as an expression without, which MONAI then evaluates to the text."""
    if isinstance(node, dict):
        return {key: _keep_number_sign(item) for key, item in node.items()}
    if isinstance(node, list):
        return list(map(_keep_number_sign, node))
    if isinstance(node, str) and "#" in node and not is_expression(node):
        return "$" + repr(node).replace("#", "\\x23").replace("@", "\\x40")
    return node
