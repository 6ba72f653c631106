"""Show CrossMatch at work in a few minutes: ``python -m tools.demo``, or ``make demo``.

Writes synthetic volumes of which four are labeled, trains the left-atrium bundle on them, scores it on eight unseen
volumes, segments those to NIfTI and draws them. Each step is the command that a user would type; it is printed first.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from custom.data.names import case_name
from custom.report.drawing import Panel, case_panels, draw_panels
from custom.utils.cli import run
from custom.utils.errors import UserError

from .synthetic import write_dataset

__all__ = ["demo"]

BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "crossmatch_la"
COUNTS = {"training": 4, "unlabeled": 12, "test": 8}
#: Settings of a network and a schedule that a laptop's CPU gets through in minutes.
NETWORK = {"spacing": [1.25] * 3, "patch_size": [48, 48, 32], "stride": [16, 16, 16], "base_filters": 8}
SCHEDULE = {
    "max_iterations": 450,
    "unsupervised_weight": {"start": 0.0, "end": 1.0, "delay": 330, "rampup_iterations": 40},
    "batch_norm_recalibration": 20,
    "learning_rate": 2.0e-3,
    "num_workers": 1,
}


def demo(output: str = "demo", **unknown: Any) -> None:
    """Train, evaluate and infer on synthetic volumes.

    Args:
        output: folder for the data, the weights, the metrics, the predictions and the figure.
        unknown: refused.

    Raises:
        UserError: for an unknown flag.
    """
    if unknown:
        raise UserError(f"unknown flag --{', --'.join(unknown)}; the only one is --output.")
    start = time.monotonic()
    folder = Path(str(output))
    print(f"Writing {sum(COUNTS.values())} synthetic volumes to {folder / 'data'}: {COUNTS}")
    datalist = write_dataset(folder / "data", COUNTS)
    places = {"datalist": str(datalist), "ckpt_dir": str(folder / "models")}

    _run("training", ["train"], places | {"output_dir": str(folder / "eval")} | NETWORK | SCHEDULE)
    _run("evaluating", ["train", "evaluate"], places | {"output_dir": str(folder / "eval")} | NETWORK)
    _run("inference", ["inference"], places | {"output_dir": str(folder / "predictions")} | NETWORK)

    predictions = sorted((folder / "predictions").glob("*_seg.nii.gz"))
    figure = folder / "overlays.png"
    draw_panels(*zip(*[_panels(folder / "data", pred) for pred in predictions[:4]], strict=True)).savefig(
        figure, dpi=110
    )
    print(f"\nMetrics:     {folder / 'eval' / 'metrics.csv'}\nReport:      {folder / 'eval' / 'report.html'}")
    for prediction in predictions:
        print(f"Prediction:  {prediction}")
    print(f"Figure:      {figure}\nDone in {(time.monotonic() - start) / 60:.1f} minutes.")


def _run(run_id: str, configs: list[str], overrides: dict[str, Any]) -> None:
    """Run one section of the bundle, as from a shell."""
    files = [os.path.relpath(BUNDLE / "configs" / f"{name}.yaml") for name in configs]
    command = ["-m", "monai.bundle", "run", run_id, "--config_file", json.dumps(files)]
    for name, value in overrides.items():
        command += [f"--{name}", str(value)]
    print(f"\n$ python {shlex.join(command)}", flush=True)
    completed = subprocess.run([sys.executable, "-W", "ignore", *command], check=False)
    if completed.returncode:
        raise UserError(f"the step {run_id} failed, see above.")


def _panels(data: Path, pred: Path) -> tuple[list[Panel], str]:
    """Picture and name of one case, whose files lie on one grid."""
    name = pred.name.replace("_seg", "")
    files = [nib.load(path) for path in (data / "images" / name, data / "labels" / name, pred)]
    image, label, found = (np.asarray(file.dataobj) for file in files)
    return case_panels(image[None], label, found, files[0].header.get_zooms()), case_name(name)


if __name__ == "__main__":
    run(demo)
