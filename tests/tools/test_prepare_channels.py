"""Cases of several files are prepared to one image of several channels."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scan_files import OBLIQUE, write_nifti

from custom.data.datalist import load_datalist
from custom.utils.errors import UserError
from tools.prepare import commands as prepare
from tools.prepare.check import check_folder
from tools.prepare.splitting import listed_before

SHAPE = (12, 10, 6)


def _scan(seed: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)


def _label() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[3:7, 2:8, 1:4] = 1
    return label


def _study(folder: Path, names: str) -> Path:
    """Three cases of two channels, two of them labeled; ``{case}`` and ``{channel}`` make the names."""
    for case in range(3):
        for channel in range(2):
            write_nifti(folder / "images" / names.format(case=f"p{case}", channel=channel), _scan(2 * case + channel))
        if case:
            write_nifti(folder / "labels" / f"p{case}.nii.gz", _label())
    return folder


def _content(folder: Path) -> dict:
    return json.loads((folder / "datalist.json").read_text())


@pytest.mark.parametrize(
    ("names", "channels"),
    [("{case}_0{channel:03d}.nii.gz", None), ("{case}_T{channel}.nii", "t0,t1"), ("{case}/t{channel}.nii", "t0,t1")],
    ids=["numbers", "names", "folders"],
)
def test_channels_are_written_by_number_and_listed(names, channels, tmp_path, capsys):
    source = _study(tmp_path / "in", names)
    prepare.own(str(source), str(tmp_path / "out"), channels=channels, modality="MRI")
    content = _content(tmp_path / "out")
    assert content["modality"] == ({"0": "t0", "1": "t1"} if channels else {"0": "MRI", "1": "MRI"})
    assert content["training"] == [
        {"image": [f"images/p{case}_000{channel}.nii.gz" for channel in range(2)], "label": f"labels/p{case}.nii.gz"}
        for case in (1, 2)
    ]
    assert content["unlabeled"] == [{"image": [f"images/p0_000{channel}.nii.gz" for channel in range(2)]}]
    for number in range(6):
        written = nib.load(tmp_path / "out" / "images" / f"p{number // 2}_000{number % 2}.nii.gz")
        np.testing.assert_array_equal(np.asarray(written.dataobj), _scan(number))
        np.testing.assert_allclose(written.affine, OBLIQUE, atol=1e-4)
    cases = load_datalist(
        str(tmp_path / "out" / "datalist.json"), ["training", "unlabeled"], in_channels=2, num_classes=2, dimensions=3
    )
    assert [case["case"] for case in cases["training"]] == ["p1", "p2"]
    prepare.check(str(tmp_path / "out"))
    assert "p2" in capsys.readouterr().out


def test_a_changed_channel_is_made_again(tmp_path):
    source = _study(tmp_path / "in", "{case}_000{channel}.nii.gz")
    prepare.own(str(source), str(tmp_path / "out"))
    kept = tmp_path / "out" / "images" / "p1_0001.nii.gz"
    before = kept.stat().st_mtime_ns
    write_nifti(source / "images" / "p0_0001.nii.gz", _scan(100))
    prepare.own(str(source), str(tmp_path / "out"))
    changed = nib.load(tmp_path / "out" / "images" / "p0_0001.nii.gz")
    np.testing.assert_array_equal(np.asarray(changed.dataobj), _scan(100))
    assert kept.stat().st_mtime_ns == before


def test_a_patient_who_was_trained_on_stays_there_with_channels_too(tmp_path):
    source = _study(tmp_path / "in", "{case}_000{channel}.nii.gz")
    prepare.own(str(source), str(tmp_path / "out"))
    assert listed_before(tmp_path / "out", {f"p{k}": f"patient {k}" for k in range(3)})["training"] == {
        "patient 0",
        "patient 1",
        "patient 2",
    }


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_names_of_channels_come_from_the_description_and_say_how_many_there_are(key, tmp_path):
    source = _study(tmp_path / "in", "{case}_000{channel}.nii.gz")
    (source / "images").rename(source / "imagesTr")
    (source / "labels").rename(source / "labelsTr")
    (source / "dataset.json").write_text(json.dumps({key: {"1": "PET", "0": "CT"}}))
    prepare.own(str(source), str(tmp_path / "out"))
    assert _content(tmp_path / "out")["modality"] == {"0": "CT", "1": "PET"}
    for file in (source / "imagesTr").glob("*_0001.nii.gz"):
        file.unlink()
    with pytest.raises(UserError, match=r"3 problem\(s\) with channels.*\n.*p0: channel 0001 is missing, expected"):
        prepare.own(str(source), str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()


def test_a_file_that_has_all_channels_in_itself_keeps_them(tmp_path):
    volume = _scan(0, (*SHAPE, 2))
    write_nifti(tmp_path / "in" / "imagesTr" / "BRATS_001.nii.gz", volume)
    write_nifti(tmp_path / "in" / "labelsTr" / "BRATS_001.nii.gz", _label())
    (tmp_path / "in" / "dataset.json").write_text(json.dumps({"modality": {"0": "FLAIR", "1": "T1"}}))
    prepare.own(str(tmp_path / "in"), str(tmp_path / "out"))
    content = _content(tmp_path / "out")
    assert (content["modality"], content["training"][0]["image"]) == (
        {"0": "FLAIR", "1": "T1"},
        "images/BRATS_001.nii.gz",
    )
    written = nib.load(tmp_path / "out" / "images" / "BRATS_001.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), volume)
    check_folder(tmp_path / "out", tmp_path / "check.json")


def test_other_grids_are_refused_or_brought_to_that_of_the_first(tmp_path):
    smooth = np.add.outer(np.add.outer(np.arange(12.0), 2 * np.arange(10.0)), 3 * np.arange(6.0)).astype(np.float32)
    fine = np.add.outer(np.add.outer(np.arange(24.0) / 2, np.arange(20.0)), 1.5 * np.arange(12.0)).astype(np.float32)
    write_nifti(tmp_path / "in" / "p_ct.nii.gz", smooth, np.diag([2.0, 2.0, 2.0, 1.0]))
    write_nifti(tmp_path / "in" / "p_pet.nii.gz", fine, np.diag([1.0, 1.0, 1.0, 1.0]))
    write_nifti(tmp_path / "in" / "p_seg.nii.gz", _label(), np.diag([2.0, 2.0, 2.0, 1.0]))
    with pytest.raises(
        UserError, match=r"p: .*p_pet\.nii\.gz: shape \(24, 20, 12\) differs from .*p_ct\.nii\.gz's .*--resample"
    ):
        prepare.own(str(tmp_path / "in"), str(tmp_path / "out"), channels="ct,pet")
    assert not (tmp_path / "out" / "datalist.json").exists()
    prepare.own(str(tmp_path / "in"), str(tmp_path / "brought"), channels=["ct", "pet"], resample=True)
    first, second = (nib.load(tmp_path / "brought" / "images" / f"p_000{channel}.nii.gz") for channel in range(2))
    np.testing.assert_array_equal(first.affine, second.affine)
    # Both hold the same function of the place; the last layers of the second lie beyond its field of view.
    np.testing.assert_allclose(np.asarray(second.dataobj), smooth, atol=1e-4)


def test_another_choice_of_channels_is_other_data(tmp_path):
    source = _study(tmp_path / "in", "{case}_t{channel}.nii.gz")
    prepare.own(str(source), str(tmp_path / "out"), channels="t0,t1")
    with pytest.raises(UserError, match="holds data prepared otherwise"):
        prepare.own(str(source), str(tmp_path / "out"), channels="t1,t0")


@pytest.mark.parametrize("channels", ["", "t1,", "t1,T1", "_t1,t2"])
def test_channels_that_are_no_ends_of_names_are_refused(channels, tmp_path):
    write_nifti(tmp_path / "in" / "p_t1.nii.gz", _scan(0))
    with pytest.raises(UserError, match="--channels must be the ends of the files' names, all different"):
        prepare.own(str(tmp_path / "in"), str(tmp_path / "out"), channels=channels)


def test_one_of_several_channels_may_be_taken_alone(tmp_path, capsys):
    source = _study(tmp_path / "in", "{case}_t{channel}.nii.gz")
    prepare.own(str(source), str(tmp_path / "out"), channels="t1")
    assert [case["image"] for case in _content(tmp_path / "out")["unlabeled"]] == ["images/p0.nii.gz"]
    assert _content(tmp_path / "out")["modality"] == {"0": "t1"}
    assert "left out 3: images/p0_t0.nii.gz (none of the channels)" in capsys.readouterr().out


def test_grey_photographs_may_be_channels(tmp_path):
    (tmp_path / "in").mkdir()
    pixels = [np.random.default_rng(k).integers(0, 255, (10, 12)).astype(np.uint8) for k in range(2)]
    for number, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / "in" / f"cell_000{number}.png")
    Image.fromarray((pixels[0] > 100).astype(np.uint8)).save(tmp_path / "in" / "cell_mask.png")
    prepare.own(str(tmp_path / "in"), str(tmp_path / "out"))
    copied = [np.asarray(Image.open(tmp_path / "out" / "images" / f"cell_000{number}.png")) for number in range(2)]
    np.testing.assert_array_equal(copied, pixels)
    check_folder(tmp_path / "out", tmp_path / "check.json")


def test_what_is_odd_about_a_channel_is_told_of_that_file(tmp_path):
    source = _study(tmp_path / "in", "{case}_000{channel}.nii.gz")
    prepare.own(str(source), str(tmp_path / "out"))
    images = tmp_path / "out" / "images"
    write_nifti(images / "p1_0001.nii.gz", _scan(3) * 9)
    write_nifti(images / "p2_0000.nii.gz", _scan(2))
    check_folder(tmp_path / "out", tmp_path / "check.json")
    report = json.loads((tmp_path / "check.json").read_text())
    assert [len(case["maximum"]) for case in report["cases"]] == [2, 2, 2]
    for text in (
        "p1_0001.nii.gz: largest intensity",
        "p1_0000.nii.gz and ",
    ):
        assert any(text in line for line in report["odd"]), text
    assert not any("p1_0000.nii.gz: largest" in line for line in report["odd"])
