"""Choose a bundle and its settings from the data: ``python -m tools.plan --help``."""
