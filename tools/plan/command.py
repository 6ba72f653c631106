"""Choose a bundle and its settings from the data: ``crossmatch plan DIR``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from monai.bundle import ConfigParser

from custom.report import data_list_record
from custom.utils.device import MixedPrecision
from custom.utils.errors import UserError
from custom.utils.files import atomic_write, read_json, refuse_unwritable
from custom.utils.settings import quoted

from ..numbers import refuse_not_positive
from .choices import Choice, Plan, bundle_of, choose, main_memory_gb, minutes
from .facts import DataFacts, read_facts
from .sizes import sizes
from .timing import BUNDLES, time_steps

PLAN = "plan.yaml"
UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
WIDTH = 120


def plan(
    data: str, output: str | None = None, budget: str = "8h", memory_gb: float | None = None, overwrite: bool = False
) -> None:
    """Choose a bundle and its settings from the scans, and from how fast this machine is.

    Writes a config that comes after the bundle's in the config list, with a reason for every setting, and prints the
    commands that train, score and segment with it.

    Args:
        data: dataset folder, or a data list in it; of several lists, datalist.json is taken.
        output: the file; plan.yaml beside the data list by default.
        budget: how long a training may take on this machine, such as 20min, 8h or 2d. Never more iterations than the
            published protocol has.
        memory_gb: of the device, in GB; what it has by default.
        overwrite: replace an existing plan.
    """
    refuse_not_positive(memory_gb=memory_gb)
    datalist = _datalist(Path(data))
    path = datalist.parent / PLAN if output is None else Path(output)
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists, perhaps with changes of yours; --overwrite true makes a new one.")
    plan_dataset(datalist, path, budget, memory_gb)


def plan_dataset(datalist: Path, path: Path, budget: str = "8h", memory_gb: float | None = None) -> None:
    """Plan for a data list; see :func:`plan`."""
    limit = seconds(budget)  # before everything is read
    refuse_unwritable(output=str(path.parent))
    facts = read_facts(datalist)
    bundle = bundle_of(facts)
    device, bits, has_gb = _device()
    known = sizes(facts, memory_gb or has_gb, bits)
    print(f"Timing {bundle} on {device}")
    measure = partial(_measure, bundle=bundle, datalist=datalist)
    found = choose(facts, known, limit, _published_iterations(bundle), measure)
    with atomic_write(path) as part:
        part.write_text(_text(found, facts, datalist, device, budget), encoding="utf-8")
    print(f"\n{path}: {found.iterations} iterations, about {minutes(found.seconds)} here.")
    if found.advice:
        print(found.advice)
    print("Next:\n")
    print("\n\n".join(_commands(found, facts, datalist, path)))
    if _folds(datalist):
        print("\nThe plan holds for the folds too; docs/own_data.md shows how to train and score them.")


def _measure(files: list[str], settings: Mapping[str, Any], bundle: str, datalist: Path) -> Any:
    return time_steps(bundle, files, settings, datalist)


def _datalist(data: Path) -> Path:
    """Find the data list in a dataset folder.

    Raises:
        UserError: when there is none, or several of which none is called datalist.json.
    """
    if not data.is_dir():
        if not data.is_file():
            raise UserError(f"{data}: no such dataset folder or data list; make one with `crossmatch prepare own`.")
        return data
    found = [path for path in sorted(data.glob("*.json")) if _is_datalist(path)]
    own = [path for path in found if path.name == "datalist.json"]
    if len(own or found) != 1:
        names = ", ".join(path.name for path in found)
        hint = f"name one of {names}" if found else "make one with `crossmatch prepare own`"
        raise UserError(f"{data}: expected one data list, found {len(found)}; {hint}.")
    return (own or found)[0]


def _is_datalist(path: Path) -> bool:
    content = read_json(path)
    return isinstance(content, dict) and isinstance(content.get("training"), list)


def seconds(budget: str) -> float:
    """Read a duration.

    Raises:
        UserError: when it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", str(budget).lower())
    if not match or match[2] not in UNITS or float(match[1]) == 0:
        raise UserError(f"--budget: expected a number and its unit, such as 20min, 8h or 2d; got {budget}.")
    return float(match[1]) * UNITS[match[2]]


def _device() -> tuple[str, int, float]:
    """Name the device that trains, how many bits it computes in, and its memory in GB."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.name, MixedPrecision("cuda", True).dtype.itemsize * 8, 0.9 * found.total_memory / 1e9
    cores = os.cpu_count() or 1
    return f"a CPU of {cores} cores", MixedPrecision("cpu", True).dtype.itemsize * 8, 0.5 * main_memory_gb()


def _published_iterations(bundle: str) -> int:
    return int(ConfigParser.load_config_file(BUNDLES / bundle / "configs" / "train.yaml")["max_iterations"])


def _text(found: Plan, facts: DataFacts, datalist: Path, device: str, budget: str) -> str:
    """Write the overlay, a line for each choice with its reason."""
    counts = f"{facts.counts['training']} labeled, {facts.counts['unlabeled']} unlabeled"
    counts += f", {facts.counts['validation']} for validation"
    lines = [
        f"# For {datalist.name}: {facts.kind}, {counts}. Lay it over {found.bundle},",
        f"# after {', '.join(f'{name}.yaml' for name in found.files)}. Made for {device} and --budget {budget}.",
        "# Change what you like: `crossmatch plan` replaces it only with --overwrite true.",
    ]
    lists = [datalist, *_folds(datalist)]
    chosen = {"planned_for": Choice([data_list_record(str(path))["sha256"] for path in lists], ""), **found.settings}
    ends = _record(datalist.parent).get("options", {}).get("channels")
    if ends:
        chosen["channels"] = Choice(ends, "how the files of a case end")
    for name, (value, reason) in chosen.items():
        lines += _lines(name, value, reason)
    return "\n".join(lines) + "\n"


def _lines(name: str, value: Any, reason: str) -> list[str]:
    if isinstance(value, dict) and "_target_" in value:
        return yaml.safe_dump({name: value}, sort_keys=False).splitlines()
    shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()
    text = f"{name}: {shown}"
    if isinstance(value, list) and len(text) > WIDTH:
        return yaml.safe_dump({name: value}, sort_keys=False).splitlines()
    line = f"{text:31} # {reason}" if reason else text
    return [line] if len(line) <= WIDTH else [f"# {reason}", text]


def _commands(found: Plan, facts: DataFacts, datalist: Path, path: Path) -> list[str]:
    """Write the commands that train, score and segment."""
    name = re.sub(r"\W+", "_", datalist.parent.name if datalist.name == "datalist.json" else datalist.stem)
    here = Path("bundles")
    bundles = here if here.resolve() == BUNDLES else Path(os.path.relpath(BUNDLES))
    configs = bundles / found.bundle / "configs"
    places = ["--ckpt_dir", f"runs/{name}", "--output_dir", f"runs/{name}"]
    training = [*(str(configs / f"{file}.yaml") for file in found.files), str(path)]
    commands = [_command("training", training, ["--datalist", str(datalist), *places])]
    largest = ["--keep_largest", str(facts.in_one_piece)]
    if facts.counts["validation"]:
        scoring = [str(configs / "train.yaml"), str(configs / "evaluate.yaml")]
        commands.append(_command("evaluating", scoring, ["--datalist", str(datalist), *places, *largest]))
    source = ["--dataset_dir", str(_scans(datalist.parent))]
    places[-1] += "/predictions"
    commands.append(_command("inference", [str(configs / "inference.yaml")], [*source, *places, *largest]))
    return commands


def _folds(datalist: Path) -> list[Path]:
    """List the data lists of a cross-validation beside a data list of all; the plan holds for them too."""
    return sorted(datalist.parent.glob("fold_*.json")) if datalist.name == "datalist.json" else []


def _command(run_id: str, files: list[str], arguments: list[str]) -> str:
    listed = files[0] if len(files) == 1 else f"[{','.join(map(repr, files))}]"
    words = ["python", "-m", "monai.bundle", "run", run_id, "--config_file", listed, *arguments]
    return " ".join(map(quoted, words))


def _scans(folder: Path) -> Path:
    """Where the user's own scans are, all of them: the source of the preparation, else the prepared images."""
    record = _record(folder)
    own = Path(record.get("source", "")) if record.get("command") == "own" else folder / "images"
    return own if own.is_dir() else folder / "images"


def _record(folder: Path) -> dict[str, Any]:
    """Read how a dataset folder was prepared; empty where that is not known."""
    path = folder / "prepare.json"
    return read_json(path) if path.is_file() else {}
