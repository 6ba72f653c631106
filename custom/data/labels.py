"""The one gate through which every label passes, read or written."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor

from ..utils.errors import UserError
from ..utils.names import first_names

#: How far from a whole number a value may be, as left by a slope in the header or by a round trip through floats.
TOLERANCE = 1e-3
#: What pictures mark a single structure with besides 1.
WHITE = 255


def to_label(label: MetaTensor, name: str, num_classes: int | None = None) -> MetaTensor:
    """Make whole numbers of a label's values, and one channel of several that are equal.

    Args:
        label: CH[WD], float.
        name: file or case, for messages.
        num_classes: values must lie in 0 .. num_classes - 1; with 2, the structure may also be marked with 255. None
            when it is not known: what fits into uint8 passes.

    Returns:
        1H[WD].

    Raises:
        UserError: when channels differ, or a value is not finite, further than :data:`TOLERANCE` from a whole number,
            or no class.
    """
    if label.shape[0] > 1 and not bool((label == label[:1]).all()):
        hint = "save one channel with 0 for background and 1, 2, ... for structures"
        raise UserError(f"{name}: {label.shape[0]} channels that differ, such as those of a color mask; {hint}.")
    first: Any = label[:1]  # still a MetaTensor, which PyTorch's annotations do not tell
    whole = first.round()
    top = 255 if num_classes is None else num_classes - 1
    good = ((first - whole).abs() <= TOLERANCE) & (whole >= 0)  # False for NaN
    if num_classes == 2 and bool((good & ((whole == 0) | (whole == WHITE))).all()):
        whole = whole / WHITE
    good &= whole <= top
    if not bool(good.all()):
        found = torch.unique(first[~good].as_tensor()).tolist()
        texts = [*dict.fromkeys(f"{value:.7g}" for value in found)]  # each NaN is a value of its own
        shown = first_names(texts, 5)
        hint = _hint(name, found, num_classes)
        raise UserError(f"{name}: labels must be whole numbers from 0 to {top}, found {shown}; {hint}.")
    return whole


def _hint(name: str, found: Sequence[float], num_classes: int | None) -> str:
    """Say what a file with such values may be, and what to do."""
    if name.lower().endswith((".jpg", ".jpeg")):
        return "JPG changes values, save masks as PNG"
    whole = all(math.isfinite(value) and abs(value - round(value)) <= TOLERANCE for value in found)
    if whole and all(0 < value <= WHITE for value in found):
        hint = "every structure needs a name (--classes, class_names)"
        return "a single one may be marked 255 throughout; " + hint if num_classes == 2 else hint
    if whole:
        return "renumber structures to 1, 2, ..., and make 0 of what is to be ignored; or it is an image, not a label"
    if all(0 < value < 1 for value in found):
        return "it looks like a probability map, save it as 0 and 1 instead"
    return "it looks like an image, or a label map that was interpolated; give the label map itself"
