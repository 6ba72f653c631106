"""One training at a time in a folder, and one process at a time at a file."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from multiprocessing.util import Finalize
from pathlib import Path

from monai.utils import optional_import

from .distributed import gather_in_turn, is_first
from .errors import UserError

fcntl, _can_lock = optional_import("fcntl")  # not on Windows, where nothing is locked
LOCK = "training.lock"
#: Open files of the locks that this process holds, and whether their folders were made for them; closing one gives its
#: lock up.
_held: dict[Path, tuple[int, bool]] = {}


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process, on this or another machine, is in here with the same file; it is made when missing.

    Where the file system cannot lock, nobody waits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if _can_lock:
            with suppress(OSError):
                fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


class TrainingLock:
    """Keep a second training out of the folders of one that runs.

    A file in each folder names the process and its machine. The system lets go of the lock itself when the process
    ends, however it ends, so that a file left behind is told from one in use, on the machine where it was made.

    Args:
        folders: what the training writes to, by the flag that says where. Of processes that train together the first
            locks them, and the others stop when it cannot.
    """

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.folders = {flag: Path(folder) for flag, folder in folders.items()}

    def take(self) -> None:
        """Lock the folders, which are made when missing.

        Raises:
            UserError: when another training is there, or a folder cannot be written.
        """
        problems = gather_in_turn(self._take_all() if is_first() and _can_lock else [])
        if problems:
            self.release()
            raise UserError(problems[0])

    def release(self) -> None:
        """Let others train there."""
        for folder in self.folders.values():
            _release((folder / LOCK).resolve())

    def _take_all(self) -> list[str]:
        for flag, folder in self.folders.items():
            path = (folder / LOCK).resolve()
            if path in _held:
                continue
            try:
                problem = _take(path)
            except OSError as error:
                problem = f"cannot be written to ({error.strerror}); have that changed"
            if problem is not None:
                return [f"{folder}: {problem}, or choose another --{flag}."]
        return []


def _take(path: Path) -> str | None:
    """Lock a file, or say who has it."""
    is_new = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    owner = _read(file)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return f"another training is running there, {_words(owner)}; wait for it, stop it"
    if not path.exists() or not os.path.samestat(os.fstat(file), path.stat()):
        os.close(file)  # its owner has just removed it
        return _take(path)
    owner = _read(file)
    if owner and owner.get("host") != platform.node():
        os.close(file)
        return (
            f"another training is running there or was cut off, {_words(owner)}, where this machine cannot look; if it "
            f"has ended, remove {path}, else wait for it"
        )
    _write(file)
    _held[path] = file, is_new
    Finalize(None, _release, (path,), exitpriority=0)  # unlike atexit, also where multiprocessing ends a process
    return None


def _read(file: int) -> dict[str, str | int]:
    try:
        content = json.loads(os.pread(file, 4096, 0) or b"{}")
    except ValueError:  # cut off while it was written
        return {}
    return content if isinstance(content, dict) else {}


def _write(file: int) -> None:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps({"host": platform.node(), "process": os.getpid(), "since": since}).encode(), 0)
    os.fsync(file)


def _words(owner: Mapping[str, str | int]) -> str:
    known = {"process": "unknown", "host": "an unknown machine", "since": "an unknown time"} | dict(owner)
    return f"process {known['process']} on {known['host']} since {known['since']}"


def _release(path: Path) -> None:
    file, is_new = _held.pop(path, (None, False))
    if file is not None:
        path.unlink(missing_ok=True)
        os.close(file)
        if is_new:
            with suppress(OSError):  # something was written there
                path.parent.rmdir()
