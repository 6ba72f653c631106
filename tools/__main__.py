"""All commands under one name: ``crossmatch COMMAND ...`` is ``python -m tools.COMMAND ...``."""

from __future__ import annotations

import difflib
import os
import runpy
import sys

#: Module and purpose by command.
COMMANDS = {
    "prepare": ("tools.prepare", "turn a download, or your own scans, into a dataset folder, and check one"),
    "plan": ("tools.plan", "choose a bundle and its settings from a dataset folder"),
    "demo": ("tools.demo", "train with and without unlabeled scans on synthetic data, in a few minutes"),
    "suggest": ("tools.suggest", "choose which unlabeled scans to label next"),
    "study": ("tools.study", "train and score several settings side by side"),
    "compare": ("tools.compare", "make one page of several finished runs"),
    "report": ("tools.report", "make the page of one run again"),
    "package": ("tools.package", "make an archive of a bundle, or check one"),
    "ship": ("tools.ship_weights", "store trained weights in a bundle"),
    "convert": ("tools.convert_weights", "turn weights of the original code into a bundle's"),
}


def main() -> None:
    """Run the command that is named first; the rest of the command line is its own."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        _show_commands()
    elif name in COMMANDS:
        sys.argv = [f"crossmatch {name}", *arguments]
        runpy.run_module(COMMANDS[name][0], run_name="__main__")
    else:
        nearest = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"expected one of {', '.join(COMMANDS)}."
        sys.exit(f"crossmatch: unknown command {name}; {hint}")


def _show_commands() -> None:
    lines = [f"  {command:10}{purpose}" for command, (_, purpose) in COMMANDS.items()]
    try:
        print("\n".join(["crossmatch COMMAND ...; crossmatch COMMAND --help says more.", "", *lines]), flush=True)
    except BrokenPipeError:  # `crossmatch --help | head` ends quietly, also when Python closes its output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
