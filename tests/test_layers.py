"""Who may import whom, so that the parts stay readable one by one."""

import ast
import re

import pytest
from conftest import ROOT

#: Floors of ``custom``, the lowest first; a module imports from its own folder and from lower floors only.
FLOORS = (
    ("utils",),
    ("perturbations", "metrics"),
    ("networks", "losses", "data", "report"),
    ("trainer", "inference", "predictions", "handlers"),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
MODULES = sorted((ROOT / "custom").rglob("*.py"))


def imported(path):
    """Dotted names that a module imports, also within functions."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_from_lower_floors_only(path):
    room = path.relative_to(ROOT / "custom").with_suffix("").parts[0]
    for name in imported(path):
        parts = name.split(".")
        assert parts[0] not in ("tools", "benchmarks", "tests"), name
        if parts[0] == "custom" and parts[1] in LEVEL and room in LEVEL and parts[1] != room:
            assert LEVEL[parts[1]] < LEVEL[room], f"{room} imports {name}"


def test_no_text_in_custom_names_the_tools():
    assert [path for path in MODULES if re.search(r"\btools\.", path.read_text())] == []


def test_custom_is_what_a_newcomer_can_take_in():
    names = {path.stem for path in (ROOT / "custom").iterdir()} - {"__init__", "__pycache__"}
    assert names == set(LEVEL)
