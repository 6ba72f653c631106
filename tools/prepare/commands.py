"""Prepare data sets: ``python -m tools.prepare COMMAND --help``.

From an official download, a community copy, or a user's own folders to ``images/``, ``labels/`` and data lists. Every
command can be interrupted and repeated; see :mod:`tools.prepare.writer`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Compose, CropForegroundd, NormalizeIntensityd, ResampleToMatch, Spacingd, SpatialPadd

from custom.data.dicom import series_problems
from custom.data.finding import OwnScan, own_scans, tell_left_out
from custom.data.folders import visible_files
from custom.data.geometry import grid_problem
from custom.data.photos import is_colored, is_photo
from custom.data.readers import check_channels
from custom.utils.errors import UserError
from custom.utils.names import ALL, are_channel_names, are_class_names, case_names, patient_name

from ..plan.command import PLAN, plan_dataset, seconds
from ..synthetic import write_dataset as write_volumes
from ..synthetic import write_hearts, write_photos
from . import layouts as sources
from .check import check_folder
from .described import Description, structures_in
from .layouts import Files
from .mirroring import settle_mirroring
from .splitting import fold_lists, listed_before, split_patients, without_held_out
from .writer import Scan, refuse_other_data, write_dataset

__all__ = ["acdc", "check", "demo", "isic", "la", "own", "pancreas"]

SPLITS = Path(__file__).parent / "splits"
CROPS = ("benchmark", "none")
Lists = Mapping[str, Sequence[str]]


def la(source: str, output: str, crop: str = "benchmark", allow_missing: bool = False) -> None:
    """Prepare the 2018 Left Atrial Segmentation Challenge for the lists with 4, 8 and 16 labels.

    The published split has no validation list. ``dev.json``, to choose settings with, keeps 12 of the 80 training cases
    for validation, has 8 of the others labeled, and no test list.

    Args:
        source: folder of the challenge (a folder per case with lgemri.nrrd and laendo.nrrd), or of mri_norm2.h5 files.
        output: dataset folder.
        crop: benchmark (the literature's: around the labeled atrium, which needs ground truth) or none. The h5 files
            are cropped already.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
    _check_choice("crop", crop, CROPS)
    split = _split("la")
    files, layout = _detect(source, challenge=sources.la_challenge, community=sources.la_community)
    process = None
    if layout == "challenge" and crop == "benchmark":
        process = Compose([NormalizeIntensityd("image"), *_crop(margin=[15, 15, None], size=[112, 112, 80])])
    lists = _label_budgets(split) | {"dev.json": _development(split)}
    about = {
        "name": "2018 Left Atrial Segmentation Challenge",
        "modality": {"0": "LGE-MRI"},
        "labels": {"0": "background", "1": "left atrium"},
    }
    record = {"command": "la", "source": source, "options": {"crop": crop, "allow_missing": allow_missing}}
    _prepare(output, files, lists, about, record, process, allow_missing, crop)


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
    _prepare(output, files, lists, about, record, None, allow_missing)


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
    _check_choice("crop", crop, CROPS)
    protocols = _split("pancreas")["protocols"]
    _check_choice("protocol", protocol, tuple(protocols))
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
    _prepare(output, files, lists, about, record, process, allow_missing, crop, settle)


def isic(source: str, output: str, seed: int = 1337, allow_missing: bool = False) -> None:
    """Prepare ISIC-2018 task 1 with 5, 10 and 20 % of the training photographs labeled.

    Args:
        source: folder with ISIC2018_Task1-2_Training_Input, ISIC2018_Task1_Training_GroundTruth, and so on.
        output: dataset folder. Photographs are copied, masks become PNG files of 0 and 255.
        seed: of the labeled ones; smaller lists are within larger ones.
        allow_missing: prepare what is there, and leave the rest out of the lists.
    """
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
    _prepare(output, files, lists, about, record, None, allow_missing)


def demo(output: str, bundle: str = "la", training: int = 4, unlabeled: int = 12) -> None:
    """Write synthetic scans for a bundle, with 4 validation and 8 test cases.

    Args:
        output: dataset folder; the data list is synthetic.json.
        bundle: la, acdc, pancreas or isic.
        training: labeled cases.
        unlabeled: unlabeled cases.
    """
    writers = {"la": write_volumes, "pancreas": write_volumes, "acdc": write_hearts, "isic": write_photos}
    _check_choice("bundle", bundle, tuple(writers))
    counts = {"training": int(training), "unlabeled": int(unlabeled), "validation": 4, "test": 8}
    print(f"Synthetic scans: {writers[bundle](str(output), counts)}")


def check(folder: str, output: str | None = None, patient_pattern: str | None = None) -> None:
    r"""Read every voxel of a dataset folder and report what is wrong or odd; exit code 1 when training would refuse it.

    Args:
        folder: dataset folder with data lists.
        output: JSON file for the report; check/report.json in the folder by default.
        patient_pattern: regular expression that finds the patient in a file name, such as 'patient\d+'.
    """
    report = Path(str(folder)) / "check" / "report.json" if output is None else Path(str(output))
    check_folder(Path(str(folder)), report, patient_pattern)


def own(
    images: str,
    output: str,
    labels: str | None = None,
    validation: float = 0.0,
    test: float = 0.0,
    classes: str | list[str] | None = None,
    patient_pattern: str | None = None,
    modality: str | None = None,
    seed: int = 1337,
    folds: int = 0,
    channels: str | list[str] | None = None,
    resample: bool = False,
    plan: str | None = PLAN,
    budget: str = "8h",
    memory_gb: float | None = None,
) -> None:
    r"""Prepare your own scans: those with a label become labeled, the rest unlabeled. Nothing is cropped or resampled.

    Then settings are planned for them, and the commands that train, score and segment are printed.

    When scans or labels are added and the command is repeated, patients stay in their lists: who was trained with, also
    without a label, is never validated with. Unlabeled scans of a patient who is kept for validation or test are left
    out.

    Args:
        images: folder of NIfTI, NRRD, MetaImage files or photographs, or of folders with a DICOM series each, or of
            folders with either. Labels that lie there too are taken where no other folder of labels is given; so it may
            be a data set of nnU-Net or of the Medical Segmentation Decathlon, whose ``imagesTs`` become unlabeled.
        output: dataset folder.
        labels: folder of labels named as their images, or NAME_seg, NAME_label, NAME_mask, NAME_gt; may hold fewer.
        validation: fraction of the labeled patients to keep for validation.
        test: fraction of the labeled patients to keep for the test list.
        classes: names of the structures labeled 1, 2, and so on, such as "liver,tumor"; those of ``dataset.json`` if
            there is one, else "foreground", or "class_1,class_2" and so on.
        patient_pattern: regular expression that finds the patient in the name of a file or of a folder above it, such
            as 'patient\d+'; without it every scan is a patient of its own.
        modality: MRI, CT and so on, for the data list; that of ``dataset.json`` if there is one.
        seed: of the split.
        folds: for cross-validation, such as 5: also write fold_0.json, fold_1.json, ..., each of which keeps other
            labeled patients for validation.
        channels: names at the end of the files of one case, such as "t1,t2"; nnU-Net's _0000, _0001 need none. The
            channels of a case must lie on one grid.
        resample: bring the other channels to the grid of the first.
        plan: file in the dataset folder with the settings chosen for these data, see ``crossmatch plan``; one that is
            there is kept. none to choose none.
        budget: how long a training may take on this machine, such as 20min, 8h or 2d.
        memory_gb: of the device that trains, in GB; what it has by default.
    """
    seconds(budget)
    source, folder = Path(os.path.abspath(Path(images).expanduser())), Path(output).expanduser()
    described = Description(source)
    given = described.classes if classes is None else classes
    known = described.channels
    modality = (known[0] if len(known) == 1 else "unknown") if modality is None else modality
    ends = None if channels is None else _channel_names(channels)
    label_folder = None if labels is None else Path(labels).expanduser()
    scans = own_scans(source, label_folder, folder, ends, len(known) or None)
    named = {name: Path(file) for file, name in case_names(scans).items()}
    names = _class_names(given or structures_in([scan.label for scan in scans.values() if scan.label is not None]))
    found = _own_files({name: scans[case] for name, case in named.items()}, len(names) + 1)
    # The source may itself be the only scan, a DICOM series.
    below = {name: image.relative_to(source if image != source else source.parent) for name, image in named.items()}
    patients = _patients(below, patient_pattern)
    labeled = [name for name, files in found.items() if files.label is not None]
    fractions, before = {"validation": float(validation), "test": float(test)}, listed_before(folder, patients)
    lists = split_patients(labeled, patients, fractions, int(seed), before)
    lists["unlabeled"] = [name for name in found if name not in labeled]
    of_folds = fold_lists(lists, patients, folds, int(seed), folder) if folds else {}
    lists = without_held_out(lists, patients)
    modalities = _modalities(list(found.values()), ends or known, modality)
    about = {
        "name": folder.name,
        "modality": modalities,
        "labels": dict(enumerate(["background", *names])),
    }
    options = {
        "labels": labels,
        "validation": validation,
        "test": test,
        "classes": names,
        "patient_pattern": patient_pattern,
        "modality": modality,
        "seed": seed,
    }
    # Options that came later are kept where they are used, so that a folder prepared before is known again.
    options |= {"folds": folds} if folds else {}
    if ends is not None or any(files.others for files in found.values()):
        options |= {"channels": ends, "resample": resample}
    record = {"command": "own", "source": str(images), "options": options}
    _prepare(str(folder), found, {"datalist.json": lists} | of_folds, about, record, resample=resample)
    if plan is not None and lists["training"]:
        _plan(folder, folder / plan, budget, memory_gb)


def _plan(folder: Path, path: Path, budget: str, memory_gb: float | None) -> None:
    if path.exists():
        print(f"{path} is kept; `crossmatch plan {folder} --overwrite true` makes it anew.")
    else:
        plan_dataset(folder / "datalist.json", path, budget, memory_gb)


def _modalities(found: Sequence[Files], names: Sequence[str], modality: str) -> dict[str, str]:
    """Name the channels; one color photograph makes three, which grey ones among them are then read as."""
    number = 1 + len(found[0].others)
    if number == 1 and any(isinstance(files.image, Path) and is_colored(files.image) for files in found):
        names = ["red", "green", "blue"]
    elif len(names) != number and (number > 1 or not names):
        names = [str(modality)] * number
    return {str(place): name for place, name in enumerate(names)}


def _prepare(
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
) -> None:
    """Write the scans and the data lists that name them; ``settle`` is what only all scans together can tell."""
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
    scans = {name: _scan(name, files[name], process, one_structure, resample) for name in names}
    datalists = {file: {**about, **_entries(content, scans)} for file, content in usable.items()}
    folder = write_dataset(output, list(scans.values()), datalists, record)
    print(f"{len(scans)} scan(s) in {folder}; data lists: {', '.join(datalists)}")


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
) -> Scan:
    read, has_label = partial(_read, files, process, resample), files.label is not None
    images = (files.image, *files.others)
    endings = tuple(image.suffix.lower() if isinstance(image, Path) else ".nii.gz" for image in images)
    label_ending = ".png" if isinstance(files.image, Path) else ".nii.gz"
    return Scan(name, read, has_label, endings, label_ending, files.made_from, one_structure)


def _read(files: Files, process: Callable[[dict], dict] | None, resample: bool) -> dict[str, Any]:
    """Read a scan; in another process, when scans are written in parallel."""
    found = (files.image, *files.others)
    image, *others = [sources.read_volume(str(part)) if isinstance(part, Path) else part() for part in found]
    others = _on_one_grid(image, others, files, resample) if others else others
    sample: dict[str, Any] = {"image": image}
    if files.label is not None:
        label = files.label()
        difference = grid_problem(label, image)
        if difference is not None:
            raise UserError(f"the label's {difference}; they must be on one grid.")
        label.affine = image.affine
        sample["label"] = label
    sample = sample if process is None else process(sample)
    images = zip(found, (sample.pop("image"), *others), strict=True)
    return {"images": [part if isinstance(part, Path) else read for part, read in images], **sample}


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


def _development(split: Mapping[str, Any]) -> Lists:
    """Keep training cases for validation, where the published split keeps none."""
    validation = split["development"]
    train = [name for name in split["train"] if name not in validation]
    return _semi_supervised(train, split["labeled"]["8"], {"validation": validation})


def _semi_supervised(train: Sequence[str], labeled: Sequence[str], rest: Lists) -> dict[str, Sequence[str]]:
    return {"training": labeled, "unlabeled": [name for name in train if name not in labeled], **rest}


def _split(name: str) -> dict[str, Any]:
    return json.loads((SPLITS / f"{name}.json").read_text())


def _detect(source: str, **layouts: Callable[[Path], dict[str, Files]]) -> tuple[dict[str, Files], str]:
    """Find the scans in the first layout that has any."""
    folder = Path(str(source))
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; give --source the folder of the download.")
    tell_left_out(visible_files(folder)[1])
    for name, find in layouts.items():
        files = find(folder)
        if files:
            return files, name
    expected = [" ".join((find.__doc__ or name).split("\n")[0].split()) for name, find in layouts.items()]
    found = sorted(path.name for path in folder.iterdir())[:5]
    raise UserError(f"{source}: holds no scans in a known layout (found {', '.join(found) or 'nothing'}):", expected)


def _own_files(scans: Mapping[str, OwnScan], num_classes: int) -> dict[str, Files]:
    """Say how each image and its label, if any, are read, and refuse DICOM folders that cannot be."""
    paths = [path for scan in scans.values() for path in (*scan.files, scan.label)]
    problems = series_problems([path for path in paths if path is not None and path.is_dir()])
    if problems:
        raise UserError(f"{len(problems)} DICOM series cannot be read, nothing was written:", problems)
    return {name: _own_case(scan, num_classes) for name, scan in scans.items()}


def _own_case(scan: OwnScan, num_classes: int) -> Files:
    first, *others = [path if is_photo(path) else partial(sources.read_volume, str(path)) for path in scan.files]
    made = sources.scan_files(scan.files[0], scan.label, num_classes)
    places = [str(path) for path in scan.files]
    return made._replace(image=first, others=tuple(others), made_from=(*places, *made.made_from[1:]))


def _patients(scans: Mapping[str, Path], pattern: str | None) -> dict[str, str]:
    """Find the patient of every scan, by its path below the folder of scans."""
    patients = {name: patient_name(path, pattern) for name, path in scans.items()}
    alone = [name for name, path in scans.items() if pattern and not re.search(pattern, path.as_posix())]
    if scans and len(alone) == len(scans):
        example = next(iter(scans.values()))
        raise UserError(f"--patient_pattern {pattern} finds no patient in any name, such as {example}.")
    if alone:
        print(f"--patient_pattern finds no patient in {len(alone)} scan(s), each then its own: {', '.join(alone[:20])}")
    return patients


def _channel_names(channels: str | Sequence[str]) -> list[str]:
    names = [name.strip() for name in (channels.split(",") if isinstance(channels, str) else map(str, channels))]
    if not are_channel_names(names):
        hint = "must be the ends of the files' names, all different, such as t1,t2"
        raise UserError(f"--channels {hint}; got {','.join(names)}.")
    return names


def _class_names(classes: str | Sequence[str]) -> list[str]:
    names = [name.strip() for name in (classes.split(",") if isinstance(classes, str) else map(str, classes))]
    if not are_class_names(names):
        raise UserError(
            f"--classes must be the names of the structures labeled 1, 2, ..., all different, none called {ALL}, such "
            f"as liver,tumor; got {','.join(names)}."
        )
    return names


def _check_choice(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"--{flag} must be one of {', '.join(choices)}, got {value}.")
