"""Measure what ``crossmatch suggest`` is worth: ``python -m benchmarks.suggest --datalist DATALIST --labels FOLDER``.

The unlabeled patients of a data list, whose labels are known here, stand for those that somebody labels next: as many
as are suggested, and as many by chance. A training with the labels of each is scored on the validation list.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from custom.data.datalist import LISTS, read_lists
from custom.report.pages import overall, read_rows
from custom.utils.errors import UserError
from custom.utils.files import FILE_NAMES, read_json, write_json
from custom.utils.names import patient_name
from tools.cli import run
from tools.study import study

STUDY = Path(__file__).resolve().parent.parent / "studies" / "next_labels.yaml"


def suggested(
    datalist: str,
    labels: str,
    output: str,
    suggestions: str | None = None,
    count: int = 4,
    patient_pattern: str = r"patient\d+",
    seeds: Sequence[int] = (1, 2),
    **settings: Any,
) -> None:
    """Train with patients by chance and, when they are given, with those that were suggested; print the mean Dice.

    Args:
        datalist: a data list.
        labels: folder with a label of the name of each unlabeled image.
        output: folder for the data lists and the trainings; what is finished there is not trained again.
        suggestions: ``suggestions.csv`` of ``crossmatch suggest --count COUNT`` on this data list.
        count: how many patients are drawn by chance.
        patient_pattern: finds the patient in a file's name.
        seeds: of the trainings, and of the draw of the patients in each.
        settings: of the trainings, such as ``--amp false``.

    Raises:
        UserError: when a label is missing, or there are too few patients.
    """
    folder, images = Path(output), [case["image"] for case in read_lists(Path(datalist))["unlabeled"]]
    chosen = {f"chance_{seed}": patients_by_chance(images, patient_pattern, count, seed) for seed in seeds}
    of_training = {name: [int(name.partition("_")[2])] for name in chosen}
    if suggestions is not None:
        chosen["suggested"], of_training["suggested"] = _suggested_images(Path(suggestions)), list(seeds)
    for name, found in chosen.items():
        label_some(Path(datalist), found, Path(labels), folder / f"{name}.json")
        print(f"\n{name}: {', '.join(sorted({patient_name(image, patient_pattern) for image in found}))}")
        study(str(STUDY), str(folder / name), datalist=str(folder / f"{name}.json"), seeds=of_training[name],
              evaluation_list="validation", **settings)  # fmt: skip
    print("\nMean Dice of the validation cases")
    for name, drawn in of_training.items():
        for seed in drawn:
            rows = overall(read_rows(folder / name / "crossmatch" / f"seed_{seed}" / "eval" / "metrics.csv"))
            print(f"{name:12}seed {seed}: {np.mean([float(row['dice']) for row in rows]):.4f} ({len(rows)} cases)")


def patients_by_chance(images: Sequence[str], pattern: str, count: int, seed: int) -> list[str]:
    """Draw patients, and give all of their images."""
    patients = sorted({patient_name(image, pattern) for image in images})
    if count > len(patients):
        raise UserError(f"--count {count}: there are {len(patients)} patients without a label.")
    drawn = set(np.random.default_rng(seed).permutation(patients)[:count].tolist())
    return [image for image in images if patient_name(image, pattern) in drawn]


def label_some(datalist: Path, images: Sequence[str], labels: Path, output: Path) -> None:
    """Write a data list in which some of the unlabeled images are labeled, with absolute paths."""
    cases = {name: [{k: v for k, v in case.items() if k != "case"} for case in found]
             for name, found in read_lists(datalist).items()}  # fmt: skip
    pairs = [{"image": image, "label": os.path.abspath(labels / Path(image).name)} for image in images]
    missing = [pair["label"] for pair in pairs if not Path(pair["label"]).is_file()]
    if missing:
        raise UserError(f"{labels}: label(s) missing; give the folder with a label for each unlabeled image:", missing)
    cases["training"] += pairs
    cases["unlabeled"] = [case for case in cases["unlabeled"] if case["image"] not in images]
    content = read_json(datalist)
    write_json(output, {key: value for key, value in content.items() if key not in LISTS} | cases)


def _suggested_images(path: Path) -> list[str]:
    with open(path, newline="", encoding="utf-8", errors=FILE_NAMES) as file:
        return [image for row in csv.DictReader(file) for image in row["files"].split(";")]


if __name__ == "__main__":
    run(suggested)
