"""From facts and measured times to settings, each with its reason."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from custom.utils.errors import UserError

from .facts import DataFacts
from .sizes import Geometry, Size, geometry, is_stack, work
from .timing import StepTimes

#: Share of the budget that trains; the rest starts, reads and writes.
TRAINING_SHARE = 0.95
#: Share of the training that validates, and how often at most.
VALIDATION_SHARE, MOST_VALIDATIONS = 0.1, 10
#: The warm-up of `quick.yaml` and `overnight.yaml`, as a share of the iterations: supervised, then fading in.
DELAY, RAMP_UP, LONGEST_DELAY = 0.25, 0.125, 1000
#: Seconds between two checkpoints.
CHECKPOINT_SECONDS = 600
#: A plan that gets through fewer is none.
FEWEST_ITERATIONS = 50
#: With fewer, of one structure and of several, some may stay empty: on the short axis two of three did with 148, and
#: nearly with 582 of 64x64 pixels (docs/results/experiments.md).
FEW_ITERATIONS, FEW_FOR_SEVERAL = 400, 1000
#: Share of the main memory that may hold what was read.
CACHE_SHARE = 0.5
#: A patch that sees less than this share of a scan is drawn around structures.
CROPPED_SHARE = 0.5
#: For several classes, in 2D, where fewer iterations than the published leave some without pseudo-labels at 0.95
#: (docs/method.md).
LOW_THRESHOLD = 0.7
#: Loading a batch in the training's own process may take this share of a step; more goes to processes of its own.
LOADING_SHARE = 0.1


class Choice(NamedTuple):
    """A setting's value and why it was chosen."""

    value: Any
    reason: str


class Plan(NamedTuple):
    """A bundle, its config files by name, and the settings to lay over them."""

    bundle: str
    files: list[str]
    settings: dict[str, Choice]
    iterations: int
    seconds: float

    @property
    def advice(self) -> str:
        """Say which budget would do, where this one is so small that structures may be lost; else nothing."""
        enough = FEW_ITERATIONS if len(self.settings["class_names"].value) == 1 else FEW_FOR_SEVERAL
        if self.iterations >= enough:
            return ""
        needed = self.seconds / self.iterations * enough / (TRAINING_SHARE - VALIDATION_SHARE)
        few = f"{self.iterations} iterations are few, and some structures may stay empty"
        return f"{few}: {enough} take about --budget {math.ceil(needed / 60)}min."


def bundle_of(facts: DataFacts) -> str:
    """Name the bundle for the kind of the data."""
    if facts.kind == "photographs":
        return "crossmatch_isic"
    if facts.kind == "CT":
        return "crossmatch_pancreas"
    return "crossmatch_acdc" if is_stack(facts) else "crossmatch_la"


def choose(
    facts: DataFacts,
    known: list[Size],
    budget: float,
    published: int,
    measure: Callable[[list[str], Mapping[str, Any]], StepTimes],
) -> Plan:
    """Take the largest size of which enough iterations fit into the budget.

    Args:
        facts: of the data.
        known: sizes that fit into the memory, the largest first.
        budget: seconds for the whole training.
        published: most iterations, the bundle's own.
        measure: times the steps of a config with some settings.

    Raises:
        UserError: when not even the smallest size gets through a training that is worth it.
    """
    flat = geometry(facts, known[-1]).spacing is None
    times = {known[-1]: _measured(facts, known[-1], measure)}
    chosen = known[-1]
    for size in known[:-1]:
        enough = min(size.enough, published)
        ratio = work(size, flat) / work(known[-1], flat)
        if budget * TRAINING_SHARE < ratio * enough * _seconds_per_iteration(times[known[-1]], enough):
            continue
        times[size] = _measured(facts, size, measure)
        if _iterations(facts, times[size], budget, published) >= enough:
            chosen = size
            break
    iterations = _iterations(facts, times[chosen], budget, published)
    if iterations < FEWEST_ITERATIONS:
        needed = _total(facts, times[chosen], FEWEST_ITERATIONS) / TRAINING_SHARE
        raise UserError(
            f"--budget of {minutes(budget)} is too small: {FEWEST_ITERATIONS} iterations of the smallest size, and one "
            f"validation of {facts.counts['validation']} case(s), take {minutes(needed)} here; give at least that."
        )
    return _plan(facts, chosen, times[chosen], budget, iterations, published)


def minutes(seconds: float) -> str:
    """Write a duration as people do."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{math.ceil(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _measured(facts: DataFacts, size: Size, measure: Callable[[list[str], Mapping[str, Any]], StepTimes]) -> StepTimes:
    choices = settings_of(facts, size)
    return measure(_files(facts, size), {name: choice.value for name, choice in choices.items()})


def _files(facts: DataFacts, size: Size) -> list[str]:
    return ["train", "full_volume"] if _is_cropped(facts, geometry(facts, size)) else ["train"]


def _is_cropped(facts: DataFacts, grid: Geometry) -> bool:
    """Say whether a patch is a small part of a scan."""
    if grid.spacing is None:
        return False
    scan = facts.shape * facts.spacing / grid.spacing
    return float(np.prod(np.minimum(grid.patch_size, scan)) / np.prod(scan)) < CROPPED_SHARE


def settings_of(facts: DataFacts, size: Size) -> dict[str, Choice]:
    """Choose what does not hang on time."""
    grid = geometry(facts, size)
    shape = "x".join(f"{round(n)}" for n in facts.shape)
    chosen = {
        "class_names": Choice(facts.class_names, "labels 1, 2, ... of the data list"),
        "in_channels": Choice(facts.scans[0].channels, "of every image"),
    }
    if grid.spacing is not None:
        native = "x".join(f"{step:.3g}" for step in facts.spacing)
        coarser = f"scans have {native}; coarser, so that a patch sees the structures"
        kept = np.allclose(grid.spacing, facts.spacing, rtol=0.02)
        chosen["spacing"] = Choice(grid.spacing, "mm, the scans' own" if kept else f"mm; {coarser}")
        chosen["patch_size"] = Choice(grid.patch_size, f"voxels; scans have {shape} of their own")
        chosen["stride"] = Choice([n // 4 for n in grid.patch_size], "voxels, a quarter of a window")
    else:
        chosen["patch_size"] = Choice(grid.patch_size, f"pixels, to which images of {shape} are resized")
    if "patient_pattern" in facts.prepared and bundle_of(facts) == "crossmatch_acdc":
        found = facts.prepared["patient_pattern"]
        whose = "that of `prepare own`" if found else "every scan is a patient, as `prepare own` took them"
        chosen["patient_pattern"] = Choice(found, whose)
    if facts.kind == "CT":
        chosen["window"] = Choice(facts.window, "HU; 0.5 to 99.5 % of the labeled voxels")
    chosen["base_filters"] = Choice(size.filters, "16 is the published width")
    chosen["batch_size"] = Choice(size.batch, "labeled patches, and as many unlabeled ones")
    if grid.spacing is None and len(facts.class_names) > 1:
        chosen["threshold"] = Choice(LOW_THRESHOLD, "several classes: at 0.95 some may get no pseudo-labels")
    return chosen | _memory(facts, grid)


def _memory(facts: DataFacts, grid: Geometry) -> dict[str, Choice]:
    """Keep on disk what does not fit into the main memory: images and labels in float32 on the training grid."""
    scan = facts.shape * facts.spacing / grid.spacing if grid.spacing else [*grid.patch_size, *facts.shape[2:]]
    gigabytes = float(np.prod(scan)) * 4e-9 * (facts.scans[0].channels * len(facts.scans) + len(facts.labeled))
    if gigabytes <= CACHE_SHARE * main_memory_gb():
        return {}
    return {"cache": Choice("disk", f"what is read takes {gigabytes:.0f} GB")}


def main_memory_gb() -> float:
    """Size of the machine's main memory in GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _delay(iterations: int) -> int:
    return min(LONGEST_DELAY, round(DELAY * iterations))


def _seconds_per_iteration(times: StepTimes, iterations: int) -> float:
    """Mean over the warm-up and the rest; loading is hidden by other processes, where it takes long."""
    share = _delay(iterations) / iterations
    step = share * times.supervised + (1 - share) * max(times.crossmatch, times.supervised)
    return step + (times.load if times.load <= LOADING_SHARE * times.crossmatch else 0.0)


def _validations(facts: DataFacts, times: StepTimes, budget: float) -> int:
    once = times.validation * facts.counts["validation"]
    return 0 if once == 0 else max(1, min(MOST_VALIDATIONS, int(VALIDATION_SHARE * budget / once)))


def _total(facts: DataFacts, times: StepTimes, iterations: int) -> float:
    """Seconds of a training with one validation."""
    return iterations * _seconds_per_iteration(times, iterations) + times.validation * facts.counts["validation"]


def _iterations(facts: DataFacts, times: StepTimes, budget: float, published: int) -> int:
    """Count what fits into the budget, to three digits."""
    validating = _validations(facts, times, budget) * times.validation * facts.counts["validation"]
    left, count = budget * TRAINING_SHARE - validating, published
    for _ in range(3):  # the share of the warm-up hangs on the count
        count = max(1, min(published, int(left / _seconds_per_iteration(times, count))))
    digits = 10 ** max(0, len(str(count)) - 3)
    return published if count == published else count // digits * digits if left > 0 else 0


def _plan(facts: DataFacts, size: Size, times: StepTimes, budget: float, iterations: int, published: int) -> Plan:
    step = _seconds_per_iteration(times, iterations)
    delay = _delay(iterations)
    ramp_up = max(1, round(delay * RAMP_UP / DELAY))
    cut = "as published" if iterations == published else f"published: {published}, cut to fit {minutes(budget)}"
    validations = _validations(facts, times, budget)
    workers = _workers(times)
    fading = {"start": 0.0, "end": 1.0, "delay": delay, "rampup_iterations": ramp_up}
    timed = {
        "max_iterations": Choice(iterations, cut),
        "schedule_iterations": Choice("@max_iterations", "the learning rate ends at 0"),
        "val_interval": Choice(max(1, iterations // max(1, validations)), "iterations; monitors only"),
        "ckpt_interval": Choice(
            max(1, min(iterations, round(CHECKPOINT_SECONDS / step))), "iterations, 10 min at most"
        ),
        "num_workers": Choice(workers, f"a batch takes {times.load:.2f} s to load, a step {times.crossmatch:.2f} s"),
        "unsupervised_weight": Choice(fading, "learns from labels first"),
        "batch_norm_recalibration": Choice(20, "batches, as quick.yaml"),
        "learning_rate": Choice(1.0e-3, "of AdamW, as quick.yaml"),
        "optimizer": Choice(ADAMW, ""),
    }
    choices = settings_of(facts, size) | timed
    return Plan(bundle_of(facts), _files(facts, size), choices, iterations, step * iterations)


#: As the left atrium has it, and `quick.yaml` of the others.
ADAMW = {
    "_target_": "torch.optim.AdamW",
    "params": "$@network.parameters()",
    "lr": "@learning_rate",
    "weight_decay": "@weight_decay",
    "fused": True,
}


def _workers(times: StepTimes) -> int:
    if times.load <= LOADING_SHARE * times.crossmatch:
        return 0
    return max(1, min((os.cpu_count() or 1) // 2, math.ceil(times.load / times.crossmatch)))
