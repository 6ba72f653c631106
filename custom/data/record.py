"""Remember which scans are segmented, by what and from what, so that none is segmented twice."""

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
from ..utils.files import read_json, sha256_of, write_json
from ..utils.lock import one_at_a_time
from ..utils.names import first_names, groups
from .checks import Case
from .folders import PREDICTION_PICTURES, RECORD, RESULTS
from .states import case_paths, state_of

LOCK = f".{RECORD}.lock"
#: Of the record's form; a record of another one is not read.
VERSION = 2
#: How a record begins, a damaged one too.
BEGINNING = b'{"version": '
#: The entry of a scan that is being segmented.
BEGUN = {"begun": True}


class InferenceRecord:
    """The scans that are segmented, in ``inference.json``: an entry for each, written as soon as its files are.

    An entry is called by the place of the results. A scan is done when its entry is of the same input, by the names,
    sizes and times of its files, wherever they are; of the same weights, by their content; of the same settings; and
    when the files written for it are as they were left. Files that the record does not know, or not as they are now,
    or that are of another scan, are somebody's work and are kept. Several processes may write to one record, on one
    machine or many.

    Args:
        folder: of the results; the record is made there.
        cases: all scans that are wanted, also those that other processes segment.
        weights: their file, or those of an ensemble.
        config: the resolved configuration.
        runtime_keys: paths in it that say where and how inference runs, not what it computes.
        endings: of the files that are written for a scan, behind its name.
        overwrite: segment all again, whatever is there.
        shard: the part of the scans that this job segments, such as ``2/8``; None for all.

    Raises:
        UserError: when the folder has tables or pictures that no inference has written, called as those that this one
            would write.
    """

    def __init__(
        self,
        folder: str,
        cases: Sequence[Case],
        weights: str | Sequence[str],
        config: Mapping[str, Any],
        runtime_keys: Collection[str] = (),
        endings: Sequence[str] = ("_seg.nii.gz",),
        overwrite: bool = False,
        shard: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.endings = endings
        self.overwrite = overwrite
        self.job = "1/1" if shard is None else "".join(shard.split())
        self.problems: list[str] = []  #: why scans of this run were left out, of all its processes
        self.kept: list[str] = []  #: the scans that are left out since their results would replace other files
        self.cases = {case["case"]: case for case in cases}
        self._refuse_others_tables()
        self._last: tuple[Any, dict[str, Any]] = None, {}  #: what the file held, and its state by then
        self.added: list[str] = []  #: the scans that this process has segmented
        self.begun: dict[str, Any] = {}  #: of scans that this process has begun and not ended, the entries before
        settings = json.dumps([__version__, flat_config(config, frozenset(runtime_keys))], sort_keys=True, default=str)
        self.made_by = {
            "weights": [sha256_of(path) for path in ensure_tuple(weights)],
            "settings": hashlib.sha256(settings.encode()).hexdigest(),
        }
        #: The states of the files from before they are read.
        self.inputs = {name: state_of(case) for name, case in self.cases.items()}
        self.done = frozenset() if overwrite else frozenset(self.found())
        if self.done and is_first():
            print(
                f"{len(self.done)} of {len(cases)} scans are done already, with these weights and settings; "
                "--overwrite true segments them again."
            )

    def remaining(self, cases: Iterable[Case]) -> list[Case]:
        """Leave out the scans that are done, and those whose results would replace files that are not this record's."""
        waiting = [case for case in cases if case["case"] not in self.done]
        entries = self._read() if waiting and not self.overwrite else {}
        others = {} if self.overwrite else {case["case"]: self._others_files(case, entries) for case in waiting}
        self.kept = [
            f"{files[0]}: is there, and is not, or no longer, what this inference wrote for this scan, so it is kept "
            f"and {name} is left out; give another --output_dir, or --overwrite true."
            for name, files in others.items()
            if files
        ]
        return [case for case in waiting if not others.get(case["case"])]

    def begin(self, name: str) -> None:
        """Note that a scan is being segmented, so that what is written of it is known for its own after a crash."""
        place = _place(self.cases[name])
        self.begun[place] = self._read().get(place)
        self._change({place: BEGUN})

    def add(self, name: str, outputs: Sequence[str], found: Mapping[str, Any]) -> None:
        """Note that a scan is segmented.

        Args:
            name: of the case.
            outputs: files that were written for it, in the folder.
            found: what was measured, such as volumes; numbers, texts, lists and dictionaries of them.
        """
        states = {os.path.relpath(path, self.folder): _state(Path(path)) for path in outputs}
        before = self.begun.pop(_place(self.cases[name]), None) or {}
        others = {path: state for path, state in _known(before).items() if path not in states}
        earlier = {path: state for path, state in others.items() if _state(self.folder / path) == state}
        about: dict[str, Any] = {"case": name, "files": case_paths(self.cases[name]), "input": self.inputs[name]}
        about |= {"earlier": earlier} if earlier else {}
        self._change({_place(self.cases[name]): about | self.made_by | {"outputs": states, "found": found}})
        self.added.append(name)

    def found(self) -> dict[str, Any]:
        """Give what was measured in each scan that is segmented, by whichever process, in the order of the cases."""
        return {name: entry["found"] for name, entry in self._finished(self._read()).items()}

    def found_in_folder(self) -> dict[str, Any]:
        """As :meth:`found`, by place, and behind these the others in the folder that were segmented in the same way.

        Each has its name in ``case``, which is its place where scans of two runs have one name.
        """
        entries = self._read()
        ours = {_place(case) for case in self.cases.values() if self._is_of(case, entries.get(_place(case), {}))}
        mine = {_place(self.cases[name]): entry for name, entry in self._finished(entries).items()}
        found = mine | {p: entry for p, entry in entries.items() if p not in ours and self._is_whole(entry)}
        double = {place for same in groups(found, key=lambda place: found[place]["case"]) for place in same}
        return {p: {**entry["found"], "case": p if p in double else entry["case"]} for p, entry in found.items()}

    def _finished(self, entries: Mapping[str, Any]) -> dict[str, Any]:
        """Give the entries of the cases that are segmented, by their names."""
        mine = {name: entries.get(_place(case), {}) for name, case in self.cases.items()}
        return {n: entry for n, entry in mine.items() if entry.get("input") == self.inputs[n] and self._is_whole(entry)}

    def leave_out(self, problems: Sequence[str]) -> None:
        """Note which scans were left out; call it in all processes, when they are done.

        Args:
            problems: what this process could not segment, and why.
        """
        # Of a scan that failed, unless something was written of it by then.
        self._change({place: old for place, old in self.begun.items() if not self._unknown(place, old or {})})
        self.problems = gather_in_turn([*problems, *self.kept])
        if is_first():
            self._change({}, self.problems)

    def left_out(self) -> list[str]:
        """Say which scans were left out, and why, by this job and by those that segment the other parts."""
        return list(dict.fromkeys(text for _, texts in sorted(self._left_out().items()) for text in texts))

    def finish(self) -> None:
        """End the program with the scans that were left out, if any; call it in all processes, last.

        Raises:
            UserError: names every scan that was left out, and why, or whose results are not there any more.
        """
        problems = [*self.problems, *gather_in_turn(self._lost())]
        entries = self._read().values()
        earlier = [path for entry in entries for path in entry.get("earlier", ()) if (self.folder / path).exists()]
        if earlier and is_first():
            print(f"files of earlier settings, which this inference has not written again: {first_names(earlier)}")
        others = sum(not self.made_by.items() <= entry.items() for entry in entries if "found" in entry)
        if others and is_first():
            print(
                f"{others} scan(s) in {self.folder} were segmented with other weights or settings; "
                "they are not in its tables, nor in the review."
            )
        if problems:
            count = len(self.found())
            summary = f"{count} scan(s) segmented; left out, with {len(problems)} problem(s):"
            nothing = f"{len(problems)} problem(s), nothing was segmented:"
            raise_in_first(UserError(summary if count else nothing, problems))

    def _lost(self) -> list[str]:
        """Name the scans that this process has segmented, and whose results are not as it left them."""
        whole = self._finished(self._read())
        hint = "are gone or were changed while this ran; run the same command again."
        return [f"{name}: its results in {self.folder} {hint}" for name in self.added if name not in whole]

    def _refuse_others_tables(self) -> None:
        pictures = Path(os.path.realpath(self.folder / PREDICTION_PICTURES))
        inputs = [os.path.realpath(path) for case in self.cases.values() for path in case_paths(case)]
        lost = [path for path in inputs if Path(path).is_relative_to(pictures)]
        if lost:
            raise UserError(f"{lost[0]}: lies where pictures for the review are written; give another --output_dir.")
        record = self.folder / RECORD
        others = [self.folder / name for name in RESULTS if (self.folder / name).exists() and not record.exists()]
        if record.exists() and not record.read_bytes().startswith(BEGINNING):
            others = [record]
        if others and not self.overwrite:
            raise UserError(
                f"{others[0]}: is there, and no inference has written it; nothing was segmented. Give another "
                "--output_dir, or --overwrite true."
            )

    def _is_of(self, case: Case, entry: Mapping[str, Any]) -> bool:
        """Say whether an entry is of this scan, though its file may have been moved, or changed."""
        return entry.get("input") == self.inputs[case["case"]] or entry.get("files") == case_paths(case)

    def _is_whole(self, entry: Mapping[str, Any]) -> bool:
        """Say whether a scan was segmented by these weights and settings, and its results are as they were left."""
        if "found" not in entry or not self.made_by.items() <= entry.items():
            return False
        return all(_state(self.folder / path) == state for path, state in entry["outputs"].items())

    def _others_files(self, case: Case, entries: Mapping[str, Any]) -> list[Path]:
        """List the files in the place of a scan's results that are not as the record left them."""
        entry = entries.get(_place(case), {})
        if entry == BEGUN:
            return []
        return self._unknown(_place(case), entry if self._is_of(case, entry) else {})

    def _unknown(self, place: str, entry: Mapping[str, Any]) -> list[Path]:
        known = _known(entry)
        paths = [self.folder / f"{place}{ending}" for ending in self.endings]
        return [p for p in paths if (state := _state(p)) and state != known.get(os.path.relpath(p, self.folder))]

    def _change(self, entries: Mapping[str, Any], problems: Sequence[str] | None = None) -> None:
        """Write entries, and remove those that are None; write what this job left out, unless it does not know yet."""
        if not entries and (problems is None or list(problems) == self._left_out().get(self.job, [])):
            return
        with one_at_a_time(self.folder / LOCK):
            scans = {place: entry for place, entry in {**self._read(), **entries}.items() if entry is not None}
            left_out = self._left_out() | ({} if problems is None else {self.job: list(problems)})
            content = {"version": VERSION, "scans": scans, "left_out": left_out}
            write_json(self.folder / RECORD, content, indent=None)
            self._last = _state(self.folder / RECORD), content

    def _read(self) -> dict[str, Any]:
        """Read the entries by their places."""
        return {place: entry for place, entry in self._part("scans").items() if isinstance(entry, dict)}

    def _left_out(self) -> dict[str, list[str]]:
        """Read what was left out, by job; only of jobs that share out the scans as this one does."""
        parts = self.job.partition("/")[2]
        found = self._part("left_out")
        return {job: texts for job, texts in found.items() if job.endswith(f"/{parts}") and isinstance(texts, list)}

    def _part(self, name: str) -> dict[str, Any]:
        """Read a part of the record; nothing from a file that is damaged or of another form."""
        state = _state(self.folder / RECORD)
        try:
            if state != self._last[0]:  # another process has written it; of a thousand scans reading takes long
                self._last = state, read_json(self.folder / RECORD)
            content = self._last[1]
            return dict(content[name]) if content["version"] == VERSION else {}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return {}


def _known(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Give the states of all files that were written for a scan, with these settings or with earlier ones."""
    return {**entry.get("earlier", {}), **entry.get("outputs", {})}


def _place(case: Case) -> str:
    """Give the path of a scan's results below the folder, without their ending."""
    return str(case.get("prediction", case["case"]))


def _state(path: Path) -> list[int] | None:
    """Give size and time of a file, None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
