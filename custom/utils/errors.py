"""Errors that a user can mend, shown without a traceback."""

import errno
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TypeGuard, TypeVar

E = TypeVar("E", bound=BaseException)

#: What an error of the system says about a file or a folder that was named.
_PLACES: dict[int | None, str] = {
    errno.EACCES: "no permission; choose another place, or have the permission changed.",
    errno.EPERM: "no permission; choose another place, or have the permission changed.",
    errno.EROFS: "is on a read-only file system; choose another place.",
    errno.ENOSPC: "the disk is full; make space, or choose another place.",
    errno.EDQUOT: "the disk quota is used up; make space, or choose another place.",
    errno.ENOTDIR: "a part of this path is a file, not a folder; choose another place.",
}


class UserError(ValueError):
    """Wrong input; the message says what was expected, what was found and what to do.

    Args:
        summary: one line that names the file or the setting. Of the text that PyTorch makes of an error in a worker
            process, with its traceback, the message is taken.
        problems: listed below the summary, one line each.
    """

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        if summary.startswith("Caught ") and "Traceback" in summary:
            summary = summary.rpartition(f"{type(self).__name__}: ")[2].rstrip()
        super().__init__("\n  - ".join([summary, *problems]))


def causes(error: BaseException) -> list[BaseException]:
    """List an error, what it was raised from, and so on; MONAI raises errors of its own from those of its parts."""
    found: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in found:
        found.append(cause)
        cause = cause.__cause__ or cause.__context__
    return found


def first_cause(error: BaseException, kind: type[E]) -> E | None:
    """Find the first of :func:`causes` that is of a kind."""
    return next((cause for cause in causes(error) if isinstance(cause, kind)), None)


def plain_reason(error: BaseException) -> str:
    """Say in a line what an error is about; of one that was raised from another, as MONAI's are, that one."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = str(error).strip()
    return text.splitlines()[-1] if text else type(error).__name__


def show_user_errors_plainly() -> None:
    """Let an uncaught :class:`UserError` end the program with its message alone and exit code 1.

    So does an error of the system about a place that cannot be written or read. MONAI wraps exceptions raised while it
    builds a config's components several times over, which buries the message. Code that catches exceptions still gets
    the whole chain. What a terminal's encoding lacks, such as a letter in the name of a folder, is printed as its code.
    """
    sys.excepthook = _print_user_error
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _print_user_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("\ninterrupted", file=sys.stderr)
        return
    plain = first_cause(error, UserError) or next(
        (f"{cause.filename}: {_PLACES[cause.errno]}" for cause in causes(error) if _is_about_a_place(cause)), None
    )
    if plain is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stdout.flush()
        print(f"\nerror: {plain}", file=sys.stderr)


def _is_about_a_place(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in _PLACES and error.filename is not None
