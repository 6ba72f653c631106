"""Configs of the bundles as the benchmarks need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from custom.utils.errors import UserError

BUNDLES = Path(__file__).resolve().parent.parent / "bundles"


def bundle_config(bundle: str, files: Sequence[str], changes: Mapping[str, Any]) -> ConfigParser:
    """Read a bundle's configs with some settings changed.

    Args:
        bundle: la, acdc, pancreas or isic.
        files: names of its config files, without ending, later ones laid over earlier ones.
        changes: settings by key; None leaves the config's own.

    Raises:
        UserError: for an unknown bundle or file.
    """
    folder = BUNDLES / f"crossmatch_{bundle}"
    paths = [folder / "configs" / f"{name}.yaml" for name in files]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"no such config: {', '.join(missing)}; see --help for the names.")
    parser = ConfigParser(ConfigParser.load_config_files(paths))
    for key, value in {"bundle_root": str(folder), **changes}.items():
        if value is not None:
            parser[key] = value
    return parser


def available_device(name: str) -> torch.device:
    """Find a device by its name.

    Raises:
        UserError: when it is not there.
    """
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"--device: there is no {name} here; cpu is always there.") from error
