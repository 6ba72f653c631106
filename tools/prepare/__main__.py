"""The command line of :mod:`tools.prepare`."""

from ..cli import run
from .commands import acdc, check, demo, isic, la, own, pancreas

run({"la": la, "acdc": acdc, "pancreas": pancreas, "isic": isic, "own": own, "demo": demo, "check": check})
