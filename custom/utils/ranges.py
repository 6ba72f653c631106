"""Refuse numbers and sizes that a training or an inference cannot take, before it starts."""

import math
import re
from collections.abc import Iterator, Mapping
from pydoc import locate
from typing import Any

import torch
from monai.bundle import ConfigParser

from .names import ALL, LISTS, are_channel_names, are_class_names
from .settings import is_expression, shown

_POSITIVE = math.ulp(0.0)
_BELOW_ONE = 1 - math.ulp(0.5)
#: Smallest and largest value of settings, of each of their entries where they have several.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            *("patch_size", "stride", "batch_size", "unlabeled_batch_size", "sw_batch_size", "max_iterations"),
            *("val_interval", "schedule_iterations", "ckpt_interval", "panel_interval", "collapse_patience"),
            *("in_channels", "base_filters"),
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(("num_workers", "batch_norm_recalibration", "weight_decay", "lr_power"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "spacing"), (_POSITIVE, math.inf)),
    **dict.fromkeys(("eta", "threshold", "cache_rate"), (0, 1)),
    **dict.fromkeys(("feature_dropout", "network_def::dropout"), (0, _BELOW_ONE)),
    "unsupervised_weight": (0, math.inf),
    "loss_weights": (0, math.inf),
    "densities": (_POSITIVE, math.inf),
    "ema_decay": (_POSITIVE, _BELOW_ONE),
    "n_saved": (2, math.inf),
    "num_classes": (2, math.inf),
    "keep_largest": (1, math.inf),
    "slice_axis": (2, 2),
    "seed": (0, 2**32 - 1),  # numpy's
}
_VOLUMES, _PICTURES = (".nii.gz", ".nii"), (".png", ".bmp", ".tif", ".tiff")
#: Endings of label maps that writers write as they are, by the writer's name without its module. Others fail, or lose
#: something: a JPEG and a WebP blur labels, and a .mhd names the file that its voxels were in while it was written.
LOSSLESS = {
    **dict.fromkeys(("SeriesWriter", "NiftiWriter", "NibabelWriter"), _VOLUMES),
    "ITKWriter": (*_VOLUMES, ".nrrd", ".mha"),
    **dict.fromkeys(("MaskWriter", "PILWriter"), _PICTURES),
}
#: Lists whose cases may have labels, so that they can be scored.
SCORED = [name for name in LISTS if name != "unlabeled"]
#: Settings with one number for each axis of a patch.
PER_AXIS = ("patch_size", "stride", "spacing")


def range_problems(parser: ConfigParser, defaults: Mapping[str, Any]) -> list[str]:
    """Say which settings are out of range.

    Args:
        parser: of the config; settings that are expressions are evaluated.
        defaults: the bundle's own settings.

    Returns:
        One line for each.
    """
    problems = number_problems(parser)
    problems += [*_device_problems(parser), *_format_problems(parser), *_name_problems(parser)]
    problems += [*_output_problems(parser, defaults), *_choice_problems(parser, defaults)]
    found = {key: _value(parser, key) for key in RANGES if key in parser}
    return problems or [*_size_problems(parser, found, defaults)]


def number_problems(parser: ConfigParser) -> list[str]:
    """Say which numbers are out of range, but for those that follow from another one that is."""
    found = {key: [*_number_problems(key, _value(parser, key))] for key in RANGES if key in parser}
    bad = {key for key, problems in found.items() if problems}
    own = [key for key in found if bad.isdisjoint(re.findall(r"@(\w+)", str(parser.get(key))))]
    return [problem for key in own for problem in found[key]]


def _value(parser: ConfigParser, key: str) -> Any:
    """Evaluate a setting; None where it cannot be, which is then told when it is needed."""
    try:
        return parser.get_parsed_content(key)
    except Exception:  # an expression may fail in any way
        return None


def _number_problems(key: str, value: Any) -> Iterator[str]:
    entries = (
        value if isinstance(value, Mapping) else dict(enumerate(value)) if isinstance(value, list) else {"": value}
    )
    for name, entry in entries.items():
        # A ramp's numbers of iterations are not of its kind.
        least, most = (0, math.inf) if name in ("delay", "rampup_iterations") else RANGES[key]
        if isinstance(entry, (int, float)) and not isinstance(entry, bool) and not least <= entry <= most:
            yield f"--{key}: must be {_words(least, most)}, got {shown(value)}."
            return


def _words(least: float, most: float) -> str:
    if least == most:
        return f"{least:g}"
    lower = "more than 0" if least == _POSITIVE else f"at least {least:g}"
    if most == math.inf:
        return lower
    return f"{lower} and " + (
        "below 1" if most == _BELOW_ONE else f"at most {most:g}" if most < 1e6 else f"at most {most}"
    )


def _device_problems(parser: ConfigParser) -> Iterator[str]:
    for key in ("device", "stitch_device"):
        name = parser.get(key)
        if isinstance(name, str) and not is_expression(name) and not _is_there(name):
            gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
            yield f"--{key}: there is no {name} here, but {', '.join(['cpu', *gpus])}."


def _is_there(device: str) -> bool:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return False
    found = torch.device(device)  # PyTorch takes any number behind cpu, and meta has no values
    return found.type != "meta" and not (found.type == "cpu" and found.index)


def _format_problems(parser: ConfigParser) -> Iterator[str]:
    name = parser.get("memory_format")
    if not (name is None or is_expression(name) or isinstance(name, torch.memory_format)):
        yield f"--memory_format: expected one of torch's, such as '$torch.contiguous_format'; got {shown(name)}."


def _name_problems(parser: ConfigParser) -> Iterator[str]:
    names = parser.get("class_names")
    known = isinstance(names, list) and not any(map(is_expression, names))
    if known and not are_class_names(names):
        yield (
            f"--class_names: must be the names of the structures labeled 1, 2, ..., all different, none called {ALL}, "
            f"such as --class_names liver,tumor; got {shown(names)}."
        )
    elif known and (number := _value(parser, "num_classes")) not in (None, len(names) + 1):
        yield f"--num_classes: is {len(names) + 1}, background and {shown(names)}; give --class_names, got {number}."
    channels, number = parser.get("channels"), _value(parser, "in_channels")
    if isinstance(channels, list) and not (are_channel_names(channels) and len(channels) == number):
        yield (
            f"--channels: must be the ends of the names of a case's files, one for each of the in_channels, {number}, "
            f"all different, such as --in_channels 2 --channels t1,t2; got {shown(channels)}."
        )


def _output_problems(parser: ConfigParser, defaults: Mapping[str, Any]) -> Iterator[str]:
    known = (defaults.get("output"), "dicom_seg")
    if "output" in parser and parser.get("output") not in known:
        yield f"--output: must be {known[0]} or {known[1]}, got {shown(parser.get('output'))}."
    writer, ending = _value(parser, "writer"), _value(parser, "output_ext")
    endings = LOSSLESS.get(str(getattr(writer, "__name__", writer)).rpartition(".")[2])
    got = f"got {shown(ending)}."
    if isinstance(ending, str) and endings is not None and ending not in endings:
        yield f"--output_ext: must be {' or '.join(endings)}, as {writer} writes labels without loss; {got}"
    elif isinstance(ending, str) and not ending.startswith("."):
        yield f"--output_ext: must begin with a dot, such as .nii.gz; {got}"


def _choice_problems(parser: ConfigParser, defaults: Mapping[str, Any]) -> Iterator[str]:
    """Compare what names lists, classes and axes with those that there are."""
    name = parser.get("evaluation_list")
    if isinstance(name, str) and not is_expression(name) and name not in SCORED:
        yield f"--evaluation_list: must be {', '.join(SCORED[:-1])} or {SCORED[-1]}, lists of a data list; got {name}."
    kept, number = _value(parser, "keep_largest"), _value(parser, "num_classes")
    # The bundle's own may name more classes than weights of other structures have, which changes nothing at inference.
    is_own = name is None and kept == defaults.get("keep_largest")
    if isinstance(kept, list) and isinstance(number, int) and not is_own and any(label >= number for label in kept):
        yield f"--keep_largest: must be labels out of {list(range(1, number))}; got {shown(kept)}."
    dropout = _value(parser, "feature_dropout")
    if isinstance(dropout, list) and len(dropout) != 2:
        yield f"--feature_dropout: must have 2 numbers, weak and strong, such as [0.25, 0.75]; got {shown(dropout)}."
    flips, patch = _value(parser, "test_time_flips"), _value(parser, "patch_size")
    if isinstance(flips, list) and isinstance(patch, list):
        axes = list(range(len(patch)))
        if len(set(flips)) < len(flips) or not set(flips) <= set(axes):
            yield f"--test_time_flips: must be axes of the patch out of {axes}, each once; got {shown(flips)}."


def _size_problems(parser: ConfigParser, found: Mapping[str, Any], defaults: Mapping[str, Any]) -> Iterator[str]:
    """Compare sizes with each other and with the network."""
    patch, stride = found.get("patch_size"), found.get("stride")
    if not isinstance(patch, list):
        return
    target = parser.get("network_def::_target_")
    same_network = target == defaults.get("network_def", {}).get("_target_")
    axes = len(defaults["patch_size"]) if same_network and isinstance(defaults.get("patch_size"), list) else len(patch)
    for key in PER_AXIS:
        value = found.get(key)
        if isinstance(value, list) and len(value) != axes:
            yield f"--{key}: must have {axes} numbers, one per axis, got {shown(value)}."
            return
    divisor = getattr(locate(target), "divisor", None) if isinstance(target, str) else None
    if isinstance(divisor, int) and any(size % divisor for size in patch):
        yield f"--patch_size: every size must be a multiple of {divisor}, for the network; got {shown(patch)}."
    elif isinstance(stride, list) and any(step > size for step, size in zip(stride, patch, strict=True)):
        yield f"--stride: must not be larger than the patch, {shown(patch)}, on any axis; got {shown(stride)}."
