"""Numbers that mean nothing are refused before anything is done."""

import re

import pytest

from custom.utils.errors import UserError
from tools.demo import demo
from tools.package import package
from tools.plan.command import plan
from tools.prepare import commands


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        (plan, {"data": "{out}", "memory_gb": -1.0}, "--memory_gb must be more than 0, got -1"),
        (plan, {"data": "{out}", "memory_gb": 0.0}, "--memory_gb must be more than 0, got 0"),
        (commands.own, {"images": "{in}", "output": "{out}", "memory_gb": -2.5}, "--memory_gb must be more than 0"),
        (commands.isic, {"source": "{in}", "output": "{out}", "seed": -1}, "--seed must be at least 0, got -1"),
        (commands.demo, {"output": "{out}", "training": 0}, "--training must be at least 1, got 0"),
        (commands.demo, {"output": "{out}", "unlabeled": -3}, "--unlabeled must be at least 0, got -3"),
        (package, {"bundle": "{in}", "output": "{out}", "limit_mb": 0.0}, "--limit_mb must be more than 0, got 0"),
        (demo, {"output": "{out}", "seeds": [-1]}, "'seeds' must be a list of whole numbers from 0 to"),
        (demo, {"output": "{out}", "seeds": []}, "'seeds' must be a list of whole numbers from 0 to"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(command, options, message, tmp_path):
    (tmp_path / "in").mkdir()
    places = {"in": str(tmp_path / "in"), "out": str(tmp_path / "out")}
    given = {key: value.format(**places) if isinstance(value, str) else value for key, value in options.items()}
    with pytest.raises(UserError, match=re.escape(message)):
        command(**given)
    assert not (tmp_path / "out").exists()
