"""The one gate through which every label passes, read or written."""

from __future__ import annotations

from monai.data import MetaTensor

from .errors import UserError

__all__ = ["to_label"]

#: How far from a whole number a value may be, as left by a slope in the header or by a round trip through floats.
TOLERANCE = 1e-3


def to_label(label: MetaTensor, name: str) -> MetaTensor:
    """Make whole numbers of a label's values.

    Args:
        label: 1H[WD].
        name: file or case, for messages.

    Raises:
        UserError: when a value is further than :data:`TOLERANCE` from a whole number.
    """
    whole = label.round()
    if bool(((label - whole).abs() > TOLERANCE).any()):
        value = float(label[(label - whole).abs() > TOLERANCE].flatten()[0])
        raise UserError(f"{name}: labels must be whole numbers, found {value:g}.")
    return whole
