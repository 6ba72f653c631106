"""Write a dataset folder so that an interruption never leaves a file that looks whole and is not.

A folder holds ``images/``, ``labels/``, data lists, and ``prepare.json``: what was prepared from where with which
options, a checksum per file, and a hash of the sizes and times of what each scan was made from. Files are written under
another name and renamed when they are complete; a second run takes up where the first one stopped, and makes again what
was made from files that have changed; data lists come last.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import MetaTensor, PILWriter
from tqdm import tqdm

from custom.data.folders import PREPARED
from custom.data.labels import to_label
from custom.data.nifti import NiftiWriter
from custom.data.states import files_of
from custom.utils.errors import UserError, plain_reason
from custom.utils.files import FILE_NAMES, atomic_write, sha256_of, write_json

from .pool import process_pool

PACKAGES = ("monai", "torch", "nibabel", "itk", "numpy")
SECONDS_BETWEEN_RECORDS = 2.0
#: What is asked for by its path.
FOLDERS = ("source", "labels")


@dataclass(frozen=True)
class Scan:
    """A scan to be written.

    Args:
        name: of its files, without ending.
        read: returns ``images``, as many as there are ``endings``, and, where there is one, ``label``: CH[WD], or the
            path of a file that is to be copied; must be picklable, a partial for instance.
        has_label: whether ``read`` returns a label.
        endings: of the image's files, one for each channel that has a file of its own.
        label_ending: of the label's file.
        made_from: files and folders that ``read`` reads, and what else its result hangs on, see
            :func:`fingerprint`.
        one_structure: whether the label has one; a PNG, which people look at, then marks it 255.
    """

    name: str
    read: Callable[[], Mapping[str, Any]]
    has_label: bool
    endings: tuple[str, ...] = (".nii.gz",)
    label_ending: str = ".nii.gz"
    made_from: tuple[str, ...] = ()
    one_structure: bool = False

    @property
    def images(self) -> list[str]:
        """Paths of the image's files relative to the dataset folder; several are numbered, as nnU-Net numbers them."""
        if len(self.endings) == 1:
            return [f"images/{self.name}{self.endings[0]}"]
        return [f"images/{self.name}_{number:04d}{ending}" for number, ending in enumerate(self.endings)]

    @property
    def label(self) -> str:
        """Path of the label, which need not have one."""
        return f"labels/{self.name}{self.label_ending}"

    @property
    def paths(self) -> list[str]:
        """Paths of everything that belongs to the scan."""
        return [*self.images, *([self.label] if self.has_label else [])]

    def entry(self, keys: Sequence[str]) -> dict[str, str | list[str]]:
        """Give the scan's entry in a data list, with ``image`` or ``label`` or both."""
        paths = {"image": self.images if len(self.images) > 1 else self.images[0], "label": self.label}
        return {key: paths[key] for key in keys}


def write_dataset(
    output: str | Path, scans: Sequence[Scan], datalists: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any]
) -> Path:
    """Write scans and data lists; go on where an earlier run with the same record stopped.

    Args:
        output: dataset folder, created when missing.
        scans: every scan once.
        datalists: content of each data list by file name.
        record: command, source and options, kept in ``prepare.json``.

    Returns:
        The folder.

    Raises:
        UserError: when the folder was prepared with another record, or scans could not be read or written; the others
            are kept, data lists are not written.
    """
    output = Path(output)
    record = {**json.loads(json.dumps(record)), "versions": {name: version(name) for name in PACKAGES}}
    made_from = {scan.name: fingerprint(scan.made_from) for scan in scans}  # before anything is read
    files, earlier = _finished_files(output, record)
    done = {
        scan.name
        for scan in scans
        if all(files.get(path) for path in scan.paths) and earlier.get(scan.name) == made_from[scan.name]
    }
    waiting = [scan for scan in scans if scan.name not in done]
    record |= {"files": files, "made_from": {name: made for name, made in made_from.items() if name in done}}
    problems = _write_scans(output, waiting, record, made_from)
    if problems:
        hint = "what was written is kept, the data lists are not; run the same command again when this is put right:"
        raise UserError(f"{output}: {len(problems)} of {len(scans)} scans could not be prepared; {hint}", problems)
    for name, content in datalists.items():
        write_json(output / name, content)
    return output


def refuse_other_data(output: str | Path, record: Mapping[str, Any]) -> None:
    """Refuse a folder that was prepared with another record, before anything is computed for it or written.

    Raises:
        UserError: says what differs.
    """
    file = Path(output) / PREPARED
    if not file.is_file():
        return
    before, now = _asked(json.loads(file.read_text())), _asked(json.loads(json.dumps(record)))
    changed = [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]
    if changed:
        lines = [f"{name}: {before.get(name)} before, {now.get(name)} now" for name in changed]
        raise UserError(f"{output}: holds data prepared otherwise; choose another --output, or remove it:", lines)


def _asked(record: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a record what was asked for, each option by its name; a folder may be spelled in several ways."""
    made = ("options", "versions", "files", "made_from", "sources", "contents")
    asked = {name: value for name, value in record.items() if name not in made} | record.get("options", {})
    return {name: os.path.abspath(value) if name in FOLDERS and value else value for name, value in asked.items()}


def fingerprint(parts: Iterable[str]) -> str:
    """Hash names, sizes and times of files, so that another hash means that one of them may have changed.

    Args:
        parts: paths, see :func:`custom.data.states.files_of`; or other texts, which count as they are.
    """
    digest = hashlib.sha256()
    for part in parts:
        found = [f"{file} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files_of(Path(part))]
        digest.update("".join(f"{text}\n" for text in (part, *found)).encode(errors=FILE_NAMES))
    return digest.hexdigest()


def _finished_files(output: Path, record: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """What an earlier run completed: checksums of files that have not changed since, and hashes of their sources."""
    refuse_other_data(output, record)
    if not (output / PREPARED).is_file():
        return {}, {}
    earlier = json.loads((output / PREPARED).read_text())
    there = {path: digest for path, digest in earlier["files"].items() if (output / path).is_file()}
    files = {path: digest for path, digest in there.items() if sha256_of(output / path) == digest}
    return files, earlier.get("made_from", {})


def _write_scans(
    output: Path, scans: Sequence[Scan], record: dict[str, Any], made_from: Mapping[str, str]
) -> list[str]:
    """Write scans in parallel, keeping ``prepare.json`` up to date; return what went wrong."""
    problems, last = [], time.monotonic()
    with process_pool() as pool, tqdm(total=len(scans), desc="Preparing", unit="scan", disable=not scans) as bar:
        futures = {pool.submit(_write_scan, output, scan): scan for scan in scans}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    raise error
                if error is None:
                    name = futures[future].name
                    record["files"] |= future.result()
                    record["made_from"][name] = made_from[name]
                else:
                    problems.append(f"{futures[future].name}: {_reason(error)}")
                    if getattr(error, "errno", None) == errno.ENOSPC:
                        break
                bar.update()
                if time.monotonic() - last > SECONDS_BETWEEN_RECORDS:
                    write_json(output / PREPARED, record)
                    last = time.monotonic()
        finally:
            pool.shutdown(cancel_futures=True)
            record["files"] = dict(sorted(record["files"].items()))
            write_json(output / PREPARED, record)
    return problems


def _reason(error: BaseException) -> str:
    if getattr(error, "errno", None) == errno.ENOSPC:
        return "the disk is full."
    text = str(error).strip()
    if isinstance(error, UserError):
        return " ".join(line.strip() for line in text.splitlines())
    return text.splitlines()[-1] if text else type(error).__name__


def _write_scan(output: Path, scan: Scan) -> dict[str, str]:
    """Read a scan and write its files; return their checksums."""
    try:
        sample: Mapping[str, Any] = scan.read()
    except (UserError, OSError):
        raise
    except Exception as error:  # some, such as ITK's, cannot be sent to another process, and would end them all
        places = ", ".join(part for part in scan.made_from if Path(part).exists())
        raise UserError(f"{places}: cannot be read ({plain_reason(error)}).") from None
    digests = {
        path: _write(output / path, image, False) for path, image in zip(scan.images, sample["images"], strict=True)
    }
    if scan.has_label:
        label, white = to_label(sample["label"], scan.label), 255 if scan.one_structure else None
        digests[scan.label] = _write(output / scan.label, label, True, white)
    return digests


def _write(path: Path, content: MetaTensor | Path, is_label: bool, white: int | None = None) -> str:
    with atomic_write(path) as part:
        if isinstance(content, Path):
            shutil.copyfile(content, part)
        else:
            _write_array(part, content, np.uint8 if is_label else _compact_dtype(content), white)
        return sha256_of(part)


def _write_array(path: Path, array: MetaTensor, dtype: type, white: int | None) -> None:
    writer = PILWriter(dtype, scale=white) if path.suffix == ".png" else NiftiWriter(dtype)
    writer.set_data_array(array, channel_dim=0)
    writer.set_metadata({**array.meta, "affine": array.affine}, resample=False)
    writer.write(path)


def _compact_dtype(volume: MetaTensor) -> type:
    """int16 where that loses nothing, as for CT, else float32."""
    values = volume.numpy()
    if values.size and np.abs(values).max() < 2**15 and (values == np.round(values)).all():
        return np.uint8 if values.min() >= 0 and values.max() < 2**8 else np.int16
    return np.float32
