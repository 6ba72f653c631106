"""Time the segmentation of a scan: ``python -m benchmarks.inference --image SCAN.nii.gz --ckpt_path model.pt``.

One window at a time in float32 against the bundle's own inference, in turn, in one process, and the share of voxels
whose label differs. Reading the scan and writing the result are not counted.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import fire
import torch

from custom.errors import show_user_errors_plainly
from custom.memory import keep_freed_memory, return_freed_memory
from custom.weights import read_weights

from .bundle import bundle_config, refuse_unknown
from .timing import machine, measure, print_table

__all__ = ["inference"]


def inference(
    image: str,
    ckpt_path: str,
    bundle: str = "la",
    overlay: str | None = None,
    repeats: int = 3,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    **unknown: Any,
) -> None:
    """Print seconds, ratio and peak memory of both ways, and the share of voxels whose label differs.

    Args:
        image: a scan.
        ckpt_path: trained weights; with untrained ones the labels would be noise.
        bundle: la, acdc or pancreas.
        overlay: a config that the weights were trained with, such as quick.
        repeats: how often each way is timed.
        device: cpu or cuda.
        unknown: refused.

    Raises:
        UserError: for an unknown flag or bundle, or weights that do not fit.
    """
    refuse_unknown(unknown)
    where = torch.device(device)
    files = ["inference", overlay] if overlay else ["inference"]
    ours = {"device": where, "files": [image]}
    plain = {"amp": False, "sw_batch_size": 1, "memory_format": torch.contiguous_format}
    configs = {
        "reference": bundle_config(bundle, files, ours | plain),
        "ours": bundle_config(bundle, files, ours),
    }

    volume = configs["ours"].get_parsed_content("dataset")[0]["image"].as_tensor()[None].to(where)
    labels: dict[str, torch.Tensor] = {}

    def segment(name: str) -> None:
        labels[name] = segmenters[name](volume).argmax(1)

    segmenters = {name: _segmenter(config, ckpt_path) for name, config in configs.items()}
    print(f"crossmatch_{bundle}, a volume of {list(volume.shape[2:])} on the training grid, {machine(where)}")
    calls = {name: partial(segment, name) for name in configs}
    before = {"ours": keep_freed_memory, "reference": return_freed_memory} if where.type == "cpu" else {}
    print_table(measure(calls, where, repeats, before, untimed=0), "reference")
    different = (labels["ours"] != labels["reference"]).sum().item()
    share = 100 * different / labels["ours"].numel()
    print(f"labels differ in {different} of {labels['ours'].numel()} voxels, {share:.4f} %;", end=" ")
    print(f"foreground {(labels['reference'] > 0).sum().item()} voxels")


def _segmenter(config: Any, ckpt_path: str) -> Any:
    network = config.get_parsed_content("network").eval()
    network.load_state_dict(read_weights(ckpt_path, network))
    return torch.inference_mode()(partial(config.get_parsed_content("inferer"), network=network))


if __name__ == "__main__":
    show_user_errors_plainly()
    fire.Fire(inference)
