"""Files that are channels of one case are found by their names, read as one image, and must lie on one grid."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scan_files import OBLIQUE, read_scans, write_itk, write_nifti

from custom.data.caching import cached_dataset
from custom.data.channels import group_channels
from custom.data.datalist import load_datalist, read_lists
from custom.data.readers import LoadScan, LoadScand
from custom.data.scans import find_scans
from custom.utils.errors import UserError
from custom.utils.names import case_files, case_name


def _grouped(names, *args, **options) -> dict[str, list[str]]:
    cases, problems, left_out = group_channels([Path(name) for name in names], *args, **options)
    assert problems == left_out == []
    return {str(case): [str(file) for file in files] for case, files in cases.items()}


def test_channels_have_the_order_of_their_names_or_numbers():
    by_number = _grouped(["a_0001.nii", "a_0000.nii", "c.nii"])
    assert by_number == {"a.nii": ["a_0000.nii", "a_0001.nii"], "c.nii": ["c.nii"]}
    names = ["b/a.t1.nrrd", "b/a.t1_ce.nrrd", "b/a.t2.nrrd"]
    assert _grouped(names, ["t2", "t1", "t1_ce"]) == {"b/a.nrrd": [names[2], names[0], names[1]]}


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([f"a_{number:04d}.nii" for number in range(9)], {}),
        (["b_0001.nii", "b_0002.nii"], {"count": 2}),
        (["IMG_0000.jpg", "IMG_0003.jpg"], {"count": 3}),
        (["a_0000.nii", "b_0000.nii"], {}),
        (["a_0000.nii", "a_0001.nii"], {"labeled": {"a_0001"}}),
        (["a.nii", "b.nii"], {"channels": ["t1", "t2"]}),
    ],
    ids=["too many", "not from 0", "photographs", "one channel", "labeled", "other names"],
)
def test_files_that_are_no_channels_are_cases(names, options):
    assert _grouped(names, **options) == {name: [name] for name in names}


def test_folders_of_dicom_files_are_channels_by_name(tmp_path):
    folders = [tmp_path / "1.2.840" / name for name in ("CT", "PET")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert group_channels(folders, ["ct", "pet"]).cases == {tmp_path / "1.2.840" / "1.2.840.nii.gz": folders}


def test_channels_are_stacked_in_order_with_the_metadata_of_the_first(tmp_path):
    volumes = np.random.default_rng(0).normal(size=(2, 6, 5, 4)).astype(np.float32)
    paths = [str(tmp_path / "p_t1.nii.gz"), str(tmp_path / "p_t2.nrrd")]
    for write, path, volume in zip((write_nifti, write_itk), paths, volumes, strict=True):
        write(Path(path), volume, OBLIQUE)
    sample = LoadScand("image")({"image": paths})
    np.testing.assert_array_equal(sample["image"].numpy(), volumes)
    np.testing.assert_allclose(sample["image"].affine, OBLIQUE, atol=1e-5)
    assert (sample["image"].meta["filename_or_obj"], sample["image"].meta["case"]) == (paths[0], "p")
    assert LoadScan()(paths[:1]).shape == (1, 6, 5, 4)


def _write(path: Path, volume=None, affine=None) -> str:
    write_nifti(
        path, np.ones((6, 5, 4), np.float32) if volume is None else volume, np.eye(4) if affine is None else affine
    )
    return str(path)


@pytest.mark.parametrize(
    ("volume", "affine", "message"),
    [
        (np.ones((6, 5, 3)), None, r"b\.nii: shape \(6, 5, 3\) differs from .*a\.nii's \(6, 5, 4\)"),
        (None, np.diag([1, 1, 1.3, 1]), r"b\.nii: affine differs from .*a\.nii's by up to 0\.9 mm"),
        (np.ones((6, 5, 4, 2)), None, r"b\.nii: one of 2 channels must have one itself, found 2"),
    ],
)
def test_channels_on_different_grids_or_with_channels_of_their_own_are_refused(volume, affine, message, tmp_path):
    paths = [_write(tmp_path / "a.nii"), _write(tmp_path / "b.nii", volume, affine)]
    with pytest.raises(UserError, match=message) as error:
        LoadScan()(paths)
    assert "one itself" in message or "--resample brings them there" in str(error.value)


def test_grey_photographs_may_be_channels_colored_ones_not(tmp_path):
    grey, equal, colored = (tmp_path / f"{name}.png" for name in ("grey", "equal", "colored"))
    pixels = np.arange(20, dtype=np.uint8).reshape(5, 4)
    Image.fromarray(pixels).save(grey)
    Image.fromarray(np.stack([pixels] * 3, -1)).save(equal)
    Image.fromarray(np.stack([pixels, pixels, 0 * pixels], -1)).save(colored)
    assert LoadScan(in_channels=3)([str(grey), str(equal), str(grey)]).shape == (3, 4, 5)
    with pytest.raises(UserError, match=r"colored\.png: one of 2 channels must have one itself, found 3"):
        LoadScan(in_channels=2)([str(grey), str(colored)])


@pytest.fixture
def two_channels(own_dataset, edit) -> Path:
    """Data list whose images have a second channel, twice as bright."""

    def add(content: dict) -> None:
        for case in [*content["training"], *content["unlabeled"], *content["validation"]]:
            first, second = case["image"], case["image"].replace(".nii.gz", "_t2.nii.gz")
            image = nib.load(own_dataset.parent / first)
            nib.save(nib.Nifti1Image(2 * np.asarray(image.dataobj), image.affine), own_dataset.parent / second)
            case["image"] = [first, second]

    edit(own_dataset, add)
    return own_dataset


def _load(datalist: Path, **changes):
    settings = {"lists": ["training", "unlabeled"], "in_channels": 2, "num_classes": 2, "dimensions": 3}
    return load_datalist(str(datalist), **(settings | changes))


def test_a_data_list_may_list_the_channels_of_an_image(two_channels):
    cases = _load(two_channels)
    images = two_channels.parent / "images"
    assert cases["training"][0]["image"] == [str(images / "case_000.nii.gz"), str(images / "case_000_t2.nii.gz")]
    with pytest.raises(
        UserError, match=r"expected 1 channel.*found 2.*it has 2 files, one for each, and in_channels is 1"
    ):
        _load(two_channels, in_channels=1)


def test_a_list_of_one_path_is_that_path(own_dataset, edit):
    plain = read_lists(own_dataset)
    edit(own_dataset, lambda content: content["training"][0].update(image=[content["training"][0]["image"]]))
    assert read_lists(own_dataset) == plain


@pytest.mark.parametrize("image", [[], [""], ["a.nii", 1], {"t1": "a.nii"}, None], ids=str)
def test_an_image_that_is_neither_a_path_nor_a_list_of_them_is_refused(image, own_dataset, edit):
    edit(own_dataset, lambda content: content["training"][0].update(image=image))
    with pytest.raises(UserError, match=r"training\[0\] must be an object with image and label, a path each, or an"):
        read_lists(own_dataset)


def test_what_is_wrong_with_one_channel_is_told_of_that_file(two_channels, edit):
    images = two_channels.parent / "images"
    volume = np.asarray(nib.load(images / "case_000_t2.nii.gz").dataobj).copy()
    volume[1, 1, 1] = np.nan
    write_nifti(images / "case_000_t2.nii.gz", volume, nib.load(images / "case_000.nii.gz").affine)
    (images / "case_001_t2.nii.gz").unlink()
    edit(two_channels, lambda content: content["unlabeled"][0]["image"].append("images/case_000.nii.gz"))
    with pytest.raises(UserError) as error:
        _load(two_channels)
    for text in (
        "case_000_t2.nii.gz: 1 voxel(s) are NaN or infinite",
        "case_001_t2.nii.gz: no such file",
        "case_000.nii.gz stands in 'training' and 'unlabeled'",
    ):
        assert text in str(error.value)


def test_a_cache_on_disk_follows_each_channel(two_channels, tmp_path):
    case = read_lists(two_channels)["training"][0]

    def mean() -> list[float]:
        cached = cached_dataset([case], LoadScand(["image", "label"]), "disk", cache_dir=str(tmp_path / "cache"))
        return cached[0]["image"].mean((1, 2, 3)).tolist()

    first, second = mean()
    image = nib.load(case["image"][1])
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.float32), image.affine), case["image"][1])
    assert mean() == [first, 0]
    assert second != 0


@pytest.mark.parametrize(
    ("files", "name"),
    [
        (["in/p1_t1.nii.gz", "in/p1_t1_ce.nii.gz"], "p1"),
        (["in/c_0000.nii.gz", "in/c_0001.nii.gz"], "c"),
        (["in/x__CT.nrrd", "in/x__PT.nrrd"], "x"),
        (["in/p1/CT.nii.gz", "in/p1/PET.nii.gz"], "p1"),
        (["T1/p1.nii.gz", "T2/p1.nii.gz"], "p1"),
        (["in/p1_t1.nii.gz"], "p1_t1"),
    ],
)
def test_a_case_is_named_without_what_tells_its_channels_apart(files, name):
    assert case_name(files) == name


def test_cases_that_would_share_a_name_are_named_by_their_first_files():
    assert case_files([["p/t1.nii", "p/t2.nii"], ["p/dwi.nii", "p/adc.nii"]]) == {
        "p/t1.nii": "p/t1.nii",
        "p/dwi.nii": "p/dwi.nii",
    }


def _find(source, **changes):
    return find_scans(source, **({"in_channels": 2, "dimensions": 3} | changes))


def test_scans_to_segment_are_grouped_by_numbers_or_names_or_listed(tmp_path):
    by_number = [_write(tmp_path / "n" / f"a_{number:04d}.nii") for number in range(2)]
    by_name = [_write(tmp_path / "m" / f"b_{name}.nii") for name in ("T1", "T2")]
    whole = _write(tmp_path / "w" / "c.nii", np.ones((6, 5, 4, 2)))
    cases = [*_find(str(tmp_path / "n")).cases, *_find(str(tmp_path / "m"), channels=["t1", "t2"]).cases]
    assert [case.pop("prediction") for case in cases] == ["a", "b"]
    assert cases == [{"image": by_number, "case": "a"}, {"image": by_name, "case": "b"}]
    assert _find([by_number, whole, by_name]).cases == [{"image": whole, "case": "c"}, *cases]
    assert _find(whole, channels=["t1", "t2"]).cases == [{"image": whole, "case": "c"}]


def test_a_scan_that_lacks_a_channel_is_left_out_by_name(tmp_path):
    for name in ("a_t1", "a_t2", "b_t1"):
        _write(tmp_path / f"{name}.nii")
    scans = _find(str(tmp_path), channels=["t1", "t2"])
    assert [case["case"] for case in scans.cases] == ["a"]
    assert scans.problems == [f"{tmp_path / 'b'}: channel t2 is missing, expected {tmp_path / 'b_t2.nii'}"]
    (tmp_path / "a_t2.nii").unlink()
    scans = _find(str(tmp_path), channels=["t1", "t2"])
    assert scans.cases == []
    assert [line.split(" is missing")[0] for line in scans.problems] == [
        f"{tmp_path / name}: channel t2" for name in "ab"
    ]


def test_a_network_of_one_channel_takes_no_numbered_ones(tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        _write(tmp_path / f"{name}.nii")
    scans = _find(str(tmp_path), in_channels=1)
    assert [case["case"] for case in scans.cases] == ["b"]
    assert "a: several channels, as nnU-Net names them, _0000, _0001, expected 1; if these are" in scans.problems[0]


def test_frames_of_a_series_have_one_channel(tmp_path):
    paths = [_write(tmp_path / f"a_{number:04d}.nii") for number in range(2)]
    with pytest.raises(UserError, match="--series: the frames of a series have one channel, but in_channels is 2"):
        _find([paths], series=True)
    (problem,) = read_scans([paths], series=True)[1]
    assert "expected 1 channel(s), found 2" in problem


def test_scans_of_a_data_list_have_their_channels(two_channels):
    (case,) = _find("unused", datalist=str(two_channels)).cases
    expected = json.loads(two_channels.read_text())["validation"][0]["image"]
    assert case["image"] == [str(two_channels.parent / file) for file in expected]
