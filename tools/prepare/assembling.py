"""From files that were found to a dataset folder: read them, bring them together, write them and their data lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from custom.data.checks import CaseRule, image_problems
from custom.data.geometry import grid_problem, has_volume, label_problem
from custom.data.labels import to_label
from custom.data.readers import check_channels
from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable

from .layouts import Files, read_volume
from .writer import Scan, refuse_other_data, write_dataset

#: An unlabeled volume that has no other values than the whole numbers up to this is taken for a label.
MOST_OF_A_LABEL = 3
#: Names of scans by list, of one data list.
Lists = Mapping[str, Sequence[str]]


def prepare_scans(
    output: str,
    files: Mapping[str, Files],
    lists: Mapping[str, Lists],
    about: Mapping[str, Any],
    record: Mapping[str, Any],
    process: Callable[[dict], dict] | None = None,
    allow_missing: bool = False,
    crop: str = "none",
    settle: Callable[[Mapping[str, Files]], Mapping[str, Files]] | None = None,
    resample: bool = False,
    rule: CaseRule | None = None,
) -> None:
    """Write the scans and the data lists that name them; ``settle`` is what only all scans together can tell.

    Images that training would refuse by the ``rule`` are refused here.
    """
    refuse_unwritable(output=output)
    listed = dict.fromkeys(name for content in lists.values() for names in content.values() for name in names)
    missing = [name for name in listed if name not in files]
    # The benchmark crop needs the label of every scan, also of those that are then listed without it.
    supervised = set(listed) if crop == "benchmark" else {n for content in lists.values() for n in _supervised(content)}
    unlabeled = [name for name in listed if name in supervised and name in files and files[name].label is None]
    if (missing or unlabeled) and not allow_missing:
        problems = [f"{name}: no scan found" for name in missing] + [f"{name}: no label found" for name in unlabeled]
        hint = "nothing was written; complete the download, or give --allow_missing"
        raise UserError(f"{record['source']}: {len(problems)} of {len(listed)} scans are incomplete; {hint}:", problems)
    left_out = {*missing, *unlabeled}
    usable: Mapping[str, Lists] = {
        file: {name: [scan for scan in names if scan not in left_out] for name, names in content.items()}
        for file, content in lists.items()
    }
    usable = _with_labeled_scans(usable, lists)
    names = [name for name in listed if name not in left_out]
    refuse_other_data(output, record)
    files = files if settle is None else settle({name: files[name] for name in names})
    one_structure = len(about["labels"]) == 2
    scans = {name: _scan(name, files[name], process, one_structure, resample, rule) for name in names}
    datalists = {file: {**about, **_entries(content, scans)} for file, content in usable.items()}
    folder = write_dataset(output, list(scans.values()), datalists, record)
    print(f"{len(scans)} scan(s) in {folder}; data lists: {', '.join(datalists)}")
    first = next(iter(usable), None)
    if first is not None:
        print(f"{first}: {', '.join(f'{len(found)} {key}' for key, found in usable[first].items() if found)}")


def _with_labeled_scans(usable: Mapping[str, Lists], lists: Mapping[str, Lists]) -> dict[str, Lists]:
    """Leave out the lists that lost all their labeled scans, unless all did: then the folder is one for evaluation."""
    empty = [file for file, content in usable.items() if lists[file]["training"] and not content["training"]]
    if len(empty) == len(usable):
        return dict(usable)
    for file in empty:
        print(f"{file}: not written, none of its labeled scans is there")
    return {file: content for file, content in usable.items() if file not in empty}


def _supervised(content: Lists) -> list[str]:
    return [name for key, names in content.items() if key != "unlabeled" for name in names]


def _entries(content: Lists, scans: Mapping[str, Scan]) -> dict[str, list[dict[str, Any]]]:
    """Turn names into entries of a data list; unlabeled ones get no label even where there is one."""
    entries = {}
    for name, members in content.items():
        keys = ("image",) if name == "unlabeled" else ("image", "label")
        entries[name] = [scans[member].entry(keys) for member in members]
    return entries


def _scan(
    name: str,
    files: Files,
    process: Callable[[dict], dict] | None,
    one_structure: bool = False,
    resample: bool = False,
    rule: CaseRule | None = None,
) -> Scan:
    read, has_label = partial(_read, files, process, resample, rule), files.label is not None
    images = (files.image, *files.others)
    endings = tuple(image.suffix.lower() if isinstance(image, Path) else ".nii.gz" for image in images)
    label_ending = ".png" if isinstance(files.image, Path) else ".nii.gz"
    return Scan(name, read, has_label, endings, label_ending, files.made_from, one_structure)


def _read(
    files: Files, process: Callable[[dict], dict] | None, resample: bool, rule: CaseRule | None = None
) -> dict[str, Any]:
    """Read a scan; in another process, when scans are written in parallel."""
    found = (files.image, *files.others)
    wanted = None if rule is None else rule.in_channels if len(found) == 1 else 1
    image, *others = [read_volume(str(part), wanted) if isinstance(part, Path) else part() for part in found]
    others = _on_one_grid(image, others, files, resample) if others else others
    if rule is not None:
        _refuse_unfit([image, *others], files.made_from[: len(found)], rule)
        if files.label is None and not isinstance(files.image, Path):
            _refuse_label(image, files.made_from[0])
    sample: dict[str, Any] = {"image": image}
    if files.label is not None:
        label = files.label()
        name = str(label.meta.get("filename_or_obj", files.made_from[-1]))
        label = along_axes_of(image, label)
        problem = label_problem(label, image, name)
        if problem is not None:
            raise UserError(problem)
        label = to_label(label, name, files.num_classes)
        label.affine = image.affine
        sample["label"] = label
    sample = sample if process is None else process(sample)
    images = zip(found, (sample.pop("image"), *others), strict=True)
    return {"images": [part if isinstance(part, Path) else read for part, read in images], **sample}


def along_axes_of(image: MetaTensor, label: MetaTensor) -> MetaTensor:
    """Flip and swap the axes of a label, CHWD, as its image's lie, as where another program saved it; loses nothing.

    Returns:
        The label as it is where that does not bring it onto its image's grid.
    """
    if label.ndim != 4 or image.ndim != 4 or not (has_volume(image.affine) and has_volume(label.affine)):
        return label
    turn = io_orientation(np.linalg.inv(image.affine.numpy()) @ label.affine.numpy())
    voxels = np.stack([apply_orientation(channel, turn) for channel in label.numpy()])
    affine = label.affine.numpy() @ inv_ornt_aff(turn, label.shape[1:])
    meta = {name: value for name, value in label.meta.items() if name != "affine"}  # else the label's own would change
    turned = MetaTensor(voxels, affine=torch.as_tensor(affine), meta=meta)
    return label if grid_problem(turned, image) is not None else turned


def _refuse_unfit(channels: Sequence[MetaTensor], places: Sequence[str], rule: CaseRule) -> None:
    """Refuse an image, all its channels together, that training would refuse, whether it is a volume or a picture."""
    joined: Any = torch.cat(list(channels))  # a MetaTensor with the metadata of the first
    problems = image_problems(places, joined, rule._replace(dimensions=min(joined.ndim - 1, rule.dimensions)))
    if problems:
        raise UserError("\n".join(problems))


def _refuse_label(image: MetaTensor, place: str) -> None:
    """Refuse an unlabeled volume whose voxels are small whole numbers alone: a label that its name does not tell."""
    low, high = (float(end) for end in image.as_tensor().aminmax()) if image.numel() else (0.0, 0.0)
    if low == 0 < high <= MOST_OF_A_LABEL and bool((image.as_tensor() == image.as_tensor().round()).all()):
        found = f"its only values are whole numbers from 0 to {MOST_OF_A_LABEL}"
        raise UserError(f"{place}: {found}; is it a label? Expected an image; take it away, or call it NAME_seg.")


def _on_one_grid(image: MetaTensor, others: Sequence[MetaTensor], files: Files, resample: bool) -> list[MetaTensor]:
    """Give an image's other channels, 1H[WD], the grid of the first."""
    brought: list[Any] = [
        ResampleToMatch(mode="bilinear")(channel, image)
        if resample and not isinstance(part, Path) and grid_problem(channel, image) is not None
        else channel
        for channel, part in zip(others, files.others, strict=True)
    ]
    check_channels([image, *brought], files.made_from[: 1 + len(others)])
    for channel in brought:
        channel.affine = image.affine
    return brought
