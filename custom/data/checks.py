"""What is wrong with a case: read every voxel before the first iteration."""

import errno
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from monai.data import MetaTensor
from monai.utils import ensure_tuple
from tqdm import tqdm

from ..utils.device import is_out_of_memory
from ..utils.errors import UserError, first_cause, plain_reason
from .geometry import has_volume, label_problem, lacks_spacing, size_problem
from .kept import KeptFindings
from .labels import to_label
from .photos import is_photo
from .readers import LoadScan
from .states import state_of

#: ``image``, a path or a list with one for each channel; ``label``, a path; and ``case``, its name.
Case = dict[str, Any]


logger = logging.getLogger(__name__)


class CaseRule(NamedTuple):
    """What a case must be like."""

    in_channels: int
    num_classes: int
    dimensions: int
    needs_spacing: bool = False
    series: bool = False


class Finding(NamedTuple):
    """What is wrong with a case, and which structures its label marks."""

    problems: list[str]
    structures: Sequence[int] = ()


def check_cases(cases: Sequence[Case], rule: CaseRule, folder: str | None = None) -> list[Finding]:
    """Read every file, and say what was found, case by case.

    Args:
        cases: with ``image``, and ``label`` where there is one.
        rule: what they must be like.
        folder: where ``checks.json`` keeps what was found, so that files that have not changed since are not read
            again. None reads all.
    """
    kept = KeptFindings(folder, rule)
    states = [state_of(case) for case in cases]
    known = [kept.get(case, state) for case, state in zip(cases, states, strict=True)]
    unread = [case for case, found in zip(cases, known, strict=True) if found is None]
    if len(unread) < len(cases):
        logger.info("%d of %d cases are as they were when they were checked", len(cases) - len(unread), len(cases))
    changed = [os.path.basename(ensure_tuple(case["image"])[0]) for case in unread if kept.has(case)]
    if changed:
        logger.warning("%d case(s) have changed since they were checked: %s", len(changed), ", ".join(changed))
    new = iter(_check_all(unread, rule))
    findings = [next(new) if found is None else Finding([], **found) for found in known]
    for case, state, found, finding in zip(cases, states, known, findings, strict=True):
        if found is None and not finding.problems:
            kept.put(case, state, {"structures": finding.structures})
    if kept.is_there or not any(finding.problems for finding in findings):  # bad data leave no new file behind
        kept.write()
    return findings


def _check_all(cases: Sequence[Case], rule: CaseRule) -> list[Finding]:
    """Read cases in threads: unzipping, the slow part, runs outside Python's lock."""
    if not cases:
        return []
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        read = pool.map(lambda case: _check_case(case, rule), cases)
        return list(tqdm(read, "Checking", len(cases), unit="case"))
    finally:
        pool.shutdown(cancel_futures=True)  # whoever stops the program need not wait for all of them


def _check_case(case: Case, rule: CaseRule) -> Finding:
    image, problems = read_image(case["image"], rule.in_channels)
    if image is None:
        return Finding(problems)
    problems += image_problems(case["image"], image, rule)
    structures: list[int] = []
    if "label" in case:
        label, found = read_label(case["label"], image, rule.num_classes)
        problems += found
        structures = [] if label is None else [int(value) for value in torch.unique(label.as_tensor()) if value]
    return Finding(problems, structures)


def read_image(
    path: str | Sequence[str], in_channels: int | None = None, as_label: bool = False
) -> tuple[MetaTensor | None, list[str]]:
    """Read a file, or one for each channel, CH[WD], see :class:`custom.data.LoadScan`; None and why that fails."""
    missing = [file for file in ensure_tuple(path) if not os.path.exists(file)]
    if missing:
        return None, [f"{file}: no such file." for file in missing]
    try:
        return LoadScan(in_channels, as_label)(path), []
    except Exception as error:
        return None, [reading_problem(path, error)]


def reading_problem(path: str | Sequence[str], error: BaseException) -> str:
    """Say why files could not be read; every reader fails in its own way, so what it says is quoted."""
    denied = [file for file in ensure_tuple(path) if os.path.exists(file) and not os.access(file, os.R_OK)]
    if denied:
        return f"{denied[0]}: no permission to read it; have the permission changed."
    plain = first_cause(error, UserError)
    if plain is not None:
        return str(plain)
    missing = [file for file in ensure_tuple(path) if not os.path.exists(file)]
    if missing:
        return f"{missing[0]}: no such file."
    files = ", ".join(ensure_tuple(path))
    if is_out_of_memory(error):
        return f"{files}: there is not enough memory to read it ({plain_reason(error)})."
    reason = plain_reason(error)
    if reason.endswith(os.strerror(errno.ENOENT)):  # ITK's last words, also about voxels of which a part is there
        reason = "the file of its voxels is missing, or too short"
    return f"{files}: cannot be read, probably truncated or not an image ({reason})."


def image_problems(files: str | Sequence[str], image: MetaTensor, rule: CaseRule) -> list[str]:
    """Say why training would refuse an image, CH[WD], read from a file, or from one for each channel."""
    problems = []
    names = ensure_tuple(files)
    path = names[0]
    if image.ndim - 1 != rule.dimensions:
        return [f"{path}: expected {rule.dimensions} dimensions, found shape {_shape(image)}."]
    least = 2 if rule.dimensions == 2 else 1  # a volume may be a single slice
    if min(image.shape[1:]) < least:
        found = "x".join(map(str, image.shape[1:]))
        hint = "export it again, or take it away"
        return [f"{path}: has {found} voxels; expected an image, at least {least} along each axis; {hint}."]
    if image.shape[0] != rule.in_channels and not (rule.series and len(names) == 1):
        found = f"found {image.shape[0]} (shape {_shape(image)})"
        problems.append(f"{path}: expected {rule.in_channels} channel(s), {found}{_channels_hint(names, rule)}.")
    size = size_problem(image.affine) if rule.dimensions == 3 else None
    if size is not None:
        problems.append(f"{path}: {size}.")
    elif not has_volume(image.affine):
        problems.append(f"{path}: its header has no spacing, or axes that do not span a volume; mend the header.")
    elif rule.needs_spacing and lacks_spacing(image.meta):
        hint = "write it into the header, or train on voxels as they are, with --spacing null"
        problems.append(f"{path}: its header has no spacing, which resampling needs; {hint}.")
    for name, part in zip(names, image.as_tensor().split(1) if len(names) > 1 else (image.as_tensor(),), strict=True):
        problem = _value_problem(part)
        if problem is not None:
            problems.append(f"{name}: {problem}.")
    return problems


def _value_problem(part: torch.Tensor) -> str | None:
    """Say what is wrong with the voxels of a file, CH[WD]; None, after one quick pass, where nothing is."""
    ranges = [channel.aminmax() for channel in part if channel.numel()]  # NaN is both
    if not all(torch.isfinite(end) for ends in ranges for end in ends):
        return f"{int((~torch.isfinite(part)).sum())} voxel(s) are NaN or infinite"
    if part[0].numel() > 1 and all(low == high for low, high in ranges):  # a color may fill a picture too
        values = ", ".join(f"{float(low):g}" for low in dict.fromkeys(float(low) for low, _ in ranges))
        return f"all voxels are {values}; expected an image, perhaps an empty export"
    return None


def _channels_hint(files: Sequence[str], rule: CaseRule) -> str:
    """Say what to do about an image with another number of channels."""
    if len(files) > 1:
        return f"; it has {len(files)} files, one for each, and in_channels is {rule.in_channels}"
    if rule.in_channels == 1 and is_photo(files[0]):
        return "; it has colors: make it grey, or set in_channels: 3"
    if rule.in_channels == 1:
        return "; save the frames of a series, or the colors or channels of an image, as files of their own"
    return "; channels in files of their own are listed together, in folders see the setting channels"


def read_label(path: str, image: MetaTensor, num_classes: int) -> tuple[MetaTensor | None, list[str]]:
    """Read the label of an image, 1H[WD]; None where it is none, and why training would refuse it."""
    label, problems = read_image(path, as_label=True)
    if label is None:
        return None, problems
    problem = label_problem(label, image, path)
    if problem is not None:
        return None, [problem]
    try:
        return to_label(label, path, num_classes), []
    except UserError as error:
        return None, [str(error)]


def _shape(image: MetaTensor) -> tuple[int, ...]:
    return tuple(image.shape[1:] if image.shape[0] == 1 else (*image.shape[1:], image.shape[0]))
