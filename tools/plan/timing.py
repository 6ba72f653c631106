"""How long the steps of a training take here: ten of the bundle's own, on two labeled and two unlabeled scans."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from custom.data.datalist import read_lists
from custom.utils.device import keep_freed_memory

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
#: Steps of each kind that are timed, after one that is not.
STEPS = 5
#: Cases of each list; validation takes one.
CASES = 2


class StepTimes(NamedTuple):
    """Seconds, each a median.

    Args:
        load: to load a batch in the training's own process.
        supervised: of a step without unlabeled patches.
        crossmatch: of a step with them.
        validation: to validate a case.
    """

    load: float
    supervised: float
    crossmatch: float
    validation: float


def time_steps(bundle: str, files: list[str], settings: Mapping[str, Any], datalist: Path) -> StepTimes:
    """Run the bundle's training for a few steps.

    Args:
        bundle: folder name below ``bundles``.
        files: names of its config files, without ending, later ones laid over earlier ones.
        settings: the plan's.
        datalist: whose first scans are read.
    """
    with TemporaryDirectory() as folder:
        config = _config(bundle, files, settings, _few_cases(datalist, Path(folder)), folder)
        keep_freed_memory(config.get_parsed_content("device"))
        trainer = config.get_parsed_content("train::trainer")
        trainer.state.threshold = 0.0  # a step takes as long with any
        loading, stepping = _Stopwatch(), _Stopwatch()
        loading.attach(trainer, Events.GET_BATCH_STARTED, Events.GET_BATCH_COMPLETED)
        stepping.attach(trainer, Events.ITERATION_STARTED, Events.ITERATION_COMPLETED)
        trainer.add_event_handler(Events.ITERATION_STARTED, _switch)
        trainer.run()
        return StepTimes(
            median(loading.seconds[1:]),
            median(stepping.seconds[1 : 1 + STEPS]),
            median(stepping.seconds[2 + STEPS :]),
            _validation_seconds(config),
        )


class _Stopwatch:
    """Seconds between two events, each time they come."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.start = 0.0

    def attach(self, engine: Engine, first: Any, last: Any) -> None:
        engine.add_event_handler(first, self._begin)
        engine.add_event_handler(last, self._end)

    def _begin(self) -> None:
        self.start = time.perf_counter()

    def _end(self) -> None:
        self.seconds.append(time.perf_counter() - self.start)


def _switch(trainer: Engine) -> None:
    """Learn from labels alone at first; both kinds of step begin with one that is not counted."""
    trainer.state.unsupervised_weight = float(trainer.state.iteration > 1 + STEPS)


def _config(bundle: str, files: list[str], settings: Mapping[str, Any], datalist: Path, folder: str) -> ConfigParser:
    root = BUNDLES / bundle
    config = ConfigParser(ConfigParser.load_config_files([root / "configs" / f"{name}.yaml" for name in files]))
    changes = {
        "bundle_root": str(root),
        "datalist": str(datalist),
        "output_dir": folder,
        "ckpt_dir": folder,
        "num_workers": 0,
        "max_iterations": 2 * (1 + STEPS),
        "train::method_handlers": [],
        "train::handlers": [],
        "validate::handlers": [],
    }
    for key, value in {**settings, **changes}.items():
        config[key] = value
    return config


def _few_cases(datalist: Path, folder: Path) -> Path:
    """Write a list of a few cases of each kind."""
    lists = read_lists(datalist)
    cases = {name: [_files(case) for case in lists[name][:CASES]] for name in ("training", "unlabeled", "validation")}
    path = folder / "datalist.json"
    path.write_text(json.dumps({**cases, "validation": cases["validation"][:1]}))
    return path


def _files(case: Mapping[str, Any]) -> dict[str, Any]:
    return {key: case[key] for key in ("image", "label") if key in case}


def _validation_seconds(config: ConfigParser) -> float:
    if not config.get_parsed_content("validate::dataset::data"):
        return 0.0
    evaluator = config.get_parsed_content("validate::evaluator")  # has read the case
    start = time.perf_counter()
    evaluator.run()
    return time.perf_counter() - start
