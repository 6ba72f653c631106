"""Compare finished runs on one page: ``python -m tools.compare --help``."""

from .command import compare, compare_arms
