"""Train and score several settings side by side: ``python -m tools.study --help``."""

from .command import study
