"""The command line of :mod:`tools.suggest`."""

from custom.utils.cli import run

from .command import suggest

run(suggest)
