"""A user's own scans: those with a label become labeled, the rest unlabeled, and settings are planned for them."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from custom.data.checks import CaseRule
from custom.data.dicom import check_series
from custom.data.photos import is_colored, is_photo
from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable
from custom.utils.names import ALL, are_channel_names, are_class_names

from ..numbers import refuse_not_positive
from ..plan.command import PLAN, plan_dataset, seconds
from .assembling import Lists, prepare_scans
from .copies import find_copies, quick_fingerprint, refuse_copies_apart
from .described import Description, refuse_nothing_labeled, segments_in, structures_in
from .layouts import Files, read_volume, scan_files
from .pairing import OwnScan, own_scans
from .patients import bids_pattern, find_patients, named_scans
from .splitting import (
    fold_lists,
    listed_before,
    listed_by_folder,
    split_patients,
    without_held_out,
)

#: What is said where no label was found.
LABEL_FORMATS = (
    "expected a label map for some, as NIfTI, NRRD, MetaImage or PNG, called as its scan or NAME_seg; DICOM SEG and "
    "RTSTRUCT must be converted to NIfTI first, for example with dcmqi or 3D Slicer"
)


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

    When scans or labels are added and the command is repeated, patients stay in their lists: a patient of whom a scan,
    labeled or not, was used for training never moves to validation or test. Unlabeled scans of a patient who is kept
    for validation or test are left out. Scans that were renamed are known by what they hold.

    Args:
        images: folder of NIfTI, NRRD, MetaImage files or photographs, or of folders with a DICOM series each, or of
            folders with either. Labels that lie there too are taken where no other folder of labels is given; so it may
            be a data set of nnU-Net or of the Medical Segmentation Decathlon, whose ``imagesTs`` become unlabeled, or
            the test list where they have labels. Folders called val or test make those lists too.
        output: dataset folder.
        labels: folder of labels named as their images, or NAME_seg, NAME_label, NAME_mask, NAME_manual, NAME_gt; may
            hold fewer.
        validation: fraction of the labeled patients to keep for validation.
        test: fraction of the labeled patients to keep for the test list.
        classes: names of the structures labeled 1, 2, and so on, such as "liver,tumor"; those of ``dataset.json`` if
            there is one, else those of segments in .seg.nrrd, else "foreground", or "class_1,class_2" and so on.
        patient_pattern: regular expression that finds the patient in the name of a file or of a folder above it, such
            as 'patient\d+'; without it every scan is a patient of its own, unless all have BIDS's sub-NAME.
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
    refuse_not_positive(memory_gb=memory_gb)
    source, folder = Path(os.path.abspath(images)), Path(output)
    refuse_unwritable(output=str(folder))
    described = Description(source)
    modality = described.modality if modality is None else modality
    ends = None if channels is None else _channel_names(channels)
    label_folder = None if labels is None else Path(labels)
    scans = own_scans(source, label_folder, folder, ends, len(described.channels) or None)
    contents = {file: quick_fingerprint(scan.files) for file, scan in scans.items()}
    named = named_scans(scans, source, folder, contents)
    labeled = [scan.label for scan in scans.values() if scan.label is not None]
    if labels is not None and not labeled:
        raise UserError(f"{labels}: holds no label of these scans, nothing was written; {LABEL_FORMATS}.")
    segments = segments_in(labeled)
    given = (described.classes or segments) if classes is None else classes
    names = _class_names(given or structures_in(list(scans.values())))
    found = _own_files({name: scans[file] for name, file in named.items()}, len(names) + 1)
    places = {name: file.relative_to(source if file != source else source.parent) for name, file in named.items()}
    patient_pattern = bids_pattern(places.values()) if patient_pattern is None else patient_pattern
    patients = find_patients(places, patient_pattern, bool(validation or test or folds))
    fractions = {"validation": float(validation), "test": float(test)}
    about = {
        "name": folder.name,
        "modality": _modalities(list(found.values()), ends or described.channels, modality),
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
    record["sources"] = {name: str(place) for name, place in places.items()}
    record["contents"] = {name: text for name, file in named.items() if (text := contents[file]) is not None}
    held = listed_by_folder({name: places[name] for name, files in found.items() if files.label is not None}, patients)
    lists = _lists(found, patients, fractions, folds, int(seed), folder, held)
    paths = {name: scans[path].files for name, path in named.items()}
    refuse_copies_apart(find_copies(paths), paths, lists)
    for content in lists.values():
        refuse_nothing_labeled([label for name in content["training"] if (label := scans[named[name]].label)])
    rule = CaseRule(len(about["modality"]), len(names) + 1, dimensions=3)
    prepare_scans(str(folder), found, lists, about, record, resample=resample, rule=rule)
    if not labeled:
        print(f"no scan has a label, so nothing can be trained yet; {LABEL_FORMATS}.")
    elif plan is not None and lists["datalist.json"]["training"]:
        _plan(folder, folder / plan, budget, memory_gb)


def _lists(
    found: Mapping[str, Files],
    patients: Mapping[str, str],
    fractions: Mapping[str, float],
    folds: int,
    seed: int,
    folder: Path,
    held: Mapping[str, Collection[str]],
) -> dict[str, Lists]:
    """Split whole patients into the lists of ``datalist.json`` and, where they are asked for, of the folds."""
    labeled = [name for name, files in found.items() if files.label is not None]
    held = {"test": held["test"]} if folds else held  # each fold has a validation list of its own
    lists = split_patients(labeled, patients, fractions, seed, listed_before(folder, patients), held)
    lists["unlabeled"] = [name for name in found if name not in labeled]
    of_folds = fold_lists(lists, patients, folds, seed, folder) if folds else {}
    return {"datalist.json": without_held_out(lists, patients), **of_folds}


def _plan(folder: Path, path: Path, budget: str, memory_gb: float | None) -> None:
    if path.exists():
        print(f"{path} is kept; `crossmatch plan {folder} --overwrite true` makes a new one.")
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


def _own_files(scans: Mapping[str, OwnScan], num_classes: int) -> dict[str, Files]:
    """Say how each image and its label, if any, are read, and refuse DICOM folders that cannot be."""
    paths = [path for scan in scans.values() for path in (*scan.files, scan.label)]
    problems = _series_problems([path for path in paths if path is not None and path.is_dir()])
    if problems:
        raise UserError(f"{len(problems)} DICOM series cannot be read, nothing was written:", problems)
    return {name: _own_case(scan, num_classes) for name, scan in scans.items()}


def _own_case(scan: OwnScan, num_classes: int) -> Files:
    first, *others = [path if is_photo(path) else partial(read_volume, str(path)) for path in scan.files]
    made = scan_files(scan.files[0], scan.label, num_classes)
    places = [str(path) for path in scan.files]
    return made._replace(image=first, others=tuple(others), made_from=(*places, *made.made_from[1:]))


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


def _series_problems(paths: Iterable[Path]) -> list[str]:
    """Check several series, and say in a line what is wrong with each that cannot be read."""
    problems = []
    for path in paths:
        try:
            check_series(path)
        except UserError as error:
            problems.append(str(error))
    return problems
