"""What a plan needs to know of the data: sizes, spacing, kind, and where the structures are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils import ensure_tuple
from scipy import ndimage
from tqdm import tqdm

from custom.data.checks import read_image, read_label
from custom.data.datalist import read_lists
from custom.data.folders import PREPARED
from custom.data.photos import is_photo
from custom.utils.errors import UserError
from custom.utils.files import read_json
from custom.utils.names import are_class_names, first_names, structure_names

from ..prepare.pool import process_pool

#: Values of one scan's structures that are kept, to find the window of all.
KEPT_VALUES = 10_000
#: Hounsfield units begin at air, -1000, or below, where the scanner marks what it did not measure.
AIR = -500
#: In HU; percentiles of labeled voxels, as nnU-Net takes them (Isensee et al., doi:10.1038/s41592-020-01008-z).
WINDOW_PERCENTILES = (0.5, 99.5)


@dataclass(frozen=True)
class ScanFacts:
    """One scan, its axes in the order in which its bundle trains: volumes from left to right, to anterior, upward.

    Args:
        case: its name.
        channels: of the image.
        shape: voxels per axis.
        spacing: mm per axis; 1 where the file does not say.
        stored_axes: for each axis, which one of the file it is.
        is_photo: whether it is a photograph.
        is_ct: whether its values look like Hounsfield units.
        extents: voxels per axis of the box around each structure, by class; of labeled scans.
        shares: part of the scan that each structure takes.
        whole: part of each structure that is its largest connected component.
        values: a sample of what the image holds in the structures.
    """

    case: str
    channels: int
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    stored_axes: tuple[int, ...]
    is_photo: bool
    is_ct: bool
    extents: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    shares: Mapping[int, float] = field(default_factory=dict)
    whole: Mapping[int, float] = field(default_factory=dict)
    values: np.ndarray | None = None


@dataclass(frozen=True)
class DataFacts:
    """What the scans that a training sees have in common, those for validation and test left aside.

    Args:
        class_names: of the structures labeled 1, 2, and so on.
        counts: cases by list.
        scans: of the lists ``training`` and ``unlabeled``.
        prepared: options of the ``crossmatch prepare own`` that made the folder; empty where another hand did.
    """

    class_names: list[str]
    counts: Mapping[str, int]
    scans: Sequence[ScanFacts]
    prepared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labeled(self) -> list[ScanFacts]:
        """Scans whose structures are known."""
        return [scan for scan in self.scans if scan.extents]

    @property
    def kind(self) -> str:
        """``CT``, ``MRI`` (or whatever else has no fixed scale), or ``photographs``."""
        if self.scans[0].is_photo:
            return "photographs"
        return "CT" if all(scan.is_ct for scan in self.scans) else "MRI"

    @property
    def shape(self) -> np.ndarray:
        """Median voxels per axis."""
        return np.median([scan.shape for scan in self.scans], axis=0)

    @property
    def spacing(self) -> np.ndarray:
        """Median mm per axis; of an axis thrice as coarse as the others the 10th percentile, as nnU-Net takes it."""
        spacings = np.asarray([scan.spacing for scan in self.scans])
        median = np.median(spacings, axis=0)
        thick = median > 3 * median.min()
        return np.where(thick, np.percentile(spacings, 10, axis=0), median)

    @property
    def extent(self) -> np.ndarray:
        """Median mm per axis of the largest structure of a scan."""
        return np.median([np.max(list(_millimetres(s).values()), axis=0) for s in self.labeled], axis=0)

    @property
    def smallest(self) -> np.ndarray:
        """Median mm per axis of the smallest structure."""
        by_class = [
            np.median([boxes[label] for s in self.labeled if label in (boxes := _millimetres(s))], axis=0)
            for label in sorted({label for scan in self.labeled for label in scan.extents})
        ]
        return by_class[int(np.argmin([np.prod(box) for box in by_class]))]

    @property
    def window(self) -> list[float]:
        """Range of the structures' values, to three digits."""
        values = np.concatenate([scan.values for scan in self.labeled if scan.values is not None])
        return [float(f"{value:.3g}") for value in np.percentile(values, WINDOW_PERCENTILES)]

    @property
    def in_one_piece(self) -> list[int]:
        """Classes that are one connected component, 99 % of it and more, in nine of ten labeled scans."""
        return [
            label
            for label in range(1, len(self.class_names) + 1)
            if (found := [scan.whole[label] for scan in self.labeled if label in scan.whole])
            and np.percentile(found, 10) >= 0.99
        ]


def read_facts(datalist: Path) -> DataFacts:
    """Read every scan that a training with a data list would see.

    Raises:
        UserError: when scans cannot be read, or are not of one kind: dimensions, channels, or CT beside MRI.
    """
    about, lists = read_json(datalist), read_lists(datalist)
    if not lists["training"]:
        raise UserError(f"{datalist}: the list 'training' is empty; at least one labeled case is needed.")
    names = _class_names(about, datalist)
    modality = about.get("modality") or ""
    modalities = [str(name) for name in (modality.values() if isinstance(modality, Mapping) else [modality])]
    cases = [*lists["training"], *lists["unlabeled"]]
    with process_pool() as pool:
        read = pool.map(partial(_read_scan, num_classes=len(names) + 1), cases)
        found = list(tqdm(read, "Planning", len(cases), unit="case"))
    problems = [problem for _, wrong in found for problem in wrong]
    if problems:
        raise UserError(f"{datalist}: {len(problems)} problem(s), nothing was planned:", problems)
    scans = [scan for scan, _ in found if scan is not None]
    if not any(scan.extents for scan in scans):
        raise UserError(f"{datalist}: no labeled voxel in the list 'training'; nothing can be learned from its labels.")
    _refuse_mixed(datalist, scans)
    counts = {name: len(listed) for name, listed in lists.items()}
    return DataFacts(names, counts, _settle_kind(datalist, scans, modalities), _options(datalist.parent / PREPARED))


def _options(path: Path) -> dict[str, Any]:
    record = read_json(path) if path.is_file() else {}
    return dict(record["options"]) if record.get("command") == "own" else {}


def _read_scan(case: Mapping[str, Any], num_classes: int) -> tuple[ScanFacts | None, list[str]]:
    """Read a case; runs in another process."""
    image, problems = read_image(case["image"])
    if image is None:
        return None, problems
    label = None
    if "label" in case:
        label, problems = read_label(case["label"], image, num_classes)
        if label is None:
            return None, problems
    axes = _training_axes(image)
    spacing = affine_to_spacing(image.affine, image.ndim - 1).tolist()
    photo = is_photo(ensure_tuple(case["image"])[0])
    facts = ScanFacts(
        case["case"],
        image.shape[0],
        tuple(image.shape[axis + 1] for axis in axes),
        tuple(float(spacing[axis]) for axis in axes),
        axes,
        photo,
        not photo and all(float(channel.min()) <= AIR for channel in image),
        **({} if label is None else _structures(image, label, axes)),
    )
    return facts, problems


def _training_axes(image: MetaTensor) -> tuple[int, ...]:
    """For each axis from left to right, posterior to anterior, and upward, which one of the file it is."""
    if image.ndim != 4:
        return tuple(range(image.ndim - 1))
    orientation = nib.io_orientation(image.affine.numpy())
    return tuple(int(axis) for axis in np.argsort(orientation[:, 0]))


def _structures(image: MetaTensor, label: MetaTensor, axes: Sequence[int]) -> dict[str, Any]:
    values = label[0].numpy().astype(np.uint8)
    inside = image[0].numpy()[values > 0]
    step = max(1, len(inside) // KEPT_VALUES)
    extents, shares, whole = {}, {}, {}
    for number, box in enumerate(ndimage.find_objects(values), start=1):
        if box is None:
            continue
        mask = values[box] == number
        sizes = np.bincount(ndimage.label(mask)[0].ravel())[1:]
        extents[number] = tuple(mask.shape[axis] for axis in axes)
        shares[number] = float(mask.sum() / values.size)
        whole[number] = float(sizes.max() / sizes.sum())
    return {"extents": extents, "shares": shares, "whole": whole, "values": inside[::step][:KEPT_VALUES]}


def _millimetres(scan: ScanFacts) -> dict[int, np.ndarray]:
    return {label: np.asarray(box) * scan.spacing for label, box in scan.extents.items()}


def _class_names(about: Mapping[str, Any], datalist: Path) -> list[str]:
    """Names of the structures, which a data list gives as Decathlon or nnU-Net do."""
    labels = about.get("labels")
    names = structure_names(labels)
    if names is None or not are_class_names(names):
        hint = 'such as {"0": "background", "1": "liver"}'
        raise UserError(f"{datalist}: 'labels' must name the classes by number, {hint}; found {labels}.")
    return names


def _refuse_mixed(datalist: Path, scans: Sequence[ScanFacts]) -> None:
    for what, of in (("axes", lambda scan: len(scan.shape)), ("channels", lambda scan: scan.channels)):
        counts = Counter(map(of, scans))
        if len(counts) > 1:
            lines = [f"{number} {what}: {_some([s for s in scans if of(s) == number])}" for number in sorted(counts)]
            hint = "one network cannot take both; prepare each kind in a folder of its own"
            raise UserError(f"{datalist}: scans differ in their number of {what}; {hint}:", lines)


def _settle_kind(datalist: Path, scans: list[ScanFacts], modalities: Sequence[str]) -> list[ScanFacts]:
    """Take the data list's word for CT or MRI, else tell them apart by their values; refuse a mixture.

    Of several channels all must be CT, whose window is one for all.
    """
    said = [match[1].upper() for name in modalities if (match := re.search(r"\b(CT|MRI?)\b", name, re.IGNORECASE))]
    if said and not scans[0].is_photo:
        is_ct = said == ["CT"] * len(modalities)
        return [replace(scan, is_ct=is_ct) for scan in scans]
    ct = [scan for scan in scans if scan.is_ct]
    others = [scan for scan in scans if not scan.is_ct]
    if ct and others:
        lines = [f"values below {AIR}, as CT: {_some(ct)}", f"none, as MRI: {_some(others)}"]
        hint = "prepare each kind in a folder of its own, or, if all are of one, say so with --modality CT or MRI"
        raise UserError(f"{datalist}: CT beside MRI; {hint}:", lines)
    return scans


def _some(scans: Sequence[ScanFacts]) -> str:
    return f"{len(scans)} case(s), {first_names((scan.case for scan in scans), 5)}"
