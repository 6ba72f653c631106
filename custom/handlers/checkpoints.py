"""Checkpoints of a training, from which it goes on as if it had never stopped.

A checkpoint holds what training has changed: weights, optimizer, schedule, averaged weights, the best metric. What is
drawn at random follows from the seed and the number of the iteration (:mod:`custom.utils.randomness`), and is not kept.
"""

import json
import logging
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events

from ..utils.config import flat_config
from ..utils.distributed import any_rank, gather_in_turn, is_first
from ..utils.errors import UserError
from ..utils.weights import Stateful, save_tensors, save_weights, settings_path
from .stopping import EXIT_STOPPED, StopRequest

_PATTERN = "iteration_*.pt"
logger = logging.getLogger(__name__)


def has_checkpoint(folder: str) -> bool:
    """Say whether there is a training to resume in a folder."""
    return bool(_checkpoints(Path(folder)))


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(_PATTERN), reverse=True)


class Checkpoints:
    """Write the state of a training at regular intervals, and start it from the newest one.

    Unlike Ignite's ``Checkpoint`` and MONAI's ``CheckpointSaver``, it refuses to resume with other settings, falls back
    from a damaged file to the one before, and writes one when the program is asked to stop.

    Attach it last. On a :class:`StopRequest` the iteration is finished, a checkpoint written, and the program ends with
    exit code 75.

    Args:
        folder: where the checkpoints are, ``iteration_*.pt``.
        parts: what training changes, by name; ``network`` must be among them, ``average`` may be. None values are left
            out.
        config: the resolved configuration, plain values by name; a checkpoint of another one is refused.
        max_iterations: where training ends; the schedules have lengths of their own.
        interval: iterations between two checkpoints.
        n_saved: how many are kept; at least 2, so that a damaged one does not lose the run.
        resume: go on from the newest checkpoint, when there is one. False starts anew, and moves those that are there
            to ``FOLDER_previous``, the next time to ``FOLDER_previous_2``, and so on.
        runtime_keys: paths in ``config`` that say where and how a training runs, not what it computes, such as
            ``train::handlers``; another value of theirs is no reason not to resume.
        settings: written beside the final weights, for inference.

    Raises:
        UserError: when ``interval`` or ``n_saved`` is too small.
    """

    def __init__(
        self,
        folder: str,
        parts: Mapping[str, Stateful | None],
        config: Mapping[str, Any],
        max_iterations: int,
        interval: int = 500,
        n_saved: int = 2,
        resume: bool = True,
        runtime_keys: Iterable[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if interval < 1 or n_saved < 2:
            raise UserError(
                f"--ckpt_interval must be at least 1 and --n_saved at least 2, got {interval} and {n_saved}."
            )
        self.folder = Path(folder)
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.config = dict(config)
        self.runtime_keys = frozenset(runtime_keys)
        self.settings = settings
        self.max_iterations = max_iterations
        self.interval = interval
        self.n_saved = n_saved
        self.resume = resume
        self.finished = False
        self.stop_request = StopRequest()
        self.saved: list[Callable[[], None]] = []  #: called after each checkpoint

    def attach(self, trainer: Any) -> None:
        """Restore the newest checkpoint, and write new ones while ``trainer`` runs.

        Afterwards ``finished`` says that there is nothing left to do.

        Raises:
            UserError: when the newest checkpoint is of another configuration, or past ``max_iterations``; when there
                are checkpoints and none can be read; when processes that train together find different ones; when the
                trainer has another network or optimizer than the checkpoints.
        """
        self._refuse_other_parts(trainer)
        self.trainer = trainer
        if self.resume:
            self._restore()
        elif is_first():
            self._move_away()
        self._agree()
        trainer.add_event_handler(Events.STARTED, self._start)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)

    def _refuse_other_parts(self, trainer: Any) -> None:
        """What a program has taken from a workflow before it was initialized again is none of its parts any more."""
        found = {name: getattr(trainer, name, None) for name in ("network", "optimizer")}
        found["network"] = getattr(found["network"], "module", found["network"])  # of several processes' wrapper
        others = [name for name, part in found.items() if part is not None and self.parts.get(name, part) is not part]
        if others:
            raise UserError(
                f"the trainer has another {' and '.join(others)} than those whose state is kept; initialize() makes "
                "all parts anew, so do not put back objects from before it. Give a config, such as "
                "workflow.parser['optimizer'] = {'_target_': ...}."
            )

    def train(self) -> None:
        """Run the trainer; a request to stop is heard meanwhile.

        Raises:
            SystemExit: with :data:`EXIT_STOPPED`, when it was asked to stop.
        """
        with self.stop_request:
            self.trainer.run()
        if self.trainer.should_terminate == "skip_completed":
            raise SystemExit(EXIT_STOPPED)

    def finish(self) -> None:
        """Write the final weights beside the folder: ``model.pt``, and ``model_ema.pt`` when they were averaged."""
        if is_first():
            for name, path in self._weights().items():
                save_weights(self.parts[name], path, self.settings)
                print(f"Weights: {path}")
        self.save(finished=True)
        self.finished = True

    def save(self, finished: bool = False) -> None:
        """Write a checkpoint of the last completed iteration, then remove those that are too old."""
        if not is_first():
            return
        iteration = self.trainer.state.iteration
        content = {
            "iteration": iteration,
            "max_iterations": self.max_iterations,
            "finished": finished,
            "config": json.dumps(self.config),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
        }
        newest = self.folder / f"iteration_{iteration:08d}.pt"
        save_tensors(content, newest)
        # Newer ones were damaged when this training went back; it writes them again.
        for path in [path for path in self._files() if path.name <= newest.name][self.n_saved :]:
            path.unlink()
        for tell in self.saved:
            tell()

    def _files(self) -> list[Path]:
        """All checkpoints, newest first."""
        return _checkpoints(self.folder)

    def _weights(self) -> dict[str, Path]:
        """Files of the final weights, by the part that they are of."""
        files = {"network": self.folder.parent / "model.pt", "average": self.folder.parent / "model_ema.pt"}
        return {name: path for name, path in files.items() if name in self.parts}

    def _restore(self) -> None:
        paths = self._files()
        for path in paths:
            content = _read(path)
            if content is None:
                logger.warning("%s is damaged, as if its writing was cut off.", path)
                continue
            self._refuse_other_config(path, json.loads(content["config"]))
            self._load(path, content)
            return
        if paths:
            raise UserError(
                f"{self.folder}: none of the {len(paths)} checkpoint(s) can be read, so training cannot resume; bring "
                "them back from a backup, or start anew with --resume false, which keeps them aside."
            )

    def _refuse_other_config(self, path: Path, config: dict[str, Any]) -> None:
        lines = _changes(config, json.loads(json.dumps(self.config)), self.runtime_keys)
        if lines:
            raise UserError(
                f"{path} is of another configuration; give the settings it was made with, choose another --ckpt_dir, "
                "or start anew with --resume false:",
                lines,
            )

    def _load(self, path: Path, content: dict[str, Any]) -> None:
        self.finished = content["finished"] and content["max_iterations"] >= self.max_iterations
        if not self.finished and content["iteration"] >= self.max_iterations:
            raise UserError(
                f"{path} is already past --max_iterations {self.max_iterations}; give a larger number to go on, or "
                "start anew with --resume false."
            )
        if self.finished:
            self._write_missing_weights(content["parts"])
            print(
                f"{path.parent.parent}: this training is finished, after {content['iteration']} iterations; "
                "nothing to do. Start anew with --resume false, or choose another --ckpt_dir."
            )
            return
        for name, part in self.parts.items():
            if content["parts"].get(name):  # a gradient scaler has no state where the device needed none
                part.load_state_dict(content["parts"][name])
        progress = {"epoch_length": self.trainer.state.epoch_length, "max_epochs": self.trainer.state.max_epochs}
        self.trainer.load_state_dict({"iteration": content["iteration"], **progress})
        logger.info("Resuming after iteration %d, from %s", content["iteration"], path)

    def _write_missing_weights(self, parts: Mapping[str, dict[str, Any]]) -> None:
        """Write the final weights of a finished training again where somebody has removed them."""
        for name, path in self._weights().items():
            if is_first() and not (path.exists() and settings_path(path).exists()):
                self.parts[name].load_state_dict(parts[name])
                save_weights(self.parts[name], path, self.settings)
                print(f"{path}: was missing, or its settings; written again, from the last checkpoint.")

    def _agree(self) -> None:
        places = gather_in_turn([(self.trainer.state.iteration, self.finished)])
        if len(set(places)) > 1:
            raise UserError(
                f"the processes do not find the same checkpoints in {self.folder}, but those after iterations "
                f"{[iteration for iteration, _ in places]}; --ckpt_dir must be a folder that all of them share."
            )

    def _move_away(self) -> None:
        if self._files():
            name = f"{self.folder.name}_previous"
            names = chain([name], (f"{name}_{number}" for number in count(2)))
            previous = next(place for place in map(self.folder.with_name, names) if not place.exists())
            previous.mkdir()
            for path in self._files():
                path.replace(previous / path.name)
            logger.warning("Starting anew; the checkpoints of the training before are in %s", previous)

    def _after_iteration(self, trainer: Engine) -> None:
        iteration = trainer.state.iteration
        if iteration >= self.max_iterations:
            return  # finish() writes the last one, with the final weights
        stop = any_rank(self.stop_request.made)
        if stop:
            self._stop(trainer)
        elif iteration % self.interval == 0:
            self.save()

    def _stop(self, trainer: Engine) -> None:
        """Write a checkpoint, unless training has gone wrong since the last look at a GPU's loss, and leave."""
        spoilt = any_rank(not bool(trainer.state.output["loss"].isfinite()))
        if not spoilt:
            self.save()
        if is_first():
            what = "its loss is not a finite number, so no checkpoint is" if spoilt else "a checkpoint is"
            print(
                f"\nStopped after iteration {trainer.state.iteration} on request; {what} written, and the same command "
                f"goes on from the newest. Exit code {EXIT_STOPPED}."
            )
        trainer.terminate(skip_completed=True)  # an exception in a handler would be logged as an error

    def _start(self, _: Engine) -> None:
        if is_first():
            for part in self.folder.glob(f".part-{_PATTERN}"):  # of a training that was killed while it wrote
                part.unlink()


def _read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint without executing anything in it; None when it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file fails in many ways
        return None


def _changes(found: Mapping[str, Any], wanted: Mapping[str, Any], left_out: Collection[str]) -> list[str]:
    """Name the settings that differ between two configurations, a line each."""
    there, now = flat_config(found, left_out), flat_config(wanted, left_out)
    differing = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
    hint = "; the learning rate falls to 0 over these; give --schedule_iterations {} to go on within them"
    hints = {"schedule_iterations": hint.format(there.get("schedule_iterations"))}
    return [f"{key}: there {_text(there, key)}, now {_text(now, key)}{hints.get(key, '')}" for key in differing]


def _text(config: Mapping[str, Any], key: str) -> str:
    return json.dumps(config[key]) if key in config else "absent"
