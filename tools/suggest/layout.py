"""Lay out what is to be labeled: the images for a label tool, and the data lists for now and for afterwards."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from custom.data.checks import Case
from custom.data.datalist import LISTS, read_lists
from custom.data.states import files_of
from custom.utils.files import atomic_write, read_json, write_json
from custom.utils.names import file_stem

TO_LABEL, LABELS = "to_label", "labels"
#: The data lists: without the suggested scans, and with their labels.
REST, LABELED = "unlabeled_rest.json", "labeled_next.json"


def copy_images(cases: Sequence[Case], folder: Path) -> None:
    """Copy the images of cases into ``to_label/``; links would be lost where a label tool runs on another machine.

    An image is named as its case, those of several channels with nnU-Net's numbers. What is more than a file, a DICOM
    series or a header with its voxels, keeps its names in a folder that is named so.

    Args:
        cases: with ``image`` and ``case``.
        folder: of the suggestions.
    """
    for case in cases:
        for source, name in _copies(case):
            with atomic_write(folder / TO_LABEL / name) as part:
                shutil.copyfile(source, part)


def _copies(case: Case) -> Iterator[tuple[Path, str]]:
    images = [Path(file) for file in ensure_tuple(case["image"])]
    for number, image in enumerate(images):
        name = case["case"] if len(images) == 1 else f"{case['case']}_{number:04d}"
        files = files_of(image)
        if files == [image]:
            yield image, name + image.name[len(file_stem(image)) :]
        else:
            yield from ((file, f"{name}/{file.relative_to(image) if image.is_dir() else file.name}") for file in files)


def write_lists(datalist: Path, cases: Sequence[Case], ending: str, folder: Path) -> None:
    """Write the data list without the suggested cases, and the one in which they are labeled, whole or not at all.

    Args:
        datalist: relative paths in it stay relative, as they are from the folder.
        cases: the suggested ones, out of its list ``unlabeled``.
        ending: of a label, which is expected in ``labels/`` under the name of its case.
        folder: of the suggestions.
    """
    labels = {ensure_tuple(case["image"])[0]: f"{LABELS}/{case['case']}{ending}" for case in cases}
    content, lists = read_json(datalist), read_lists(datalist)
    moved = {name: [_moved(*pair, datalist, folder) for pair in zip(content.get(name) or [], lists[name], strict=True)]
             for name in LISTS if name in content}  # fmt: skip
    first_files = [ensure_tuple(case["image"])[0] for case in lists["unlabeled"]]
    unlabeled = list(zip(moved["unlabeled"], first_files, strict=True))
    moved["unlabeled"] = [entry for entry, file in unlabeled if file not in labels]
    write_json(folder / REST, content | moved)
    added = [
        {"image": entry if isinstance(entry, str) else entry["image"], "label": labels[file]}
        for entry, file in unlabeled
        if file in labels
    ]
    (folder / LABELS).mkdir(exist_ok=True)
    write_json(folder / LABELED, content | moved | {"training": [*moved.get("training", []), *added]})


def _moved(entry: Any, case: Case, datalist: Path, folder: Path) -> Any:
    """Give an entry of a data list the paths that it has in another folder; those of no use are left out."""
    texts = {"image": entry} if isinstance(entry, str) else entry
    kept = {key: value for key, value in texts.items() if key not in ("image", "label")}
    for key in ("image", "label"):
        if key in case:
            files = zip(ensure_tuple(texts[key]), ensure_tuple(case[key]), strict=True)
            paths = [_from(folder, datalist, *file) for file in files]
            kept[key] = paths if len(paths) > 1 else paths[0]
    return kept["image"] if isinstance(entry, str) else kept


def _from(folder: Path, datalist: Path, text: str, path: str) -> str:
    """Write a path, relative if it was, from a folder; ``..`` must not lead through a link."""
    if os.path.isabs(os.path.expanduser(text)):
        return path
    below = os.path.relpath(path, datalist.parent)
    return os.path.relpath(os.path.join(os.path.realpath(datalist.parent), below), os.path.realpath(folder))
