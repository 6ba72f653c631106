"""Go through the folders below one: each once, links followed, hidden ones left out and told of."""

import os
from collections.abc import Collection
from functools import cache
from itertools import chain
from pathlib import Path

from ..utils.files import read_json
from ..utils.names import file_stem
from ..utils.ranges import LOSSLESS

#: What ``crossmatch prepare`` writes into a dataset folder, whose scans are copies.
PREPARED = "prepare.json"
#: What inference writes beside its predictions, or above them where they lie in folders.
PREDICTION_TABLE, RECORD, PREDICTION_PICTURES = "volumes.csv", "inference.json", "review"
RESULTS = (PREDICTION_TABLE, "ejection_fraction.csv", "review.csv", "review.html", PREDICTION_PICTURES)


def walk(top: Path, skipped: Collection[str] = ()) -> tuple[list[Path], list[str]]:
    """List a folder and those below it, linked ones last; each real folder once, since links may lead back.

    Args:
        top: the folder.
        skipped: real paths of folders that are not entered, nor told of.

    Returns:
        The folders, and which were not entered and why, by their paths below ``top``.
    """
    waiting, linked = [top], list[Path]()
    found: dict[str, Path] = {}
    left_out: list[str] = []
    while waiting or linked:
        here = waiting.pop(0) if waiting else linked.pop(0)
        name, real = str(here.relative_to(top)), os.path.realpath(here)
        if real in skipped:
            continue
        if here != top and (here.name.startswith(".") or here.name == "__MACOSX"):
            left_out.append(f"{name}/ (hidden)")
        elif here != top and (here / PREPARED).is_file():
            left_out.append(f"{name}/ (a prepared dataset folder)")
        elif here.is_symlink() and os.path.join(os.path.realpath(here.parent), "").startswith(os.path.join(real, "")):
            left_out.append(f"{name}/ (link to a folder above it)")
        elif real in found:
            left_out.append(f"{name}/ (the same folder as {found[real].relative_to(top)}/)")
        elif not os.access(here, os.R_OK | os.X_OK):
            left_out.append(f"{name}/ (no permission to read it)")
        else:
            found[real] = here
            for path in sorted(path for path in here.iterdir() if path.is_dir()):
                (linked if path.is_symlink() else waiting).append(path)
    return list(found.values()), left_out


def is_written_by_inference(path: Path) -> bool:
    """Tell a label map, a segmentation or a picture that inference wrote, by its name and the record above it."""
    place = path.absolute()
    folder = next((f for f in place.parents if (f / PREDICTION_TABLE).is_file() and (f / RECORD).is_file()), None)
    if folder is None:
        return False
    below = place.relative_to(folder)
    if below.parts[0] == PREDICTION_PICTURES:
        return True
    written = _written(folder / RECORD, (folder / RECORD).stat().st_mtime_ns)
    return file_stem(path).endswith("_seg") and (written is None or below.as_posix() in written)


@cache
def _written(record: Path, _: int) -> frozenset[str] | None:
    """List what a record knows to be written, by paths below its folder; None when it cannot be read."""
    try:
        entries = read_json(record)["scans"].items()
        known = [path for _, entry in entries for key in ("outputs", "earlier") for path in entry.get(key, ())]
        outputs = [Path(path).as_posix() for path in known]
        begun = [place for place, entry in entries if "outputs" not in entry]
        endings = {".dcm", *chain.from_iterable(LOSSLESS.values())}
        outputs += [f"{place}_seg{ending}" for place in begun for ending in endings]
        return frozenset(outputs)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
