"""Time the training step against the order of the original code: ``python -m benchmarks.training_step --bundle la``.

All see the same tensors, in turn, each in a process of its own unless ``--one_process true`` is given: the original's
order, in float32 with memory as it comes; ours in float32; and ours in the device's fastest 16-bit type, where it has
one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import monai
import torch
from monai.bundle import ConfigParser

from custom.trainer import CrossMatchTrainer
from custom.utils.device import MixedPrecision
from tools.cli import run

from .bundle import available_device, bundle_config
from .original_order import OriginalStep
from .timing import machine, measure, print_table

#: Patches that a CPU gets through in seconds; the bundle's own elsewhere.
CPU_PATCH = {"la": [64, 64, 48], "pancreas": [64, 64, 48]}

#: What the original has none of.
PLAIN = {"memory_format": torch.contiguous_format, "optimizer::fused": False}


def training_step(
    bundle: str = "la",
    patch_size: Sequence[int] | None = None,
    compile: bool = False,  # noqa: A002 - the config's name for it
    repeats: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    one_process: bool = False,
) -> None:
    """Print seconds, ratio and peak memory of every step.

    Args:
        bundle: la, acdc, pancreas or isic.
        patch_size: voxels per axis; the bundle's own by default, 64x64x48 for volumes on a CPU.
        compile: compile ours.
        repeats: how often each step is timed.
        device: cpu or cuda.
        one_process: put all into one process, where the original's order finds the memory that ours keeps.

    Raises:
        UserError: for an unknown bundle or device.
    """
    where = available_device(device)
    size = patch_size or (CPU_PATCH.get(bundle) if where.type == "cpu" else None)
    settings = {"device": where, "patch_size": size}

    config = bundle_config(bundle, ["train"], settings)
    counts = " + ".join(str(config.get_parsed_content(name)) for name in ("batch_size", "unlabeled_batch_size"))
    print(f"crossmatch_{bundle}, {counts} patches of {list(config['patch_size'])}, {machine(where)}")
    print(f"median of {repeats}")
    types = {MixedPrecision(where, amp).dtype: amp for amp in (False, True)}
    ours = {
        f"ours, {str(dtype).removeprefix('torch.')}": partial(
            _ours, bundle, settings | {"amp": amp, "compile": compile}
        )
        for dtype, amp in types.items()
    }
    builders = {"original": partial(_original, bundle, settings | PLAIN), **ours}
    print_table(measure(builders, where, repeats, one_process=one_process), "original")


def _original(bundle: str, settings: Mapping[str, Any]) -> Callable[[], float]:
    config = bundle_config(bundle, ["train"], settings)
    network, loss, optimizer, cutmix = _learner(config)
    step = OriginalStep(network, loss, optimizer, cutmix, start_threshold(config))
    batch = _batch(config)
    return lambda: step(batch["labeled"], batch["unlabeled"]).item()


def _ours(bundle: str, settings: Mapping[str, Any]) -> Callable[[], float]:
    config = bundle_config(bundle, ["train"], settings)
    config.get_parsed_content("keep_memory")
    network, loss, optimizer, cutmix = _learner(config)
    trainer = CrossMatchTrainer(
        device=config.get_parsed_content("device"),
        max_epochs=1,
        train_data_loader=[None],
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        cutmix=cutmix,
        amp=config.get_parsed_content("amp"),
        compile=config.get_parsed_content("compile"),
        to_kwargs={"memory_format": config.get_parsed_content("memory_format")},
    )
    trainer.state.threshold = start_threshold(config)
    batch = _batch(config)
    return lambda: trainer._iteration(trainer, batch)["loss"].item()


def start_threshold(config: ConfigParser) -> float:
    """Threshold of the first iteration."""
    threshold = config.get_parsed_content("threshold")
    return threshold["start"] if isinstance(threshold, dict) else threshold


def _batch(config: ConfigParser) -> dict[str, dict[str, torch.Tensor]]:
    """Noise in the shape of a batch; what is in it does not change how long it takes."""
    torch.manual_seed(0)
    device = config.get_parsed_content("device")
    names = ("in_channels", "num_classes", "batch_size", "unlabeled_batch_size", "patch_size")
    channels, classes, labeled, unlabeled, size = map(config.get_parsed_content, names)
    label = torch.randint(classes, (labeled, 1, *size), device=device).float()
    views = {name: torch.randn(unlabeled, channels, *size, device=device) for name in ("image", "strong_1", "strong_2")}
    return {
        "labeled": {"image": torch.randn(labeled, channels, *size, device=device), "label": label},
        "unlabeled": views,
    }


def _learner(config: ConfigParser) -> list[Any]:
    """A new network, its loss, its optimizer and CutMix, as the bundle has them, determined as a training is."""
    monai.utils.set_determinism(0)
    return [config.get_parsed_content(name) for name in ("network", "loss", "optimizer", "cutmix")]


if __name__ == "__main__":
    run(training_step)
