"""Write the page of a run: ``python -m custom.report RUN_DIR``."""

from ..utils.cli import run
from .page import report

run(report)
