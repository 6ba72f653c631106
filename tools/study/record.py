"""What a study has planned, kept in its folder, so that no other study is mixed with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from custom.utils.errors import UserError
from custom.utils.files import atomic_write, sha256_of, write_json

from .planning import Run, runtime_keys

#: What a study has planned, in its output folder, and the commands that do it.
PLAN = "study.json"
JOBS = "jobs.txt"


def keep_plan(folder: Path, plan: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write what is planned; a plan that is there may get more runs, and lose those that nothing was trained for.

    Raises:
        UserError: when the folder holds something else, or runs that this plan has not, or has otherwise.
    """
    configs = [ConfigParser.load_config_file(path) for path in runs[0].files]
    record = {
        "bundle": plan["bundle"],
        "baseline": plan.get("baseline"),
        "configs": hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode()).hexdigest(),
        "runs": {run.name: _run_record(run, runtime_keys(configs[0])) for run in runs},
    }
    earlier = json.loads((folder / PLAN).read_text()) if (folder / PLAN).is_file() else None
    if earlier is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there and holds no study; choose another --output.")
    if earlier is not None:
        now = record["runs"]
        begun = {name: old for name, old in earlier["runs"].items() if name in now or (folder / name).exists()}
        problems = [f"{name}: {_difference(old, now.get(name))}" for name, old in begun.items() if old != now.get(name)]
        if earlier["configs"] != record["configs"]:
            problems.append(f"the bundle's configs have changed since: {', '.join(runs[0].files)}")
        if problems:
            raise UserError(f"{folder} holds another study; choose another --output. What differs:", problems)
    write_json(folder / PLAN, record)
    with atomic_write(folder / JOBS) as part:
        part.write_text("".join(f"{run.line}\n" for run in runs))


def _run_record(run: Run, runtime_keys: set[str]) -> dict[str, Any]:
    kept = {key: value for key, value in run.settings.items() if key not in runtime_keys}
    checksum = sha256_of(run.datalist)
    # As JSON gives it back.
    return json.loads(json.dumps({"arm": run.arm, "seed": run.seed, "data_list": checksum, "settings": kept}))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> str:
    if new is None:
        return "not a run of this study"
    return ", ".join(f"{key} there {old[key]}, now {new[key]}" for key in old if old[key] != new[key])
