"""What a data set says of itself: ``dataset.json``, as nnU-Net (both versions) and the Decathlon have it, or labels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from custom.data.checks import read_image
from custom.data.datalist import nothing_labeled
from custom.data.geometry import label_problem, text_header
from custom.utils.errors import UserError
from custom.utils.names import are_class_names, structure_names

from .assembling import along_axes_of
from .pairing import OwnScan

NRRD = (".nrrd", ".nhdr")
#: What 3D Slicer writes of each segment into a header.
SEGMENT = re.compile(r"^Segment(\d+)_(Name|LabelValue):=(.*)$", re.MULTILINE)
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


def segments_in(labels: Sequence[Path]) -> list[str] | None:
    """Read how 3D Slicer has named the structures labeled 1, 2, ..., in the headers of ``.seg.nrrd`` files.

    Returns:
        Names; None where no file has any, or not for every number.

    Raises:
        UserError: when files number the structures otherwise, which would mix them up.
    """
    known: dict[int, tuple[str, Path]] = {}
    problems = []
    for path in [path for path in labels if path.name.lower().endswith(NRRD)]:
        for value, name in _segments(path).items():
            first = known.setdefault(value, (name, path))
            if first[0] != name:
                problems.append(f"{value} is {first[0]} in {first[1]}, but {name} in {path}.")
    if problems:
        raise UserError(
            "structures have other numbers in other files, which would be taken for one another, nothing was written; "
            "export the labels again with one order of the segments:",
            problems,
        )
    names = [known[value][0] for value in sorted(known)]
    return names if sorted(known) == list(range(1, len(known) + 1)) and are_class_names(names) else None


def _segments(path: Path) -> dict[int, str]:
    """Read names of segments by their values."""
    header = text_header(str(path)).partition(b"\n\n")[0].decode(errors="replace")
    fields = {(number, field): text.strip() for number, field, text in SEGMENT.findall(header)}
    values = {number: text for (number, field), text in fields.items() if field == "LabelValue" and text.isdecimal()}
    return {int(text): fields[number, "Name"] for number, text in values.items() if (number, "Name") in fields}


def structures_in(scans: Sequence[OwnScan]) -> list[str]:
    """Name the structures that labels mark: ``class_1``, ``class_2``, ...; or ``foreground`` where there is one.

    Args:
        scans: with the files of their labels. Labels that cannot be read, or hold other values, do not count; what is
            wrong with them is told when they are prepared.

    Returns:
        A name for each value where they are 1, 2, ...; else ``foreground``.

    Raises:
        UserError: when numbers are left out, such as 3 in 1, 2 and 4; or a label is not on its image's grid, where that
            may be why.
    """
    labeled = [scan for scan in scans if scan.label is not None]
    marked = set()
    for scan in tqdm(labeled, desc="Reading labels", unit="label", disable=not labeled):
        label, _ = read_image(str(scan.label), as_label=True)
        values = [] if label is None else torch.unique(label.as_tensor()).tolist()
        if all(value.is_integer() and 0 <= value <= MOST_STRUCTURES for value in values):
            marked |= {int(value) for value in values if value}
    if marked <= {1}:
        return ["foreground"]
    names = [f"class_{number}" for number in range(1, max(marked) + 1)]
    if len(marked) < len(names):
        _refuse_other_grids(labeled)
        raise UserError(
            f"the labels hold {', '.join(map(str, sorted(marked)))} and background, not every number up to "
            f"{max(marked)}; nothing was written. Renumber them, or name every number, also one that does not occur, "
            f"such as --classes {','.join(names)}"
        )
    print(f"structures: {', '.join(names)}; to name them, give --classes and an --output that is not written yet")
    return names


def refuse_nothing_labeled(labels: Sequence[Path]) -> None:
    """Refuse labels of the list ``training`` in which every voxel is 0; reads no further than the first that is good.

    Raises:
        UserError: names them. Those that cannot be read pass, since preparing tells what is wrong with them.
    """
    found = (read_image(str(path), as_label=True)[0] for path in labels)
    if labels and all(label is not None and not bool(label.any()) for label in found):
        problem = nothing_labeled([str(path) for path in labels])
        raise UserError(f"nothing could be learned, nothing was written: {problem}")


def _refuse_other_grids(labeled: Sequence[OwnScan]) -> None:
    """Refuse labels of other images, whose values tell nothing of these."""
    problems = []
    for scan in labeled:
        image, label = read_image(str(scan.files[0]))[0], read_image(str(scan.label), as_label=True)[0]
        if image is not None and label is not None:
            problems.append(label_problem(along_axes_of(image, label), image, str(scan.label)))
    found = [problem for problem in problems if problem is not None]
    if found:
        raise UserError(f"{len(found)} label(s) do not lie on the grid of their image, nothing was written:", found)
