"""What a data set says of itself: ``dataset.json``, as nnU-Net (both versions) and the Decathlon have it, or labels."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from custom.data.checks import read_image
from custom.utils.errors import UserError
from custom.utils.names import structure_names

#: Labels with more values than this mark no structures; they may be images.
MOST_STRUCTURES = 100


class Description:
    """Read ``dataset.json`` in a folder of scans, or above its ``imagesTr``.

    Args:
        images: folder of scans. Where there is no such file, nothing is known.

    Raises:
        UserError: when the file is damaged.
    """

    def __init__(self, images: Path) -> None:
        folders = [images, images.parent] if images.name.startswith("images") else [images]
        files = [folder / "dataset.json" for folder in folders]
        self.path = next((path for path in files if path.is_file()), files[0])
        try:
            self.content = json.loads(self.path.read_text("utf-8-sig")) if self.path.is_file() else {}
        except ValueError as error:
            raise UserError(f"{self.path}: is not JSON ({error}); mend it, or take it away.") from error
        if not isinstance(self.content, dict):
            raise UserError(f"{self.path}: expected names and values; mend it, or take it away.")

    @property
    def channels(self) -> list[str]:
        """Names of the channels, such as CT, in the order of their numbers; none where they are not named."""
        channels: Any = self.content.get("channel_names") or self.content.get("modality")
        numbered = isinstance(channels, Mapping) and all(str(key).isdigit() for key in channels)
        return [str(channels[key]) for key in sorted(channels, key=int)] if numbered else []

    @property
    def modality(self) -> str:
        """Name of the only channel, else ``unknown``."""
        return self.channels[0] if len(self.channels) == 1 else "unknown"

    @property
    def classes(self) -> list[str] | None:
        """Names of the structures labeled 1, 2, ...; None where none are named.

        Raises:
            UserError: when labels are not whole numbers from 0 on, as with nnU-Net's regions and its label ``ignore``.
        """
        labels: Any = self.content.get("labels")
        if not isinstance(labels, Mapping) or not labels:
            return None
        names = structure_names(labels)
        if names is None or "ignore" in names:
            raise UserError(
                f"{self.path}: labels must be 0 to {len(labels) - 1}, one structure each, found {dict(labels)}; "
                "regions and ignored voxels cannot be read: write label maps without, and name their structures with "
                "--classes."
            )
        return names or None


def structures_in(labels: Sequence[Path]) -> list[str]:
    """Name the structures that labels mark: ``class_1``, ``class_2``, ...; or ``foreground`` where there is one.

    Args:
        labels: their files; those that cannot be read do not count.

    Returns:
        A name for each value where they are 1, 2, ...; else ``foreground``, to which labels with other values do not
        fit.

    Raises:
        UserError: when numbers are left out, such as 3 in 1, 2 and 4.
    """
    values: set[float] = set()
    for path in tqdm(labels, desc="Reading labels", unit="label", disable=not labels):
        label, _ = read_image(str(path), as_label=True)
        values |= set() if label is None else set(torch.unique(label.as_tensor()).tolist()[: MOST_STRUCTURES + 2])
    marked = sorted(values - {0})
    if marked in ([], [1]) or not all(value.is_integer() and 0 < value <= MOST_STRUCTURES for value in marked):
        return ["foreground"]
    names = [f"class_{number}" for number in range(1, int(marked[-1]) + 1)]
    if len(marked) < len(names):
        raise UserError(
            f"the labels hold {', '.join(f'{value:g}' for value in marked)} and background, not every number up to "
            f"{marked[-1]:g}; nothing was written. Renumber them, or name every number, also one that does not occur, "
            f"such as --classes {','.join(names)}"
        )
    print(f"structures: {', '.join(names)}; name them with --classes")
    return names
