"""The command line of :mod:`tools.plan`."""

from custom.utils.cli import run

from .command import plan

run(plan)
