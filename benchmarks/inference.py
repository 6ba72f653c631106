"""Time the segmentation of a scan: ``python -m benchmarks.inference --image SCAN.nii.gz --ckpt_path model.pt``.

One window at a time in float32 against the bundle's own inference, in turn, and the share of voxels
whose label differs. Reading the scan and writing the result are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from custom.handlers.folding import fold_batch_norm
from custom.utils.weights import read_weights
from tools.cli import run

from .bundle import available_device, bundle_config
from .timing import machine, measure, print_table

#: One window at a time, as the original's.
PLAIN = {"amp": False, "sw_batch_size": 1, "memory_format": torch.contiguous_format, "keep_memory": "$None"}


def inference(
    image: str,
    ckpt_path: str,
    bundle: str = "la",
    overlay: str | None = None,
    repeats: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print seconds, ratio and peak memory of both ways, and the share of voxels whose label differs.

    Args:
        image: a scan.
        ckpt_path: trained weights; with untrained ones the labels would be noise.
        bundle: la, acdc or pancreas.
        overlay: a config that the weights were trained with, such as quick.
        repeats: how often each way is timed.
        device: cpu or cuda.

    Raises:
        UserError: for an unknown bundle or device, or weights that do not fit.
    """
    where = available_device(device)
    files = ["inference", overlay] if overlay else ["inference"]
    settings = {"device": where, "files": [image]}
    read_weights(ckpt_path, bundle_config(bundle, files, settings).get_parsed_content("network"))
    builders = {
        name: partial(_segmentation, bundle, files, settings | changes, ckpt_path)
        for name, changes in {"reference": PLAIN, "ours": {}}.items()
    }
    found = measure(builders, where, repeats, untimed=1)
    labels = {name: found[name].result for name in builders}
    frames, *size = labels["ours"].shape
    print(f"crossmatch_{bundle}, {frames} image(s) of {size} voxels, {machine(where)}")
    print_table(found, "reference")
    different, voxels = (labels["ours"] != labels["reference"]).sum(), labels["ours"].size
    print(f"labels differ in {different} of {voxels} voxels, {100 * different / voxels:.4f} %;", end=" ")
    print(f"foreground {(labels['reference'] > 0).sum()} voxels")


def _segmentation(
    bundle: str, files: Sequence[str], settings: Mapping[str, Any], ckpt_path: str
) -> Callable[[], np.ndarray]:
    """Label map, H[WD], of each frame of the scan on the grid of training."""
    config = bundle_config(bundle, files, settings)
    config.get_parsed_content("keep_memory")
    network = config.get_parsed_content("network").eval()
    network.load_state_dict(read_weights(ckpt_path, network))
    if settings.get("amp", True):
        network = fold_batch_norm(network)
    volume = (
        config.get_parsed_content("preprocessing")(config.get_parsed_content("scans").cases[0])["image"]
        .as_tensor()[None]
        .to(settings["device"])
    )
    inferer, num_classes = config.get_parsed_content("inferer"), config.get_parsed_content("num_classes")
    frames = (-1, num_classes)  # one behind the other in the channels
    return torch.inference_mode()(lambda: inferer(volume, network)[0].unflatten(0, frames).argmax(1).cpu().numpy())


if __name__ == "__main__":
    run(inference)
