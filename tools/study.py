"""Train and score several settings side by side: ``python -m tools.study FILE.yaml --output runs/NAME``.

FILE names a bundle, a data list, seeds, and arms, which are settings by name. Each arm, data list and seed is a run
folder with ``models/``, ``eval/`` and ``log.txt``, made by MONAI's own commands, which are printed before they run.
What is finished is skipped, what was cut off goes on.
"""

from __future__ import annotations

import ctypes
import difflib
import fcntl
import hashlib
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import yaml
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from custom.data.datalist import default_evaluation_list, read_lists
from custom.handlers import EXIT_STOPPED
from custom.utils.errors import UserError
from custom.utils.files import atomic_write, refuse_unwritable
from custom.utils.names import groups
from custom.utils.ranges import RANGES
from custom.utils.settings import guess

from . import cli
from .compare import compare_arms

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"
#: What a study has planned, in its output folder.
PLAN = "study.json"
JOBS = "jobs.txt"
LOCK = ".lock"
KEYS = ("bundle", "overlays", "datalist", "datalists", "seeds", "settings", "baseline", "arms")
#: Settings that the study itself gives to each run.
OWN = ("seed", "datalist", "ckpt_dir", "output_dir", "metrics_file", "ckpt_path", "resume")
#: Seconds between two looks at the runs.
PAUSE = 0.2
#: Seconds between two lines that say how far they are.
PROGRESS = 30
_PR_SET_PDEATHSIG = 1  # Linux's prctl.h


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
    runs, problems = _plan(plan, flags, folder)
    if jobs < 1:
        problems.append(f"--jobs must be at least 1, got {jobs}.")
    if problems:
        raise UserError(f"{file}: {len(problems)} problem(s), nothing was run:", problems)
    refuse_unwritable(output=str(folder))
    _keep_plan(folder, plan, runs)
    if dry_run:
        print("\n".join(run.line for run in runs))
        return
    with open(folder / LOCK, "a") as lock:
        _take(lock, folder)
        failed = _Runner(runs, jobs, lock.fileno()).run()
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


def _plan(plan: Mapping[str, Any], flags: Mapping[str, Any], output: Path) -> tuple[list[Run], list[str]]:
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
        config = {k: v for k, v in workflow.parser.get().items() if k not in _runtime_keys(base)}
        numbers = json.loads(json.dumps(config, default=str), parse_int=float)  # 0 and 0.0 are one value
        configs[arm] = json.dumps(numbers, sort_keys=True)
        for problem in problems:
            refused.setdefault(problem, []).append(arm)
    return configs, [f"arm {', '.join(names)}: {problem}" for problem, names in refused.items()]


def _runtime_keys(config: ConfigParser | Mapping[str, Any]) -> set[str]:
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


def _keep_plan(folder: Path, plan: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write what is planned; a plan that is there may get more runs, and lose those that nothing was trained for.

    Raises:
        UserError: when the folder holds something else, or runs that this plan has not, or has otherwise.
    """
    configs = [ConfigParser.load_config_file(path) for path in runs[0].files]
    record = {
        "bundle": plan["bundle"],
        "baseline": plan.get("baseline"),
        "configs": hashlib.sha256(json.dumps(configs, sort_keys=True, default=str).encode()).hexdigest(),
        "runs": {run.name: _run_record(run, _runtime_keys(configs[0])) for run in runs},
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
    with atomic_write(folder / PLAN) as part:
        part.write_text(json.dumps(record, indent=2) + "\n")
    with atomic_write(folder / JOBS) as part:
        part.write_text("".join(f"{run.line}\n" for run in runs))


def _run_record(run: Run, runtime_keys: set[str]) -> dict[str, Any]:
    kept = {key: value for key, value in run.settings.items() if key not in runtime_keys}
    checksum = hashlib.sha256(Path(run.datalist).read_bytes()).hexdigest()
    # As JSON gives it back.
    return json.loads(json.dumps({"arm": run.arm, "seed": run.seed, "data_list": checksum, "settings": kept}))


def _difference(old: Mapping[str, Any], new: Mapping[str, Any] | None) -> str:
    if new is None:
        return "not a run of this study"
    return ", ".join(f"{key} there {old[key]}, now {new[key]}" for key in old if old[key] != new[key])


def _take(lock: TextIO, folder: Path) -> None:
    """Wait until no other study, and no training that a killed one has left behind, works in the folder."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"{folder}: waiting for another study, or for trainings that it left behind, to end", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _tail(path: Path, size: int = 1000) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode(errors="replace")


class _Runner:
    """Work through the runs.

    Args:
        runs: in their order.
        jobs: how many at once.
        lock: file that the runs keep open, so that it stays locked until the last one has ended.
    """

    def __init__(self, runs: Sequence[Run], jobs: int, lock: int) -> None:
        self.runs = list(runs)
        self.jobs = jobs
        self.lock = lock
        self.active: dict[str, tuple[Run, str, subprocess.Popen, float]] = {}
        self.failed: list[str] = []
        self.stop = False
        self.next_progress = time.monotonic() + PROGRESS
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.environment = {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ}
        self.libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None

    def run(self) -> list[str]:
        """Run all that is not finished, and say which failed.

        Raises:
            SystemExit: with 75 after SIGTERM or Ctrl-C, when the runs have stopped.
        """
        previous = {number: signal.signal(number, self._request_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            waiting = []
            for run in self.runs:
                if run.finished:
                    print(f"[{self._place(run)}] {run.name}: finished before", flush=True)
                else:
                    waiting.append(run)
            while self.active or (waiting and not self.stop):
                while waiting and len(self.active) < self.jobs and not self.stop:
                    self._start(waiting.pop(0), "training")
                time.sleep(PAUSE)
                self._print_progress()
                for name in list(self.active):
                    self._look(name)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self.stop:
            print(f"\nStopped on request; the same command goes on. Exit code {EXIT_STOPPED}.", flush=True)
            raise SystemExit(EXIT_STOPPED)
        return self.failed

    def _start(self, run: Run, run_id: str) -> None:
        run.folder.mkdir(parents=True, exist_ok=True)
        command, log = run.command(run_id), run.folder / "log.txt"
        print(f"\n[{self._place(run)}] {run.name}: {run_id}, see {log}\n$ python {shlex.join(command)}", flush=True)
        with open(log, "a") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self.environment,
                pass_fds=[self.lock],
                start_new_session=True,  # the terminal's Ctrl-C comes to us, and we hand it on
                preexec_fn=self._die_with_parent if self.libc else None,
            )
        self.active[run.name] = (run, run_id, process, time.monotonic())

    def _die_with_parent(self) -> None:
        """Let a training write its checkpoint and end when the study is killed, so that the next start finds it."""
        self.libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def _print_progress(self) -> None:
        """Say from time to time how far the runs are, as the bars in their logs do."""
        if time.monotonic() < self.next_progress:
            return
        self.next_progress = time.monotonic() + PROGRESS
        bars = {
            name: re.findall(r"\d+%(?=\|)", _tail(run.folder / "log.txt")) for name, (run, *_) in self.active.items()
        }
        if any(bars.values()):
            print("  " + ", ".join(f"{name} {bar[-1]}" for name, bar in bars.items() if bar), flush=True)

    def _look(self, name: str) -> None:
        run, run_id, process, start = self.active[name]
        code = process.poll()
        if code is None:
            return
        del self.active[name]
        minutes = (time.monotonic() - start) / 60
        if code == 0:
            print(f"[{self._place(run)}] {name}: {run_id} done in {minutes:.1f} minutes", flush=True)
            if run_id == "training" and not self.stop:
                self._start(run, "evaluating")
        elif code == EXIT_STOPPED:
            self.stop = True  # a cluster may have asked the training itself
            self._terminate()
        elif not self.stop:
            self.failed.append(f"{name}: {run_id} ended with exit code {code}, see {run.folder / 'log.txt'}")
            print(f"[{self._place(run)}] {self.failed[-1]}", flush=True)

    def _place(self, run: Run) -> str:
        return f"{self.runs.index(run) + 1}/{len(self.runs)}"

    def _request_stop(self, *_: Any) -> None:
        self.stop = True
        self._terminate()

    def _terminate(self) -> None:
        for _, _, process, _ in self.active.values():
            process.terminate()


if __name__ == "__main__":
    cli.run(study)
