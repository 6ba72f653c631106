"""The command line of :mod:`tools.study`."""

from ..cli import run
from .command import study

run(study)
