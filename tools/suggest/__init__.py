"""Suggest what to label next: ``crossmatch suggest --help``."""

from .command import suggest
