"""Random numbers that depend on where a training is, and on nothing that happened before.

Every random decision is drawn from a generator seeded with the run's seed and a place: the number of an iteration, the
position of a sample in its stream. So a run that was cut off goes on as if it had not been, with any number of worker
processes, and nothing random has to be kept in a checkpoint.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(seed: int, *place: int) -> int:
    """Mix a run's seed with the numbers of a place into a seed of 32 bits.

    Args:
        seed: the run's, not negative.
        place: whole numbers, not negative; any change gives an unrelated seed.
    """
    return int(np.random.SeedSequence((seed, *place)).generate_state(1)[0])


@contextmanager
def private_generators(seed: int) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and PyTorch's CPU for a while, then put them back as they were."""
    python, numpy_, torch_ = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_)
        torch.set_rng_state(torch_)
