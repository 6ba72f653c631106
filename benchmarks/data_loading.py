"""Time training on what the loader draws against the same step on batches in memory.

``python -m benchmarks.data_loading --bundle la --dataset_dir data/la``. At a ratio of 1 preparing the data costs
nothing; it runs beside the step, and on a CPU takes some of its time.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from custom.trainer import CrossMatchTrainer
from tools.cli import run

from .bundle import available_device, bundle_config
from .timing import machine, seconds
from .training_step import CPU_PATCH, start_threshold


def data_loading(
    dataset_dir: str,
    bundle: str = "la",
    datalist: str | None = None,
    patch_size: Sequence[int] | None = None,
    iterations: int = 10,
    rounds: int = 3,
    num_workers: int | None = None,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Print iterations per second both ways and their ratio.

    Args:
        dataset_dir: folder of the dataset.
        bundle: la, acdc, pancreas or isic.
        datalist: its data list; the bundle's own by default.
        patch_size: voxels per axis; the bundle's own by default, 64x64x48 for volumes on a CPU.
        iterations: timed at a stretch.
        rounds: how often each way is timed, in turn.
        num_workers: processes per stream; the bundle's own by default.
        device: cpu or cuda.

    Raises:
        UserError: for an unknown bundle or device, or when something is wrong with the data.
    """
    where = available_device(device)
    size = patch_size or (CPU_PATCH.get(bundle) if where.type == "cpu" else None)
    with tempfile.TemporaryDirectory() as folder:
        places = {"dataset_dir": str(dataset_dir), "datalist": datalist, "output_dir": folder, "ckpt_dir": folder}
        # Nothing is validated here, and the bundle's stride may not fit the patch.
        settings = {"device": where, "patch_size": size, "stride": "@patch_size", "num_workers": num_workers}
        config = bundle_config(bundle, ["train"], places | settings)
        config.get_parsed_content("keep_memory")
        trainer = config.get_parsed_content("train::trainer")
        trainer.state.threshold = start_threshold(config)
        trainer.state.iteration = 2  # at others, panels are drawn
        workers = config.get_parsed_content("num_workers")
        counts = f"{config.get_parsed_content('batch_size')} + {config.get_parsed_content('unlabeled_batch_size')}"
        print(f"crossmatch_{bundle}, {counts} patches of {list(config['patch_size'])}, {machine(where)}")
        print(f"{workers} worker(s) per stream; median of {rounds} times {iterations} iterations")
        _compare(trainer, where, iterations, rounds, lead=2 * workers + 1)


def _compare(trainer: CrossMatchTrainer, device: torch.device, iterations: int, rounds: int, lead: int) -> None:
    """Run both ways in turn; ``lead`` untimed iterations use up, or fill up, what workers have drawn ahead."""
    loader = iter(trainer.data_loader)
    batches = {"memory": itertools.cycle([next(loader) for _ in range(4)]), "loader": loader}
    times: dict[str, list[float]] = {name: [] for name in batches}

    def run(stream: Iterator[Any], count: int) -> None:
        for batch in itertools.islice(stream, count):
            trainer._iteration(trainer, batch)

    for _ in range(rounds):
        for name, stream in batches.items():
            run(stream, lead)
            times[name].append(seconds(partial(run, stream, iterations), device))
    rates = {name: iterations / statistics.median(every) for name, every in times.items()}
    for name, every in times.items():
        shown = " ".join(f"{iterations / value:.3f}" for value in every)
        print(f"{name:8s} {rates[name]:7.3f} iterations/s   [{shown}]")
    print(f"ratio    {rates['loader'] / rates['memory']:7.3f}")


if __name__ == "__main__":
    run(data_loading)
