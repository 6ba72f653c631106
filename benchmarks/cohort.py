"""Time a folder of scans end to end: ``python -m benchmarks.cohort --count 20``, or ``--dataset_dir my_scans``.

The bundle's inference, from reading the scans to writing the label maps, as it is and with ``--fast``, in turn. Every
run starts anew; starting Python is not counted, loading weights is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from custom.utils.arguments import did_you_mean
from custom.utils.errors import UserError
from custom.utils.settings import guess
from custom.utils.weights import save_weights
from tools.cli import run
from tools.synthetic import write_dataset, write_hearts

from .bundle import BUNDLES, available_device, bundle_config
from .timing import machine, measure, print_table

_SYNTHETIC = {"la": write_dataset, "pancreas": write_dataset, "acdc": write_hearts}


def cohort(
    bundle: str = "la",
    dataset_dir: str | None = None,
    count: int = 20,
    overlay: str | None = None,
    ckpt_path: str | None = None,
    repeats: int = 1,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    **changes: Any,
) -> None:
    """Print seconds, scans per minute and peak memory.

    Args:
        bundle: la, acdc or pancreas.
        dataset_dir: folder of scans; synthetic ones by default.
        count: of synthetic patients, each a scan of 128x128x96 voxels, or two short-axis volumes of 192x192x10.
        overlay: a config that the weights were trained with, such as quick.
        ckpt_path: weights; untrained ones by default, which take as long.
        repeats: how often each way is timed.
        device: cpu or cuda.
        changes: other settings of the bundle, such as ``--class_names "[liver,tumor]"``.

    Raises:
        UserError: for an unknown bundle, device or setting, for weights that do not fit, or for scans with something
            wrong.
    """
    where = available_device(device)
    files = ["inference", overlay] if overlay else ["inference"]
    known = bundle_config(bundle, files, {}).get()
    unknown = [did_you_mean(name, known, "is no setting of this bundle.") for name in changes if name not in known]
    if unknown:
        raise UserError("unknown setting, nothing was run:", unknown)
    with tempfile.TemporaryDirectory() as folder:
        changes = {name: guess(value) if isinstance(value, str) else value for name, value in changes.items()}
        settings = {"device": device, "output_dir": f"{folder}/predictions"} | changes
        settings["dataset_dir"] = dataset_dir or _synthetic(bundle, Path(folder) / "scans", count)
        if ckpt_path is None:
            ckpt_path = f"{folder}/model.pt"
            save_weights(bundle_config(bundle, files, changes).get_parsed_content("network"), ckpt_path)
        settings["ckpt_path"] = ckpt_path
        paths = [str(BUNDLES / f"crossmatch_{bundle}" / "configs" / f"{name}.yaml") for name in files]
        ways = {"bundle": {}, "fast": {"fast": True}}
        builders = {name: partial(_segmentation, paths, settings | way) for name, way in ways.items()}
        found = measure(builders, where, repeats, untimed=0)
    scans = found["bundle"].result
    print(f"crossmatch_{bundle}, {scans} scans, {machine(where)}")
    print_table(found, "bundle")
    for name, way in found.items():
        print(f"{name:14s} {60 * scans / way.median:8.2f} scans per minute")


def _synthetic(bundle: str, folder: Path, count: int) -> str:
    if bundle not in _SYNTHETIC:
        raise UserError(f"--bundle: there are no synthetic scans for {bundle}; give --dataset_dir.")
    size = (192, 192, 10) if bundle == "acdc" else (128, 128, 96)
    _SYNTHETIC[bundle](folder, {"unlabeled": count}, size=size)
    return str(folder)


def _segmentation(configs: list[str], settings: Mapping[str, Any]) -> Callable[[], int]:
    """Segment all scans, and count them."""

    def segment() -> int:
        workflow = ConfigWorkflow(configs, run_id="inference", **settings)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return len(workflow.parser.get_parsed_content("scans").cases)

    return segment


if __name__ == "__main__":
    run(cohort)
