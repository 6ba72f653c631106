"""What is wrong with a dataset folder is refused, what is odd is told."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from custom.utils.errors import UserError
from tools.prepare.check import check_folder
from tools.synthetic import write_dataset, write_hearts, write_photos


def _check(datalist, **settings) -> dict:
    report = datalist.parent / "report" / "check.json"
    try:
        check_folder(datalist.parent, report, **settings)
    except UserError as error:
        return {**json.loads(report.read_text()), "error": str(error)}
    return json.loads(report.read_text())


def test_a_sound_folder_passes_and_its_cases_are_described(own_dataset, capsys):
    report = _check(own_dataset)
    assert (report["wrong"], report["odd"], len(report["cases"])) == ([], [], 5)
    case = report["cases"][0]
    assert (case["shape"], case["spacing"], case["orientation"]) == ([16, 16, 16], [1.25] * 3, "RAS")
    assert case["volume_ml"]["1"] == pytest.approx(case["voxels"]["1"] * 1.25**3 / 1000, abs=1e-3)
    assert "case_000" in capsys.readouterr().out


def test_what_training_would_refuse_is_wrong(own_dataset, edit):
    images = sorted((own_dataset.parent / "images").iterdir())
    volume = np.zeros((16, 16, 16), np.float32)
    volume[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(volume, nib.load(images[0]).affine), images[0])
    images[1].unlink()
    edit(own_dataset, lambda content: content["unlabeled"].append({"image": content["validation"][0]["image"]}))
    report = _check(own_dataset)
    assert "training would be refused, 3 problem(s)" in report["error"]
    for text in ("NaN", "no such file", "stands in 'unlabeled' and 'validation'"):
        assert any(text in problem for problem in report["wrong"]), text


def test_the_same_voxels_under_two_names_are_odd(own_dataset):
    images = sorted((own_dataset.parent / "images").iterdir())
    shutil.copy(images[0], images[-1])
    (text,) = _check(own_dataset)["odd"]
    assert "hold the same voxels; they stand in training, validation" in text


def test_a_label_that_covers_the_whole_image_is_odd(own_dataset):
    label = own_dataset.parent / "labels" / "case_000.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((16, 16, 16), np.uint8), nib.load(label).affine), label)
    assert _check(own_dataset)["odd"] == [f"{label}: covers the whole image; is it inverted, or filled by mistake?"]


def test_another_orientation_spacing_range_or_a_missing_class_is_odd(own_dataset):
    images = sorted((own_dataset.parent / "images").iterdir())
    volume = np.asarray(nib.load(images[3]).dataobj)
    nib.save(nib.Nifti1Image(volume * 100, np.diag([-1.25, 1.25, 12.5, 1])), images[3])  # an unlabeled case
    label = own_dataset.parent / "labels" / "case_000.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 16), np.uint8), nib.load(label).affine), label)
    odd = "\n".join(_check(own_dataset)["odd"])
    for text in ("orientation LAS, most scans have RAS", "anisotropic", "largest intensity", "has no voxel of class 1"):
        assert text in odd


def test_what_most_scans_share_is_not_odd(own_dataset):
    for image in (own_dataset.parent / "images").iterdir():
        volume = np.asarray(nib.load(image).dataobj)
        nib.save(nib.Nifti1Image(volume, np.diag([1.25, 1.25, 12.5, 1])), image)
    for label in (own_dataset.parent / "labels").iterdir():
        nib.save(nib.Nifti1Image(np.asarray(nib.load(label).dataobj), np.diag([1.25, 1.25, 12.5, 1])), label)
    assert _check(own_dataset)["odd"] == []


def test_oddities_of_a_kind_are_one_line_and_duplicates_come_first(tmp_path, capsys):
    datalist = write_dataset(tmp_path / "data", {"training": 7}, size=(16, 16, 16))
    images = sorted((tmp_path / "data" / "images").iterdir())
    shutil.copy(images[0], images[1])
    for label in (tmp_path / "data" / "labels").iterdir():
        nib.save(nib.Nifti1Image(np.zeros((16, 16, 16), np.uint8), nib.load(label).affine), label)
    assert len(_check(datalist)["odd"]) == 8
    shown = capsys.readouterr().out.split("oddities\n")[1].splitlines()
    assert "hold the same voxels" in shown[0]
    assert shown[1].startswith("  - 7 times no voxel of class 1: ")
    assert shown[2] == ""


def test_a_single_oddity_is_called_one(own_dataset, capsys):
    label = min((own_dataset.parent / "labels").iterdir())
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 16), np.uint8), nib.load(label).affine), label)
    _check(own_dataset)
    assert "\n1 oddity\n  - " in capsys.readouterr().out


def test_a_patient_in_two_lists_is_wrong(tmp_path, edit):
    datalist = write_hearts(tmp_path, {"training": 1, "unlabeled": 1, "validation": 1}, size=(16, 16, 2))
    assert "error" not in _check(datalist, patient_pattern=r"patient\d+")
    edit(datalist, lambda content: content["validation"].append(content["training"].pop()))
    assert "patient001 is in 'training' and 'validation'" in _check(datalist, patient_pattern=r"patient\d+")["error"]


def test_color_photographs_pass_whatever_the_modality_says(tmp_path, edit):
    datalist = write_photos(tmp_path, {"training": 2}, size=(24, 20))
    for modality in ({"0": "RGB"}, "RGB", "dermoscopy", {"0": "red", "1": "green", "2": "blue"}, None):
        edit(datalist, lambda content, modality=modality: content.update(modality=modality))
        assert "error" not in _check(datalist), modality


def test_a_modality_given_as_text_is_one_channel(own_dataset, edit):
    edit(own_dataset, lambda content: content.update(modality="MRI"))
    assert "error" not in _check(own_dataset)


@pytest.mark.parametrize(
    "labels", [{"0": "background", "1": "a", "2": "b"}, {"background": 0, "a": 1, "b": 2}, ["background", "a", "b"]]
)
def test_labels_are_counted_however_they_are_listed(labels, own_dataset, edit):
    edit(own_dataset, lambda content: content.update(labels=labels))
    assert set(_check(own_dataset)["cases"][0]["voxels"]) == {"1", "2"}


def test_a_folder_without_data_lists_is_refused(tmp_path):
    (tmp_path / "prepare.json").write_text("{}")
    with pytest.raises(UserError, match="holds no data list"):
        check_folder(tmp_path, tmp_path / "report.json")


def test_findings_are_shown_where_the_report_cannot_be_written(own_dataset, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    check_folder(own_dataset.parent, tmp_path / "file" / "new" / "report.json")
    shown = capsys.readouterr().out
    assert "oddities" in shown
    assert "report.json (Not a directory); give --output another file." in shown
