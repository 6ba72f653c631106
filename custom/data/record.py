"""Remember which scans are segmented, by what and from what, so that none is segmented twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.utils import ensure_tuple

from .. import __version__
from ..utils.config import flat_config
from ..utils.distributed import gather_in_turn, is_first, raise_in_first
from ..utils.errors import UserError
from ..utils.files import atomic_write, read_json
from ..utils.lock import one_at_a_time
from .checks import Case
from .folders import RECORD
from .kept import name_of, state_of

__all__ = ["LOCK", "InferenceRecord"]

LOCK = f".{RECORD}.lock"
#: Of the record's form; a record of another one is not read.
VERSION = 1


class InferenceRecord:
    """The scans that are segmented, in ``inference.json``: an entry for each, written as soon as its files are.

    A scan is done when its entry is of the same input, by name, size and time; of the same weights, by their content;
    of the same settings; and when the files written for it are as they were left. Several processes may write to one
    record, on one machine or many.

    Args:
        folder: of the results; the record is made there.
        cases: all scans that are wanted, also those that other processes segment.
        weights: their file, or those of an ensemble.
        config: the resolved configuration.
        runtime_keys: paths in it that say where and how inference runs, not what it computes.
        overwrite: segment all again.
    """

    def __init__(
        self,
        folder: str,
        cases: Sequence[Case],
        weights: str | Sequence[str],
        config: Mapping[str, Any],
        runtime_keys: Collection[str] = (),
        overwrite: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.cases = {case["case"]: case for case in cases}
        settings = json.dumps([__version__, flat_config(config, frozenset(runtime_keys))], sort_keys=True, default=str)
        made_by = {"weights": [_sha256(path) for path in ensure_tuple(weights)], "settings": _text_hash(settings)}
        #: What the entry of each scan must say. The files' states are from before they are read.
        self.expected = {name: {"case": case, "input": state_of(case)} | made_by for name, case in self.cases.items()}
        self._forget_what_is_gone()
        self.done = frozenset() if overwrite else frozenset(self.found())
        if self.done and is_first():
            print(
                f"{len(self.done)} of {len(cases)} scans are done already, with these weights and settings; "
                "--overwrite true segments them again."
            )

    def remaining(self, cases: Iterable[Case]) -> list[Case]:
        """Leave out the scans that are done."""
        return [case for case in cases if case["case"] not in self.done]

    def add(self, name: str, outputs: Sequence[str], found: Mapping[str, Any]) -> None:
        """Note that a scan is segmented.

        Args:
            name: of the case.
            outputs: files that were written for it, in the folder.
            found: what was measured, such as volumes; numbers, texts, lists and dictionaries of them.
        """
        states = {os.path.relpath(path, self.folder): _state(Path(path)) for path in outputs}
        entry = self.expected[name] | {"outputs": states, "found": found}
        with one_at_a_time(self.folder / LOCK):
            self._write(self._read() | {name_of(self.cases[name]): entry})

    def found(self) -> dict[str, Any]:
        """Give what was measured in each scan that is segmented, by whichever process, in the order of the cases."""
        entries = self._read()
        mine = {name: entries.get(name_of(case)) for name, case in self.cases.items()}
        return {name: entry["found"] for name, entry in mine.items() if entry and self._is_of(name, entry)}

    def finish(self, problems: Sequence[str]) -> None:
        """End the program with the scans that were left out, if any; call it in all processes, when they are done.

        Args:
            problems: what this process could not segment, and why.

        Raises:
            UserError: names every scan that was left out, and why.
        """
        problems = gather_in_turn(problems)
        if problems:
            count = len(self.found())
            summary = f"{count} scan(s) segmented; left out, with {len(problems)} problem(s):"
            nothing = f"{len(problems)} problem(s), nothing was segmented:"
            raise_in_first(UserError(summary if count else nothing, problems))

    def _is_of(self, name: str, entry: Any) -> bool:
        return isinstance(entry, dict) and "found" in entry and self.expected[name].items() <= entry.items()

    def _forget_what_is_gone(self) -> None:
        """Take entries out of the record whose files were removed or changed."""
        if not (self.folder / RECORD).is_file():
            return
        with one_at_a_time(self.folder / LOCK):
            entries = self._read()
            names = [key for key in map(name_of, self.cases.values()) if key in entries]
            gone = {key for key in names if not self._are_there(entries[key])}
            if gone:
                self._write({key: entry for key, entry in entries.items() if key not in gone})

    def _are_there(self, entry: Any) -> bool:
        states = entry.get("outputs") if isinstance(entry, dict) else None
        return isinstance(states, dict) and all(_state(self.folder / path) == state for path, state in states.items())

    def _read(self) -> dict[str, Any]:
        """Read the entries by the scans' files; none from a file that is damaged or of another form."""
        try:
            content = read_json(self.folder / RECORD)
            return content["scans"] if content["version"] == VERSION and isinstance(content["scans"], dict) else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}

    def _write(self, entries: Mapping[str, Any]) -> None:
        with atomic_write(self.folder / RECORD) as part:
            part.write_text(json.dumps({"version": VERSION, "scans": entries}))


def _state(path: Path) -> list[int] | None:
    """Give size and time of a file, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
