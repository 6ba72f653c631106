"""Run the fast tests in every supported Python that is here: ``make matrix``, or ``python tests/matrix.py 3.12 3.13``.

Installs the pinned packages into an environment for each in ``.matrix/``, which takes minutes and gigabytes, and prints
the table that stands in CONTRIBUTING.md. Needs nothing but Python itself.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: Those that every pinned package has wheels for.
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")


def main(wanted: list[str]) -> int:
    """Test the wanted versions, all by default; the exit code is 1 when one of them fails."""
    found = {version: path for version, path in interpreters() if version in (wanted or SUPPORTED)}
    lines, failed = ["| Python | fast tests |", "|---|---|"], False
    for version in wanted or SUPPORTED:
        passed, result = test(version, found[version]) if version in found else (True, "not here")
        failed = failed or not passed
        lines.append(f"| {result} |" if version in found else f"| {version} | {result} |")
    print("\n" + "\n".join(lines))
    return int(failed)


def interpreters() -> Iterator[tuple[str, str]]:
    """Find a working interpreter of each version: on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in SUPPORTED:
        candidates = [shutil.which(f"python{version}"), *sorted(pyenv.glob(f"versions/{version}.*/bin/python"))]
        for candidate in filter(None, candidates):
            command = [str(candidate), "-c", "import ensurepip, sys; print('%d.%d' % sys.version_info[:2])"]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode == 0 and answer.stdout.strip() == version:
                yield version, str(candidate)
                break


def test(version: str, interpreter: str) -> tuple[bool, str]:
    """Install into an environment of its own and run the fast tests; say whether they passed, in a row of the table."""
    folder = ROOT / ".matrix" / version
    python = folder / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet"]
    print(f"Python {version}: {interpreter}", flush=True)
    for command in (
        [interpreter, "-m", "venv", folder],
        [*install, "-r", ROOT / "requirements-dev.txt"],
        [*install, "--no-deps", "--editable", ROOT],
    ):
        if subprocess.run([str(part) for part in command], check=False).returncode:
            return False, f"{version} | the installation failed"
    full = subprocess.run([str(python), "-c", "import platform; print(platform.python_version())"], capture_output=True)
    tests = [str(python), "-m", "pytest", "--numprocesses", "auto", "--dist", "worksteal", "-m", "not slow"]
    done = subprocess.run(tests, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-2000:], done.stderr[-2000:], flush=True)
    counts = re.findall(r"\d+ (?:passed|failed|skipped|errors?)", done.stdout)
    return done.returncode == 0, f"{full.stdout.decode().strip()} | {', '.join(counts) or 'the tests did not start'}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
