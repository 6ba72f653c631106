"""The command line of :mod:`tools.suggest`."""

from ..cli import run
from .command import suggest

run(suggest)
