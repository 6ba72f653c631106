"""Share scans out over processes, on one machine or many."""

import re
from collections.abc import Sequence
from pathlib import Path

from monai.utils import ensure_tuple

from ..utils.errors import UserError
from .checks import Case
from .states import files_of


def share_out(cases: Sequence[Case], shard: str | None = None, rank: int = 0, num_ranks: int = 1) -> list[Case]:
    """Take this process's share of the scans, the same at each start.

    They are dealt in turn, the largest first, so that no process is left with the largest at the end.

    Args:
        cases: all scans, the same in all processes.
        shard: such as ``2/8``, the second of eight parts, for jobs that know nothing of each other; None for all.
        rank: number of this process among those that share the part, from 0.
        num_ranks: how many those are.

    Returns:
        The share; all scans in their order where there is one process.

    Raises:
        UserError: when ``shard`` is not as above.
    """
    match = re.fullmatch(r"\s*(\d+)\s*/\s*(\d+)\s*", "1/1" if shard is None else shard)
    number, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= count:
        raise UserError(f"--shard must be such as 2/8, for the second of eight parts; got {shard}.")
    if count * num_ranks == 1:
        return list(cases)
    parts = [[part for file in ensure_tuple(case["image"]) for part in files_of(Path(file))] for case in cases]
    sizes = [sum(part.stat().st_size for part in found) for found in parts]
    order = sorted(range(len(cases)), key=lambda index: -sizes[index])
    return [cases[index] for index in order[(number - 1) * num_ranks + rank :: count * num_ranks]]
