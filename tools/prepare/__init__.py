"""Prepare data sets: ``python -m tools.prepare COMMAND --help``."""
