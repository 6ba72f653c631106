"""Keep what the checks have found, so that the next start need not read files that are as they were."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from .. import __version__
from ..utils.distributed import is_first
from ..utils.files import read_json, write_json
from .states import name_of

CHECKS_FILE = "checks.json"
#: Of the checks; raise it when they find something else in the same file. So does another version of the package.
VERSION = f"{__version__}, checks 6"


class KeptFindings:
    """What was found in the cases without problems, by the names, sizes and times of their files.

    A case that had problems is read again at each start: what was wrong may have been the disk, or the network to it.

    Args:
        folder: where ``checks.json`` is, or will be; None keeps nothing.
        rule: whatever the cases were checked for; findings of other rules are kept beside it.
    """

    def __init__(self, folder: str | Path | None, rule: object) -> None:
        self.path = None if folder is None else Path(folder) / CHECKS_FILE
        self.rule = repr(rule)
        self.changed = False
        self.is_there = self.path is not None and self.path.is_file()
        self.content = {} if self.path is None else _read(self.path)
        self.findings = self.content.setdefault(self.rule, {})
        if not isinstance(self.findings, dict):
            self.findings = self.content[self.rule] = {}

    def get(self, case: Mapping[str, Any], state: str) -> dict[str, Any] | None:
        """Give what was found in a case, if its files are in the same state, see :mod:`custom.data.states`."""
        found = self.findings.get(name_of(case))
        return found["found"] if isinstance(found, dict) and found.get("files") == state and "found" in found else None

    def has(self, case: Mapping[str, Any]) -> bool:
        """Say whether a case was checked, in whatever state its files were."""
        return name_of(case) in self.findings

    def put(self, case: Mapping[str, Any], state: str, found: Mapping[str, Any]) -> None:
        """Remember what was found in a case; ``state`` is that of its files before they were read."""
        self.findings[name_of(case)] = {"files": state, "found": dict(found)}
        self.changed = True

    def write(self) -> None:
        """Write the file, in one of several processes; where that cannot be, the next start checks everything again."""
        if self.path is not None and self.changed and is_first():
            with suppress(OSError):
                write_json(self.path, {"version": VERSION, "findings": self.content}, indent=None)


def _read(path: Path) -> dict[str, Any]:
    """Read the findings of this version; none from a file that is damaged, cannot be read, or of another version."""
    try:
        content = read_json(path)
        return content["findings"] if content["version"] == VERSION and isinstance(content["findings"], dict) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
