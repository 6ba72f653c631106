"""Which runs a study plans, and what is wrong with it, said before anything is trained."""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from custom.data.datalist import default_evaluation_list, read_lists
from custom.utils.errors import UserError
from custom.utils.names import groups
from custom.utils.ranges import RANGES

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
KEYS = ("bundle", "overlays", "datalist", "datalists", "seeds", "settings", "baseline", "arms")
#: Settings that the study itself gives to each run.
OWN = ("seed", "datalist", "ckpt_dir", "output_dir", "metrics_file", "ckpt_path", "resume")


class Run(NamedTuple):
    """One training and its evaluation.

    ``files`` are the configs of the training; ``settings`` all that is laid over them, but for the places.
    """

    name: str
    arm: str
    seed: int
    datalist: str
    folder: Path
    files: tuple[str, ...]
    settings: dict[str, Any]

    def command(self, run_id: str) -> list[str]:
        """Write the command of ``training`` or ``evaluating``, from ``-m`` on."""
        files = [*self.files, *([str(Path(self.files[0]).parent / "evaluate.yaml")] if run_id == "evaluating" else [])]
        places = {"datalist": self.datalist, "ckpt_dir": self.folder / "models", "output_dir": self.folder / "eval"}
        command = ["-m", "monai.bundle", "run", run_id, "--config_file", json.dumps(files)]
        for name, value in {**places, "seed": self.seed, **_typed(self.settings)}.items():
            command += [f"--{name}", str(value)]
        return command

    @property
    def finished(self) -> bool:
        """Whether the run has been trained and scored; the page is the last that is written."""
        return all((self.folder / "eval" / name).is_file() for name in ("metrics.csv", "report.html"))

    @property
    def line(self) -> str:
        """Both commands as one line for a shell."""
        return " && ".join(f"python {shlex.join(self.command(run_id))}" for run_id in ("training", "evaluating"))


def plan_runs(plan: Mapping[str, Any], flags: Mapping[str, Any], output: Path) -> tuple[list[Run], list[str]]:
    """Make the runs of a study, and say what is wrong with it."""
    problems = [_unknown(f"the key {key!r}", key, KEYS) for key in plan if key not in KEYS]
    files, found = _config_files(plan)
    problems += found
    arms = plan.get("arms")
    if not isinstance(arms, dict) or not arms:
        return [], [*problems, f"'arms' must give settings by name, such as supervised: {{...}}; found {arms}."]
    common = plan.get("settings") or {}
    problems += _arm_problems({"settings": common, **{f"arm {name}": arm for name, arm in arms.items()}}, arms)
    if plan.get("baseline") is not None and plan["baseline"] not in arms:
        problems.append(f"'baseline' must be one of {', '.join(map(repr, arms))}; found {plan['baseline']!r}.")
    seeds: Any = plan.get("seeds")
    datalists = plan.get("datalists", [plan.get("datalist")])
    problems += seed_problems(seeds)
    if problems:
        return [], problems
    problems += _datalist_problems(datalists, {**common, **flags}.get("evaluation_list"))
    merged = {str(name): {**common, **(arm or {}), **flags} for name, arm in arms.items()}
    configs, found = _configs(files, merged)
    problems += found
    for same in groups(configs, key=configs.get):
        problems.append(f"the arms {' and '.join(same)} are equal, with the settings of the bundle and of all arms.")
    if problems:
        return [], problems
    runs = []
    for arm, settings in merged.items():
        for datalist in datalists:
            for seed in seeds:
                name = "/".join([arm, *([Path(datalist).stem] if len(datalists) > 1 else []), f"seed_{seed}"])
                runs.append(Run(name, arm, seed, str(datalist), output / name, tuple(files), settings))
    return runs, []


def _config_files(plan: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Find the configs of a training."""
    name = str(plan.get("bundle"))
    folder = BUNDLES / name if (BUNDLES / name).is_dir() else Path(name)
    configs = Path(os.path.relpath(folder)) / "configs"
    if plan.get("bundle") is None or not all((configs / f"{kind}.yaml").is_file() for kind in ("train", "evaluate")):
        known = ", ".join(sorted(path.name for path in BUNDLES.glob("*/")))
        return [], [f"'bundle' must be one of {known}, or a bundle's folder; found {plan.get('bundle')}."]
    overlays = plan.get("overlays") or []
    if not isinstance(overlays, list):
        return [], [f"'overlays' must be a list of files, such as [quick.yaml]; found {overlays}."]
    paths = [configs / str(name) if (configs / str(name)).is_file() else Path(str(name)) for name in overlays]
    missing = [f"the overlay {path} is neither a file in {configs} nor a path." for path in paths if not path.is_file()]
    return [str(path) for path in [configs / "train.yaml", *paths] if path.is_file()], missing


def _arm_problems(named: Mapping[str, Any], arms: Mapping[Any, Any]) -> list[str]:
    problems = [
        f"an arm's name is that of its folder: letters, digits, and _ . - between them; found {name!r}."
        for name in arms
        if not re.fullmatch(r"\w[\w.-]*", str(name)) or str(name) == "comparison"
    ]
    for name, settings in named.items():
        if settings is not None and not isinstance(settings, dict):
            problems.append(f"{name}: expected settings by name, or {{}}; found {settings}.")
        elif name != "settings" and "evaluation_list" in (settings or {}):
            problems.append(f"{name}: evaluation_list must be the same for all arms; put it into 'settings'.")
    return problems


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as MONAI takes them from a command line, where a plain None is dropped."""
    return {str(name): "$None" if value is None else value for name, value in settings.items()}


def _configs(files: Sequence[str], arms: Mapping[str, dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Put together what each arm trains with, as text, and say which settings a training would refuse."""
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of every overlay
    every = [*files, str(Path(files[0]).parent / "evaluate.yaml")]
    base = ConfigParser()
    base.read_config(every)
    configs: dict[str, str] = {}
    refused: dict[str, list[str]] = {}
    for arm, settings in arms.items():
        problems = [f"{key} is given to each run by the study." for key in settings if re.split("#|::", key)[0] in OWN]
        missing = {key: _missing(base.get(), key) for key in settings}
        problems += [text for found in missing.values() for text in found]
        there = {key: value for key, value in settings.items() if not missing[key]}  # MONAI fails at the others
        # Without weights, since those that are there, the bundle's own, may have been trained with other settings.
        workflow = ConfigWorkflow(every, logging_file=False, init_id="checks", ckpt_dir=os.devnull, **_typed(there))
        try:
            workflow.initialize()
        except RuntimeError as error:
            if not isinstance(error.__cause__, UserError):
                raise
            problems += str(error.__cause__).split("\n  - ")[1:]
        # Where it is computed, and what it is scored with, do not make an arm.
        config = {k: v for k, v in workflow.parser.get().items() if k not in runtime_keys(base)}
        numbers = json.loads(json.dumps(config, default=str), parse_int=float)  # 0 and 0.0 are one value
        configs[arm] = json.dumps(numbers, sort_keys=True)
        for problem in problems:
            refused.setdefault(problem, []).append(arm)
    return configs, [f"arm {', '.join(names)}: {problem}" for problem, names in refused.items()]


def runtime_keys(config: ConfigParser | Mapping[str, Any]) -> set[str]:
    """Settings that say where and how a run is computed, but for its length, which makes an arm."""
    return set(config["runtime_keys"]) - {"max_iterations"}


def _missing(config: Mapping[str, Any], key: str) -> list[str]:
    """Say that a nested setting is not there to be replaced; the training itself knows the settings at the top."""
    parts, node = re.split("#|::", key), config
    for depth, part in enumerate(parts if len(parts) > 1 else []):
        items = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
        known = {str(name): item for name, item in items.items()}
        if part not in known:  # perhaps what a component has besides its arguments, or an argument left at its default
            has_more = "_target_" in known or (part.startswith("_") and isinstance(node, dict))
            what = f"there is no {key} in the bundle's config"
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"; did you mean {'::'.join([*parts[:depth], near[0], *parts[depth + 1 :]])}?" if near else "."
            return [] if depth == len(parts) - 1 and has_more else [what + hint]
        node = known[part]
    return []


def seed_problems(seeds: Any) -> list[str]:
    """Say what is wrong with the seeds of trainings."""
    least, most = RANGES["seed"]
    if not isinstance(seeds, list) or not seeds or not all(type(s) is int and least <= s <= most for s in seeds):
        return [f"'seeds' must be a list of whole numbers from {least} to {most}, such as [1, 2, 3]; found {seeds}."]
    return [f"the seed {same[0]} is given twice." for same in groups(seeds, key=lambda seed: seed)]


def _datalist_problems(datalists: Any, wanted: str | None) -> list[str]:
    """Say which data lists are missing, twice, or without the cases that the others are evaluated on."""
    if not isinstance(datalists, list) or not datalists or not all(isinstance(path, str) for path in datalists):
        return [f"expected 'datalist' (or --datalist) with a path, or 'datalists' with a list; found {datalists}."]
    problems = [
        f"the data lists {' and '.join(same)} have one name, which is that of a folder."
        for same in groups(datalists, key=lambda path: Path(path).stem)
    ]
    evaluated = {}
    for path in datalists:
        try:
            name = wanted or default_evaluation_list(path)
            cases = read_lists(Path(path)).get(name, [])
        except UserError as error:
            problems.append(str(error))
            continue
        if not cases or not all("label" in case for case in cases):
            problems.append(f"{path}: the list {name!r} has {'cases without a label' if cases else 'no cases'}; "
                            "give it labeled ones, or set evaluation_list.")  # fmt: skip
        evaluated[path] = {
            tuple(map(os.path.realpath, (*ensure_tuple(case["image"]), case.get("label", "")))) for case in cases
        }
    first = next(iter(evaluated), None)
    problems += [
        f"{path}: its evaluation cases differ from those of {first}; compared figures would mean nothing."
        for path, cases in evaluated.items()
        if cases != evaluated[first]
    ]
    return problems


def _unknown(what: str, key: Any, known: Sequence[str] | set[str]) -> str:
    nearest = difflib.get_close_matches(str(key), sorted(known), n=1)
    return f"{what} is unknown" + (f"; did you mean {nearest[0]}?" if nearest else ".")
