"""Photographs and masks are read as viewers show them, whatever the file's kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from PIL import Image

from custom.data.checks import CaseRule, check_cases, image_problems
from custom.data.labels import to_label
from custom.data.photos import is_colored
from custom.data.readers import LoadLabel, LoadScan, LoadScand
from custom.utils.errors import UserError
from tools.synthetic import make_photo

PHOTO, MOLE = make_photo(np.random.default_rng(0), (18, 25))
GREY = PHOTO[..., 0]
ORIENTATION = 0x0112
#: What a camera does to the picture for each value of EXIF's orientation.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _save(image: Image.Image, path: Path, orientation: int = 1) -> str:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turned = image if STORED[orientation] is None else image.transpose(STORED[orientation])
    turned.save(path, exif=exif)
    return str(path)


def _read(path: str, **settings) -> np.ndarray:
    """HW or HWC, as a viewer has it."""
    array = LoadScan(**settings)(path).numpy().transpose(2, 1, 0)
    return array[..., 0] if array.shape[-1] == 1 else array


@pytest.mark.parametrize("orientation", STORED)
def test_photograph_and_mask_are_turned_as_exif_says(orientation, tmp_path):
    image = _save(Image.fromarray(PHOTO), tmp_path / "a.png", orientation)
    label = _save(Image.fromarray(MOLE * 255), tmp_path / "a_mask.png", orientation)
    np.testing.assert_array_equal(_read(image), PHOTO)
    sample = LoadScand(["image", "label"], num_classes=2)({"image": image, "label": label})
    np.testing.assert_array_equal(sample["label"][0].numpy().T, MOLE)
    assert sample["image"].shape[1:] == sample["label"].shape[1:]


@pytest.mark.parametrize(
    ("kind", "name", "expected"),
    [
        (lambda: Image.fromarray(GREY), "a.png", GREY),
        (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), "a.png", GREY),
        (lambda: Image.fromarray(GREY.astype(np.uint16) * 257), "a.tif", GREY),
        (lambda: Image.fromarray(MOLE > 0), "a.png", MOLE * 255),
        (lambda: Image.fromarray(GREY).convert("LA"), "a.png", GREY),
        (lambda: Image.fromarray(PHOTO), "a.bmp", PHOTO),
        (lambda: Image.fromarray(PHOTO), "a.tiff", PHOTO),
        (lambda: Image.fromarray(PHOTO).convert("RGBA"), "a.png", PHOTO),
        (lambda: Image.fromarray(PHOTO).quantize(256), "a.png", Image.fromarray(PHOTO).quantize(256).convert("RGB")),
    ],
    ids=["grey", "16 bits", "16 bits, TIFF", "1 bit", "grey, alpha", "BMP", "TIFF", "RGBA", "palette"],
)
def test_every_kind_of_file_has_one_scale_and_its_own_channels(kind, name, expected, tmp_path):
    path = _save(kind(), tmp_path / name)
    np.testing.assert_allclose(_read(path), np.asarray(expected), atol=1e-4)
    assert is_colored(Path(path)) == (np.ndim(expected) == 3)


def test_a_jpeg_for_print_is_read_as_its_colors(tmp_path):
    smooth = Image.new("RGB", (24, 16), (200, 60, 30))
    path = tmp_path / "a.jpg"
    smooth.convert("CMYK").save(path, quality=95)
    np.testing.assert_allclose(_read(str(path)), np.asarray(smooth), atol=6)


def test_channels_are_given_where_that_loses_nothing(tmp_path):
    grey, color = (_save(Image.fromarray(a), tmp_path / n) for a, n in ((GREY, "g.png"), (PHOTO, "c.png")))
    equal = _save(Image.fromarray(GREY).convert("RGB"), tmp_path / "e.png")
    np.testing.assert_array_equal(_read(grey, in_channels=3), np.stack([GREY] * 3, -1))
    np.testing.assert_array_equal(_read(equal, in_channels=1), GREY)
    assert LoadScan(in_channels=1)(color).shape[0] == 3
    rule = CaseRule(in_channels=1, num_classes=2, dimensions=2)
    problems = check_cases([{"image": color}], rule)[0].problems
    assert "expected 1 channel(s), found 3" in problems[0]
    assert "it has colors" in problems[0]


@pytest.mark.parametrize("kind", ["L", "RGB", "RGBA", "LA", "1", "P", "palette", "white first", "16 bits"])
def test_every_kind_of_mask_marks_the_same_structure(kind, tmp_path):
    mask = Image.fromarray(MOLE * 255)
    if kind in ("palette", "white first"):
        mask = Image.fromarray(MOLE if kind == "palette" else 1 - MOLE, "P")
        mask.putpalette([0, 0, 0, 255, 0, 0] if kind == "palette" else [255, 255, 255, 0, 0, 0])
    elif kind == "16 bits":
        mask = Image.fromarray(MOLE.astype(np.uint16) * 65535)
    else:
        mask = mask.convert(kind)
    mask.save(tmp_path / "m.png")
    np.testing.assert_array_equal(LoadLabel(2)(str(tmp_path / "m.png"))[0].numpy().T, MOLE)


def test_indices_of_a_palette_are_classes(tmp_path):
    classes = MOLE.copy()
    classes[0, 0] = 2
    mask = Image.fromarray(classes, "P")
    mask.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
    mask.save(tmp_path / "m.png")
    np.testing.assert_array_equal(LoadLabel(3)(str(tmp_path / "m.png"))[0].numpy().T, classes)


def _colored() -> Image.Image:
    return Image.fromarray(np.stack([MOLE * 255, MOLE * 0, MOLE * 0], -1))


def _transparent() -> Image.Image:
    mask = Image.new("RGBA", (25, 18))
    mask.putalpha(Image.fromarray(MOLE * 255))
    return mask


def _black_last() -> Image.Image:
    mask = Image.fromarray(1 - MOLE, "P")
    mask.putpalette([255, 0, 0, 0, 0, 0])
    return mask


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_colored, "m.png: 3 channels that differ, such as those of a color mask; save one channel"),
        (_transparent, "m.png: the mask is in the transparency"),
        (_black_last, "m.png: black is not the first color of its palette"),
    ],
)
def test_a_mask_whose_classes_are_not_plain_is_refused(kind, message, tmp_path):
    kind().save(tmp_path / "m.png")
    with pytest.raises(UserError, match=message):
        LoadLabel(2)(str(tmp_path / "m.png"))


def test_a_telephones_photograph_with_a_small_copy_is_one_picture(tmp_path):
    copy = Image.fromarray(PHOTO).resize((6, 4))
    Image.fromarray(PHOTO).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[copy], quality=98)
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    np.testing.assert_allclose(_read(str(tmp_path / "a.jpg")), PHOTO, atol=40)


def test_pages_and_pixels_without_a_scale_are_refused(tmp_path):
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tif")
    for name, message in {"pages.tif": "holds 2 pictures", "float.tif": "pixels of 32 bits"}.items():
        with pytest.raises(UserError, match=f"{name}: {message}"):
            LoadScan()(str(tmp_path / name))


def test_the_gate_keeps_the_geometry(tmp_path):
    label = LoadScan(as_label=True)(_save(Image.fromarray(MOLE * 255), tmp_path / "m.png"))
    assert to_label(label, "m.png", 2).meta["filename_or_obj"] == str(tmp_path / "m.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1)])
def test_a_photograph_of_a_single_row_or_pixel_is_refused(size, tmp_path):
    Image.new("RGB", size).save(tmp_path / "a.png")
    (finding,) = check_cases([{"image": str(tmp_path / "a.png")}], CaseRule(3, 2, 2))
    found = f"{tmp_path / 'a.png'}: has {size[0]}x{size[1]} voxels; expected an image, at least 2 along each axis; "
    assert finding.problems == [found + "export it again, or take it away."]


def test_a_volume_without_voxels_is_refused_and_a_single_slice_is_not():
    for shape, expected in (((1, 4, 0, 4), ["a.nii: has 4x0x4 voxels; expected"]), ((1, 4, 4, 1), [])):
        image = MetaTensor(torch.arange(np.prod(shape)).reshape(shape).float())
        problems = image_problems("a.nii", image, CaseRule(1, 2, 3))
        assert [problem.partition(" an image")[0] for problem in problems] == expected
