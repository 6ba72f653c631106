"""Files that have not changed since they were checked are not read again."""

import json
import os
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import refused
from scan_files import write_dicom, write_nifti

from custom.data import CaseRule, check_cases, load_datalist
from custom.data import checks as checks_module
from custom.data.kept import CHECKS_FILE
from custom.utils.errors import UserError

RULE = CaseRule(in_channels=1, num_classes=2, dimensions=3)


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read, as they are."""
    names = []
    real = checks_module.read_image
    monkeypatch.setattr(
        checks_module, "read_image", lambda path, *a, **k: (names.append(Path(path).name), real(path, *a, **k))[1]
    )
    return names


@pytest.fixture
def cases(tmp_path) -> list[dict[str, str]]:
    """Three scans, the first with a label."""
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", np.arange(64, dtype=np.float32).reshape(4, 4, 4))
    write_nifti(tmp_path / "a_seg.nii.gz", np.ones((4, 4, 4), np.uint8))
    found = [{"image": str(tmp_path / "scans" / f"{name}.nii.gz")} for name in ("a", "b", "c")]
    found[0]["label"] = str(tmp_path / "a_seg.nii.gz")
    return found


def _check(cases, folder, rule=RULE):
    return [found.problems for found in check_cases(cases, rule, str(folder))]


def test_unchanged_files_are_not_read_again_and_changed_ones_are(cases, read, tmp_path):
    out = tmp_path / "out"
    assert _check(cases, out) == [[], [], []]
    assert sorted(read) == ["a.nii.gz", "a_seg.nii.gz", "b.nii.gz", "c.nii.gz"]
    read.clear()
    assert _check(cases, out) == [[], [], []]
    assert read == []
    write_nifti(Path(cases[1]["image"]), np.full((4, 4, 4), np.nan, np.float32))
    (problem,) = _check(cases, out)[1]
    assert "64 voxel(s) are NaN or infinite" in problem
    assert read == ["b.nii.gz"]
    write_nifti(Path(cases[0]["label"]), np.full((4, 4, 4), 2, np.uint8))
    assert "labels must be whole numbers from 0 to 1" in _check(cases, out)[0][0]


def test_what_had_problems_is_read_again(cases, read, tmp_path):
    assert _check(cases, tmp_path) == [[], [], []]
    good = Path(cases[1]["image"]).read_bytes()
    Path(cases[1]["image"]).write_bytes(good[:40])
    stamp = Path(cases[1]["image"]).stat()
    assert [len(found) for found in _check(cases, tmp_path)] == [0, 1, 0]
    read.clear()
    assert [len(found) for found in _check(cases, tmp_path)] == [0, 1, 0]
    assert read == ["b.nii.gz"]
    Path(cases[1]["image"]).write_bytes(good)  # as a disk that comes back would
    os.utime(cases[1]["image"], ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert _check(cases, tmp_path) == [[], [], []]


@pytest.mark.parametrize(
    "changes",
    [
        {"in_channels": 2},
        {"num_classes": 3},
        {"dimensions": 2},
        {"series": True},
        {"needs_spacing": True},
    ],
    ids=str,
)
def test_another_rule_checks_again_and_keeps_both(changes, cases, read, tmp_path):
    _check(cases[1:], tmp_path)
    read.clear()
    _check(cases[1:], tmp_path, RULE._replace(**changes))
    assert len(read) == 2
    read.clear()
    _check(cases[1:], tmp_path)
    assert read == []


DAMAGES = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "version": lambda text: text.replace('"version": "', '"version": "9'),
    "shape": lambda text: json.dumps(json.loads(text) | {"findings": [1]}),
    "inner": lambda text: json.dumps(json.loads(text) | {"findings": dict.fromkeys(json.loads(text)["findings"], 3)}),
    "entries": lambda text: text.replace('"files"', '"file"'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_made_anew(damage, cases, read, tmp_path):
    _check(cases, tmp_path)
    path = tmp_path / CHECKS_FILE
    path.write_text(damage(path.read_text()))
    read.clear()
    assert _check(cases, tmp_path) == [[], [], []]
    assert len(read) == 4
    assert _check(cases, tmp_path) == [[], [], []]
    assert len(read) == 4


def test_where_nothing_can_be_written_everything_is_checked_again(cases, read, tmp_path):
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert _check(cases, tmp_path / "file" / "out") == [[], [], []]
    assert len(read) == 8
    (tmp_path / CHECKS_FILE).mkdir()
    assert _check(cases, tmp_path) == [[], [], []]


def test_a_dicom_folder_counts_by_its_files(read, tmp_path):
    write_dicom(tmp_path / "series", 100 * np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32))
    cases = [{"image": str(tmp_path / "series")}]
    assert _check(cases, tmp_path) == _check(cases, tmp_path) == [[]]
    assert read == ["series"]
    max((tmp_path / "series").iterdir()).unlink()
    _check(cases, tmp_path)
    assert read == ["series", "series"]


def test_a_data_list_keeps_its_checks_and_still_refuses(own_dataset, read, tmp_path):
    options = {"lists": ["training", "validation"], "in_channels": 1, "num_classes": 2, "dimensions": 3}
    options |= {"checks_dir": str(tmp_path / "out")}
    first = load_datalist(str(own_dataset), **options)
    count = len(read)
    assert load_datalist(str(own_dataset), **options) == first
    assert len(read) == count
    Path(first["training"][0]["image"]).unlink()
    with pytest.raises(UserError, match="no such file"):
        load_datalist(str(own_dataset), **options)


def test_labels_that_are_all_empty_are_refused_at_each_start(own_dataset, read, tmp_path):
    options = {"lists": ["unlabeled", "training"], "in_channels": 1, "num_classes": 2, "dimensions": 3}
    options |= {"checks_dir": str(tmp_path / "out")}
    labels = [case["label"] for case in load_datalist(str(own_dataset), **options)["training"]]
    volume = nib.load(labels[0])
    for label in labels:
        nib.save(nib.Nifti1Image(np.zeros(volume.shape, np.uint8), volume.affine), label)
    names = ", ".join(labels)
    for expected in (2 * len(labels), 0):  # files read: image and label of each, then none
        read.clear()
        with pytest.raises(UserError) as raised:
            load_datalist(str(own_dataset), **options)
        message = f"every voxel is 0 in all {len(labels)} label(s) of the list 'training' ({names}); label at least one"
        assert message in str(raised.value)
        assert len(read) == expected


def test_structures_that_no_label_marks_are_told_at_each_start(own_dataset, tmp_path, caplog):
    options = {"lists": ["training", "validation"], "in_channels": 1, "num_classes": 4, "dimensions": 3}
    options |= {"checks_dir": str(tmp_path / "out"), "class_names": ["a", "b", "c"]}
    lists = load_datalist(str(own_dataset), **options)
    empty = lists["validation"][0]["label"]
    volume = nib.load(empty)
    nib.save(nib.Nifti1Image(np.zeros(volume.shape, np.uint8), volume.affine), empty)
    for _ in range(2):
        caplog.clear()
        load_datalist(str(own_dataset), **options)
        told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        untaught = "no label of the list 'training' marks class {}; it cannot be learned."
        assert [f"{own_dataset}: {untaught.format(text)}" for text in ("2, b", "3, c")] == [
            text for text in told if "cannot be learned" in text
        ]
        assert f"{empty}: every voxel is 0, so that scores of this case say little." in told


def test_cases_that_have_changed_since_the_last_start_are_named(own_dataset, tmp_path, caplog):
    options = {"lists": ["training"], "in_channels": 1, "num_classes": 2, "dimensions": 3}
    options |= {"checks_dir": str(tmp_path / "out")}
    case = load_datalist(str(own_dataset), **options)["training"][0]
    Path(case["label"]).touch()
    load_datalist(str(own_dataset), **options)
    assert f"1 case(s) have changed since they were checked: {Path(case['image']).name}" in caplog.text


def test_a_thousand_unchanged_files_take_two_seconds_at_most(tmp_path):
    image = nib.Nifti1Image(np.arange(8, dtype=np.uint8).reshape(2, 2, 2), np.eye(4))
    cases = [{"image": str(tmp_path / f"{number}.nii.gz")} for number in range(1000)]
    nib.save(image, cases[0]["image"])
    for case in cases[1:]:
        Path(case["image"]).write_bytes(Path(cases[0]["image"]).read_bytes())
    start = time.perf_counter()
    _check(cases, tmp_path)
    middle = time.perf_counter()
    _check(cases, tmp_path)
    print(f"first start {middle - start:.2f} s, second {time.perf_counter() - middle:.2f} s")
    assert time.perf_counter() - middle < 2


@pytest.mark.parametrize("bundle", ["crossmatch_la"], indirect=True)
def test_a_training_keeps_its_checks_in_the_output_folder(run_bundle, own_dataset, read, tmp_path):
    run_bundle("training", ["train"], datalist=str(own_dataset))
    assert (tmp_path / "eval" / CHECKS_FILE).is_file()
    assert len(read) == 8  # 2 labeled, 2 unlabeled, 1 for validation
    read.clear()
    run_bundle("training", ["train"], datalist=str(own_dataset), resume=False)
    assert read == []
    own_dataset.with_name("images").joinpath("case_000.nii.gz").write_bytes(b"")
    with refused("case_000.nii.gz: cannot be read"):
        run_bundle("training", ["train"], datalist=str(own_dataset), resume=False)
