"""Make the page of a run again: ``python -m tools.report RUN_DIR``."""

from custom.report import report

from .cli import run

run(report)
