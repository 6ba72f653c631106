"""Folders as people keep them: what they say of lists, patients and structures counts, and nothing is guessed."""

import json
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scan_files import write_dicom, write_nifti

from custom.data.finding import list_scans
from custom.data.readers import LoadScan
from custom.utils.errors import UserError
from tools.prepare import commands as prepare
from tools.prepare.described import segments_in
from tools.prepare.pairing import own_scans

own = partial(prepare.own, plan=None)
SHAPE = (10, 9, 8)


def _image(path: Path, seed: int = 0) -> Path:
    write_nifti(path, np.random.default_rng([seed, *path.name.encode()]).integers(0, 900, SHAPE).astype(np.int16))
    return path


def _label(path: Path, value: int = 1) -> Path:
    label = np.zeros(SHAPE, np.uint8)
    label[2:6, 2:6, 2:6] = value
    write_nifti(path, label)
    return path


def _lists(folder: Path) -> dict[str, list[str]]:
    content = json.loads((folder / "datalist.json").read_text())
    keys = ("training", "unlabeled", "validation", "test")
    return {key: [Path(case["image"]).name.split(".")[0] for case in content[key]] for key in keys}


@pytest.mark.parametrize("seed", range(4))
def test_patients_stay_in_their_lists_and_files_keep_their_names_when_a_second_site_has_the_same_names(seed, tmp_path):
    def prepared(*sites: str) -> dict[str, list[str]]:
        for site in sites:
            for number in range(1, 9):
                _image(tmp_path / "scans" / site / f"{number:02d}.nii.gz", ord(site))
                _label(tmp_path / "labels" / site / f"{number:02d}.nii.gz")
        folders = {"images": str(tmp_path / "scans"), "labels": str(tmp_path / "labels")}
        own(**folders, output=str(tmp_path / "out"), validation=0.25, seed=seed)
        return _lists(tmp_path / "out")

    before, now = prepared("a"), prepared("b")
    assert set(before["validation"]) <= set(now["validation"])
    assert set(before["training"]) <= set(now["training"])
    assert len(list((tmp_path / "out" / "images").iterdir())) == 16


def _prepared(folder: Path) -> dict[str, list[str]]:
    folders = {"images": str(folder / "scans"), "labels": str(folder / "labels")}
    own(**folders, output=str(folder / "out"), validation=0.25, test=0.25)
    return _lists(folder / "out")


def _rename(folder: Path, names: dict[str, str]) -> None:
    for part in ("scans", "labels"):
        for name, other in names.items():
            (folder / part / other).parent.mkdir(exist_ok=True)
            (folder / part / f"{name}.nii.gz").rename(folder / part / f"{other}.part")
        for path in (folder / part).rglob("*.part"):  # names may be swapped
            path.rename(path.with_suffix(".nii.gz"))


@pytest.mark.parametrize("renamed", ["pat_{}", "c{}", "site/c{}"], ids=["new", "swapped", "moved"])
def test_patients_stay_in_their_lists_when_their_files_are_renamed(renamed, tmp_path, capsys):
    for number in range(8):
        _image(tmp_path / "scans" / f"c{number}.nii.gz", number)
        _label(tmp_path / "labels" / f"c{number}.nii.gz")
    before = _prepared(tmp_path)
    _rename(tmp_path, {f"c{number}": renamed.format(7 - number) for number in range(8)})
    capsys.readouterr()
    assert _prepared(tmp_path) == before
    first, last = (Path(renamed.format(number)).name for number in (0, 7))
    told = capsys.readouterr().out
    assert "8 scan(s) were renamed since, and keep their names here: " in told
    assert f"{first} is c7" in told
    assert f"{last} is c0" in told
    assert _prepared(tmp_path) == before
    assert "renamed" not in capsys.readouterr().out


def test_a_new_scan_gets_a_name_of_its_own_where_a_renamed_one_keeps_it(tmp_path):
    for number in range(8):
        _image(tmp_path / "scans" / f"c{number}.nii.gz", number)
        _label(tmp_path / "labels" / f"c{number}.nii.gz")
    before = _prepared(tmp_path)
    _rename(tmp_path, {"c0": "pat"})
    _image(tmp_path / "scans" / "c0.nii.gz", 99)
    after = _prepared(tmp_path)
    assert after == before | {"unlabeled": ["c0_2"]}
    assert _prepared(tmp_path) == after


def test_of_scans_that_were_prepared_before_fingerprints_none_is_known_by_another_name(tmp_path, capsys):
    for number in range(2):
        _image(tmp_path / "scans" / f"c{number}.nii.gz", number)
    own(str(tmp_path / "scans"), str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "prepare.json").read_text())
    assert sorted(record.pop("contents")) == ["c0", "c1"]
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(record))
    (tmp_path / "scans" / "c0.nii.gz").rename(tmp_path / "scans" / "d0.nii.gz")
    own(str(tmp_path / "scans"), str(tmp_path / "out"))
    assert sorted(_lists(tmp_path / "out")["unlabeled"]) == ["c1", "d0"]
    assert "renamed" not in capsys.readouterr().out


def test_scans_that_hold_the_same_are_known_by_their_paths_alone(tmp_path, capsys):
    first = _image(tmp_path / "scans" / "c0.nii.gz")
    (tmp_path / "scans" / "c1.nii.gz").write_bytes(first.read_bytes())
    own(str(tmp_path / "scans"), str(tmp_path / "out"))
    (tmp_path / "scans" / "c0.nii.gz").rename(tmp_path / "scans" / "d0.nii.gz")
    own(str(tmp_path / "scans"), str(tmp_path / "out"))
    assert sorted(_lists(tmp_path / "out")["unlabeled"]) == ["c1", "d0"]
    assert "renamed" not in capsys.readouterr().out


@pytest.mark.parametrize("spelled", ["scans/", "./scans", "labels/../scans", None])
def test_the_same_folders_may_be_spelled_otherwise(spelled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _image(tmp_path / "scans" / "a.nii.gz"), _label(tmp_path / "labels" / "a.nii.gz")
    own("scans", "out", "labels")
    own(str(tmp_path / "scans") if spelled is None else spelled, "out", "labels/")


@pytest.mark.parametrize(
    ("training", "validation", "test"),
    [
        (("train/images", "train/labels"), ("val/images", "val/labels"), ("test/images", "test/labels")),
        (("imagesTr", "labelsTr"), ("imagesVal", "labelsVal"), ("imagesTs", "labelsTs")),
        (("images/train", "labels/train"), ("images/validation", "labels/validation"), ("images/test", "labels/test")),
    ],
)
def test_labeled_scans_come_into_the_lists_that_their_folders_name(training, validation, test, tmp_path, capsys):
    for count, (images, labels) in enumerate((training, validation, test), start=2):
        for number in range(count):
            _image(tmp_path / "in" / images / f"{images[:2]}{count}_{number}.nii.gz")
            _label(tmp_path / "in" / labels / f"{images[:2]}{count}_{number}.nii.gz")
    own(str(tmp_path / "in"), str(tmp_path / "out"))
    found = _lists(tmp_path / "out")
    assert {key: len(names) for key, names in found.items()} == {
        "training": 2, "unlabeled": 0, "validation": 3, "test": 4
    }  # fmt: skip
    shown = capsys.readouterr().out
    assert "labeled patients in folders of that name: 3 validation, 4 test" in shown
    assert "datalist.json: 2 training, 3 validation, 4 test" in shown


@pytest.mark.parametrize("name", ["p_mask_1", "p_seg_v2", "p_mask_JS", "p-labels.nrrd", "p_ground_truth_2"])
def test_a_file_called_as_a_scan_beside_it_and_a_word_for_labels_is_no_scan(name, tmp_path):
    scan, label = _image(tmp_path / "p.nii.gz"), _label(tmp_path / f"{name}.nii.gz")
    assert list_scans(tmp_path).scans == [scan]
    assert own_scans(tmp_path, None, tmp_path / "out")[scan].label == label
    _label(tmp_path / "p_seg.nii.gz")
    with pytest.raises(UserError, match="merge them if each marks one structure"):
        own(str(tmp_path), str(tmp_path / "out"))


def test_a_further_mask_of_a_photograph_is_no_photograph(tmp_path):
    for name in ("benign (1)", "benign (1)_mask_1"):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / f"{name}.png")
    assert [path.name for path in list_scans(tmp_path).scans] == ["benign (1).png"]


@pytest.mark.parametrize("name", ["p_liver", "liver"])
def test_a_volume_with_the_values_of_a_label_is_not_taken_for_a_scan(name, tmp_path):
    _image(tmp_path / "p" / "p.nii.gz"), _label(tmp_path / "p" / "p_seg.nii.gz")
    _label(tmp_path / "p" / f"{name}.nii.gz", 2)
    with pytest.raises(UserError, match=rf"{name}.nii.gz: its only values are whole numbers .* is it a label\?"):
        own(str(tmp_path / "p"), str(tmp_path / "out"))


@pytest.mark.parametrize(("labels", "told"), [("labels", "holds no label of these scans"), (None, None)])
def test_scans_without_any_label_are_told(labels, told, tmp_path, capsys):
    _image(tmp_path / "images" / "a.nii.gz")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.gif").write_bytes(b"GIF89a")
    call = partial(own, str(tmp_path / "images"), str(tmp_path / "out"), labels and str(tmp_path / labels))
    if told is None:
        call()
        assert "no scan has a label, so nothing can be trained yet" in capsys.readouterr().out
    else:
        with pytest.raises(UserError, match=told):
            call()
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("scan", ["{}/ct.nii.gz", "{}.nii.gz", "site/{}/ct.nii.gz"])
def test_labels_called_alike_in_a_folder_for_each_scan_are_of_that_scan(scan, tmp_path):
    scans = [_image(tmp_path / "scans" / scan.format(name)) for name in ("P0", "P1", "P2")]
    labels = [_label(tmp_path / "masks" / name / "liver.nii.gz") for name in ("P0", "P1")]
    found = own_scans(tmp_path / "scans", tmp_path / "masks", tmp_path / "out")
    assert [found[path].label for path in scans] == [*labels, None]


def test_labels_called_otherwise_in_a_folder_for_each_scan_are_refused(tmp_path):
    for name, structure in (("P0", "liver"), ("P1", "spleen")):
        _image(tmp_path / "scans" / name / "ct.nii.gz"), _label(tmp_path / "masks" / name / f"{structure}.nii.gz")
    with pytest.raises(UserError, match=r"2 label\(s\) without an image of their own"):
        own_scans(tmp_path / "scans", tmp_path / "masks", tmp_path / "out")


def _write_slicer(path: Path, names: dict[int, str], layers: bool = False) -> Path:
    """Write a label map with the header of a 3D Slicer segmentation."""
    voxels = np.zeros(SHAPE, np.uint8)
    for value in names:
        voxels[value : value + 2] = value
    segments = [
        f"Segment{k}_{field}:={text}" for k, (value, name) in enumerate(names.items())
        for field, text in (("Name", name), ("LabelValue", value), ("Layer", 0))
    ]  # fmt: skip
    sizes = " ".join(map(str, SHAPE))
    header = ["NRRD0004", "type: uint8", f"dimension: {4 if layers else 3}"]
    header += ["space: left-posterior-superior", f"sizes: {'2 ' if layers else ''}{sizes}"]
    header += [f"space directions: {'none ' if layers else ''}(1,0,0) (0,1,0) (0,0,1)"]
    header += [f"kinds: {'list ' if layers else ''}domain domain domain", "encoding: raw", "space origin: (0,0,0)"]
    path.parent.mkdir(parents=True, exist_ok=True)
    content = voxels.tobytes("F") * (2 if layers else 1)
    path.write_bytes("\n".join([*header, *segments, "", ""]).encode() + content)
    return path


def test_segments_of_3d_slicer_name_the_structures(tmp_path):
    for number, names in enumerate(({1: "liver", 2: "tumor"}, {2: "tumor", 1: "liver"}, {1: "liver"})):
        _image(tmp_path / "scans" / f"p{number}.nii.gz")
        _write_slicer(tmp_path / "labels" / f"p{number}.seg.nrrd", names)
    labels = sorted((tmp_path / "labels").iterdir())
    assert segments_in(labels) == ["liver", "tumor"]
    _write_slicer(labels[1], {1: "tumor", 2: "liver"})
    with pytest.raises(UserError, match=r"1 is liver in .*p0.seg.nrrd, but tumor in .*p1.seg.nrrd"):
        own(str(tmp_path / "scans"), str(tmp_path / "out"), str(tmp_path / "labels"), classes="liver,tumor")
    assert not (tmp_path / "out").exists()


def test_overlapping_segments_are_told_from_damage(tmp_path):
    with pytest.raises(UserError, match=r"holds a list of volumes, layers or directions.*export one label map"):
        LoadScan()(str(_write_slicer(tmp_path / "a.seg.nrrd", {1: "liver"}, layers=True)))


@pytest.mark.parametrize("name", ["Segmentation.seg.nrrd", "p.seg.nrrd", "segmentation.nrrd"])
def test_a_segmentation_of_3d_slicer_beside_its_scan_is_its_label(name, tmp_path):
    scan = _image(tmp_path / "p" / "p.nii.gz")
    label = _write_slicer(tmp_path / "p" / name, {1: "liver"})
    assert own_scans(tmp_path, None, tmp_path / "out")[scan].label == label


def test_sessions_of_a_bids_subject_are_of_one_patient(tmp_path):
    for subject in range(1, 5):
        for session in (1, 2):
            name = f"sub-{subject:02d}_ses-{session}_T1w"
            _image(tmp_path / "in" / f"sub-{subject:02d}" / f"ses-{session}" / "anat" / f"{name}.nii.gz")
            _label(tmp_path / "in" / f"sub-{subject:02d}" / f"ses-{session}" / "anat" / f"{name}_mask.nii.gz")
    own(str(tmp_path / "in"), str(tmp_path / "out"), validation=0.3)
    found = {key: {name[:6] for name in names} for key, names in _lists(tmp_path / "out").items()}
    assert found["training"].isdisjoint(found["validation"])


def test_names_that_begin_alike_bring_a_hint_on_patients(tmp_path, capsys):
    for name in ("p1_ED", "p1_ES", "p2_ED", "p2_ES"):
        _image(tmp_path / "scans" / f"{name}.nii.gz"), _label(tmp_path / "labels" / f"{name}.nii.gz")
    own(str(tmp_path / "scans"), str(tmp_path / "out"), str(tmp_path / "labels"), validation=0.25)
    assert "p1_ED, p1_ES count as patients of their own" in capsys.readouterr().out


def test_a_structure_set_in_a_folder_of_its_own_is_left_out(tmp_path):
    write_dicom(tmp_path / "p" / "CT", np.zeros((4, 4, 3)))
    write_dicom(
        tmp_path / "p" / "RT", np.zeros((4, 4, 1)), edit=lambda header, _: setattr(header, "Modality", "RTSTRUCT")
    )
    listed = list_scans(tmp_path)
    assert listed.scans == [tmp_path / "p" / "CT"]
    assert "p/RT (RTSTRUCT, no scan)" in listed.left_out


@pytest.mark.parametrize("label", ["p0/mask.nii.gz", "p0.nii.gz", "p0/CT/mask.nii.gz", "CT/mask.nii.gz"])
def test_a_series_below_a_patient_s_folder_has_the_patient_s_label(label, tmp_path):
    slices = tmp_path / "images" / ("" if label.startswith("CT") else "p0") / "CT"
    write_dicom(slices, np.random.default_rng(0).integers(0, 99, (6, 5, 4)))
    write_dicom(tmp_path / "images" / "p1" / "other" / "CT2", np.zeros((4, 4, 3)))
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.uint8), np.eye(4)), _folder(tmp_path / "labels" / label))
    assert own_scans(tmp_path / "images", tmp_path / "labels", tmp_path / "out")[slices].label is not None


def _folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("kind", ["SEG", "RTSTRUCT"])
@pytest.mark.parametrize("folder", ["", "p1"])
def test_labels_as_other_dicom_objects_are_named_with_what_to_do(kind, folder, tmp_path, capsys):
    _image(tmp_path / "scans" / "p1.nii.gz")
    write_dicom(tmp_path / "labels" / folder, np.zeros((4, 4, 1)), edit=lambda h, _: setattr(h, "Modality", kind))
    hint = "DICOM SEG and RTSTRUCT must be converted to NIfTI first, for example with dcmqi or 3D Slicer."
    with pytest.raises(UserError, match=f"labels: holds no label of these scans, .*{hint}"):
        own(str(tmp_path / "scans"), str(tmp_path / "out"), labels=str(tmp_path / "labels"))
    assert f"left out 1: {folder or tmp_path / 'labels'} ({kind}, no scan)" in capsys.readouterr().out
