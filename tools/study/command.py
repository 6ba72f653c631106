"""The command that trains, scores and compares the arms of a study.

FILE names a bundle, a data list, seeds, and arms, which are settings by name. Each arm, data list and seed is a run
folder with ``models/``, ``eval/`` and ``log.txt``, made by MONAI's own commands, which are printed before they run.
What is finished is skipped, what was cut off goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from custom.utils.errors import UserError
from custom.utils.files import refuse_unwritable
from custom.utils.settings import guess

from ..compare.command import compare_arms
from .planning import KEYS, plan_runs
from .record import keep_plan
from .running import LOCK, Runner, take_lock


def study(
    file: str,
    output: str,
    jobs: int = 1,
    dry_run: bool = False,
    bundle: str | None = None,
    datalist: str | list[str] | None = None,
    seeds: list[int] | None = None,
    **settings: Any,
) -> None:
    """Train, score and compare the arms of a study.

    Args:
        file: YAML with ``bundle``, ``arms`` and more, see docs/studies.md.
        output: folder for the runs, the list of jobs and the comparison.
        jobs: how many runs side by side; each gets its share of the cores, unless OMP_NUM_THREADS is set.
        dry_run: print one command a line, for every arm, data list and seed, and train nothing.
        bundle: in place of the file's.
        datalist: in place of the file's; or a list of them.
        seeds: in place of the file's, such as ``1,2,3``.
        settings: of the bundle, for every arm, such as ``--max_iterations 20``.

    Raises:
        UserError: lists everything that is wrong with the study, before anything is trained.
        SystemExit: with 1 when a run failed, 75 when the study was asked to stop.
    """
    plan = _read(Path(str(file)))
    if bundle is not None:
        plan["bundle"] = bundle
    if datalist is not None:
        given = {"datalists": datalist} if isinstance(datalist, list) else {"datalist": str(datalist)}
        plan = {key: value for key, value in plan.items() if key not in ("datalist", "datalists")} | given
    if seeds is not None:
        plan["seeds"] = list(seeds)
    folder, flags = Path(str(output)), {k: guess(v) if isinstance(v, str) else v for k, v in settings.items()}
    runs, problems = plan_runs(plan, flags, folder)
    if jobs < 1:
        problems.append(f"--jobs must be at least 1, got {jobs}.")
    if problems:
        raise UserError(f"{file}: {len(problems)} problem(s), nothing was run:", problems)
    refuse_unwritable(output=str(folder))
    keep_plan(folder, plan, runs)
    if dry_run:
        print("\n".join(run.line for run in runs))
        return
    with open(folder / LOCK, "a") as lock:
        take_lock(lock, folder)
        failed = Runner(runs, jobs, lock.fileno()).run()
    arms: dict[str, list[Path]] = {}
    for run in runs:
        if run.finished:
            arms.setdefault(run.arm, []).append(run.folder / "eval")
    if arms:
        baseline = plan.get("baseline") if plan.get("baseline") in arms else None
        compare_arms(arms, folder / "comparison", baseline, notes=failed)
    if failed:
        print("\n".join(["", f"{len(failed)} of {len(runs)} run(s) failed:", *(f"  - {text}" for text in failed)]))
        raise SystemExit(1)


def _read(path: Path) -> dict[str, Any]:
    """Read a study's file."""
    if not path.is_file():
        raise UserError(f"{path}: no such study; expected a YAML file with {', '.join(KEYS)}.")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a mapping with {', '.join(KEYS)}.")
    return content
