"""What is needed to repeat a run, in one file: ``run.json``."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from monai.utils import ensure_tuple

from .. import __version__
from ..utils.distributed import is_first
from ..utils.errors import UserError
from ..utils.files import sha256_of, write_json
from ..utils.settings import quoted

RECORD = "run.json"
#: What a training writes at its end.
LAST_WEIGHTS = ("model.pt", "model_ema.pt")
_PACKAGES = ("torch", "monai", "pytorch-ignite", "numpy", "scipy", "nibabel", "itk")


def write_run_record(
    folder: str, config: Mapping[str, Any], seed: int, datalist: str, checkpoints: Any, num_ranks: int = 1
) -> None:
    """Write ``run.json`` as a training starts; a training that goes on adds a session to what is there.

    How long a session has taken so far, ``seconds``, and the ``iteration`` that it has reached are written anew with
    each checkpoint.

    Args:
        folder: the run's folder.
        config: the resolved configuration.
        seed: the run's.
        datalist: path of the data list, whose checksum is kept.
        checkpoints: :class:`custom.handlers.Checkpoints` after it is attached: a finished training writes nothing.
        num_ranks: how many processes train together.
    """
    if checkpoints.finished or not is_first():
        return
    iteration = checkpoints.trainer.state.iteration
    path = Path(folder) / RECORD
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": 0.0,
        "after_iteration": iteration,
        "command": " ".join(map(quoted, [sys.executable, *sys.orig_argv[1:]])),
        "host": platform.node(),
        "platform": platform.platform(),
        "processes": num_ranks,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] or ["CPU"],
        "versions": _versions(),
        "git_commit": _git_commit(),
    }
    earlier = read_run_record(path.parent).get("sessions", []) if iteration else []
    record = {
        "seed": seed,
        # Seen from here, so that it holds for both folders when they are moved or copied together.
        "ckpt_dir": os.path.relpath(os.path.realpath(checkpoints.folder.parent), os.path.realpath(folder)),
        "data_list": data_list_record(datalist),
        "sessions": [*earlier, session],
        "config": dict(config),
    }
    start = time.monotonic()

    def write() -> None:
        session["seconds"] = round(time.monotonic() - start, 1)
        session["iteration"] = checkpoints.trainer.state.iteration
        write_json(path, record)

    write()
    checkpoints.saved.append(write)


def refuse_other_run(output_dir: str, weights: str | Sequence[str]) -> None:
    """Keep the results of a training out of the folder that describes another one.

    Args:
        output_dir: where results are to be written; a ``run.json`` there names the training that it belongs to.
        weights: file, or files, that are to be trained or scored.

    Raises:
        UserError: when that training's folder of weights is still there, and is another one.
    """
    found = read_run_record(output_dir).get("ckpt_dir")
    theirs = None if found is None else os.path.normpath(os.path.join(os.path.realpath(output_dir), found))
    if theirs is None or not os.path.isdir(theirs):  # moved or removed
        return
    others = [path for path in ensure_tuple(weights) if not _is_in(path, theirs)]
    if others:
        raise UserError(
            f"{Path(output_dir) / RECORD} is of the training in {theirs}, and {others[0]} lies elsewhere; nothing was "
            "computed. Choose another --output_dir."
        )


def refuse_older_weights(output_dir: str, weights: str | Sequence[str]) -> None:
    """Keep weights from before a training out of the scores of that training, which has not reached its end.

    Args:
        output_dir: where scores are to be written; ``run.json`` there says when the sessions of the training began.
        weights: file, or files, that are to be scored.

    Raises:
        UserError: when the last weights are older than the last session, or others, such as the best, than the first.
    """
    sessions = read_run_record(output_dir).get("sessions", [])
    for path in map(Path, ensure_tuple(weights) if sessions else ()):
        session = sessions[-1] if path.name in LAST_WEIGHTS else sessions[0]
        if path.stat().st_mtime < _started(session):
            raise UserError(
                f"{path}: is from before the training that {Path(output_dir) / RECORD} is about, which has not written "
                "such weights yet; run that training to its end, or choose another --output_dir for these."
            )


def _started(session: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(session["started"]).timestamp()


def _is_in(path: str, folder: str) -> bool:
    return os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder)


def older_metrics(metrics: Path, record: Mapping[str, Any]) -> str | None:
    """Say that a table of metrics is of weights from before the last session of a run; None where it is not."""
    sessions = record.get("sessions")
    if not sessions or not metrics.is_file():
        return None
    is_older = metrics.stat().st_mtime < _started(sessions[-1])
    return f"{metrics.name} is older than the training; run `evaluating` again." if is_older else None


def training_seconds(record: Mapping[str, Any]) -> float | None:
    """Add up the sessions of a run; of one that was killed counts what its checkpoints kept. None where unknown."""
    seconds = [session.get("seconds") for session in record.get("sessions", [])]
    return None if not seconds or None in seconds else sum(seconds)


def read_run_record(folder: str | Path) -> dict[str, Any]:
    """Read the record of a run; empty where there is none, or none that can be read."""
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def data_list_record(datalist: str) -> dict[str, str | None]:
    """Name a data list and give its checksum; None where there is no such file, as with a client's own cases."""
    path = Path(datalist)
    return {"path": str(datalist), "sha256": sha256_of(path) if path.is_file() else None}


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "custom": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _git_commit() -> str | None:
    """Name the commit of the code, with ``-dirty`` when files differ from it; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
