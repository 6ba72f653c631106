"""Errors that a user can mend, shown without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType

__all__ = ["UserError", "show_user_errors_plainly"]


class UserError(ValueError):
    """Wrong input; the message says what was expected, what was found and what to do.

    Args:
        summary: one line that names the file or the setting.
        problems: listed below the summary, one line each.
    """

    def __init__(self, summary: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n  - ".join([summary, *problems]))


def show_user_errors_plainly() -> None:
    """Let an uncaught :class:`UserError` end the program with its message alone and exit code 1.

    MONAI wraps exceptions raised while it builds a config's components several times over, which buries the message.
    Code that catches exceptions still gets the whole chain.
    """
    sys.excepthook = _print_user_error


def _print_user_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        sys.__excepthook__(kind, error, traceback)
    else:
        sys.stdout.flush()
        print(f"\nerror: {cause}", file=sys.stderr)
