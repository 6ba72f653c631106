"""Show what unlabeled scans are good for, in a few minutes: ``python -m tools.demo``, or ``make demo``.

Writes synthetic hearts of which two patients are labeled, trains the short-axis bundle on them with and without the
unlabeled ones (``studies/demo.yaml``), scores both on eight unseen patients, segments those to NIfTI and draws them.
Each step is the command that a user would type; it is printed first.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import yaml

from custom.data import read_lists
from custom.report.drawing import Panel, case_panels, draw_panels
from custom.report.pages import overall, read_rows
from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable

from .cli import run
from .study.planning import seed_problems
from .synthetic import write_hearts

ROOT = Path(os.path.relpath(Path(__file__).resolve().parent.parent))
STUDY = ROOT / "studies" / "demo.yaml"
#: Patients. The settings were chosen on those for validation.
COUNTS = {"training": 2, "unlabeled": 24, "validation": 8, "test": 8}
#: Those labeled are typical hearts, see :func:`tools.synthetic.make_heart`.
VARIETY: dict[str, Any] = {"variety": 1.0, "labeled_variety": 0.1}
#: Voxels per axis.
SIZE = (48, 44, 6)
ARMS = ("supervised", "crossmatch")
#: Unseen patients that are drawn.
SHOWN = 4


def demo(output: str = "demo", seeds: Sequence[int] = (1,)) -> None:
    """Train with and without unlabeled scans on synthetic hearts, and compare.

    Args:
        output: folder for the data, the two trainings and their comparison, the predictions and the figure.
        seeds: of the trainings; each takes as long as the first.
    """
    if problems := seed_problems(list(seeds)):
        raise UserError("nothing was done:", problems)
    start = time.monotonic()
    folder = Path(output)
    refuse_unwritable(output=str(folder))
    print(f"Writing synthetic hearts to {folder / 'data'}, patients: {COUNTS}")
    datalist = write_hearts(folder / "data", COUNTS, SIZE, **VARIETY)
    jobs = min(len(ARMS), os.cpu_count() or 1)
    study = {"output": folder / "study", "datalist": datalist, "seeds": json.dumps(list(seeds)), "jobs": jobs}
    _run("tools.study", str(STUDY), **study)
    for arm in ARMS:
        _infer(arm, folder, datalist, seeds[0])
    figure = folder / "overlays.png"
    cases = [Path(case["image"]) for case in read_lists(datalist)["test"]][: 2 * SHOWN : 2]
    rows = {case: _panels(folder, case) for case in cases}
    draw_panels([panels for panels, _ in rows.values()], [title for _, title in rows.values()]).savefig(figure, dpi=110)
    print(f"\nSegmentations:  {folder / 'predictions'}\nPictures:       {figure}")
    print(f"Comparison:     {folder / 'study' / 'comparison' / 'comparison.html'}")
    print(f"\nMean Dice on {COUNTS['test']} unseen patients: {', '.join(ARMS)}, difference in points")
    for seed in seeds:
        supervised, crossmatch = (_mean_dice(folder / "study" / arm / f"seed_{seed}" / "eval") for arm in ARMS)
        gain = 100 * (crossmatch - supervised)
        print(f"  seed {seed}: {supervised:.4f}, {crossmatch:.4f}, {gain:+.2f}")
    print(f"Done in {(time.monotonic() - start) / 60:.1f} minutes.")


def _run(module: str, *arguments: str, **flags: object) -> None:
    """Run a command as from a shell."""
    command = ["-m", module, *arguments, *(str(part) for flag in flags.items() for part in (f"--{flag[0]}", flag[1]))]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    if subprocess.run([sys.executable, "-W", "ignore", *command], check=False).returncode:
        raise UserError("this step failed, see above.")


def _infer(arm: str, folder: Path, datalist: Path, seed: int) -> None:
    """Segment the unseen patients with the weights of an arm."""
    bundle = yaml.safe_load(STUDY.read_text())["bundle"]
    _run(
        "monai.bundle",
        *("run", "inference"),
        config_file=ROOT / "bundles" / bundle / "configs" / "inference.yaml",
        datalist=datalist,
        ckpt_dir=folder / "study" / arm / f"seed_{seed}" / "models",
        output_dir=folder / "predictions" / arm,
    )


def _panels(folder: Path, image: Path) -> tuple[list[Panel], str]:
    """Image, truth and what each arm predicted, and the name of the case; the files lie on one grid."""
    name = image.name.removesuffix(".nii.gz")
    arrays = [np.asarray(nib.load(path).dataobj) for path in (image, folder / "data" / "labels" / image.name)]
    rows = []
    for arm in ARMS:
        pred = np.asarray(nib.load(folder / "predictions" / arm / f"{name}_seg.nii.gz").dataobj)
        *shared, panel = case_panels(arrays[0][None], arrays[1], pred, nib.load(image).header.get_zooms())
        rows.append(panel._replace(title=arm))
    return [*shared, *rows], name


def _mean_dice(folder: Path) -> float:
    return float(np.mean([float(row["dice"]) for row in overall(read_rows(folder / "metrics.csv"))]))


if __name__ == "__main__":
    run(demo)
