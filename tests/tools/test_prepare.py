"""Each official layout, made small, is prepared to exactly what it holds."""

import gzip
import json
import os
import re
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from scan_files import OBLIQUE, write_dicom, write_itk, write_nifti
from starter import run_command

from custom.data.datalist import load_datalist
from custom.utils.errors import UserError
from custom.utils.names import case_name
from tools.prepare import assembling, layouts, published
from tools.prepare import commands as prepare
from tools.prepare import own as own_command
from tools.prepare import writer as store
from tools.prepare.check import check_folder
from tools.prepare.copies import find_copies
from tools.prepare.pairing import OwnScan, own_scans
from tools.prepare.splitting import split_patients
from tools.synthetic import make_photo

#: Without the plan, which takes time and is tested by itself.
own = partial(prepare.own, plan=None)


def _volumes(seed: int, shape=(12, 10, 6)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    label[3:7, 2:8, 1:4] = 1
    return rng.integers(-900, 900, shape).astype(np.int16), label


def _assert_holds(path: Path, volume: np.ndarray, affine: np.ndarray = OBLIQUE) -> None:
    found = nib.load(path)
    np.testing.assert_array_equal(np.asarray(found.dataobj), volume)
    np.testing.assert_allclose(found.affine, affine, atol=1e-4)


def _datalist(folder: Path, name: str) -> dict:
    return json.loads((folder / name).read_text())


@pytest.fixture
def la_folder(tmp_path) -> Path:
    """Five of the challenge's cases in folders with spaces and other letters."""
    folder = tmp_path / "Vorhof höhe" / "Training Set"
    for seed, case in enumerate(json.loads((published.SPLITS / "la.json").read_text())["train"][:5]):
        image, label = _volumes(seed)
        write_itk(folder / case / "lgemri.nrrd", image, OBLIQUE)
        write_itk(folder / case / "laendo.nrrd", label * 255, OBLIQUE)
    return folder


def test_left_atrium_challenge_comes_out_as_it_went_in(la_folder, tmp_path):
    prepare.la(str(la_folder), str(tmp_path / "out"), crop="none", allow_missing=True)
    for seed, case in enumerate(sorted(path.name for path in la_folder.iterdir())):
        image, label = _volumes(seed)
        _assert_holds(tmp_path / "out" / "images" / f"{case}.nii.gz", image)
        _assert_holds(tmp_path / "out" / "labels" / f"{case}.nii.gz", label)
    content = _datalist(tmp_path / "out", "labeled_4.json")
    assert (len(content["training"]), len(content["unlabeled"]), len(content["test"])) == (4, 1, 0)
    assert "label" not in content["unlabeled"][0]


@pytest.mark.parametrize(("labeled", "unlabeled"), [(4, 64), (8, 60)])
def test_the_left_atrium_s_lists_for_choosing_settings_have_none_of_the_test_cases(labeled, unlabeled):
    split = json.loads((published.SPLITS / "la.json").read_text())
    lists = published._development(split, str(labeled))
    assert {k: len(v) for k, v in lists.items()} == {"training": labeled, "unlabeled": unlabeled, "validation": 12}
    assert {case for cases in lists.values() for case in cases} == set(split["train"])


def test_an_incomplete_download_is_refused_and_nothing_is_written(la_folder, tmp_path):
    with pytest.raises(UserError, match=r"95 of 100 scans are incomplete; nothing was written"):
        prepare.la(str(la_folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_benchmark_crop_is_taken_around_the_label(la_folder, tmp_path):
    prepare.la(str(la_folder), str(tmp_path / "out"), allow_missing=True)
    for path in (tmp_path / "out" / "labels").iterdir():
        assert nib.load(path).shape == (112, 112, 80)
        assert np.asarray(nib.load(path).dataobj).sum() == _volumes(0)[1].sum()


def test_benchmark_crop_needs_every_label(la_folder, tmp_path):
    next(la_folder.rglob("laendo.nrrd")).unlink()
    prepare.la(str(la_folder), str(tmp_path / "out"), allow_missing=True)
    content = _datalist(tmp_path / "out", "labeled_16.json")
    assert len(content["training"]) + len(content["unlabeled"]) == 4


def test_left_atrium_community_copy_keeps_its_voxels(tmp_path):
    case = "06SR5RBREL16DQ6M8LWS"
    image, label = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32), _volumes(0, (9, 8, 7))[1]
    (tmp_path / "in" / case).mkdir(parents=True)
    with h5py.File(tmp_path / "in" / case / "mri_norm2.h5", "w") as file:
        file["image"], file["label"] = image, label
    prepare.la(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    _assert_holds(tmp_path / "out" / "images" / f"{case}.nii.gz", image, np.diag([0.625] * 3 + [1]))
    _assert_holds(tmp_path / "out" / "labels" / f"{case}.nii.gz", label, np.diag([0.625] * 3 + [1]))


@pytest.fixture
def acdc_folder(tmp_path) -> Path:
    """Two patients of the official download, one labeled in every list."""
    folder = tmp_path / "database" / "training"
    for seed, (patient, systole) in enumerate({"patient099": 9, "patient003": 15}.items()):
        for frame in (1, systole):
            image, label = _volumes(100 * seed + frame)
            write_nifti(folder / patient / f"{patient}_frame{frame:02d}.nii.gz", image)
            write_nifti(folder / patient / f"{patient}_frame{frame:02d}_gt.nii.gz", label)
        (folder / patient / "Info.cfg").write_text(f"ED: 1\nES: {systole}\nGroup: NOR\nHeight: 170.0\nNbFrame: 30\n")
    return tmp_path / "database"


def test_short_axis_frames_are_named_by_their_phase(acdc_folder, tmp_path):
    prepare.acdc(str(acdc_folder), str(tmp_path / "out"), allow_missing=True)
    for name, seed in {"patient099_ED": 1, "patient099_ES": 9, "patient003_ED": 101, "patient003_ES": 115}.items():
        image, label = _volumes(seed)
        _assert_holds(tmp_path / "out" / "images" / f"{name}.nii.gz", image)
        _assert_holds(tmp_path / "out" / "labels" / f"{name}.nii.gz", label)
    content = _datalist(tmp_path / "out", "labeled_1.json")
    assert [case["image"] for case in content["training"]] == [f"images/patient099_{p}.nii.gz" for p in ("ED", "ES")]
    assert [case["image"] for case in content["unlabeled"]] == [f"images/patient003_{p}.nii.gz" for p in ("ED", "ES")]


def test_a_list_that_lost_all_its_labeled_scans_is_not_written(acdc_folder, tmp_path, capsys):
    patient = acdc_folder / "training" / "patient099"
    patient = patient.rename(patient.with_name("patient038"))  # which labeled_1.json has no label of
    for path in patient.glob("patient099*"):
        path.rename(path.with_name(path.name.replace("patient099", "patient038")))
    prepare.acdc(str(acdc_folder), str(tmp_path / "out"), allow_missing=True)
    assert sorted(path.name for path in (tmp_path / "out").glob("labeled*")) == ["labeled_3.json", "labeled_7.json"]
    assert "labeled_1.json: not written, none of its labeled scans is there" in capsys.readouterr().out


def test_a_frame_that_info_names_must_be_there(acdc_folder, tmp_path):
    next(acdc_folder.rglob("patient099_frame09.nii.gz")).unlink()
    with pytest.raises(UserError, match=r"Info.cfg: says that ES is frame 9, but patient099_frame09.nii.gz is missing"):
        prepare.acdc(str(acdc_folder), str(tmp_path / "out"), allow_missing=True)


def test_short_axis_community_copy_is_turned_into_x_y_z(tmp_path):
    image, label = np.random.default_rng(0).random((4, 9, 7)), np.zeros((4, 9, 7), np.uint8)
    (tmp_path / "in").mkdir()
    with h5py.File(tmp_path / "in" / "patient099_frame02.h5", "w") as file:
        file["image"], file["label"] = image, label
    prepare.acdc(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    expected = image.astype(np.float32).transpose(2, 1, 0)
    for key, true in (("images", expected), ("labels", label.transpose(2, 1, 0))):
        found = nib.load(tmp_path / "out" / key / "patient099_ES.nii.gz")
        np.testing.assert_array_equal(np.asarray(found.dataobj), true)
        assert found.header.get_zooms() == (1, 1, 10)
        assert (found.header["qform_code"], found.header["sform_code"]) == (0, 0)  # no spacing is declared


def _ct(shape=(16, 14, 8)) -> tuple[np.ndarray, np.ndarray]:
    """Air and fat with an organ off the middle."""
    label = np.zeros(shape, np.uint8)
    label[2:6, 1:5, 2:6] = 1
    image = np.random.default_rng(0).integers(-1000, -100, shape).astype(np.int16)
    image[label > 0] = 120
    return image, label


@pytest.mark.parametrize("mirrored", [(), (0,), (1,), (0, 1)], ids=str)
def test_a_pancreas_label_that_is_mirrored_in_plane_is_put_right(mirrored, tmp_path):
    image, label = _ct()
    write_dicom(tmp_path / "in" / "Pancreas-CT" / "PANCREAS_0001" / "study" / "series", image)
    write_nifti(tmp_path / "in" / "labels" / "label0001.nii.gz", np.flip(label, mirrored) if mirrored else label)
    prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), crop="none", allow_missing=True)
    affine = np.diag([-0.7, -0.8, 2.0, 1])  # DICOM's x and y point the other way
    _assert_holds(tmp_path / "out" / "images" / "0001.nii.gz", image, affine)
    _assert_holds(tmp_path / "out" / "labels" / "0001.nii.gz", label, affine)


def _pancreas(folder: Path, number: int, mirrored=(), image=None) -> None:
    own, label = _ct()
    write_dicom(folder / f"PANCREAS_{number:04d}", own if image is None else image)
    write_nifti(folder / f"label{number:04d}.nii.gz", np.flip(label, mirrored) if mirrored else label)


def test_all_pancreas_labels_are_mirrored_alike_and_one_that_fits_otherwise_is_named(tmp_path, capsys):
    for number in (1, 2):
        _pancreas(tmp_path / "in", number, mirrored=(1,))
    _pancreas(tmp_path / "in", 3)
    with pytest.raises(UserError, match=r"1 of 3 labels do not fit .* mirrored along y.*\n.*0003: fits as stored"):
        prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), crop="none", allow_missing=True)
    assert not (tmp_path / "out" / "labels").exists()
    (tmp_path / "in" / "label0003.nii.gz").unlink()
    prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), crop="none", allow_missing=True)
    assert "Labels are taken mirrored along y: the best direction of 2 of 2 scans" in capsys.readouterr().out
    _assert_holds(tmp_path / "out" / "labels" / "0001.nii.gz", _ct()[1], np.diag([-0.7, -0.8, 2.0, 1]))


def test_a_folder_with_other_data_gets_no_measurements_of_labels(tmp_path):
    _pancreas(tmp_path / "in", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prepare.json").write_text('{"command": "la", "files": {}}')
    with pytest.raises(UserError, match="holds data prepared otherwise"):
        prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["prepare.json"]


def test_a_pancreas_in_fat_is_not_mirrored_into_the_liver(tmp_path):
    image, label = _ct()
    image[label > 0] = np.where(np.arange((label > 0).sum()) % 5 < 2, 40, -20)  # an unenhanced pancreas full of fat
    image[8:, :8, :] = 60  # soft tissue all around the mirrored place
    _pancreas(tmp_path / "in", 1, image=image)
    prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), crop="none", allow_missing=True)
    _assert_holds(tmp_path / "out" / "labels" / "0001.nii.gz", label, np.diag([-0.7, -0.8, 2.0, 1]))


def test_a_pancreas_label_in_the_air_is_named(tmp_path):
    _pancreas(tmp_path / "in", 1)
    _pancreas(tmp_path / "in", 2, image=np.full((16, 14, 8), -1000, np.int16))
    with pytest.raises(UserError, match="0002: lies on soft tissue in no direction, at best 0%"):
        prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)


def test_pancreas_benchmark_is_cropped_at_one_millimetre(tmp_path):
    image, label = _ct()
    write_dicom(tmp_path / "in" / "PANCREAS_0001", image)
    write_nifti(tmp_path / "in" / "label0001.nii.gz", label)
    prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    prepared = nib.load(tmp_path / "out" / "images" / "0001.nii.gz")
    np.testing.assert_allclose(prepared.header.get_zooms(), 1, atol=1e-5)
    assert prepared.shape == (96, 96, 96)
    assert prepared.get_fdata().max() == pytest.approx(120, abs=1)  # Hounsfield units


def test_pancreas_community_copy_is_turned_back_into_hounsfield_units(tmp_path):
    image, label = np.random.default_rng(0).random((9, 8, 7)).astype(np.float32), _volumes(0, (9, 8, 7))[1]
    (tmp_path / "in").mkdir()
    for name in ("image0001_norm.h5", "0002.h5"):
        with h5py.File(tmp_path / "in" / name, "w") as file:
            file["image"], file["label"] = image, label
    prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    for name in ("0001", "0002"):
        found = nib.load(tmp_path / "out" / "images" / f"{name}.nii.gz").get_fdata()
        np.testing.assert_allclose(found, image * 400.0 - 125, atol=1e-3)
        _assert_holds(tmp_path / "out" / "labels" / f"{name}.nii.gz", label, np.eye(4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leave_out": (3,)}, "slices are missing between 4.00 and 8.00 mm"),
        ({"spacing": (0.7, 0.8, 0.0)}, "there twice"),
        ({"turned": 4}, "the slices have 2 different orientations"),
    ],
)
def test_a_broken_series_is_named(change, message, tmp_path):
    write_dicom(tmp_path / "in" / "scan", _ct()[0], **change)
    with pytest.raises(UserError, match=message):
        own(str(tmp_path / "in"), str(tmp_path / "out"))


def test_two_series_in_a_folder_are_named(tmp_path):
    write_dicom(tmp_path / "in" / "scan", _ct()[0])
    write_dicom(tmp_path / "in" / "other", _ct()[0], uid="1.2.9")
    for path in (tmp_path / "in" / "other").iterdir():
        path.rename(tmp_path / "in" / "scan" / f"other_{path.name}")
    with pytest.raises(UserError, match="expected one DICOM series, found 2"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.fixture
def isic_folder(tmp_path) -> Path:
    """Twenty training, one validation and one test photograph."""
    folder, number = tmp_path / "isic", 0
    for part, count in {"Training": 20, "Validation": 1, "Test": 1}.items():
        images, masks = (folder / f"ISIC2018_Task1{name}" for name in (f"-2_{part}_Input", f"_{part}_GroundTruth"))
        images.mkdir(parents=True), masks.mkdir()
        for _ in range(count):
            photo, mole = make_photo(np.random.default_rng(number), (18, 25))
            Image.fromarray(photo).save(images / f"ISIC_{number:07d}.jpg")
            Image.fromarray(mole * 255).save(masks / f"ISIC_{number:07d}_segmentation.png")
            number += 1
    return folder


def test_photographs_are_copied_and_masks_are_black_and_white(isic_folder, tmp_path):
    prepare.isic(str(isic_folder), str(tmp_path / "out"))
    for number in range(22):
        source = next(isic_folder.rglob(f"ISIC_{number:07d}.jpg"))
        assert (tmp_path / "out" / "images" / source.name).read_bytes() == source.read_bytes()
        mask = np.asarray(Image.open(tmp_path / "out" / "labels" / f"ISIC_{number:07d}.png"))
        np.testing.assert_array_equal(mask, make_photo(np.random.default_rng(number), (18, 25))[1] * 255)
    lists = {count: _datalist(tmp_path / "out", f"labeled_{count}.json") for count in (5, 10, 20)}
    labeled = {count: {case["image"] for case in content["training"]} for count, content in lists.items()}
    assert {count: len(images) for count, images in labeled.items()} == {5: 1, 10: 2, 20: 4}
    assert labeled[5] < labeled[10] < labeled[20]
    assert (len(lists[5]["unlabeled"]), len(lists[5]["validation"]), len(lists[5]["test"])) == (19, 1, 1)


def test_a_photograph_without_its_mask_is_named(isic_folder, tmp_path):
    next(isic_folder.rglob("ISIC_0000021_segmentation.png")).unlink()
    with pytest.raises(UserError, match=r"1 of 22 scans are incomplete.*\n.*ISIC_0000021: no label found"):
        prepare.isic(str(isic_folder), str(tmp_path / "out"))


def _h5(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = np.zeros((4, 4, 4)), np.zeros((4, 4, 4), np.uint8)


def _photo(folder: Path, part: str, number: int) -> None:
    names = {f"-2_{part}_Input/ISIC_{number:07d}.jpg": 3, f"_{part}_GroundTruth/ISIC_{number:07d}_segmentation.png": 1}
    for name, channels in names.items():
        path = folder / f"ISIC2018_Task1{name}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3) if channels == 3 else (8, 8), np.uint8)).save(path)


def _write_challenge(folder: Path) -> None:
    for name in ("lgemri", "laendo"):
        write_itk(folder / "06SR5RBREL16DQ6M8LWS" / f"{name}.nrrd", _volumes(0)[1], OBLIQUE)


def _write_patient(folder: Path) -> None:
    (folder / "patient099").mkdir(parents=True)
    (folder / "patient099" / "Info.cfg").write_text("ED: 1\nES: 9\n")
    for name in ("01", "01_gt", "09", "09_gt"):
        write_nifti(folder / "patient099" / f"patient099_frame{name}.nii.gz", _volumes(0)[1])


#: How each layout's scan is written below a folder, what finds it there, and its names.
LAYOUTS = {
    "la_challenge": (_write_challenge, layouts.la_challenge, ["06SR5RBREL16DQ6M8LWS"]),
    "la_community": (lambda at: _h5(at / "case" / "mri_norm2.h5"), layouts.la_community, ["case"]),
    "acdc_official": (_write_patient, layouts.acdc_official, ["patient099_ED", "patient099_ES"]),
    "acdc_community": (
        lambda at: _h5(at / "h5" / "patient099_frame01.h5"),
        layouts.acdc_community,
        ["patient099_ED"],
    ),
    "pancreas": (lambda at: _pancreas(at / "ct", 1), layouts.pancreas, ["0001"]),
    "pancreas_community": (lambda at: _h5(at / "h5" / "0001.h5"), layouts.pancreas_community, ["0001"]),
    "isic": (lambda at: _photo(at, "Training", 1), layouts.isic_training, ["ISIC_0000001"]),
}


@pytest.mark.parametrize(("write", "find", "names"), LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_is_found_behind_links_and_once_and_not_in_hidden_folders(write, find, names, tmp_path):
    write(tmp_path / "elsewhere")
    top = tmp_path / "download"
    top.mkdir()
    for hidden in (".Trash-1000", "__MACOSX"):
        write(top / hidden)
    assert find(top) == {}
    for folder in sorted((tmp_path / "elsewhere").iterdir()):
        (top / folder.name).symlink_to(folder)
    (top / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (top / "above").symlink_to(tmp_path)
    found = find(top)
    assert sorted(found) == names
    assert all(files.label is not None for files in found.values())


@pytest.mark.parametrize(("write", "find", "names"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_name_that_is_there_twice_is_refused_with_both_places(write, find, names, tmp_path):
    for copy in ("first", "second"):
        write(tmp_path / copy)
    with pytest.raises(UserError, match=r"(?s)more than once, nothing was written; keep one of each.*first.*second"):
        find(tmp_path)


def test_two_files_of_one_frame_are_refused(acdc_folder):
    path = next(acdc_folder.rglob("patient099_frame01.nii.gz"))
    nib.save(nib.load(path), path.with_name("patient099_frame01.nii"))
    with pytest.raises(UserError, match=r"patient099_frame01: .*frame01.nii.gz and .*frame01.nii$"):
        prepare.acdc(str(acdc_folder), str(acdc_folder.parent / "out"), allow_missing=True)


def test_a_photograph_in_two_parts_is_refused(isic_folder, tmp_path):
    for part in ("Validation", "Test"):
        _photo(isic_folder, part, 3)
    with pytest.raises(UserError, match=r"ISIC_0000003: Training and Validation and Test$"):
        prepare.isic(str(isic_folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_of_a_download_is_told(acdc_folder, tmp_path, capsys):
    _write_patient(acdc_folder / ".Trash-1000")
    prepare.acdc(str(acdc_folder), str(tmp_path / "out"), allow_missing=True)
    assert "left out 1: .Trash-1000/ (hidden)" in capsys.readouterr().out


@pytest.mark.parametrize("bundle", ["la", "acdc", "pancreas", "isic"])
def test_demo_data_fit_their_bundle(bundle, tmp_path):
    prepare.demo(str(tmp_path / "out"), bundle=bundle, training=1, unlabeled=1)
    content = _datalist(tmp_path / "out", "synthetic.json")
    assert {name: bool(content[name]) for name in ("training", "unlabeled", "validation", "test")} == {
        "training": True,
        "unlabeled": True,
        "validation": True,
        "test": True,
    }


@pytest.fixture
def own_folders(tmp_path) -> tuple[Path, Path]:
    """Six scans in four formats, four of them labeled."""
    images, labels = tmp_path / "my scans", tmp_path / "my labels"
    for seed, name in enumerate(("a.nii.gz", "b ü.nrrd", "c.mha", "d.nii", "e.nii.gz")):
        write = write_nifti if ".nii" in name else write_itk
        write(images / name, _volumes(seed)[0], OBLIQUE)
    write_dicom(images / "f", _ct()[0])
    for seed, name in enumerate(("a_seg.nii.gz", "b ü.nrrd", "c-label.nii.gz")):
        write = write_nifti if ".nii" in name else write_itk
        write(labels / name, _volumes(seed)[1], OBLIQUE)
    return images, labels


def test_own_scans_of_any_format_keep_voxels_and_geometry(own_folders, tmp_path):
    images, labels = own_folders
    own(str(images), str(tmp_path / "out"), labels=str(labels), modality="CT")
    for seed, name in enumerate(("a", "b ü", "c", "d", "e")):
        _assert_holds(tmp_path / "out" / "images" / f"{name}.nii.gz", _volumes(seed)[0])
    content = _datalist(tmp_path / "out", "datalist.json")
    assert [case["label"] for case in content["training"]] == [f"labels/{name}.nii.gz" for name in ("a", "b ü", "c")]
    assert [case["image"] for case in content["unlabeled"]] == [f"images/{name}.nii.gz" for name in ("d", "e", "f")]
    cases = load_datalist(
        str(tmp_path / "out" / "datalist.json"), ["training", "unlabeled"], in_channels=1, num_classes=2, dimensions=3
    )
    assert len(cases["unlabeled"]) == 3


@pytest.mark.parametrize(
    "content",
    [
        {"labels": {"0": "background", "1": "liver", "2": "tumor"}, "modality": {"0": "CT"}, "numTraining": 2},
        {"labels": {"background": 0, "liver": 1, "tumor": 2}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"},
    ],
    ids=["Decathlon and nnU-Net 1", "nnU-Net 2"],
)
@pytest.mark.parametrize("given", ["", "imagesTr"])
def test_own_takes_nnunet_s_layout_and_names(content, given, tmp_path):
    source = tmp_path / "Dataset001_Liver"
    for seed, name in enumerate(("imagesTr/a", "imagesTr/b", "imagesTs/c")):
        image, label = _volumes(seed)
        write_nifti(source / f"{name}_0000.nii.gz", image)
        if name == "imagesTr/a":
            write_nifti(source / "labelsTr" / "a.nii.gz", np.minimum(label, 1) * 2)
    (source / "dataset.json").write_text(json.dumps(content))
    own(str(source / given), str(tmp_path / "out"), labels=str(source / "labelsTr") if given else None)
    written = _datalist(tmp_path / "out", "datalist.json")
    assert written["labels"] == {"0": "background", "1": "liver", "2": "tumor"}
    assert written["modality"] == {"0": "CT"}
    assert [case["image"] for case in written["training"]] == ["images/a.nii.gz"]
    expected = ["b"] if given else ["b", "c"]
    assert [case["image"] for case in written["unlabeled"]] == [f"images/{name}.nii.gz" for name in expected]


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ({"background": 0, "whole": [1, 2], "core": 2}, None, "regions and ignored voxels cannot be read"),
        ({"background": 0, "liver": 1, "ignore": 2}, None, "regions and ignored voxels cannot be read"),
        ({"background": 0, "liver": 2}, None, "labels must be 0 to 1, one structure each"),
        ({"background": 0, "whole": [1, 2], "core": 2}, "a", None),
        ({}, None, None),
    ],
)
def test_labels_of_nnunet_that_are_no_structures_are_refused_unless_they_are_named(labels, classes, message, tmp_path):
    write_nifti(tmp_path / "in" / "imagesTr" / "a_0000.nii.gz", _volumes(0)[0])
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"labels": labels}))
    if message is None:
        own(str(tmp_path / "in"), str(tmp_path / "out"), classes=classes)
        assert _datalist(tmp_path / "out", "datalist.json")["labels"]["1"] == (classes or "foreground")
    else:
        with pytest.raises(UserError, match=f"dataset.json: .*{message}"):
            own(str(tmp_path / "in"), str(tmp_path / "out"), classes=classes)


def test_a_damaged_description_is_named(tmp_path):
    write_nifti(tmp_path / "in" / "a.nii.gz", _volumes(0)[0])
    (tmp_path / "in" / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset.json: is not JSON .*; mend it, or take it away"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ((1,), ["foreground"]),
        ((255,), ["foreground"]),
        ((1, 2), ["class_1", "class_2"]),
        ((3, 1, 2), ["class_1", "class_2", "class_3"]),
    ],
)
def test_structures_get_names_by_the_labels_where_nobody_names_them(values, names, tmp_path):
    _own_labels(tmp_path / "in", values)
    own(str(tmp_path / "in"), str(tmp_path / "out"))
    content = _datalist(tmp_path / "out", "datalist.json")
    assert list(content["labels"].values()) == ["background", *names]
    own(str(tmp_path / "in"), str(tmp_path / "out"))  # the same again


def _own_labels(folder, values):
    image, label = _volumes(0)
    for number, value in enumerate(values):
        write_nifti(folder / "images" / f"p{number}.nii.gz", image)
        write_nifti(folder / "labels" / f"p{number}.nii.gz", label * value)


@pytest.mark.parametrize("values", [(1, 3), (2,), (1, 2, 4)])
def test_labels_with_gaps_are_named_before_anything_is_written(values, tmp_path):
    _own_labels(tmp_path / "in", values)
    shown = ", ".join(map(str, values))
    with pytest.raises(UserError, match=f"the labels hold {shown} and background, not every number up to {values[-1]}"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    names = [f"part_{number}" for number in range(1, values[-1] + 1)]
    own(str(tmp_path / "in"), str(tmp_path / "out"), classes=",".join(names), plan=None)
    assert list(_datalist(tmp_path / "out", "datalist.json")["labels"].values()) == ["background", *names]


@pytest.mark.parametrize("value", [0.5, 101])
def test_labels_of_other_values_are_not_given_names(value, tmp_path):
    _own_labels(tmp_path / "in", [value])
    with pytest.raises(UserError, match=r"labels must be whole numbers from 0 to 1, found"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "datalist.json").exists()


def test_a_label_in_layers_is_named_and_the_other_scans_are_written(tmp_path):
    """As Slicer stores segments that overlap."""
    _own_labels(tmp_path / "in", [1, 1])
    image, label = _volumes(0)
    write_nifti(tmp_path / "in" / "images" / "slicer.nii.gz", image)
    sizes = " ".join(map(str, label.shape))
    head = f"NRRD0004\ntype: uchar\ndimension: 4\nsizes: 2 {sizes}\nkinds: list domain domain domain\n"
    head += "space: left-posterior-superior\nspace directions: none (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\n"
    layers = np.stack([label, label]).astype(np.uint8).tobytes(order="F")
    (tmp_path / "in" / "labels" / "slicer.nrrd").write_bytes(f"{head}encoding: raw\n\n".encode() + layers)
    with pytest.raises(UserError, match=r"1 of 3 scans could not be prepared") as raised:
        own(str(tmp_path / "in"), str(tmp_path / "out"), plan=None)
    assert f"slicer: {tmp_path / 'in' / 'labels' / 'slicer.nrrd'}: holds a list of volumes" in str(raised.value)


@pytest.mark.parametrize("name", ["images/p1.nii.gz", "labels/p1.nii.gz"])
def test_a_damaged_file_is_named(name, tmp_path):
    _own_labels(tmp_path / "in", [1, 1])
    (tmp_path / "in" / name).write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"p1: {tmp_path / 'in' / name}: cannot be read, probably truncated"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "datalist.json").exists()


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.where(_volumes(0)[1] > 0, np.float32(np.nan), 1), r"72 voxel\(s\) are NaN or infinite"),
        (np.full((12, 10, 6), 7, np.int16), "all voxels are 7; expected an image, perhaps an empty export"),
        (
            np.stack([_volumes(0)[0]] * 5, -1),
            r"expected 1 channel\(s\), found 5 .*; save the frames of a series, or the colors",
        ),
        (np.stack([_volumes(0)[0]] * 2, -1)[:, :, :, None], "expected 3 dimensions, found shape|expected 1 channel"),
    ],
    ids=["NaN", "constant", "time series", "five axes"],
)
def test_an_image_that_training_would_refuse_is_refused_by_name(volume, message, tmp_path):
    _own_labels(tmp_path / "in", [1])
    path = tmp_path / "in" / "images" / "p1.nii.gz"
    write_nifti(path, volume)
    with pytest.raises(UserError, match=rf"1 of 2 scans could not be prepared.*\n  - p1: {path}: ({message})"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "images" / "p1.nii.gz").exists()


def test_a_damaged_h5_file_is_named(tmp_path):
    path = tmp_path / "case" / "mri_norm2.h5"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    with pytest.raises(UserError, match=rf"{path}: cannot be read"):
        layouts.la_community(tmp_path)["case"].image()


@pytest.mark.parametrize("values", [(3,), (0.37,), (13245,)])
def test_a_label_of_another_image_is_told_by_its_grid_not_by_its_values(values, tmp_path):
    _own_labels(tmp_path / "in", [1])
    label = np.where(_volumes(0)[1] > 0, np.float32(values[0]), 0)
    write_nifti(tmp_path / "in" / "labels" / "p0.nii.gz", label[:-1])
    with pytest.raises(UserError) as raised:
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    text = str(raised.value)
    assert f"{tmp_path / 'in' / 'labels' / 'p0.nii.gz'}: shape (11, 10, 6) differs from its image's (12, 10, 6)" in text
    assert f"({tmp_path / 'in' / 'images' / 'p0.nii.gz'})" in text
    assert "found" not in text


@pytest.mark.parametrize("classes", [None, "liver"])
def test_labels_that_are_all_empty_are_refused_and_a_single_one_is_taken(classes, tmp_path):
    _own_labels(tmp_path / "in", [0, 0])
    labels = tmp_path / "in" / "labels"
    names = re.escape(f"{labels / 'p0.nii.gz'}, {labels / 'p1.nii.gz'}")
    with pytest.raises(UserError, match=rf"nothing was written: every voxel is 0 in all 2 label\(s\) .* \({names}\)"):
        own(str(tmp_path / "in"), str(tmp_path / "out"), classes=classes)
    assert not (tmp_path / "out").exists()
    _own_labels(tmp_path / "in", [0, 1])
    own(str(tmp_path / "in"), str(tmp_path / "out"), classes=classes)


def test_an_image_in_the_place_of_a_label_marks_no_structures(tmp_path):
    image, _ = _volumes(0)
    values = np.arange(image.size, dtype=np.float32).reshape(image.shape) % 200
    write_nifti(tmp_path / "in" / "images" / "p0.nii.gz", image)
    write_nifti(tmp_path / "in" / "labels" / "p0.nii.gz", values)
    with pytest.raises(UserError, match=r"labels must be whole numbers from 0 to 1, found"):
        own(str(tmp_path / "in"), str(tmp_path / "out"))


def _own_study(folder, count, unlabeled=()):
    """Labeled scans of one patient each, and unlabeled ones of the patients that are named."""
    for number in range(count):
        image, label = _volumes(number, (6, 5, 4))
        write_nifti(folder / "images" / f"p{number}_a.nii.gz", image)
        write_nifti(folder / "labels" / f"p{number}_a.nii.gz", label)
    for number in unlabeled:
        write_nifti(folder / "images" / f"p{number}_b.nii.gz", _volumes(100 + number, (6, 5, 4))[0])


def _members(folder, key):
    found = [_datalist(folder, f"fold_{number}.json")[key] for number in range(3)]
    return [{re.search(r"p\d+_.", case["image"]).group() for case in cases} for cases in found]


def test_folds_hold_every_labeled_patient_once_and_stay_when_others_are_added(tmp_path, capsys):
    _own_study(tmp_path / "in", 7, unlabeled=(1, 8))
    options = {"folds": 3, "patient_pattern": r"p\d+"}
    own(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert "7 labeled patient(s) in 3 folds: 3, 2, 2" in capsys.readouterr().out
    validation = _members(tmp_path / "out", "validation")
    everyone = {f"p{number}_a" for number in range(7)}
    assert sorted(name for fold in validation for name in fold) == sorted(everyone)
    for held_out, trained, others in zip(
        validation, _members(tmp_path / "out", "training"), _members(tmp_path / "out", "unlabeled"), strict=True
    ):
        assert trained == everyone - held_out
        assert others == ({"p8_b"} if "p1_a" in held_out else {"p1_b", "p8_b"})
    assert len(_datalist(tmp_path / "out", "datalist.json")["training"]) == 7

    _own_study(tmp_path / "in", 9)
    own(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    after = _members(tmp_path / "out", "validation")
    assert [before <= now for before, now in zip(validation, after, strict=True)] == [True] * 3
    assert [len(fold) for fold in after] == [3, 3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 4}, "--folds must be from 2 to the number of labeled patients, 3, got 4"),
        ({"folds": 1}, "--folds must be from 2 to the number of labeled patients, 3, got 1"),
        ({"folds": 2, "validation": 0.3}, "--folds and --validation exclude each other"),
    ],
)
def test_folds_that_cannot_be_are_refused(options, message, tmp_path):
    _own_study(tmp_path / "in", 3)
    with pytest.raises(UserError, match=message):
        own(str(tmp_path / "in"), str(tmp_path / "out"), seed=3, **options)
    assert not (tmp_path / "out").exists()


def test_own_photographs_are_copied_and_their_masks_are_black_and_white(tmp_path):
    for seed in range(2):
        (tmp_path / "photos").mkdir(exist_ok=True), (tmp_path / "masks").mkdir(exist_ok=True)
        photo, mole = make_photo(np.random.default_rng(seed), (18, 25))
        Image.fromarray(photo).save(tmp_path / "photos" / f"p{seed}.JPG")
    Image.fromarray(mole * 255).save(tmp_path / "masks" / "p1_mask.png")
    own(str(tmp_path / "photos"), str(tmp_path / "out"), labels=str(tmp_path / "masks"), classes="lesion")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / "p1.png")), mole * 255)
    check_folder(tmp_path / "out", tmp_path / "check.json")
    datalist = str(tmp_path / "out" / "datalist.json")
    cases = load_datalist(datalist, ["training", "unlabeled"], in_channels=3, num_classes=2, dimensions=2)
    assert (len(cases["training"]), len(cases["unlabeled"])) == (1, 1)


def test_an_interrupted_run_is_taken_up_where_it_stopped(own_folders, tmp_path, monkeypatch):
    images, labels = own_folders
    found = own_scans(images, labels, tmp_path / "out")
    files = own_command._own_files({case_name(image): scan for image, scan in found.items()}, num_classes=2)
    scans = [assembling._scan(name, found, None) for name, found in files.items()]
    record = {"command": "own", "source": "x", "options": {}}
    store.write_dataset(tmp_path / "out", scans[:3], {}, record)  # as far as the first run came
    written = []
    submit = ProcessPoolExecutor.submit
    monkeypatch.setattr(ProcessPoolExecutor, "submit", lambda *args: (written.append(args[-1].name), submit(*args))[1])
    store.write_dataset(tmp_path / "out", scans, {"datalist.json": {}}, record)
    assert written == [scan.name for scan in scans[3:]]


def test_a_full_disk_is_told_plainly():
    assert store._reason(OSError(28, "No space left on device")) == "the disk is full."


def test_patients_are_split_whole_and_always_the_same_way(tmp_path):
    images, labels = tmp_path / "images", tmp_path / "labels"
    for patient in range(5):
        for visit in range(2):
            write_nifti(images / f"p{patient}_v{visit}.nii.gz", _volumes(10 * patient + visit)[0])
            write_nifti(labels / f"p{patient}_v{visit}.nii.gz", _volumes(0)[1])
    contents = []
    for name in ("one", "two"):
        split = {"validation": 0.2, "test": 0.4, "patient_pattern": r"p\d+"}
        own(str(images), str(tmp_path / name), labels=str(labels), **split)
        contents.append({**_datalist(tmp_path / name, "datalist.json"), "name": ""})
    assert contents[0] == contents[1]
    lists = {name: {case["image"][7:9] for case in contents[0][name]} for name in ("training", "validation", "test")}
    assert {name: len(patients) for name, patients in lists.items()} == {"training": 2, "validation": 1, "test": 2}
    assert len(set.union(*lists.values())) == 5


@pytest.mark.parametrize("number", [2, 3, 5, 8, 30])
@pytest.mark.parametrize("seed", range(5))
def test_few_labeled_patients_are_split_as_the_fraction_says(number, seed):
    patients = {f"p{k}_{visit}": f"p{k}" for k in range(number) for visit in range(2)}
    lists = split_patients(list(patients), patients, {"validation": 0.2, "test": 0.0}, seed)
    held_out = {patients[name] for name in lists["validation"]}
    assert len(held_out) == max(1, round(0.2 * number))
    assert {patients[name] for name in lists["training"]} == set(patients.values()) - held_out
    assert lists["test"] == []


def _patients_by_list(folder):
    content = _datalist(folder, "datalist.json")
    lists = ("training", "unlabeled", "validation", "test")
    return {name: {re.search(r"p\d+", case["image"]).group() for case in content[name]} for name in lists}


def test_patients_stay_in_their_lists_when_scans_and_labels_are_added(tmp_path):
    _own_study(tmp_path / "in", 5, unlabeled=range(5, 9))
    options = {"validation": 0.2, "test": 0.2, "patient_pattern": r"p\d+"}
    own(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    before = _patients_by_list(tmp_path / "out")
    assert {name: len(members) for name, members in before.items()} == {
        "training": 3,
        "unlabeled": 4,
        "validation": 1,
        "test": 1,
    }
    _own_study(tmp_path / "in", 15)
    own(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    after = _patients_by_list(tmp_path / "out")
    assert {name: len(after[name]) for name in ("training", "validation", "test")} == {
        "training": 9,
        "validation": 3,
        "test": 3,
    }
    assert before["validation"] < after["validation"]
    assert before["test"] < after["test"]
    assert before["training"] | before["unlabeled"] < after["training"] | after["unlabeled"]


def test_a_list_for_which_no_patient_is_left_is_refused(tmp_path):
    _own_study(tmp_path / "in", 1)
    with pytest.raises(UserError, match=r"no patient is left for training, of 1 labeled patient.s.; label more"):
        own(str(tmp_path / "in"), str(tmp_path / "out"), validation=0.2)
    assert not (tmp_path / "out").exists()
    patients = {"a": "a", "b": "b"}
    with pytest.raises(
        UserError, match=r"no patient is left for test, .* of whom 2 were trained with before; .*--output"
    ):
        split_patients(["a", "b"], patients, {"validation": 0.0, "test": 0.5}, 0, {"training": {"a", "b"}})


def test_unlabeled_scans_of_held_out_patients_are_left_out(tmp_path):
    for patient in range(4):
        for visit in range(2):
            write_nifti(tmp_path / "images" / f"p{patient}_v{visit}.nii.gz", _volumes(10 * patient + visit)[0])
        write_nifti(tmp_path / "labels" / f"p{patient}_v0.nii.gz", _volumes(0)[1])
    split = {"labels": str(tmp_path / "labels"), "validation": 0.25, "patient_pattern": r"p\d+"}
    own(str(tmp_path / "images"), str(tmp_path / "out"), **split)
    content = _datalist(tmp_path / "out", "datalist.json")
    (held_out,) = {case["image"][7:9] for case in content["validation"]}
    assert len(content["unlabeled"]) == 3
    assert held_out not in {case["image"][7:9] for case in content["unlabeled"]}


def _copied_study(folder):
    """Four labeled patients, and an unlabeled copy of each image under another name."""
    _own_study(folder, 4)
    for number in range(4):
        path = folder / "images" / f"p{number}_a.nii.gz"
        path.with_name(f"p{number}_copy.nii.gz").write_bytes(path.read_bytes())


def test_copies_of_an_image_are_told(tmp_path, capsys):
    _copied_study(tmp_path / "in")
    own(str(tmp_path / "in"), str(tmp_path / "out"))
    first, second = (tmp_path / "in" / "images" / f"p0_{name}.nii.gz" for name in ("a", "copy"))
    assert f"the same image under several names: {first} and {second}, " in capsys.readouterr().out


@pytest.mark.parametrize("options", [{"validation": 0.3}, {"test": 0.3}, {"folds": 2}])
def test_copies_on_both_sides_of_a_split_are_refused_unless_they_are_of_one_patient(options, tmp_path):
    _copied_study(tmp_path / "in")
    with pytest.raises(UserError, match=r"take one of each away.*\n  - .*_a.nii.gz and .*_copy.nii.gz: in .*unlabeled"):
        own(str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    own(str(tmp_path / "in"), str(tmp_path / "out"), **options, patient_pattern=r"p\d+")


def test_a_dicom_series_that_is_there_twice_is_a_copy(tmp_path):
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        write_dicom(tmp_path / name, _volumes(seed)[0])
    assert find_copies({name: [tmp_path / name] for name in "abc"}) == [["a", "b"]]


def test_an_image_that_is_packed_in_another_way_is_a_copy(tmp_path):
    content = {name: bytes([number]) + bytes(100) for number, name in enumerate("abcde")}
    content |= {"b": content["a"], "c": content["a"]}
    files = {}
    for name, level in {"a": 1, "b": 9, "c": None, "d": 1, "e": None}.items():
        files[name] = tmp_path / f"{name}.nii{'' if level is None else '.gz'}"
        files[name].write_bytes(content[name] if level is None else gzip.compress(content[name], level))
    assert find_copies({name: [path] for name, path in files.items()}) == [["a", "b", "c"]]
    files["a"].write_bytes(files["a"].read_bytes()[:20] + files["b"].read_bytes()[-8:])  # damaged
    assert find_copies({name: [files[name]] for name in "ab"}) == []


def test_a_shared_channel_or_header_makes_no_copy(tmp_path):
    (tmp_path / "prior.nii").write_bytes(b"the same for all")
    for name in "ab":
        (tmp_path / f"{name}.nii").write_bytes(name.encode())
        (tmp_path / name).mkdir()
        (tmp_path / name / "scan.mhd").write_text("ElementDataFile = s%02d.raw 1 3 1\n")
    assert not find_copies({name: [tmp_path / f"{name}.nii", tmp_path / "prior.nii"] for name in "ab"})
    assert not find_copies({name: [tmp_path / name / "scan.mhd"] for name in "ab"})


def test_a_label_without_an_image_is_refused(own_folders, tmp_path):
    images, labels = own_folders
    write_nifti(labels / "z_seg.nii.gz", _volumes(0)[1])
    with pytest.raises(UserError, match=r"1 label\(s\) without an image of their own.*\n.*z_seg.nii.gz: no image of"):
        own(str(images), str(tmp_path / "out"), labels=str(labels))


@pytest.mark.parametrize(
    ("label", "affine", "message"),
    [
        (
            _volumes(0)[1][:-1],
            OBLIQUE,
            r"a: .*a_seg.nii.gz: shape \(11, 10, 6\) differs from .*10, 6\) \(.*a.nii.gz\); if it is of another",
        ),
        (_volumes(0)[1], np.eye(4), r"a_seg.nii.gz: affine differs .*my scans/a.nii.gz\); if it is of another image"),
        (_volumes(0)[1] * 1.5, OBLIQUE, "a: .*a_seg.nii.gz: labels must be whole numbers from 0 to 1, found 1.5"),
    ],
)
def test_a_label_that_does_not_fit_is_named_and_the_others_are_kept(label, affine, message, own_folders, tmp_path):
    images, labels = own_folders
    write_nifti(labels / "a_seg.nii.gz", label, affine)
    with pytest.raises(UserError, match=rf"(?s)1 of 6 scans could not be prepared.*{message}"):
        own(str(images), str(tmp_path / "out"), labels=str(labels))
    assert not (tmp_path / "out" / "datalist.json").exists()
    assert (tmp_path / "out" / "labels" / "c.nii.gz").exists()
    write_nifti(labels / "a_seg.nii.gz", _volumes(0)[1])
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    assert (tmp_path / "out" / "datalist.json").exists()


def test_a_second_run_writes_nothing_and_a_damaged_file_is_written_again(own_folders, tmp_path):
    images, labels = own_folders
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    files = sorted((tmp_path / "out" / "images").iterdir())
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}
    files[0].write_bytes(b"damaged")
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    assert files[0].read_bytes() == before[files[0]][1]
    assert all(path.stat().st_mtime_ns == before[path][0] for path in files[1:])


def test_a_corrected_label_is_prepared_again_and_nothing_else(own_folders, tmp_path):
    images, labels = own_folders
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.nii.gz")}
    write_nifti(labels / "a_seg.nii.gz", np.zeros_like(_volumes(0)[1]))
    slice_file = images / "f" / "003.dcm"
    os.utime(slice_file, ns=(0, 0))
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    _assert_holds(tmp_path / "out" / "labels" / "a.nii.gz", np.zeros_like(_volumes(0)[1]))
    again = {
        path.relative_to(tmp_path / "out").as_posix() for path in before if path.stat().st_mtime_ns != before[path]
    }
    assert again == {"images/a.nii.gz", "labels/a.nii.gz", "images/f.nii.gz"}


def test_a_record_without_sources_is_prepared_again(own_folders, tmp_path):
    images, _ = own_folders
    own(str(images), str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    del record["made_from"]
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(record))
    before = (tmp_path / "out" / "images" / "a.nii.gz").stat().st_mtime_ns
    own(str(images), str(tmp_path / "out"))
    assert (tmp_path / "out" / "images" / "a.nii.gz").stat().st_mtime_ns > before


def test_labels_a_hair_below_whole_numbers_are_the_classes_in_every_layout(acdc_folder, tmp_path):
    label = np.asarray(_volumes(1)[1] * 3 * 0.9999999, np.float32)
    write_nifti(next(acdc_folder.rglob("patient099_frame01_gt.nii.gz")), label)
    write_nifti(tmp_path / "scans" / "a.nii.gz", _volumes(1)[0])
    write_nifti(tmp_path / "masks" / "a.nii.gz", label)
    with h5py.File(tmp_path / "patient099_frame01.h5", "w") as file:
        file["image"], file["label"] = (array.transpose(2, 1, 0) for array in (_volumes(1)[0], label))
    for files in (
        layouts.acdc_official(acdc_folder)["patient099_ED"],
        layouts.acdc_community(tmp_path)["patient099_ED"],
        own_command._own_files(
            {"a": OwnScan([tmp_path / "scans" / "a.nii.gz"], tmp_path / "masks" / "a.nii.gz")}, num_classes=4
        )["a"],
    ):
        store._write_scan(tmp_path / "out", assembling._scan("a", files, None))
        found = np.asarray(nib.load(tmp_path / "out" / "labels" / "a.nii.gz").dataobj)
        np.testing.assert_array_equal(found, _volumes(1)[1] * 3)


@pytest.mark.parametrize("value", [0.4, 4, -1, 300, np.nan])
def test_an_official_label_that_holds_no_class_is_named_with_its_value(value, acdc_folder):
    label = np.where(_volumes(1)[1] > 0, np.float32(value), 0)
    write_nifti(next(acdc_folder.rglob("patient099_frame01_gt.nii.gz")), label)
    with pytest.raises(UserError, match=rf"patient099_frame01_gt.nii.gz: labels must .* 0 to 3, found {value:g}"):
        assembling._read(layouts.acdc_official(acdc_folder)["patient099_ED"], None, False)


@pytest.mark.parametrize(("num_classes", "values"), [(2, [0, 255]), (3, [0, 1])])
def test_a_picture_of_one_structure_is_black_and_white_and_of_several_holds_classes(num_classes, values, tmp_path):
    photo, mole = make_photo(np.random.default_rng(0), (18, 25))
    for folder, image in {"photos": photo, "masks": mole}.items():
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "a.png")
    files = own_command._own_files(
        {"a": OwnScan([tmp_path / "photos" / "a.png"], tmp_path / "masks" / "a.png")}, num_classes
    )["a"]
    store._write_scan(tmp_path / "out", assembling._scan("a", files, None, one_structure=num_classes == 2))
    assert np.unique(np.asarray(Image.open(tmp_path / "out" / "labels" / "a.png"))).tolist() == values


@pytest.mark.parametrize("axes", ["LPS", "RAI", "SAL", "PIR"])
def test_a_label_stored_along_other_axes_is_brought_to_its_image_s(axes, tmp_path):
    image, label = _volumes(0)
    label[3, 2, 1] = 0  # no symmetry
    write_nifti(tmp_path / "scans" / "a.nii.gz", image)
    stored = nib.Nifti1Image(label, OBLIQUE)
    turn = nib.orientations.ornt_transform(nib.io_orientation(OBLIQUE), nib.orientations.axcodes2ornt(axes))
    (tmp_path / "masks").mkdir()
    nib.save(stored.as_reoriented(turn), tmp_path / "masks" / "a.nii.gz")
    own(str(tmp_path / "scans"), str(tmp_path / "out"), labels=str(tmp_path / "masks"))
    _assert_holds(tmp_path / "out" / "labels" / "a.nii.gz", label)


def test_a_label_whose_header_contradicts_its_voxels_is_refused(tmp_path):
    image, label = _volumes(0)
    swapped = np.eye(4)[[1, 0, 2, 3]]
    write_nifti(tmp_path / "scans" / "a.nii.gz", image, np.eye(4))
    write_nifti(tmp_path / "masks" / "a.nii.gz", label, swapped)
    with pytest.raises(UserError, match=r"masks/a.nii.gz: affine differs from its image.s by up to"):
        own(str(tmp_path / "scans"), str(tmp_path / "out"), labels=str(tmp_path / "masks"))


def test_a_label_a_hair_off_its_image_gets_its_affine(tmp_path):
    image, label = _volumes(0)
    moved = OBLIQUE.copy()
    moved[:3, 3] += 0.004
    write_nifti(tmp_path / "scans" / "a.nii.gz", image)
    write_nifti(tmp_path / "masks" / "a.nii.gz", label, moved)
    own(str(tmp_path / "scans"), str(tmp_path / "out"), labels=str(tmp_path / "masks"))
    written = [nib.load(tmp_path / "out" / key / "a.nii.gz").affine for key in ("images", "labels")]
    np.testing.assert_array_equal(*written)


def test_one_color_photograph_makes_three_channels(tmp_path):
    photo, mole = make_photo(np.random.default_rng(0), (18, 25))
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    Image.fromarray(photo[..., 0]).save(tmp_path / "photos" / "a.png")
    Image.fromarray(photo).convert("RGBA").save(tmp_path / "photos" / "b.png")
    for name in ("a", "b"):
        Image.fromarray(mole * 255).convert("RGB").save(tmp_path / "masks" / f"{name}.png")
    own(str(tmp_path / "photos"), str(tmp_path / "out"), labels=str(tmp_path / "masks"))
    assert _datalist(tmp_path / "out", "datalist.json")["modality"] == {"0": "red", "1": "green", "2": "blue"}
    check_folder(tmp_path / "out", tmp_path / "check.json")
    (tmp_path / "photos" / "b.png").unlink(), (tmp_path / "masks" / "b.png").unlink()
    own(str(tmp_path / "photos"), str(tmp_path / "grey"), labels=str(tmp_path / "masks"), modality="x-ray")
    assert _datalist(tmp_path / "grey", "datalist.json")["modality"] == {"0": "x-ray"}


def test_a_class_called_as_the_row_over_all_is_refused(own_folders, tmp_path):
    with pytest.raises(UserError, match="none called all, such as liver,tumor; got liver,All"):
        own(str(own_folders[0]), str(tmp_path / "out"), str(own_folders[1]), classes="liver,All")


def test_a_folder_prepared_with_other_options_is_refused(own_folders, tmp_path):
    images, labels = own_folders
    own(str(images), str(tmp_path / "out"), labels=str(labels))
    with pytest.raises(UserError, match=r"holds data prepared otherwise; choose another --output") as raised:
        own(str(images), str(tmp_path / "out"), labels=str(labels), seed=2, classes="cyst")
    lines = str(raised.value).split("\n  - ")[1:]
    assert lines == ["classes: ['foreground'] before, ['cyst'] now", "seed: 1337 before, 2 now"]


def test_a_file_that_is_cut_short_never_counts(tmp_path, monkeypatch):
    volume = layouts.read_volume

    def fail(self, path, *args, **kwargs):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    write_nifti(tmp_path / "in" / "a.nii.gz", _volumes(0)[0])
    monkeypatch.setattr(store.NiftiWriter, "write", fail)
    with pytest.raises(OSError, match="No space left"):
        store._write(tmp_path / "out" / "a.nii.gz", volume(str(tmp_path / "in" / "a.nii.gz")), is_label=False)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["la", "--source", "{empty}", "--output", "{out}"], "holds no scans in a known layout (found nothing)"),
        (["la", "--source", "{empty}/absent", "--output", "{out}"], "no such folder"),
        (["la", "--source", "{empty}", "--output", "{out}", "--labelled", "4"], "unknown flag --labelled"),
        (["own", "--images", "{empty}", "--output", "{out}"], "no scans; expected files ending in .nii.gz"),
    ],
)
def test_command_line_says_what_is_wrong_and_writes_nothing(arguments, message, tmp_path):
    (tmp_path / "empty").mkdir()
    places = {"empty": str(tmp_path / "empty"), "out": str(tmp_path / "out")}
    done = run_command("tools.prepare", *(text.format(**places) for text in arguments), cwd=ROOT)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
