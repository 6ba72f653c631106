"""How large a network, a patch and a batch may be, and at which spacing a patch sees enough."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .facts import DataFacts

__all__ = ["SLICES", "VOLUMES", "Geometry", "Size", "geometry", "is_stack", "sizes"]

#: Patches are multiples of this: four down-samplings by two (:mod:`custom.networks`).
DIVISOR = 16
#: An axis this many times as coarse as another makes a stack of slices, to be segmented one by one in 2D.
STACK_RATIO = 3.0
#: A patch should see this many times the extent of a structure, where the scan reaches as far, and of that box at least
#: half, as the published patches of the left atrium do.
CONTEXT = 1.5
COVERAGE = 0.5
#: A structure coarser than this many voxels across is lost.
FEWEST_VOXELS = 6
#: Peak memory of a training step in bytes, by voxel of its patches and by filter, in 16 and in 32 bits
#: (docs/performance.md: 1.33 GB and 2.76 GB for 4 patches of 64x64x48 with 16 filters).
BYTES = {16: 135, 32: 300}


class Size(NamedTuple):
    """What a step computes, and how many of them it takes to be worth it.

    Args:
        voxels: of a patch; of a slice or photograph, pixels along its longer side.
        filters: ``base_filters``.
        batch: labeled patches, and as many unlabeled ones.
        enough: iterations below which a smaller size gives more.
    """

    voxels: int
    filters: int
    batch: int
    enough: int


#: From the published protocols down to what a laptop's CPU does in minutes; 64x64x48 and 128 are `overnight.yaml`'s.
VOLUMES = (
    Size(112 * 112 * 80, 16, 2, 6000),
    Size(96 * 96 * 64, 16, 2, 5000),
    Size(80 * 80 * 64, 16, 2, 4000),
    Size(64 * 64 * 48, 16, 2, 2000),
    Size(64 * 64 * 32, 16, 2, 1500),
    Size(64 * 64 * 32, 8, 2, 800),
    Size(48 * 48 * 32, 8, 2, 0),
)
SLICES = (
    Size(256, 16, 12, 10000),
    Size(192, 16, 12, 6000),
    Size(128, 16, 8, 2500),
    Size(96, 16, 8, 2000),
    Size(96, 8, 8, 1500),
    Size(64, 8, 8, 0),
)


class Geometry(NamedTuple):
    """Grid and patch of a training; ``spacing`` is None where slices or photographs are resized to the patch."""

    patch_size: list[int]
    spacing: list[float] | None


def is_stack(facts: DataFacts) -> bool:
    """Say whether scans are thick slices stacked along the third axis of their files."""
    thick = facts.spacing[2:] >= STACK_RATIO * facts.spacing[:2].max() if len(facts.spacing) == 3 else [False]
    return facts.kind != "CT" and bool(np.all(thick)) and all(scan.stored_axes[2] == 2 for scan in facts.scans)


def sizes(facts: DataFacts, memory_gb: float, bits: int) -> list[Size]:
    """List what fits into the memory and is not larger than the images, the largest first."""
    flat = len(facts.spacing) == 2 or is_stack(facts)
    known = SLICES if flat else VOLUMES
    side = DIVISOR * math.ceil(float(facts.shape[:2].max()) / DIVISOR)
    fitting = [size for size in known if work(size, flat) * BYTES[bits] <= memory_gb * 1e9]
    return [size for size in fitting if not flat or size.voxels <= side] or [known[-1]]


def work(size: Size, flat: bool) -> float:
    """Voxels of a step's patches times filters, to which memory and, nearly, time are proportional."""
    return (size.voxels**2 if flat else size.voxels) * size.filters * 2 * size.batch


def geometry(facts: DataFacts, size: Size) -> Geometry:
    """Fit a patch to the data: slices and photographs are resized to it, volumes are resampled so that it covers."""
    if len(facts.spacing) == 2 or is_stack(facts):
        return Geometry([size.voxels] * 2, None)
    reach = np.minimum(facts.shape * facts.spacing, CONTEXT * facts.extent)  # mm
    reach[:2] = math.sqrt(reach[0] * reach[1])  # quarter turns of the weak view swap the two
    coarsest = facts.smallest / FEWEST_VOXELS
    spacing = facts.spacing.copy()
    while np.prod(reach / spacing) * COVERAGE > size.voxels:
        finest = (spacing <= 1.5 * spacing.min()) & (spacing * 1.01 <= np.maximum(coarsest, facts.spacing))
        if not finest.any():
            break
        spacing[finest] *= 1.01
    return Geometry(_patch(reach / spacing, size.voxels), [float(f"{step:.3g}") for step in spacing])


def _patch(reach: np.ndarray, voxels: int) -> list[int]:
    """Shrink a box, in voxels, until it holds no more than it may; what loses least gives way."""
    patch = np.maximum(DIVISOR, DIVISOR * np.ceil(reach / DIVISOR)).astype(int)
    while patch.prod() > voxels and (patch > DIVISOR).any():
        in_plane, through = np.where(patch > DIVISOR, (patch - DIVISOR) / reach, 0)[1:]
        patch[slice(0, 2) if in_plane >= through else slice(2, 3)] -= DIVISOR
    return patch.tolist()
