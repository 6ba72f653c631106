"""Prepare data sets: ``python -m tools.prepare COMMAND --help``.

From an official download, a community copy, or a user's own folders to ``images/``, ``labels/`` and data lists. Every
command can be interrupted and repeated; see :mod:`tools.prepare.writer`.
"""

from __future__ import annotations

from pathlib import Path

from custom.utils.files import refuse_unwritable

from ..numbers import refuse_below
from ..synthetic import write_dataset as write_volumes
from ..synthetic import write_hearts, write_photos
from .check import check_folder
from .own import own
from .published import acdc, check_choice, isic, la, pancreas

__all__ = ["acdc", "check", "demo", "isic", "la", "own", "pancreas"]


def demo(output: str, bundle: str = "la", training: int = 4, unlabeled: int = 12) -> None:
    """Write synthetic scans for a bundle, with 4 validation and 8 test cases.

    Args:
        output: dataset folder; the data list is synthetic.json.
        bundle: la, acdc, pancreas or isic.
        training: labeled cases.
        unlabeled: unlabeled cases.
    """
    writers = {"la": write_volumes, "pancreas": write_volumes, "acdc": write_hearts, "isic": write_photos}
    check_choice("bundle", bundle, tuple(writers))
    refuse_below(1, training=training)
    refuse_below(0, unlabeled=unlabeled)
    refuse_unwritable(output=str(output))
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
