"""A label's values are classes, or it is refused."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.data.labels import to_label
from custom.utils.errors import UserError


def _label(*values: float, channels: int = 1) -> MetaTensor:
    return MetaTensor(torch.tensor([values] * channels, dtype=torch.float32)[..., None])


def _values(label: MetaTensor) -> list[float]:
    return label.as_tensor().flatten().tolist()


def test_values_within_a_thousandth_are_rounded():
    assert _values(to_label(_label(2.9999997, 1.0009, 0.9991, -0.0005), "a", 4)) == [3, 1, 1, 0]


@pytest.mark.parametrize("value", [0.5, 2.002, -1, 4, 255, 65535, np.nan, np.inf])
def test_any_other_value_is_refused_with_file_and_value(value):
    with pytest.raises(UserError, match=rf"a.nii.gz: labels must be whole numbers from 0 to 3, found {value:.7g};"):
        to_label(_label(0, 1, value), "a.nii.gz", 4)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ([2], "every structure needs a name"),
        ([7, 200], "every structure needs a name"),
        ([0.37, 0.9], "it looks like a probability map, save it as 0 and 1 instead"),
        (
            [13245],
            "renumber structures to 1, 2, ..., and make 0 of what is to be ignored; or it is an image, not a label",
        ),
        ([-1], "make 0 of what is to be ignored"),
        ([7.5], "it looks like an image, or a label map that was interpolated; give the label map itself"),
        ([-1000, 40, 3.5], "it looks like an image"),
        ([np.nan], "it looks like an image"),
    ],
)
def test_names_are_asked_for_only_where_values_may_be_structures(values, hint):
    with pytest.raises(UserError, match=hint) as raised:
        to_label(_label(0, 1, *values), "a", 2)
    assert ("--classes" in str(raised.value)) == hint.startswith("every")


def test_what_does_not_fit_into_eight_bits_is_refused_where_the_classes_are_not_known():
    assert _values(to_label(_label(0, 7, 255), "a")) == [0, 7, 255]
    with pytest.raises(UserError, match="from 0 to 255, found 256"):
        to_label(_label(0, 256), "a")


@pytest.mark.parametrize("white", [1, 255, 254.9995])
def test_a_single_structure_may_be_white(white):
    assert _values(to_label(_label(0, white), "a", 2)) == [0, 1]
    assert _values(to_label(_label(white, white), "a", 2)) == [1, 1]


def test_white_beside_other_values_is_refused():
    with pytest.raises(UserError, match="found 255"):
        to_label(_label(0, 1, 255), "a", 2)


def test_a_mask_that_jpg_has_changed_is_called_that():
    with pytest.raises(UserError, match=r"a.jpg: .* found 3, 252, 255; JPG changes values, save masks as PNG"):
        to_label(_label(0, 3, 252, 255), "a.jpg", 2)


def test_equal_channels_are_one():
    assert to_label(_label(0, 255, channels=3), "a", 2).shape == (1, 2, 1)


def test_channels_that_differ_are_refused():
    label = _label(0, 1, channels=3)
    label[2] = 0
    with pytest.raises(UserError, match="3 channels that differ, such as those of a color mask; save one channel"):
        to_label(label, "a", 2)
