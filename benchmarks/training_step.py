"""Time the training step against the order of the original code: ``python -m benchmarks.training_step --bundle la``.

Both steps see the same tensors, in turn, in one process. The original's order is in float32 with memory as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fire
import monai
import torch
from monai.bundle import ConfigParser

from custom.errors import show_user_errors_plainly
from custom.memory import keep_freed_memory, return_freed_memory
from custom.trainer import CrossMatchTrainer

from .bundle import bundle_config, refuse_unknown
from .original_order import OriginalStep
from .timing import machine, measure, print_table

__all__ = ["CPU_PATCH", "start_threshold", "training_step"]

#: Patches that a CPU gets through in seconds; the bundle's own elsewhere.
CPU_PATCH = {"la": [64, 64, 48], "pancreas": [64, 64, 48]}

#: What the original has none of.
PLAIN = {"memory_format": torch.contiguous_format, "optimizer::fused": False}


def training_step(
    bundle: str = "la",
    patch_size: Sequence[int] | None = None,
    amp: bool = True,
    compile: bool = False,  # noqa: A002 - the config's name for it
    repeats: int = 5,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
    **unknown: Any,
) -> None:
    """Print seconds, ratio and peak memory of both steps.

    Args:
        bundle: la, acdc, pancreas or isic.
        patch_size: voxels per axis; the bundle's own by default, 64x64x48 for volumes on a CPU.
        amp: compute ours in the device's fastest 16-bit type, where it has one.
        compile: compile ours.
        repeats: how often each step is timed.
        device: cpu or cuda.
        unknown: refused.

    Raises:
        UserError: for an unknown flag or bundle.
    """
    refuse_unknown(unknown)
    where = torch.device(device)
    size = patch_size or (CPU_PATCH.get(bundle) if where.type == "cpu" else None)
    settings = {"device": where, "patch_size": size}
    monai.utils.set_determinism(0)  # as a training does

    config = bundle_config(bundle, ["train"], settings)
    threshold = start_threshold(config)
    batch = _batch(config, where)
    plain = bundle_config(bundle, ["train"], settings | PLAIN)
    original = OriginalStep(*_learner(plain), threshold)
    trainer = _trainer(config, amp, compile, threshold)

    calls = {
        "original": lambda: original(batch["labeled"], batch["unlabeled"]),
        "ours": lambda: trainer._iteration(trainer, batch),
    }
    before = {"original": return_freed_memory, "ours": keep_freed_memory} if where.type == "cpu" else {}
    counts = " + ".join(str(len(stream["image"])) for stream in batch.values())
    print(f"crossmatch_{bundle}, {counts} patches of {list(config['patch_size'])}, {machine(where)}")
    print(f"ours in {str(trainer.mixed_precision.dtype).removeprefix('torch.')}; median of {repeats}")
    print_table(measure(calls, where, repeats, before), "original")


def start_threshold(config: ConfigParser) -> float:
    """Threshold of the first iteration."""
    threshold = config.get_parsed_content("threshold")
    return threshold["start"] if isinstance(threshold, dict) else threshold


def _batch(config: ConfigParser, device: torch.device) -> dict[str, dict[str, torch.Tensor]]:
    """Noise in the shape of a batch; what is in it does not change how long it takes."""
    torch.manual_seed(0)
    names = ("in_channels", "num_classes", "batch_size", "unlabeled_batch_size", "patch_size")
    channels, classes, labeled, unlabeled, size = map(config.get_parsed_content, names)
    label = torch.randint(classes, (labeled, 1, *size), device=device).float()
    views = {name: torch.randn(unlabeled, channels, *size, device=device) for name in ("image", "strong_1", "strong_2")}
    return {
        "labeled": {"image": torch.randn(labeled, channels, *size, device=device), "label": label},
        "unlabeled": views,
    }


def _learner(config: ConfigParser) -> list[Any]:
    """A new network, its loss, its optimizer and CutMix, as the bundle has them."""
    torch.manual_seed(0)
    return [config.get_parsed_content(name) for name in ("network", "loss", "optimizer", "cutmix")]


def _trainer(config: ConfigParser, amp: bool, compiled: bool, threshold: float) -> CrossMatchTrainer:
    network, loss, optimizer, cutmix = _learner(config)
    trainer = CrossMatchTrainer(
        device=config.get_parsed_content("device"),
        max_epochs=1,
        train_data_loader=[None],
        network=network,
        optimizer=optimizer,
        loss_function=loss,
        cutmix=cutmix,
        amp=amp,
        compile=compiled,
        to_kwargs={"memory_format": config.get_parsed_content("memory_format")},
    )
    trainer.state.threshold = threshold
    return trainer


if __name__ == "__main__":
    show_user_errors_plainly()
    fire.Fire(training_step)
