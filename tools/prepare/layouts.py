"""What the official downloads and the community's copies of the data sets look like, and how their scans are read.

Each function here finds the scans of one layout below a folder and returns them by name, or an empty dictionary where
the layout is another one; it refuses a download that has a scan twice. Files are read with MONAI's readers; geometry
comes from the files.
"""

from __future__ import annotations

import configparser
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor

from custom.data.checks import reading_problem
from custom.data.dicom import check_series, dicom_files
from custom.data.folders import walk
from custom.data.labels import to_label
from custom.data.readers import LoadScan
from custom.utils.errors import UserError


class Files(NamedTuple):
    """How to read an image and, where there is one, its label, CH[WD]; a path is a photograph that is copied.

    ``others`` are the image's other channels, where they have files of their own. ``made_from`` are the files and
    folders that are read, and what else the result hangs on. A label's values lie in 0 .. ``num_classes`` - 1.
    """

    image: Callable[[], MetaTensor] | Path
    label: Callable[[], MetaTensor] | None = None
    made_from: tuple[str, ...] = ()
    others: tuple[Callable[[], MetaTensor] | Path, ...] = ()
    num_classes: int | None = None


def scan_files(image: Path, label: Path | None, num_classes: int) -> Files:
    """Read an image and its label as they are."""
    read_image = partial(read_volume, str(image))
    if label is None:
        return Files(read_image, None, (str(image),))
    read_label = partial(read_volume, str(label), as_label=True)
    return Files(read_image, read_label, (str(image), str(label)), num_classes=num_classes)


def la_challenge(folder: Path) -> dict[str, Files]:
    """2018 Left Atrial Segmentation Challenge: a folder per case, ``lgemri.nrrd`` and ``laendo.nrrd`` (label 255)."""
    found = {}
    for case, image in _one_each(folder, ((path.parent.name, path) for path in _files(folder, "lgemri.nrrd"))).items():
        label = image.with_name("laendo.nrrd")
        found[case] = scan_files(image, label if label.is_file() else None, num_classes=2)
    return found


def la_community(folder: Path) -> dict[str, Files]:
    """The semi-supervised literature's copy: a folder per case with ``mri_norm2.h5``, normalized and cropped."""
    cases = _one_each(folder, ((path.parent.name, path) for path in _files(folder, "mri_norm2.h5")))
    return {
        case: _h5_files(path, axes=(0, 1, 2), spacing=(0.625, 0.625, 0.625), num_classes=2)
        for case, path in cases.items()
    }


def acdc_official(folder: Path) -> dict[str, Files]:
    """ACDC: a folder per patient with ``Info.cfg``, which tells the frames of end of diastole and of systole."""
    found = {}
    for patient, info in _one_each(folder, ((path.parent.name, path) for path in _files(folder, "Info.cfg"))).items():
        for phase, frame in _acdc_phases(info).items():
            stem = info.parent / f"{patient}_frame{frame:02d}"
            image, label = _nifti(stem), _nifti(stem.with_name(stem.name + "_gt"))
            if image is None:
                raise UserError(f"{info}: says that {phase} is frame {frame}, but {stem.name}.nii.gz is missing.")
            found[f"{patient}_{phase}"] = scan_files(image, label, num_classes=4)
    return found


def acdc_community(folder: Path) -> dict[str, Files]:
    """The literature's copy: ``patient001_frame01.h5`` is end of diastole, ``frame02`` of systole; spacing was lost.

    Headers say so: their codes, which declare a transform valid, are 0.
    """
    matches = _matches(folder, r"(patient\d+)_frame0([12])\.h5")
    phases = ((f"{match[1]}_{'ED' if match[2] == '1' else 'ES'}", path) for path, match in matches)
    return {
        name: _h5_files(path, axes=(2, 1, 0), spacing=(1.0, 1.0, 10.0), num_classes=4, declared=False)
        for name, path in _one_each(folder, phases).items()
    }


def pancreas(folder: Path) -> dict[str, Files]:
    """Pancreas-CT: DICOM series below ``PANCREAS_0001`` and so on, labels ``label0001.nii.gz``."""
    labels = _one_each(folder, ((match[1], path) for path, match in _matches(folder, r"label(\d{4})\.nii(?:\.gz)?")))
    patients = sorted(path for path in walk(folder)[0] if re.fullmatch(r"PANCREAS_\d{4}", path.name))
    found, problems = {}, []
    for number, patient in _one_each(folder, ((path.name[-4:], path) for path in patients)).items():
        try:
            series = dicom_series(patient)
        except UserError as error:
            problems.append(str(error))
            continue
        found[number] = scan_files(series, labels.get(number), num_classes=2)
    if problems:
        raise UserError(f"{folder}: {len(problems)} patient(s) cannot be read, nothing was written:", problems)
    return found


def pancreas_community(folder: Path) -> dict[str, Files]:
    """The literature's copies: ``image0001_norm.h5`` or ``0001.h5``, at 1 mm, [-125, 275] HU scaled to [0, 1]."""
    found = {}
    matches = _matches(folder, r"(?:image)?(\d{4})(?:_norm)?\.h5")
    for number, path in _one_each(folder, ((match[1], path) for path, match in matches)).items():
        files = _h5_files(path, axes=(0, 1, 2), spacing=(1.0, 1.0, 1.0), num_classes=2)
        read: Any = files.image  # no path, as that of a photograph
        found[number] = files._replace(image=partial(_to_hounsfield, read))
    return found


def _to_hounsfield(read: Callable[[], Any]) -> MetaTensor:
    return read() * 400 - 125


def isic_official(folder: Path, part: str) -> dict[str, Files]:
    """ISIC-2018 task 1, ``part`` is Training, Validation or Test: JPG photographs and PNG masks (0 and 255)."""
    images, masks = (
        _one_each(folder, ((path.stem, path) for path in _files(folder, name) if path.parent.name == parent))
        for name, parent in (
            ("ISIC_*.jpg", f"ISIC2018_Task1-2_{part}_Input"),
            ("ISIC_*_segmentation.png", f"ISIC2018_Task1_{part}_GroundTruth"),
        )
    )
    return {
        name: scan_files(image, masks.get(f"{name}_segmentation"), num_classes=2)._replace(image=image)
        for name, image in images.items()
    }


def isic_training(folder: Path) -> dict[str, Files]:
    """ISIC-2018 task 1: ISIC2018_Task1-2_Training_Input/*.jpg and ISIC2018_Task1_Training_GroundTruth/*.png."""
    return isic_official(folder, "Training")


def read_volume(path: str, in_channels: int | None = None, as_label: bool = False) -> MetaTensor:
    """Read a file, or the DICOM series in a folder, with the reader that MONAI takes for it.

    Raises:
        UserError: names the file that cannot be read, and says why.
    """
    with naming(path):
        return LoadScan(in_channels, as_label)(path)


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Name the file in whatever error its reader raises; some, such as ITK's, cannot be sent to another process."""
    try:
        yield
    except Exception as error:
        raise UserError(reading_problem(path, error)) from None


def dicom_series(folder: Path) -> Path:
    """Find the folder of the one DICOM series below a folder, and check its slices.

    Raises:
        UserError: in one line, when there is none or several, or its slices are not one volume on one grid.
    """
    folders = series_folders(folder)
    if len(folders) != 1:
        where = f" ({', '.join(map(str, folders))})" if folders else ""
        raise UserError(f"{folder}: expected one folder of DICOM files, found {len(folders)}{where}.")
    check_series(folders[0])
    return folders[0]


def refuse_twice(folder: Path | str, places: Mapping[str, Sequence[Path | str]]) -> None:
    """Refuse a download in which a name is there more than once, since one of the scans would hide the other.

    Args:
        folder: of the download.
        places: where each name is.

    Raises:
        UserError: names them with their places.
    """
    problems = [f"{name}: {' and '.join(map(str, found))}" for name, found in places.items() if len(found) > 1]
    if problems:
        hint = "nothing was written; keep one of each, and take the others away"
        raise UserError(f"{folder}: the same name is there more than once, {hint}:", problems)


def _one_each(folder: Path, named: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    """Give each name its file or folder, refusing a second one; links to the same one are no second."""
    places: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, path in named:
        places[name].setdefault(os.path.realpath(path), path)
    refuse_twice(folder, {name: list(found.values()) for name, found in places.items()})
    return {name: next(iter(found.values())) for name, found in places.items()}


def _files(folder: Path, pattern: str) -> list[Path]:
    """List the files below a folder whose names match a pattern as that of a shell."""
    return [path for path in visible_files(folder)[0] if fnmatchcase(path.name, pattern)]


def _matches(folder: Path, pattern: str) -> list[tuple[Path, re.Match[str]]]:
    """List the files below a folder whose names match a regular expression."""
    found = ((path, re.fullmatch(pattern, path.name)) for path in visible_files(folder)[0])
    return [(path, match) for path, match in found if match]


def _acdc_phases(info: Path) -> dict[str, int]:
    parser = configparser.ConfigParser()
    parser.read_string("[patient]\n" + info.read_text())
    try:
        return {phase: parser.getint("patient", phase) for phase in ("ED", "ES")}
    except (configparser.Error, ValueError) as error:
        raise UserError(f"{info}: expected the lines 'ED: number' and 'ES: number' ({error}).") from error


def _nifti(stem: Path) -> Path | None:
    paths = [path for ending in (".nii.gz", ".nii") if (path := stem.with_name(stem.name + ending)).is_file()]
    return _one_each(stem.parent, ((stem.name, path) for path in paths)).get(stem.name)


def _h5_files(
    path: Path, axes: Sequence[int], spacing: Sequence[float], num_classes: int, declared: bool = True
) -> Files:
    read = partial(read_h5, str(path), axes=tuple(axes), spacing=tuple(spacing), declared=declared)
    return Files(partial(read, "image"), partial(read, "label", num_classes=num_classes), (str(path),))


def read_h5(
    path: str,
    key: str,
    axes: Sequence[int],
    spacing: Iterable[float],
    num_classes: int | None = None,
    declared: bool = True,
) -> MetaTensor:
    """Read a volume out of an h5 file, which has no geometry.

    Args:
        path: the file.
        key: name of the volume in it.
        axes: bring it into the order x, y, z.
        spacing: mm per axis.
        num_classes: of a label; None for an image.
        declared: whether the spacing is known, and may be written as such.
    """
    import h5py

    with naming(path), h5py.File(path) as file:
        volume: Any = file[key][()]
    affine = torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))
    meta = {} if declared else {"qform_code": 0, "sform_code": 0, "pixdim": np.array([1.0, *spacing])}
    array = MetaTensor(np.ascontiguousarray(volume.transpose(axes)[None], np.float32), affine=affine, meta=meta)
    return array if num_classes is None else to_label(array, f"{path}, {key}", num_classes)


def series_folders(folder: Path) -> list[Path]:
    """Find the folder itself, and those below it, linked ones too, that hold DICOM files."""
    return sorted(path for path in walk(folder)[0] if dicom_files(path))


def visible_files(top: Path) -> tuple[list[Path], list[str]]:
    """List the files in a folder and those below it, but for hidden ones, such as ``._a.nii`` from a Mac.

    Returns:
        The files, sorted, and what was left out and why, by paths below ``top``.
    """
    folders, left_out = walk(top)
    files = [path for folder in folders for path in sorted(folder.iterdir()) if not path.is_dir()]
    left_out += [f"{path.relative_to(top)} (hidden)" for path in files if path.name.startswith(".")]
    left_out += [f"{path.relative_to(top)} (link to nothing)" for path in files if not path.exists()]
    others = [path for path in files if path.exists() and not path.is_file()]
    left_out += [f"{path.relative_to(top)} (a pipe, a socket or a device)" for path in others]
    return sorted(path for path in files if path.is_file() and not path.name.startswith(".")), left_out
