"""How large a network, a patch and a batch may be, and at which spacing a patch sees enough."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .facts import DataFacts

#: Patches are multiples of this: four down-samplings by two (:mod:`custom.networks`).
DIVISOR = 16
#: An axis this many times as coarse as another makes a stack of slices, to be segmented one by one in 2D.
STACK_RATIO = 3.0
#: So does an axis with no more voxels than this, less than half of the smallest patch.
FEWEST_SLICES = 7
#: A patch should see this many times the extent of a structure, where the scan reaches as far, and of that box at least
#: half, as the published patches of the left atrium do.
CONTEXT = 1.5
COVERAGE = 0.5
#: Scans are not resampled to a grid that is hardly coarser than their own.
CLOSE = 1.1
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


#: From the published protocols down to what a laptop's CPU does in minutes; 64x64x48 is `overnight.yaml`'s.
VOLUMES = (
    Size(112 * 112 * 80, 16, 2, 6000),
    Size(96 * 96 * 64, 16, 2, 5000),
    Size(80 * 80 * 64, 16, 2, 4000),
    Size(64 * 64 * 48, 16, 2, 2000),
    Size(64 * 64 * 32, 16, 2, 1500),
    Size(64 * 64 * 32, 8, 2, 1200),  # 1000 give less than 1400 of 48x48x32 in the same time (docs/results.md)
    Size(48 * 48 * 32, 8, 2, 0),
)
SLICES = (
    Size(256, 16, 12, 10000),
    Size(192, 16, 12, 6000),
    Size(160, 16, 8, 3000),  # the short axis's `overnight.yaml`
    Size(128, 16, 8, 2500),
    Size(96, 16, 8, 1200),  # 1400 give more than 3500 with 8 filters in the same time (docs/results.md)
    Size(96, 8, 8, 1500),
    Size(64, 8, 8, 0),
)


class Geometry(NamedTuple):
    """Grid and patch of a training; ``spacing`` is None where slices or photographs are resized to the patch."""

    patch_size: list[int]
    spacing: list[float] | None


def is_stack(facts: DataFacts) -> bool:
    """Say whether scans are thick, or very few, slices stacked along the third axis of their files."""
    if facts.kind == "CT" or len(facts.spacing) != 3 or any(scan.stored_axes[2] != 2 for scan in facts.scans):
        return False
    return bool(facts.spacing[2] >= STACK_RATIO * facts.spacing[:2].max() or facts.shape[2] <= FEWEST_SLICES)


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
    scan = _equal_in_plane(facts.shape * facts.spacing)  # mm
    reach = np.minimum(scan, _equal_in_plane(CONTEXT * facts.extent))
    coarsest = facts.smallest / FEWEST_VOXELS
    spacing = facts.spacing.copy()
    while np.prod(reach / spacing) * COVERAGE > size.voxels:
        finest = (spacing <= 1.5 * spacing.min()) & (spacing * 1.01 <= np.maximum(coarsest, facts.spacing))
        if not finest.any():
            break
        spacing[finest] *= 1.01
    if (spacing <= CLOSE * facts.spacing).all():
        spacing = facts.spacing
    return Geometry(_patch(reach / spacing, scan / spacing, size.voxels), [float(f"{step:.3g}") for step in spacing])


def _equal_in_plane(box: np.ndarray) -> np.ndarray:
    """Take the geometric mean of the first two sides, which quarter turns of the weak view swap."""
    side = math.sqrt(box[0] * box[1])
    return np.asarray([side, side, box[2]])


def _patch(reach: np.ndarray, most: np.ndarray, voxels: int) -> list[int]:
    """Shrink a box, in voxels, until it holds no more than it may, then let it grow where there is room.

    What loses or gains least, against the box, goes first.
    """
    patch, largest = (np.maximum(DIVISOR, DIVISOR * np.ceil(box / DIVISOR)).astype(int) for box in (reach, most))
    while patch.prod() > voxels and (patch > DIVISOR).any():
        patch = max(_neighbours(patch, -DIVISOR), key=lambda smaller: (smaller / reach)[smaller != patch].min())
    while True:
        larger = [p for p in _neighbours(patch, DIVISOR) if p.prod() <= voxels and (p <= largest).all()]
        if not larger:
            return patch.tolist()
        patch = min(larger, key=lambda p: (p / reach)[p != patch].max())


def _neighbours(patch: np.ndarray, step: int) -> list[np.ndarray]:
    """Change a patch in plane, or through the slices, as far as it stays one."""
    changed = [patch + np.asarray(axes) * step for axes in ((1, 1, 0), (0, 0, 1))]
    return [box for box in changed if (box >= DIVISOR).all()]
