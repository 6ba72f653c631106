"""The paper's data sets, from an official download or a community copy, with the published splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, Spacingd, SpatialPadd

from custom.data.finding import tell_left_out
from custom.utils.errors import UserError

from ..numbers import refuse_below
from . import layouts as sources
from .assembling import Lists, prepare_scans
from .layouts import Files
from .mirroring import settle_mirroring

SPLITS = Path(__file__).parent / "splits"
CROPS = ("benchmark", "none")


def la(source: str, output: str, crop: str = "benchmark", allow_missing: bool = False) -> None:
    """Prepare the 2018 Left Atrial Segmentation Challenge for the lists with 4, 8 and 16 labels.

    The published split has no validation list. ``dev.json`` and ``dev_4.json``, to choose settings with, keep 12 of the
    80 training cases for validation, have 8 and 4 of the others labeled, and no test list.

    Args:
        source: folder of the challenge (a folder per case with lgemri.nrrd and laendo.nrrd), or of mri_norm2.h5 files.
        output: dataset folder.
        crop: benchmark (the literature's: around the labeled atrium, which needs ground truth) or none. The h5 files
            are cropped already.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
    check_choice("crop", crop, CROPS)
    split = _split("la")
    files, layout = _detect(source, challenge=sources.la_challenge, community=sources.la_community)
    process = None
    if layout == "challenge" and crop == "benchmark":
        process = Compose([NormalizeIntensityd("image"), *_crop(margin=[15, 15, None], size=[112, 112, 80])])
    lists = _label_budgets(split) | {"dev.json": _development(split, "8"), "dev_4.json": _development(split, "4")}
    about = {
        "name": "2018 Left Atrial Segmentation Challenge",
        "modality": {"0": "LGE-MRI"},
        "labels": {"0": "background", "1": "left atrium"},
    }
    record = {"command": "la", "source": source, "options": {"crop": crop, "allow_missing": allow_missing}}
    prepare_scans(output, files, lists, about, record, process, allow_missing, crop)


def acdc(source: str, output: str, allow_missing: bool = False) -> None:
    """Prepare ACDC for the lists with 1, 3 and 7 labeled patients, end of diastole (ED) and of systole (ES) of each.

    Args:
        source: folder of the official download (patient001/Info.cfg and so on), or of patient001_frame01.h5 files.
        output: dataset folder.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
    split = _split("acdc")
    files, _ = _detect(source, official=sources.acdc_official, community=sources.acdc_community)
    lists = _label_budgets(_both_phases(split))
    about = {
        "name": "Automated Cardiac Diagnosis Challenge",
        "modality": {"0": "cine-MRI"},
        "labels": {"0": "background", "1": "right ventricle", "2": "myocardium", "3": "left ventricle"},
    }
    listed = {name for content in lists.values() for names in content.values() for name in names}
    files = {name: found for name, found in files.items() if name in listed}  # patients 101 to 150 are in no list
    record = {"command": "acdc", "source": source, "options": {"allow_missing": allow_missing}}
    prepare_scans(output, files, lists, about, record, None, allow_missing)


def pancreas(
    source: str,
    output: str,
    protocol: str = "coranet",
    crop: str = "benchmark",
    allow_missing: bool = False,
) -> None:
    """Prepare Pancreas-CT (NIH) for the lists with 6 and 12 labels.

    Args:
        source: folder with PANCREAS_0001 and so on (DICOM) and label0001.nii.gz and so on, or of h5 files.
        output: dataset folder.
        protocol: coranet (80 scans; without 0025 and 0070, which the archive has withdrawn) or mcnet (all 82).
        crop: benchmark (the literature's: 1 mm, 25 voxels around the labeled pancreas, which needs ground truth; mcnet
            crops in plane only) or none (the scanner's grid). The h5 files are cropped already. Images stay in HU.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
    check_choice("crop", crop, CROPS)
    protocols = _split("pancreas")["protocols"]
    check_choice("protocol", protocol, tuple(protocols))
    split = protocols[protocol]
    files, layout = _detect(source, official=sources.pancreas, community=sources.pancreas_community)
    process = None
    if layout == "official" and crop == "benchmark":
        margin = [25, 25, 25] if protocol == "coranet" else [25, 25, None]
        process = Compose(
            [
                Spacingd(["image", "label"], pixdim=(1, 1, 1), mode=["bilinear", "nearest"]),
                *_crop(margin, size=[96, 96, 96]),
            ]
        )
    lists = _label_budgets(split)
    listed = {*split["train"], *split["test"]}
    about = {"name": "Pancreas-CT", "modality": {"0": "CT"}, "labels": {"0": "background", "1": "pancreas"}}
    options = {"protocol": protocol, "crop": crop, "allow_missing": allow_missing}
    record = {"command": "pancreas", "source": source, "options": options}
    files = {name: found for name, found in files.items() if name in listed}
    settle = partial(settle_mirroring, kept=Path(str(output)) / "mirroring.json") if layout == "official" else None
    prepare_scans(output, files, lists, about, record, process, allow_missing, crop, settle)


def isic(source: str, output: str, seed: int = 1337, allow_missing: bool = False) -> None:
    """Prepare ISIC-2018 task 1 with 5, 10 and 20 % of the training photographs labeled.

    Args:
        source: folder with ISIC2018_Task1-2_Training_Input, ISIC2018_Task1_Training_GroundTruth, and so on.
        output: dataset folder. Photographs are copied, masks become PNG files of 0 and 255.
        seed: of the labeled ones; smaller lists are within larger ones.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
    refuse_below(0, seed=seed)
    parts = {"Training": _detect(source, official=sources.isic_training)[0]}
    for part in ("Validation", "Test"):
        parts[part] = sources.isic_official(Path(str(source)), part)
        if not parts[part] and not allow_missing:
            raise UserError(f"{source}: no {part.lower()} photographs; complete the download, or give --allow_missing.")
    places = {name: [part for part in parts if name in parts[part]] for part in parts.values() for name in part}
    sources.refuse_twice(source, places)
    train = list(parts["Training"])
    order = np.random.default_rng(int(seed)).permutation(train).tolist()
    rest = {"validation": list(parts["Validation"]), "test": list(parts["Test"])}
    lists = {
        f"labeled_{percent}.json": _semi_supervised(train, sorted(order[: round(len(train) * percent / 100)]), rest)
        for percent in (5, 10, 20)
    }
    about = {
        "name": "ISIC-2018 task 1",
        "modality": {"0": "red", "1": "green", "2": "blue"},
        "labels": {"0": "background", "1": "lesion"},
    }
    record = {"command": "isic", "source": source, "options": {"seed": seed, "allow_missing": allow_missing}}
    files = {name: found for part in parts.values() for name, found in part.items()}
    prepare_scans(output, files, lists, about, record, None, allow_missing)


def _crop(margin: Sequence[int | None], size: Sequence[int]) -> list[Callable]:
    """Crop around the label; None keeps an axis whole. Boxes smaller than ``size`` are padded."""
    whole = 10**4  # more than any scan has voxels
    margins = [whole if voxels is None else voxels for voxels in margin]
    keys = ["image", "label"]
    return [
        CropForegroundd(keys, source_key="label", margin=margins, allow_smaller=True),
        SpatialPadd(keys, spatial_size=size),
    ]


def _both_phases(patients: Any) -> Any:
    """Turn every patient of a split into the end of diastole and the end of systole."""
    if isinstance(patients, dict):
        return {key: _both_phases(value) for key, value in patients.items()}
    return [f"{patient}_{phase}" for patient in patients for phase in ("ED", "ES")]


def _label_budgets(split: Mapping[str, Any]) -> dict[str, Lists]:
    """Make a data list of every published number of labels, with the lists that they share."""
    shared = {name: split[name] for name in ("validation", "test") if name in split}
    return {
        f"labeled_{count}.json": _semi_supervised(split["train"], labeled, shared)
        for count, labeled in split["labeled"].items()
    }


def _development(split: Mapping[str, Any], labeled: str) -> Lists:
    """Keep training cases for validation, where the published split keeps none."""
    validation = split["development"]
    train = [name for name in split["train"] if name not in validation]
    return _semi_supervised(train, split["labeled"][labeled], {"validation": validation})


def _semi_supervised(train: Sequence[str], labeled: Sequence[str], rest: Lists) -> dict[str, Sequence[str]]:
    return {"training": labeled, "unlabeled": [name for name in train if name not in labeled], **rest}


def _split(name: str) -> dict[str, Any]:
    return json.loads((SPLITS / f"{name}.json").read_text())


def _detect(source: str, **layouts: Callable[[Path], dict[str, Files]]) -> tuple[dict[str, Files], str]:
    """Find the scans in the first layout that has any."""
    folder = Path(str(source))
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; give --source the folder of the download.")
    tell_left_out(sources.visible_files(folder)[1])
    for name, find in layouts.items():
        files = find(folder)
        if files:
            return files, name
    expected = [" ".join((find.__doc__ or name).split("\n")[0].split()) for name, find in layouts.items()]
    found = sorted(path.name for path in folder.iterdir())[:5]
    raise UserError(f"{source}: holds no scans in a known layout (found {', '.join(found) or 'nothing'}):", expected)


def check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    """Refuse what is not one of the choices.

    Raises:
        UserError: naming them.
    """
    if value not in choices:
        raise UserError(f"--{flag} must be one of {', '.join(choices)}, got {value}.")
