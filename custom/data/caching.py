"""Keep what was read, in memory or on disk."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import monai
from monai.data import CacheDataset, PersistentDataset
from monai.data.utils import pickle_hashing
from torch.utils.data import Dataset

from ..utils.errors import UserError
from .checks import Case
from .states import state_of


def cached_dataset(
    data: Sequence[Case],
    transform: Callable[[Case], Any],
    cache: str = "memory",
    cache_rate: float = 1.0,
    cache_dir: str | None = None,
) -> Dataset:
    """Keep what a deterministic transform makes of the cases.

    Args:
        data: cases of a data list.
        transform: reads a case.
        cache: ``memory``; ``disk``, for data that do not fit there, which also serves later runs; or ``none``. On disk
            are plain tensors, without metadata, which are loaded without unpickling; what was made from files that
            have changed since is made again, and the old removed.
        cache_rate: share of the cases that is kept in memory.
        cache_dir: folder for ``disk``, created when missing.

    Raises:
        UserError: for any other ``cache``.
    """
    if cache == "memory":
        return CacheDataset(data, transform, cache_rate=cache_rate, num_workers=None, progress=False)
    if cache == "disk":
        # By default MONAI's keys are the paths alone: it would serve what other files or other settings have made.
        made_from = {pickle_hashing(case): state_of(case) for case in data}
        keys: dict[str, Any] = {"hash_func": partial(_cache_key, made_from), "hash_transform": pickle_hashing}
        dataset = PersistentDataset(data, transform, cache_dir=cache_dir, track_meta=False, weights_only=True, **keys)
        for path in dataset.cache_dir.glob("*-*.pt") if dataset.cache_dir else ():
            case, _, rest = path.name.partition("-")
            if not rest.startswith(made_from.get(case.encode(), "")):
                path.unlink(missing_ok=True)
        return dataset
    if cache == "none":
        return monai.data.Dataset(data, transform)
    raise UserError(f"--cache must be memory, disk or none, got {cache}.")


def _cache_key(made_from: Mapping[bytes, str], case: Case) -> bytes:
    name = pickle_hashing(case)
    return name + b"-" + made_from[name].encode()
