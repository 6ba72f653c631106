"""Bad data is refused before the first iteration, in words that help."""

import builtins
import errno
import gzip
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest

from custom.data.caching import cached_dataset
from custom.data.checks import read_image
from custom.data.datalist import default_evaluation_list, load_datalist
from custom.data.readers import LoadScan, LoadScand
from custom.utils.errors import UserError


def _load(datalist: Path, **changes):
    settings = {
        "lists": ["training", "unlabeled", "validation"],
        "in_channels": 1,
        "num_classes": 2,
        "dimensions": 3,
    }
    return load_datalist(str(datalist), **(settings | changes))


def _volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nib.load(path)
    return np.asarray(image.dataobj).copy(), image.affine


def _rewrite(path: Path, how, affine=None) -> None:
    volume, own = _volume(path)
    nib.save(nib.Nifti1Image(how(volume), own if affine is None else affine), path)


def _set(value, index=(3, 3, 3)):
    def change(volume):
        volume[index] = value
        return volume

    return change


@pytest.fixture
def files(own_dataset) -> dict[str, Path]:
    """Files of the first labeled case, and an unlabeled one."""
    content = json.loads(own_dataset.read_text())
    return {
        "image": own_dataset.parent / content["training"][0]["image"],
        "label": own_dataset.parent / content["training"][0]["label"],
        "unlabeled": own_dataset.parent / content["unlabeled"][0]["image"],
    }


def test_lists_come_with_absolute_paths_that_exist(own_dataset):
    cases = _load(own_dataset)
    assert {name: len(items) for name, items in cases.items()} == {
        "training": 2,
        "unlabeled": 2,
        "validation": 1,
        "test": 0,
    }
    assert all(
        Path(case[key]).is_absolute() and Path(case[key]).is_file()
        for case in cases["training"]
        for key in ("image", "label")
    )


def test_no_label_file_of_an_unlabeled_case_is_ever_opened(own_dataset, edit, monkeypatch):
    trap = own_dataset.parent / "labels" / "trap.nii.gz"
    trap.write_bytes(b"not a volume")
    edit(own_dataset, lambda content: content["unlabeled"][0].update(label="labels/trap.nii.gz"))
    opened = []
    real_open = builtins.open
    monkeypatch.setattr(builtins, "open", lambda path, *a, **k: opened.append(str(path)) or real_open(path, *a, **k))
    cases = _load(own_dataset)
    assert all(set(case) == {"image", "case"} for case in cases["unlabeled"])
    assert opened  # the spy works
    assert not any("trap" in path for path in opened)


def test_missing_data_list_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.json: no such data list; set --dataset_dir or --datalist"):
        _load(tmp_path / "nowhere.json")


def test_data_list_that_is_not_json_is_named(own_dataset):
    own_dataset.write_text('{"training": [')
    with pytest.raises(UserError, match=r"synthetic.json: not a JSON file"):
        _load(own_dataset)


@pytest.mark.parametrize("content", ["[]", "{}"])
def test_data_list_without_lists_is_refused(own_dataset, content):
    own_dataset.write_text(content)
    with pytest.raises(
        UserError, match="expected a JSON object with the lists training, unlabeled, validation, test; found"
    ):
        _load(own_dataset)


def test_case_without_a_label_in_the_training_list_is_refused(own_dataset, edit):
    edit(own_dataset, lambda content: content["training"][1].pop("label"))
    with pytest.raises(UserError, match=r"training\[1\] must be an object with image and label"):
        _load(own_dataset)


def test_empty_training_list_is_refused(own_dataset, edit):
    edit(own_dataset, lambda content: content.update(training=[]))
    with pytest.raises(UserError, match="the list 'training' is empty; at least one labeled case is needed"):
        _load(own_dataset)


def test_empty_list_to_evaluate_is_refused(own_dataset):
    with pytest.raises(UserError, match="the list 'test' is empty; give --evaluation_list validation"):
        _load(own_dataset, lists=["test"])


@pytest.mark.parametrize("labeled", [True, False])
def test_without_a_validation_list_it_is_said_what_to_score(labeled, own_dataset, edit):
    def move(content: dict) -> None:
        content["test"] = content.pop("validation")
        if not labeled:
            content["test"][0].pop("label")

    edit(own_dataset, move)
    hint = "give --evaluation_list test" if labeled else "list labeled cases there, or prepare the data"
    with pytest.raises(UserError, match=f"nothing to read: the list 'validation' is empty; {hint}"):
        _load(own_dataset, lists=["validation"])


def test_missing_file_is_named(own_dataset, files):
    files["image"].unlink()
    with pytest.raises(UserError, match=f"{files['image'].name}: no such file"):
        _load(own_dataset)


def test_a_file_that_may_not_be_read_is_not_called_truncated(own_dataset, files, monkeypatch):
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != files["image"] and allowed(path, mode))

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(files["image"]))

    monkeypatch.setattr(LoadScan, "__call__", refuse)  # root may read everything
    expected = f"{files['image']}: no permission to read it; have the permission changed."
    assert read_image([str(files["unlabeled"]), str(files["image"])])[1] == [expected]


def test_truncated_nifti_is_named(own_dataset, files):
    content = files["unlabeled"].read_bytes()
    files["unlabeled"].write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"{files['unlabeled'].name}: cannot be read, probably truncated"):
        _load(own_dataset)


def test_truncated_voxels_behind_a_whole_header_are_noticed(own_dataset, files):
    raw = gzip.decompress(files["unlabeled"].read_bytes())
    files["unlabeled"].write_bytes(gzip.compress(raw[: len(raw) // 2]))
    with pytest.raises(UserError, match=f"{files['unlabeled'].name}: cannot be read, probably truncated"):
        _load(own_dataset)


def _flip_a_voxel(path: Path) -> None:
    """Change a byte of a voxel in a stream that can still be unzipped."""
    content = bytearray(gzip.compress(gzip.decompress(path.read_bytes()), compresslevel=0))
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _cut_the_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("key", ["image", "label", "unlabeled"])
@pytest.mark.parametrize("damage", [_flip_a_voxel, _cut_the_checksum])
def test_voxels_that_do_not_match_their_checksum_are_noticed(own_dataset, files, damage, key):
    damage(files[key])
    with pytest.raises(UserError, match=rf"{files[key].name}: damaged, its voxels do not match its checksum \(.+\)"):
        _load(own_dataset)


@pytest.mark.parametrize("name", ["scan.mha", "scan.mhd"])
@pytest.mark.parametrize("is_damaged", [False, True])
def test_compressed_metaimages_are_compared_with_their_checksum(name, is_damaged, tmp_path):
    """A byte in the middle of voxels that cannot be compressed, which unzips to another voxel."""
    volume = np.random.default_rng(0).integers(0, 2**16, (16, 16, 16)).astype(np.uint16)
    itk.imwrite(itk.image_from_array(volume), str(tmp_path / name), compression=True)
    voxels = tmp_path / name if name.endswith(".mha") else tmp_path / "scan.zraw"
    content = bytearray(voxels.read_bytes())
    content[len(content) // 2] ^= is_damaged
    voxels.write_bytes(content)
    if not is_damaged:
        assert np.array_equal(LoadScan()(tmp_path / name)[0].numpy().T, volume)
    else:
        with pytest.raises(UserError, match=rf"{name}: damaged, its voxels do not match its checksum \(.+\)"):
            LoadScan()(tmp_path / name)


def test_threads_that_read_with_one_loader_get_their_own_files(tmp_path):
    paths = [tmp_path / f"{number}.nii.gz" for number in range(60)]
    for number, path in enumerate(paths):
        nib.save(nib.Nifti1Image(np.full((9, 8, 7), number, np.float32), np.eye(4)), path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(LoadScan(), paths))
    assert [int(volume.max()) for volume in found] == list(range(60))


def test_a_sound_file_of_several_zipped_parts_is_read_in_full(files):
    before = LoadScan()(files["image"])
    content = gzip.decompress(files["image"].read_bytes())
    files["image"].write_bytes(gzip.compress(content[:500]) + gzip.compress(content[500:]))
    assert (LoadScan()(files["image"]) == before).all()


def test_file_that_is_no_image_is_named(own_dataset, files):
    files["label"].write_text("hello")
    with pytest.raises(UserError, match=f"{files['label'].name}: cannot be read"):
        _load(own_dataset)


def test_label_of_another_shape_is_refused(own_dataset, files):
    _rewrite(files["label"], lambda volume: volume[:, :, 1:])
    with pytest.raises(UserError, match=r"shape \(16, 16, 15\) differs from its image's \(16, 16, 16\)"):
        _load(own_dataset)


def test_label_of_another_affine_is_refused(own_dataset, files):
    affine = nib.load(files["label"]).affine.copy()
    affine[0, 3] += 5
    _rewrite(files["label"], lambda volume: volume, affine)
    with pytest.raises(UserError, match="affine differs from its image's by up to 5 mm"):
        _load(own_dataset)


def test_a_label_within_a_tenth_of_a_voxel_is_taken_and_gets_its_images_affine(own_dataset, files):
    affine = nib.load(files["label"]).affine.copy()
    affine[:3, 3] += 0.01
    _rewrite(files["label"], lambda volume: volume, affine)
    _load(own_dataset)
    sample = LoadScand(["image", "label"])({key: str(files[key]) for key in ("image", "label")})
    assert (sample["label"].affine == sample["image"].affine).all()


@pytest.mark.parametrize("mark", [1, 255, 255.0002, 0.9999999])
def test_one_structure_may_be_marked_1_or_255(own_dataset, files, mark):
    truth = _volume(files["label"])[0]
    _rewrite(files["label"], lambda volume: (volume * mark).astype(np.float32))
    _load(own_dataset)
    label = LoadScand("label", num_classes=2)({"label": str(files["label"])})["label"]
    np.testing.assert_array_equal(label[0].numpy(), truth)


def test_a_label_with_one_channel_more_than_its_image_passes(own_dataset, files):
    _rewrite(files["label"], lambda volume: volume[..., None, None])
    _load(own_dataset)


def test_255_is_no_class_among_several(own_dataset, files):
    _rewrite(files["label"], lambda volume: volume * 255)
    with pytest.raises(UserError, match="labels must be whole numbers from 0 to 2, found 255"):
        _load(own_dataset, num_classes=3)


def test_a_label_in_channels_that_differ_is_called_that(own_dataset, files):
    _rewrite(files["label"], lambda volume: np.stack([1 - volume, volume], -1))
    with pytest.raises(UserError, match=r"2 channels that differ.*save one channel with 0 for background"):
        _load(own_dataset)


@pytest.mark.parametrize(("blue", "message"), [(1, None), (0, "3 channels that differ")])
def test_a_nifti_mask_in_colors_is_grey_or_called_that(own_dataset, files, blue, message):
    mask, affine = _volume(files["label"])
    colors = np.zeros(mask.shape, [(name, "u1") for name in "RGBA"])
    for name in "RGBA":
        colors[name] = mask * 255 * (blue if name == "B" else 1)
    nib.save(nib.Nifti1Image(colors, affine), files["label"])
    if message is None:
        _load(own_dataset)
    else:
        with pytest.raises(UserError, match=message):
            _load(own_dataset)


@pytest.mark.parametrize("kind", [np.complex64, np.complex128])
@pytest.mark.parametrize("key", ["image", "label"])
def test_complex_voxels_are_refused(own_dataset, files, key, kind):
    _rewrite(files[key], lambda volume: volume.astype(kind))
    message = rf"{files[key].name}: its voxels are complex numbers \({np.dtype(kind)}\), expected real ones"
    with pytest.raises(UserError, match=message):
        _load(own_dataset)


def test_a_cache_on_disk_follows_the_files(files, tmp_path):
    def read() -> float:
        data = [{key: str(files[key]) for key in ("image", "label")}]
        transform = LoadScand(["image", "label"])
        return float(cached_dataset(data, transform, "disk", cache_dir=str(tmp_path / "cache"))[0]["label"].sum())

    before = read()
    assert before > 0
    (kept,) = (tmp_path / "cache").glob("*.pt")
    time = kept.stat().st_mtime_ns
    assert (read(), kept.stat().st_mtime_ns) == (before, time)
    _rewrite(files["label"], np.zeros_like)
    assert read() == 0
    (anew,) = (tmp_path / "cache").glob("*.pt")  # what is no longer used is gone
    assert anew.name != kept.name


def test_label_value_outside_the_declared_ones_is_refused(own_dataset, files):
    _rewrite(files["label"], _set(255))
    with pytest.raises(UserError, match="labels must be whole numbers from 0 to 1, found 255"):
        _load(own_dataset)


def test_label_that_is_no_whole_number_is_refused(own_dataset, files):
    _rewrite(files["label"], lambda volume: _set(0.5)(volume.astype(np.float32)))
    with pytest.raises(UserError, match=r"labels must be whole numbers from 0 to 1, found 0\.5"):
        _load(own_dataset)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite_are_counted(own_dataset, files, value):
    _rewrite(files["image"], _set(value))
    with pytest.raises(UserError, match=r"1 voxel\(s\) are NaN or infinite"):
        _load(own_dataset)


@pytest.mark.parametrize("value", [0, 7, -1024.5])
def test_an_image_of_one_value_is_refused(own_dataset, files, value):
    _rewrite(files["unlabeled"], lambda volume: np.full_like(volume, value, dtype=np.float32))
    with pytest.raises(UserError, match=rf"{files['unlabeled'].name}: all voxels are {value}; expected an image"):
        _load(own_dataset)


def test_a_label_without_a_structure_is_taken(own_dataset, files):
    _rewrite(files["label"], np.zeros_like)
    _load(own_dataset)


def test_wrong_dimension_is_refused(own_dataset, files):
    _rewrite(files["unlabeled"], lambda volume: volume[:, :, 0])
    with pytest.raises(UserError, match=r"expected 3 dimensions, found shape \(16, 16\)"):
        _load(own_dataset)


def test_wrong_channel_count_is_refused(own_dataset, files):
    _rewrite(files["unlabeled"], lambda volume: np.stack([volume, volume], -1))
    with pytest.raises(UserError, match=r"expected 1 channel\(s\), found 2"):
        _load(own_dataset)


def test_case_in_two_lists_is_refused(own_dataset, edit):
    edit(own_dataset, lambda content: content["unlabeled"].append({"image": content["validation"][0]["image"]}))
    with pytest.raises(UserError, match="stands in 'unlabeled' and 'validation'; a case may be listed once only"):
        _load(own_dataset)


def test_case_in_two_lists_under_another_spelling_is_refused(own_dataset, edit):
    edit(
        own_dataset,
        lambda content: content.update(
            test=[{**content["training"][0], "image": "./labels/../images/case_000.nii.gz"}]
        ),
    )
    with pytest.raises(UserError, match="stands in 'training' and 'test'"):
        _load(own_dataset)


def test_patient_in_two_lists_is_refused(own_dataset):
    with pytest.raises(UserError, match="case_00 is in 'training' and 'unlabeled' and 'validation'"):
        _load(own_dataset, patient_pattern=r"case_\d\d")


def test_patient_may_have_several_scans_in_one_list(own_dataset, edit):
    edit(own_dataset, lambda content: content.update(unlabeled=[], validation=[]))
    assert len(_load(own_dataset, patient_pattern=r"case_\d\d")["training"]) == 2


HEART = ["right_ventricle", "myocardium", "left_ventricle"]


@pytest.mark.parametrize(
    "labels",
    [
        {"0": "background", "1": "left ventricle", "2": "myocardium", "3": "right ventricle"},
        {"background": 0, "Left-Ventricle": 1, "myocardium": 2, "right_ventricle": 3},
        {"0": "background", "1": "myocardium"},
        ["background", "scar", "right ventricle"],
    ],
)
def test_structures_that_the_list_numbers_otherwise_are_refused(own_dataset, edit, labels):
    edit(own_dataset, lambda content: content.update(labels=labels))
    with pytest.raises(UserError, match="taken for one another; put one right, such as with --class_names"):
        _load(own_dataset, num_classes=4, class_names=HEART)


def test_the_flag_that_is_advised_for_structures_is_taken(own_dataset, edit):
    labels = {"0": "background", "1": "left ventricle", "2": "scar tissue", "3": "right ventricle"}
    edit(own_dataset, lambda content: content.update(labels=labels))
    with pytest.raises(UserError) as caught:
        _load(own_dataset, num_classes=4, class_names=HEART)
    taken = json.loads(re.search("--class_names '(.*)'", str(caught.value))[1])
    assert taken == ["left_ventricle", "scar tissue", "right_ventricle"]
    _load(own_dataset, num_classes=4, class_names=taken)


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "Left Atrium"}, {"background": 0, "whole": [1, 2], "left": 2}, {}, None]
)
def test_structures_of_the_same_names_or_of_none_pass(own_dataset, edit, labels, caplog):
    edit(own_dataset, lambda content: content.update(labels=labels))
    _load(own_dataset, class_names=["left_atrium"])
    assert "class_names" not in caplog.text


def test_other_names_of_structures_are_told(own_dataset, edit, caplog):
    edit(own_dataset, lambda content: content.update(labels={"0": "background", "1": "tumor"}))
    _load(own_dataset, class_names=["left_atrium"])
    assert "names 1, 2, ... as tumor, but class_names as left_atrium" in caplog.text
    assert "--class_names '[\"tumor\"]'" in caplog.text


def test_signs_tell_structures_apart(own_dataset, edit):
    edit(own_dataset, lambda content: content.update(labels=["background", "ki67-", "ki67+"]))
    with pytest.raises(UserError, match="taken for one another"):
        _load(own_dataset, num_classes=3, class_names=["ki67+", "ki67-"])


def test_structures_do_not_count_where_a_client_gives_the_cases(own_dataset, edit):
    edit(own_dataset, lambda content: content.update(labels=["background", "myocardium"]))
    _load(own_dataset, class_names=HEART, optional=True)


def test_all_problems_are_listed_together(own_dataset, files):
    files["image"].unlink()
    _rewrite(files["unlabeled"], _set(np.nan))
    with pytest.raises(UserError, match=r"(?s)2 problem\(s\), nothing was run:.*no such file.*NaN"):
        _load(own_dataset)


def test_evaluation_takes_the_test_list_where_there_is_one(own_dataset, edit):
    assert default_evaluation_list(str(own_dataset)) == "validation"
    edit(own_dataset, lambda content: content.update(test=content.pop("validation")))
    assert default_evaluation_list(str(own_dataset)) == "test"


def _load_hearts(datalist: Path):
    return _load(datalist, num_classes=4, patient_pattern=r"patient\d+")


def _first(datalist: Path, key: str = "image") -> Path:
    return datalist.parent / json.loads(datalist.read_text())["training"][0][key]


def test_short_axis_volumes_pass(own_hearts):
    assert {name: len(cases) for name, cases in _load_hearts(own_hearts).items()} == {
        "training": 4,
        "unlabeled": 4,
        "validation": 2,
        "test": 0,
    }


def test_a_patient_with_frames_in_two_lists_is_refused(own_hearts, edit):
    edit(own_hearts, lambda content: content["validation"].append(content["training"].pop()))
    with pytest.raises(UserError, match=r"patient002 is in 'training' and 'validation'; all scans of a"):
        _load_hearts(own_hearts)


def test_a_single_slice_file_is_refused(own_hearts):
    _rewrite(_first(own_hearts), lambda volume: volume[:, :, 0])
    with pytest.raises(UserError, match=r"frame01.nii.gz: expected 3 dimensions, found shape \(24, 20\)"):
        _load_hearts(own_hearts)


def test_a_series_is_refused_for_training(own_hearts):
    _rewrite(_first(own_hearts), lambda volume: np.stack([volume] * 5, -1))
    with pytest.raises(UserError, match=r"found 5 \(shape \(24, 20, 3, 5\)\); save the frames of a series"):
        _load_hearts(own_hearts)


def test_a_label_with_another_number_of_slices_is_refused(own_hearts):
    _rewrite(_first(own_hearts, "label"), lambda volume: volume[:, :, :2])
    with pytest.raises(UserError, match=r"shape \(24, 20, 2\) differs from its image's \(24, 20, 3\)"):
        _load_hearts(own_hearts)


def test_a_volume_whose_last_slice_is_cut_short_is_refused(own_hearts):
    path = _first(own_hearts)
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole[: -24 * 10 * 4]))  # half of the last slice's pixels, float32
    with pytest.raises(UserError, match=r"frame01.nii.gz: cannot be read, probably truncated"):
        _load_hearts(own_hearts)


def test_slices_in_files_of_their_own_are_refused(own_hearts, edit):
    names = ["slice1.nii.gz", "slice2.nii.gz"]
    for name in names:
        nib.save(nib.Nifti1Image(np.zeros((24, 20), np.float32), np.eye(4)), own_hearts.parent / name)
    edit(own_hearts, lambda content: content["training"][0].update(image=names))
    with pytest.raises(UserError, match=r"slice1\.nii\.gz: expected 3 dimensions, found shape \(24, 20, 2\)"):
        _load_hearts(own_hearts)
