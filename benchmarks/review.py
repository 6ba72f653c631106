"""Measure how well the review's order finds bad predictions: ``python -m benchmarks.review --datalist DATALIST``.

The scans of a data list are segmented as a user would, without their labels. Then the scores in ``review.csv`` are
compared with the true Dice: Spearman's correlation with the error, 1 - Dice, and the share of the worst fifth of the
predictions that is in the first fifth of the list. Chance gives 0 and a fifth.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from scipy.stats import spearmanr

from custom.data.datalist import LISTS, read_lists
from custom.data.readers import LoadLabel
from custom.metrics import overlap
from custom.utils.errors import UserError
from custom.utils.files import FILE_NAMES
from custom.utils.names import case_names
from tools.cli import run

from .bundle import BUNDLES

#: What is compared with the error: the order of the list, and what the score mostly is.
ORDERS = ("score", "boundary_uncertainty")


def review(
    datalist: str,
    bundle: str = "la",
    ckpt_path: str | None = None,
    part: str = "validation",
    labels: str | None = None,
    output: str | None = None,
    uncertainty: bool = False,
) -> None:
    """Print the range of the true Dice, and how well the review's order follows it.

    Args:
        datalist: a data list.
        bundle: la, acdc, pancreas or isic.
        ckpt_path: weights with their .json file; the bundle's own by default.
        part: the list whose scans are segmented: training, unlabeled, validation or test.
        labels: folder with a label of the name of each image, for lists that name none.
        output: folder for the predictions; none are kept by default.
        uncertainty: take the disagreement of the perturbed decodings in place of the entropy.

    Raises:
        UserError: for an unknown bundle or list, a case without label, or fewer than five cases.
    """
    truth = _truth(Path(datalist), part, labels)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(output or temporary)
        settings = {"files": list(truth), "output_dir": str(folder), "uncertainty": uncertainty}
        num_classes, ending = _segment(bundle, settings | ({"ckpt_path": ckpt_path} if ckpt_path else {}))
        names = case_names(truth)
        dice = {
            names[image]: _mean_dice(folder / f"{names[image]}_seg{ending}", label, num_classes)
            for image, label in truth.items()
        }
        with open(folder / "review.csv", newline="", encoding="utf-8", errors=FILE_NAMES) as file:
            rows = list(csv.DictReader(file))
    true = np.array([dice[row["case"]] for row in rows])
    print(f"\ncrossmatch_{bundle}, {part}: {len(rows)} cases, Dice {true.min():.3f} to {true.max():.3f},", end=" ")
    print(f"mean {true.mean():.3f}, standard deviation {true.std():.3f}")
    for name in ORDERS:
        values = np.array([float(row[name] or np.inf) for row in rows])  # without a structure: the worst
        found, of = first_fifth(values, true)
        print(f"{name:22}Spearman with 1 - Dice {spearmanr(values, 1 - true).statistic:.3f};", end=" ")
        print(f"of the worst fifth {found} of {of} in the first fifth, {100 * found / of:.0f} %")


def first_fifth(scores: Sequence[float] | np.ndarray, dice: Sequence[float] | np.ndarray) -> tuple[int, int]:
    """Count how many of the worst fifth of the cases by Dice are among the first fifth by score, and of how many."""
    count = max(1, round(len(dice) / 5))
    first = np.argsort(-np.asarray(scores), kind="stable")[:count]
    worst = np.argsort(np.asarray(dice), kind="stable")[:count]
    return len(set(first) & set(worst)), count


def _truth(datalist: Path, part: str, labels: str | None) -> dict[str, str]:
    """Labels by image."""
    if part not in LISTS:
        raise UserError(f"--part: a data list has {', '.join(LISTS)}, got {part}.")
    cases = read_lists(datalist)[part]
    named = {
        case["image"]: str(Path(labels) / Path(case["image"]).name) if labels else case.get("label", "")
        for case in cases
    }
    missing = [image for image, label in named.items() if not Path(label).is_file()]
    if missing:
        raise UserError(f"{datalist}: {part} has image(s) without label; give the labels' folder, --labels:", missing)
    if len(named) < 5:
        raise UserError(f"{datalist}: {part} has {len(named)} case(s); an order of fewer than 5 says nothing.")
    return named


def _segment(bundle: str, settings: dict[str, Any]) -> tuple[int, str]:
    """Run the bundle's inference; give its number of classes and the ending of its predictions."""
    config = BUNDLES / f"crossmatch_{bundle}" / "configs" / "inference.yaml"
    if not config.is_file():
        raise UserError(f"no such config: {config}; see --help for the names.")
    workflow = ConfigWorkflow(str(config), run_id="inference", **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow.parser.get_parsed_content("num_classes"), workflow.parser.get_parsed_content("output_ext")


def _mean_dice(prediction: Path, label: str, num_classes: int) -> float:
    """Dice of a case, the mean over the classes."""
    load = LoadLabel(num_classes)
    found, true = load(prediction).as_tensor(), load(label).as_tensor()
    return float(np.mean([overlap(found == index, true == index)["dice"] for index in range(1, num_classes)]))


if __name__ == "__main__":
    run(review)
