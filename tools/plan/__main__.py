"""The command line of :mod:`tools.plan`."""

from ..cli import run
from .command import plan

run(plan)
