"""What a training does when it is asked to stop: by a cluster, or by Ctrl-C."""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from ..utils.distributed import is_first

#: Exit code of a training that was asked to stop, and goes on when it is started again: "temporary failure, try again"
#: (sysexits.h).
EXIT_STOPPED = 75


def stop_when_asked() -> None:
    """End with :data:`EXIT_STOPPED` on SIGTERM from here on, unless somebody else handles the signal."""
    in_main = threading.current_thread() is threading.main_thread()  # in others, Python cannot
    if in_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_STOPPED))


class StopRequest:
    """Note that the program is asked to stop within a ``with`` block, so that an iteration can be finished first.

    SIGTERM, with which clusters announce that they will stop a job, and Ctrl-C set ``made``; a second Ctrl-C ends the
    program at once. Of processes that train together the first says that it has heard.
    """

    def __init__(self) -> None:
        self.made = False
        self.interrupted = False
        self.previous_handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> None:
        """Catch the signals; in the main thread only, as Python wants it."""
        if threading.current_thread() is threading.main_thread():
            stops = (signal.SIGTERM, signal.SIGINT)
            self.previous_handlers = {stop: signal.signal(stop, self._note) for stop in stops}

    def __exit__(self, *_: object) -> None:
        """Let the signals do what they did before."""
        for stop, handler in self.previous_handlers.items():
            signal.signal(stop, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun hands on the Ctrl-C that the terminal has sent to every process already.
        if number == signal.SIGINT and self.interrupted and "TORCHELASTIC_RUN_ID" not in os.environ:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        if number == signal.SIGINT and is_first() and not self.interrupted:
            # Not print(), which may be at work just now.
            os.write(2, b"\nStopping after this iteration, with a checkpoint; Ctrl-C again ends at once.\n")
        self.interrupted = self.interrupted or number == signal.SIGINT
        self.made = True
