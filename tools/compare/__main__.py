"""The command line of :mod:`tools.compare`."""

from ..cli import run
from .command import compare

run(compare)
