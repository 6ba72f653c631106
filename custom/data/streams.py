"""The labeled and the unlabeled stream of a step: which samples, in which order, with which random views.

A stream is a function of the seed and the position in it. It can be entered anywhere, so a training resumes in the
middle of an epoch, and processes that train together each take their share of the same stream.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import get_track_meta, list_data_collate, set_track_meta
from monai.transforms import Randomizable
from monai.utils import ensure_tuple
from torch.utils.data import DataLoader, Dataset, Sampler

from ..utils.errors import UserError
from ..utils.names import case_name
from ..utils.randomness import derived_seed, private_generators
from .checks import reading_problem

logger = logging.getLogger(__name__)


def default_num_workers() -> int:
    """Choose how many processes draw a stream: a quarter of the cores that a training process may use, 2 to 4.

    A scheduler may lend a job fewer cores than the machine has, and the processes that ``torchrun`` starts share them.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(2, min(4, cores // (4 * int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))


class SeededIndex(NamedTuple):
    """A sample to draw, and the seed of its random views."""

    index: int  # type: ignore[assignment]  # instead of the method of tuples, which nothing calls
    seed: int


class SeededDataset(Dataset):
    """Samples drawn from volumes that are read once: whole volumes, or their slices.

    Unlike MONAI's ``PatchDataset``, a sample's random transforms follow from a seed that comes with its index.

    Args:
        volumes: dictionaries of arrays, CH[WD], such as a ``CacheDataset``, in which a volume lies as it was read.
        transform: random views of a sample.
        slice_axis: spatial axis along which a volume is cut into slices, each a sample of its own, from the first to
            the last slice of the first to the last volume; None when the volume is the sample.
    """

    def __init__(
        self,
        volumes: Sequence[Mapping[str, torch.Tensor]],
        transform: Callable[[dict[str, Any]], Any],
        slice_axis: int | None = None,
    ) -> None:
        self.volumes = volumes
        self.transform = transform
        self.slice_axis = slice_axis
        self.places = [(volume, k) for volume in range(len(volumes)) for k in range(self._depth(volume))]
        self.cases = [_name(case, number) for number, case in enumerate(getattr(volumes, "data", ()))]

    def _depth(self, volume: int) -> int:
        return 1 if self.slice_axis is None else self._volume(volume)["image"].shape[self.slice_axis + 1]

    def _volume(self, volume: int) -> Mapping[str, torch.Tensor]:
        """Read a volume, which may have vanished since it was checked."""
        try:
            return self.volumes[volume]
        except Exception as error:  # every reader fails in its own way
            cases = getattr(self.volumes, "data", ())
            files = _paths(cases[volume], "image", "label") if volume < len(cases) else []
            if not files:
                raise
            hint = "Put this right; then the same command resumes from the last checkpoint."
            raise UserError(f"{reading_problem(files, error)} {hint}") from error

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, draw: SeededIndex | int) -> Any:
        """Draw a sample; the same :class:`SeededIndex` gives the same sample in any process."""
        if not isinstance(draw, SeededIndex):
            return self._view(draw)
        if isinstance(self.transform, Randomizable):
            self.transform.set_random_state(draw.seed)
        with private_generators(draw.seed):  # for transforms that draw from the global ones
            return self._view(draw.index)

    def _view(self, index: int) -> Any:
        sample = self._sample(index)
        with _no_metadata():
            return self.transform(sample)

    def _sample(self, index: int) -> dict[str, Any]:
        volume, k = self.places[index]
        sample: dict[str, Any] = dict(self._volume(volume))
        _refuse_arrays(sample)
        if self.slice_axis is not None:
            tensors = {key: value for key, value in sample.items() if isinstance(value, torch.Tensor)}
            sample |= {key: tensor.select(self.slice_axis + 1, k) for key, tensor in tensors.items()}
        if self.cases:
            sample["case"] = self.cases[volume] + ("" if self.slice_axis is None else f", slice {k}")
        return sample


def _refuse_arrays(sample: Mapping[str, Any]) -> None:
    """Refuse what a program's own data set gives and the views cannot take."""
    kinds = {key: type(sample.get(key)) for key in ("image", "label") if key == "image" or key in sample}
    wrong = [f"{key}: {kind.__name__}" for key, kind in kinds.items() if not issubclass(kind, torch.Tensor)]
    if wrong:
        raise UserError(f"a data set must give image and label as tensors, CH[WD]; got {', '.join(wrong)}.")


def _paths(case: Mapping[str, Any], *keys: str) -> list[str]:
    """List the files of a case; none where it holds arrays."""
    files = [file for key in keys if key in case for file in ensure_tuple(case[key])]
    return [str(file) for file in files] if all(isinstance(file, str | os.PathLike) for file in files) else []


def _name(case: Mapping[str, Any], number: int) -> str:
    files = _paths(case, "image")
    return case.get("case") or (case_name(files) if files else f"sample {number}")


@contextmanager
def _no_metadata() -> Iterator[None]:
    """Let MONAI's transforms work on plain tensors, in about two thirds of the time; patches need no metadata."""
    before = get_track_meta()
    set_track_meta(False)
    try:
        yield
    finally:
        set_track_meta(before)


class ResumableSampler(Sampler[SeededIndex]):
    """Go through all samples again and again, in a new order each time.

    Unlike PyTorch's ``RandomSampler``, what it draws follows from the seed and the position, so that a training resumes
    exactly.

    Args:
        data_source: the samples.
        batch_size: samples per iteration and process.
        seed: the run's.
        stream: a number that tells one stream of the run from another.
        rank: number of this process among those that train together.
        num_ranks: how many they are. Iteration t takes ``batch_size * num_ranks`` samples, the first ``batch_size`` of
            them on rank 0, as one process with a batch that much larger would.
    """

    def __init__(
        self, data_source: Sized, batch_size: int, seed: int, stream: int, rank: int = 0, num_ranks: int = 1
    ) -> None:
        self.size = len(data_source)
        self.batch_size = batch_size
        self.seed = seed
        self.stream = stream
        self.rank = rank
        self.num_ranks = num_ranks
        self.iteration = 0

    def __len__(self) -> int:
        """Samples of this process in a pass over all of them."""
        return -(-self.size // self.num_ranks)

    def __iter__(self) -> Iterator[SeededIndex]:
        """Draw for ever, from the first sample of ``iteration`` on."""
        epoch, order = -1, np.arange(0)
        iteration = self.iteration
        while True:
            first = (iteration * self.num_ranks + self.rank) * self.batch_size
            for position in range(first, first + self.batch_size):
                if position // self.size != epoch:
                    epoch = position // self.size
                    order = np.random.default_rng((self.seed, self.stream, epoch)).permutation(self.size)
                index = int(order[position % self.size])
                yield SeededIndex(index, derived_seed(self.seed, self.stream, 1, position))
            iteration += 1


class StreamLoader(DataLoader):
    """Draw one stream in batches, for ever.

    Unlike MONAI's ``DataLoader``, it brings its :class:`ResumableSampler`, and processes that live as long as itself
    and outlive a SIGTERM that is meant for the training.

    Args:
        dataset: the samples.
        batch_size: samples per iteration and process.
        seed: the run's.
        stream: a number that tells one stream of the run from another.
        rank: number of this process among those that train together.
        num_ranks: how many they are.
        num_workers: processes that draw samples; 0 draws in this one.
        kwargs: further arguments of PyTorch's ``DataLoader``, such as ``pin_memory``.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        batch_size: int,
        seed: int,
        stream: int,
        rank: int = 0,
        num_ranks: int = 1,
        num_workers: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            dataset,
            batch_size,
            sampler=ResumableSampler(dataset, batch_size, seed, stream, rank, num_ranks),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            collate_fn=list_data_collate,
            worker_init_fn=start_worker,
            **kwargs,
        )


class TwoStreamLoader:
    """Draw from a labeled and an unlabeled loader side by side, for ever.

    Args:
        labeled: yields dictionaries with ``image`` and ``label``.
        unlabeled: yields dictionaries with ``image``, ``strong_1`` and ``strong_2``; None to train supervised.

    ``iteration`` counts the batches that were drawn. Set it before the loader is iterated to enter the streams there;
    loaders whose sampler is a :class:`ResumableSampler` follow.
    """

    def __init__(self, labeled: DataLoader, unlabeled: DataLoader | None = None) -> None:
        self.loaders = {"labeled": labeled}
        self.iteration = 0
        if unlabeled is None:
            logger.warning("The unlabeled list is empty: training is supervised, on the labeled cases alone.")
        else:
            self.loaders["unlabeled"] = unlabeled
            if getattr(unlabeled, "batch_size", None) == 1:
                logger.warning(
                    "unlabeled_batch_size is 1: CutMix finds no partner patch and does nothing; use 2 or more."
                )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for loader in self.loaders.values():
            sampler = getattr(loader, "sampler", None)
            if isinstance(sampler, ResumableSampler):
                sampler.iteration = self.iteration
        for batches in zip(*self.loaders.values(), strict=False):
            self.iteration += 1
            yield dict(zip(self.loaders, batches, strict=True))


def start_worker(_: int) -> None:
    """Prepare a worker process of a loader.

    A cluster that is about to stop a job may send SIGTERM to each of its processes, and a terminal sends Ctrl-C to each
    of them. The main one then writes a checkpoint, and needs its workers until it has, so they obey SIGTERM only when
    the main process sends it, and leave Ctrl-C to that.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    # Not os.getppid(), which is a fork server's where workers are started by one.
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)
