"""The one direction that all labels of Pancreas-CT share.

Its labels and DICOM series disagree about the direction of an axis, not in every copy of the download in the same way,
and no header tells. But an organ stands out against the fat around it: of the mirrorings in plane, all scans together
choose the one under which the labels hold more soft tissue than the ring of voxels around them. Soft tissue inside
alone would not do: mirrored, the pancreas may lie in the liver.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms.utils import generate_spatial_bounding_box
from scipy.ndimage import binary_dilation
from tqdm import tqdm

from custom.data.readers import LoadLabel, LoadScan
from custom.utils.errors import UserError
from custom.utils.files import write_json

from .layouts import Files
from .pool import process_pool
from .writer import fingerprint

#: Mirrorings in plane, as axes of CHWD, and what they are called.
MIRRORINGS = {(): "as stored", (1,): "mirrored along x", (2,): "mirrored along y", (1, 2): "mirrored along x and y"}
RING = 2  # voxels
SOFT_TISSUE = (0, 250)  # HU; air and fat are below
#: By how much another mirroring of a scan must be better than that of all to contradict it, in shares of soft tissue.
CONTRADICTION = 0.1
#: By how much the best must be better than the others on average, unless they are all the same.
CLEAR = 0.02


def settle_mirroring(files: Mapping[str, Files], kept: Path) -> dict[str, Files]:
    """Choose the mirroring of all labels, print it, and refuse scans that contradict it.

    Args:
        files: scans, as :func:`tools.prepare.layouts.pancreas` finds them.
        kept: JSON file in which a repeated run finds what was measured, also where this one refuses some labels.

    Returns:
        The scans, with labels that are read onto their images' grids.

    Raises:
        UserError: names every scan that cannot be read, lies on soft tissue in no direction or in clearly another one
            than the others; or when no direction is clearly the best.
    """
    found, problems = _measure({name: scan for name, scan in files.items() if scan.label is not None}, kept)
    if problems:
        raise UserError(
            f"{len(problems)} label(s) could not be compared with their images, no scan was written:", problems
        )
    if not found:
        return dict(files)
    contrasts = np.array([scan["contrast"] for scan in found.values()])
    means = contrasts.mean(0)
    best = int(means.argmax())
    agree = int((contrasts.argmax(1) == best).sum())
    values = ", ".join(f"{how} {mean:.2f}" for how, mean in zip(MIRRORINGS.values(), means, strict=True))
    axes, how = list(MIRRORINGS.items())[best]
    print(f"Labels are taken {how}: the best direction of {agree} of {len(found)} scans (contrast {values}).")
    problems = [f"{name}: {text}" for name, scan in found.items() if (text := _contradiction(scan, best)) is not None]
    if problems:
        hint = "no scan was written; mend these labels, or take them away and give --allow_missing"
        raise UserError(f"{len(problems)} of {len(found)} labels do not fit their images {how}; {hint}:", problems)
    if any(0 < means[best] - mean < CLEAR for mean in means):
        raise UserError(f"no direction puts the labels clearly best on soft tissue (contrast {values}).")
    return {name: _onto_image(scan, found[name], axes) if name in found else scan for name, scan in files.items()}


def _measure(files: Mapping[str, Files], kept: Path) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Measure scans in parallel, but for those that were measured before; and say what went wrong."""
    before = json.loads(kept.read_text()) if kept.is_file() else {}
    now = {name: fingerprint(scan.made_from) for name, scan in files.items()}
    found = {name: scan for name, scan in before.items() if scan["made_from"] == now.get(name)}
    problems = []
    with process_pool() as pool:
        futures = {name: pool.submit(_compare, *files[name].made_from) for name in files if name not in found}
        try:
            for name, future in tqdm(futures.items(), "Comparing labels", unit="scan"):
                error = future.exception()
                if error is None:
                    found[name] = {"made_from": now[name], **future.result()}
                else:
                    problems.append(f"{name}: {error}")
        finally:
            pool.shutdown(cancel_futures=True)
            if found:
                write_json(kept, found)
    return {name: found[name] for name in files if name in found}, problems


def _compare(image_path: str, label_path: str) -> dict[str, Any]:
    """Measure the label of a scan in every direction; runs in another process."""
    image, label = LoadScan()(image_path), LoadLabel(num_classes=2)(label_path)
    if image.shape != label.shape:
        sizes = [tuple(array.shape[1:]) for array in (label, image)]
        raise UserError(f"{label_path}: shape {sizes[0]} differs from its image's {sizes[1]}.")
    if not label.any():
        raise UserError(f"{label_path}: labels nothing, so that its direction cannot be told.")
    start, stop = generate_spatial_bounding_box(label, margin=RING)
    box: tuple[int | slice, ...] = (0, *(slice(max(low, 0), high) for low, high in zip(start, stop, strict=True)))
    inside = label.numpy()[box] > 0
    ring = binary_dilation(inside, iterations=RING) & ~inside
    low, high = SOFT_TISSUE
    soft = ((image > low) & (image < high)).numpy()
    views = [np.flip(soft, axes)[box] for axes in MIRRORINGS]
    return {
        "share": [float(view[inside].mean()) for view in views],
        "contrast": [float(view[inside].mean() - (view[ring].mean() if ring.any() else 0)) for view in views],
        "affine": image.affine.tolist(),
    }


def _contradiction(scan: Mapping[str, Any], best: int) -> str | None:
    share, contrast = scan["share"], scan["contrast"]
    if max(share) < 0.5:
        return f"lies on soft tissue in no direction, at best {max(share):.0%} of it."
    own = int(np.argmax(contrast))
    if contrast[own] - contrast[best] > CONTRADICTION:
        how = list(MIRRORINGS.values())
        return f"fits {how[own]} (contrast {contrast[own]:.2f}), not {how[best]} as the others ({contrast[best]:.2f})."
    return None


def _onto_image(scan: Files, measured: Mapping[str, Any], axes: tuple[int, ...]) -> Files:
    read = partial(_read_mirrored, scan.made_from[1], axes, measured["affine"])
    return scan._replace(label=read, made_from=(*scan.made_from, f"mirrored along {axes}"))


def _read_mirrored(path: str, axes: tuple[int, ...], affine: list[list[float]]) -> MetaTensor:
    """Read a label, mirrored, with its image's affine."""
    label = LoadLabel(num_classes=2)(path)
    return MetaTensor(label.as_tensor().flip(axes), affine=torch.tensor(affine, dtype=torch.float64))
