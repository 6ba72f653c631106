"""A case has one name, which no other case of the set has."""

import os
from pathlib import Path

import pytest

from custom.utils.errors import UserError
from custom.utils.names import (
    are_class_names,
    case_name,
    case_names,
    case_of,
    file_stem,
    groups,
    patient_name,
    same_name,
)


@pytest.mark.parametrize(
    ("file", "stem"),
    [
        ("p/a.nii.gz", "a"),
        ("a.NII.GZ", "a"),
        ("a.Nii.gz", "a"),
        ("a.nii", "a"),
        ("a.PNG", "a"),
        ("a.b.mha", "a.b"),
        ("a.b.nii.gz", "a.b"),
        ("scan", "scan"),
    ],
)
def test_a_file_s_ending_is_no_part_of_its_name(file, stem):
    assert file_stem(file) == stem


def test_a_folder_of_dicom_files_keeps_its_whole_name(tmp_path):
    for name in ("1.2.840.5", "a.nii.gz", "series_0000"):
        (tmp_path / name).mkdir()
        assert (file_stem(tmp_path / name), case_name(tmp_path / name)) == (name, name)


@pytest.mark.parametrize(
    ("file", "name"),
    [("a_0000.nii.gz", "a"), ("a_0000.PNG", "a"), ("a_0001.nii.gz", "a_0001"), ("a_00000.nii", "a_00000")],
)
def test_the_number_of_the_first_channel_is_no_part_of_a_case_s_name(file, name):
    assert case_name(file) == name


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["/d/a.nii.gz", "/d/b.nii.gz"], ["a", "b"]),
        (["/d/p0/scan.nii.gz", "/d/p1/scan.nii.gz"], ["p0_scan", "p1_scan"]),
        (["/d/p0/x/scan.nii", "/d/p1/x/scan.nii", "/d/other.nii"], ["p0_x_scan", "p1_x_scan", "other"]),
        (["/d/p0/scan.nii", "/d/p1/SCAN.nii"], ["p0_scan", "p1_SCAN"]),
        (["/d/p0/scan.nii.gz", "/d/p1/scan.png"], ["p0_scan", "p1_scan"]),
        (["/d/e\u0301.nii", "/d/p/\u00e9.nii"], ["d_e\u0301", "p_\u00e9"]),  # one letter, stored in two ways
        (["/d/a_0000.nii.gz", "/d/b_0000.nii.gz"], ["a", "b"]),
        (["/d/a_0000.nii.gz", "/d/a_0001.nii.gz"], ["a_0000", "a_0001"]),
        (["/d/A_0000.nii.gz", "/d/a_0001.nii.gz"], ["A_0000", "a_0001"]),
        (["/d/a_0000.nii.gz", "/d/a.nii.gz"], ["a_0000", "a"]),
        (["/d/p/a_0000.nii.gz", "/d/q/a.nii.gz"], ["p_a", "q_a"]),
        (["/d/p/mean.nii", "/d/p/a.nii"], ["p_mean", "a"]),
        (["/d/p/MEAN_0000.nii.gz"], ["p_MEAN"]),  # mean is the row over all cases
        (["/d/a/b_c.nii", "/d/x/b_c.nii", "/d/a_b/c.nii", "/d/y/c.nii"], ["a-b_c", "x-b_c", "a_b-c", "y-c"]),
    ],
)
def test_names_take_as_many_folders_as_they_need_to_differ(files, names):
    assert case_names(files) == dict(zip(files, names, strict=True))
    assert case_names(reversed(files)) == case_names(files)


@pytest.mark.parametrize(
    "files",
    [
        ["/d/a.nii", "/d/a.nii.gz"],
        ["/d/a.png", "/d/a.PNG"],
        ["/d/a.nii", "/d/A.nii"],
        ["/d/P/a.nii", "/d/p/a.nii"],
        ["/d/e\u0301.nii", "/d/\u00e9.nii"],
    ],
)
def test_files_that_differ_in_ending_or_case_alone_are_refused_by_name(files):
    with pytest.raises(UserError, match=r"would have the same name.*ending or in upper and lower case") as caught:
        case_names([*files, "/d/other.nii"])
    problems = str(caught.value).split("\n")[1:]
    assert problems == [f"  - {', '.join(sorted(files))}"]


def test_a_file_that_is_given_twice_is_one_case():
    assert case_names(["/d/a.nii", "/d/a.nii"]) == {"/d/a.nii": "a"}


def test_names_do_not_depend_on_how_a_path_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [os.path.join("p0", "scan.nii"), str(tmp_path / "p1" / "scan.nii")]
    assert sorted(case_names(files).values()) == ["p0_scan", "p1_scan"]


def test_an_array_is_of_the_case_that_its_data_list_names():
    assert case_of({"case": "p0_scan", "filename_or_obj": "p0/scan.nii"}) == "p0_scan"
    assert case_of({"filename_or_obj": "p0/scan_0000.nii.gz"}) == "scan"


@pytest.mark.parametrize(
    ("file", "pattern", "patient"),
    [
        ("patient01/scan.nii.gz", r"patient\d+", "patient01"),
        ("patient01/patient02_ED.nii.gz", r"patient\d+", "patient02"),
        ("site/scan.nii.gz", r"patient\d+", "site/scan"),
        ("p0/scan.nii.gz", None, "p0/scan"),
        ("case_p12.nii.gz", r"p?\d*", "p12"),
        ("p/scan.nii.gz", r"\d*$", "p/scan"),
        (Path("a.b") / "scan.nii", None, "a.b/scan"),
    ],
)
def test_a_patient_is_found_in_a_file_s_name_or_its_nearest_folder(file, pattern, patient):
    assert patient_name(file, pattern) == patient


def test_a_pattern_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"--patient_pattern \( is not a regular expression"):
        patient_name("a.nii", "(")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["liver", "tumor"], True),
        (["overall"], True),
        ([], False),
        (["a", "a"], False),
        (["1", "a"], False),
        (["a", " "], False),
        (["liver", "ALL"], False),  # all is the row over all classes
    ],
)
def test_structures_have_names_that_a_table_can_tell_apart(names, expected):
    assert are_class_names(names) == expected


def test_groups_are_of_what_shares_a_key():
    assert groups(["a", "b", "A"], key=same_name) == [["a", "A"]]
