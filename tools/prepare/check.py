"""Read every voxel of a dataset folder and tell what is wrong or odd: ``python -m tools.prepare check DIR``."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import repeat, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils import ensure_tuple
from tqdm import tqdm

from custom.data.checks import Case, CaseRule, image_problems, read_image, read_label
from custom.data.datalist import LISTS, overlap_problems, read_lists
from custom.utils.errors import UserError
from custom.utils.files import read_json, write_json
from custom.utils.names import case_files, case_names, groups
from custom.utils.tables import format_table

from .pool import process_pool

Row = dict[str, Any]
#: An axis this many times as coarse as another, or a scan as many times larger than the median, is odd.
ODD_RATIO = 3.0
#: As many oddities of a kind are told one by one; more are one line.
SHOWN = 4


class Oddity(NamedTuple):
    """What may be a mistake: its kind, which others may share, the case, and the whole text."""

    kind: str
    case: str
    text: str


def check_folder(folder: Path, output: Path, patient_pattern: str | None = None) -> None:
    """Check a dataset folder, print a table of its cases and write everything to a JSON file.

    Args:
        folder: holds data lists.
        output: the JSON file: ``cases``, ``wrong`` (training would refuse it) and ``odd``.
        patient_pattern: regular expression that finds the patient in a file name.

    Raises:
        UserError: when training on one of the lists would be refused.
    """
    datalists = {path.name: path for path in sorted(folder.glob("*.json")) if _is_datalist(path)}
    if not datalists:
        raise UserError(f"{folder}: holds no data list, a JSON file with the lists {', '.join(LISTS)}.")
    contents = {name: read_lists(path) for name, path in datalists.items()}
    rule = _rule(read_json(next(iter(datalists.values()))), contents)
    cases = _cases(contents)

    with process_pool() as pool:
        rows = list(tqdm(pool.map(partial(_check_case, rule=rule), cases), "Checking", len(cases), unit="case"))
    wrong = [problem for row in rows for problem in row.pop("wrong")]
    for name, lists in contents.items():
        wrong += [f"{name}: {problem}" for problem in overlap_problems(lists, patient_pattern, folder)]
        if not lists["training"]:
            wrong.append(f"{name}: the list 'training' is empty.")
    odd = [*_duplicates(rows, contents), *(found for row in rows for found in row.pop("odd")), *_outliers(rows)]
    report = {"datalists": list(datalists), "cases": rows, "wrong": wrong, "odd": [found.text for found in odd]}
    try:
        write_json(output, report)
        place = f"Report: {output}"
    except OSError as error:
        place = f"The report could not be written to {output} ({error.strerror}); give --output another file."
    print("\n" + format_table([_table_row(row) for row in rows]))
    lines = [f"  - {text}" for text in _summary(odd)]
    print("\n".join([f"\n{len(odd)} {'oddity' if len(odd) == 1 else 'oddities'}", *lines, f"\n{place}"]))
    if wrong:
        raise UserError(f"{folder}: training would be refused, {len(wrong)} problem(s):", wrong)


def _is_datalist(path: Path) -> bool:
    try:
        content = read_json(path)
    except ValueError:
        return False
    return isinstance(content, dict) and any(isinstance(content.get(name), list) for name in LISTS)


def _rule(about: Mapping[str, Any], contents: Mapping[str, Mapping[str, Sequence[dict]]]) -> CaseRule:
    """What the cases must be like: what most images are like, and what the data list says of its labels."""
    files = [_files(case) for lists in contents.values() for name in LISTS for case in lists[name]]
    images = [image for file in dict.fromkeys(files[:5]) if (image := read_image(file)[0]) is not None]
    dimensions = Counter(image.ndim - 1 for image in images).most_common(1)[0][0] if images else 3
    channels = _num_channels(about)
    if channels == 1 and dimensions == 2 and images:  # a data list of photographs may say nothing of their colors
        channels = Counter(image.shape[0] for image in images).most_common(1)[0][0]
    return CaseRule(in_channels=channels, num_classes=_num_classes(about), dimensions=dimensions)


def _num_channels(about: Mapping[str, Any]) -> int:
    """Count what ``modality`` lists; a text names one channel, whatever its letters."""
    modality = about.get("modality")
    return len(modality) or 1 if isinstance(modality, Mapping | list) else 1


def _num_classes(about: Mapping[str, Any]) -> int:
    """Count the classes in ``labels``: name by number as in Decathlon, number by name, or a list that begins with 0."""
    labels = about.get("labels") or ()
    if isinstance(labels, Mapping):
        numbers = [int(text) for pair in labels.items() for text in map(str, pair) if text.isdecimal()]
        return max(numbers, default=len(labels)) + 1
    return max(len(labels), 2) if isinstance(labels, list) else 2


def _files(case: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of an image, one for each channel if there are several."""
    return ensure_tuple(case["image"])


def _cases(contents: Mapping[str, Mapping[str, Sequence[Case]]]) -> list[Case]:
    """Every image once, with its label where any list gives it one."""
    cases: dict[tuple[str, ...], Case] = {}
    for lists in contents.values():
        for name in LISTS:
            for case in lists[name]:
                cases.setdefault(_files(case), {}).update(case)
    places = case_files(cases)
    names = case_names(places.values())
    return [{**case, "case": names[places[files[0]]]} for files, case in cases.items()]


def _check_case(case: Case, rule: CaseRule) -> Row:
    """Read a case; runs in another process."""
    image, wrong = read_image(case["image"], rule.in_channels)
    row: Row = {"case": case["case"], "image": case["image"], "wrong": wrong, "odd": []}
    if image is None:
        return row
    wrong += image_problems(case["image"], image, rule)
    row |= _describe(image, _files(case))
    if "label" in case:
        label, problems = read_label(case["label"], image, rule.num_classes)
        wrong += problems
        if label is not None:
            row |= {"label": case["label"]} | _describe_label(label, rule.num_classes)
            row["odd"] += _odd_label(row, label.numel())
    return row


def _odd_label(row: Row, size: int) -> list[Oddity]:
    """Tell of a label of so many voxels which classes it lacks; the background is one."""
    missing = [k for k, n in row["voxels"].items() if not n]
    found = [
        Oddity(f"no voxel of class {k}", row["case"], f"{row['label']}: has no voxel of class {k}.") for k in missing
    ]
    if sum(row["voxels"].values()) == size:
        text = f"{row['label']}: covers the whole image; is it inverted, or filled by mistake?"
        found.append(Oddity("no voxel of background", row["case"], text))
    return found


def _channels(row: Row, *keys: str) -> list[list[Any]]:
    """Columns of a row that are lists for an image of several files, as lists."""
    return [row[key] if isinstance(row[key], list) else [row[key]] for key in keys]


def _describe(image: MetaTensor, files: Sequence[str]) -> Row:
    """Describe an image, CH[WD]; its intensities as lists, one for each file if there are several."""
    parts = image.as_tensor().split(1) if len(files) > 1 else [image.as_tensor()]
    columns: Row = {
        "minimum": [float(part.min()) for part in parts],
        "maximum": [float(part.max()) for part in parts],
        "mean": [float(part.double().mean()) for part in parts],
        "content": [hashlib.sha256(np.ascontiguousarray(part.numpy()).tobytes()).hexdigest() for part in parts],
    }
    return {
        "shape": list(image.shape[1:]),
        "spacing": [round(step, 4) for step in affine_to_spacing(image.affine, image.ndim - 1).tolist()],
        "orientation": "".join(nib.aff2axcodes(image.affine.numpy())) if image.ndim == 4 else "",
        **{key: values if len(files) > 1 else values[0] for key, values in columns.items()},
    }


def _describe_label(label: MetaTensor, num_classes: int) -> Row:
    counts = np.bincount(label.as_tensor().flatten().numpy().astype(np.int64), minlength=num_classes)
    voxels = {str(k): int(counts[k]) for k in range(1, num_classes)}
    if label.ndim < 4:
        return {"voxels": voxels}
    ml = float(np.abs(np.linalg.det(label.affine.numpy()[:3, :3]))) / 1000
    return {"voxels": voxels, "volume_ml": {k: round(n * ml, 3) for k, n in voxels.items()}}


def _duplicates(rows: Sequence[Row], contents: Mapping[str, Mapping[str, Sequence[dict]]]) -> list[Oddity]:
    """Images with the same voxels under different names, and the lists that they stand in."""
    found = []
    read = [
        (row, *part)
        for row in rows
        if "content" in row
        for part in zip(_files(row), *_channels(row, "content"), strict=True)
    ]
    for same in groups(read, key=lambda part: part[2]):
        images, cases = {file for _, file, _ in same}, {row["case"] for row, _, _ in same}
        lists = {
            name for content in contents.values() for name in LISTS for c in content[name] if images & set(_files(c))
        }
        text = f"{' and '.join(sorted(images))} hold the same voxels; they stand in {', '.join(sorted(lists))}."
        found.append(Oddity("the same voxels", " and ".join(sorted(cases)), text))
    return found


def _outliers(rows: Sequence[Row]) -> list[Oddity]:
    """Scans that differ from the rest in orientation or by a large factor in spacing or intensities."""
    read = [row for row in rows if "shape" in row]
    found = []
    common = Counter(row["orientation"] for row in read).most_common(1)
    for row in read:
        if row["orientation"] != common[0][0]:
            text = f"{_files(row)[0]}: orientation {row['orientation']}, most scans have {common[0][0]}."
            found.append(Oddity(f"orientation differs from {common[0][0]}, which most have", row["case"], text))
    thick = [row for row in read if max(row["spacing"]) > ODD_RATIO * min(row["spacing"])]
    if 2 * len(thick) <= len(read):  # what most scans share is not odd
        found += [
            Oddity("anisotropic", row["case"], f"{_files(row)[0]}: anisotropic, spacing {row['spacing']} mm.")
            for row in thick
        ]
    found += _far_from_median("spacing", [(row, _files(row)[0], max(row["spacing"])) for row in read])
    by_channel = zip_longest(*(zip(repeat(row), _files(row), *_channels(row, "maximum")) for row in read))
    for channel in by_channel:
        found += _far_from_median("largest intensity", [part for part in channel if part is not None])
    return found


def _far_from_median(what: str, values: Sequence[tuple[Row, str, float]]) -> list[Oddity]:
    """Scans, each with the file to name and a value, that differ by a large factor from most."""
    middle = np.median([value for _, _, value in values]) if values else 0
    return [
        Oddity(
            f"{what} far from the median, {middle:g}",
            row["case"],
            f"{file}: {what} {value:g}, the median is {middle:g}.",
        )
        for row, file, value in values
        if middle > 0 and not middle / ODD_RATIO <= value <= middle * ODD_RATIO
    ]


def _summary(odd: Sequence[Oddity]) -> list[str]:
    """Tell what is odd, with one line for each kind that many scans share."""
    kinds: dict[str, list[Oddity]] = {}
    for found in odd:
        kinds.setdefault(found.kind, []).append(found)
    lines = []
    for kind, same in kinds.items():
        if len(same) <= SHOWN:
            lines += [found.text for found in same]
        else:
            first = ", ".join(found.case for found in same[:SHOWN])
            lines.append(f"{len(same)} times {kind}: {first}, ...; the report lists all.")
    return lines


def _table_row(row: Row) -> dict[str, str]:
    return {
        "case": row["case"],
        "shape": "x".join(map(str, row.get("shape", ["unreadable"]))),
        "spacing": "x".join(f"{step:g}" for step in row.get("spacing", [])),
        "axes": row.get("orientation", ""),
        "range": "; ".join(
            f"{low:g} to {high:g}" for low, high in zip(*_channels(row, "minimum", "maximum"), strict=True)
        )
        if "minimum" in row
        else "",
        "classes": ", ".join(
            f"{k}: {row['volume_ml'][k]:g} ml" if "volume_ml" in row else f"{k}: {n}"
            for k, n in row.get("voxels", {}).items()
        ),
    }
