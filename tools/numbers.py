"""Refuse numbers of our commands that mean nothing, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping

from custom.utils.errors import UserError
from custom.utils.settings import shown


def refuse_below(least: int, **numbers: int) -> None:
    """Refuse numbers that are too small.

    Args:
        least: of each.
        numbers: by the flag that gives them.

    Raises:
        UserError: names them.
    """
    _refuse({flag: f"at least {least}" for flag, number in numbers.items() if number < least}, numbers)


def refuse_not_positive(**numbers: float | None) -> None:
    """Refuse numbers that are 0 or less; None stands for a default.

    Raises:
        UserError: names them.
    """
    _refuse({flag: "more than 0" for flag, number in numbers.items() if number is not None and number <= 0}, numbers)


def _refuse(wanted: Mapping[str, str], found: Mapping[str, float | None]) -> None:
    problems = [f"--{flag} must be {words}, got {shown(found[flag])}" for flag, words in wanted.items()]
    if problems:
        raise UserError(f"{'; '.join(problems)}. Nothing was done.")
