"""Which files below a folder are scans and labels, and which label belongs to which scan."""

import json
import os
from pathlib import Path

import pytest

from custom.data.finding import list_scans, tell_left_out
from custom.data.folders import walk
from custom.utils.errors import UserError
from tools.prepare.layouts import visible_files
from tools.prepare.pairing import own_scans, pair_labels


@pytest.fixture
def touch(tmp_path):
    """Write empty files below ``tmp_path``."""

    def write(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return write


def _names(paths, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def _pairs(images: Path, labels: Path | None = None) -> dict[str, str | None]:
    pairs = own_scans(images, labels, images.parent / "out")
    root = images if labels is None else labels
    return {
        scan.relative_to(images).as_posix(): label and label.relative_to(root).as_posix()
        for scan, (_, label) in pairs.items()
    }


def test_scans_of_any_ending_are_found_in_folders_of_any_depth(touch):
    names = ["A.NII.GZ", "b.nii", "c/d.nrrd", "c/e/f.mha", "c/g.JPG", "h.PNG", "i.jpeg"]
    found = list_scans(touch(*names))
    assert sorted(_names(found.scans, touch())) == sorted(names)
    assert found.labels == found.left_out == []


def test_files_of_another_kind_are_left_out_by_name_and_voxels_of_headers_are_not_told_of(touch):
    found = list_scans(touch("a.mhd", "a.raw", "b.nhdr", "b.RAW.GZ", "notes.txt", "c/lone.raw"), (".mhd", ".nhdr"))
    assert _names(found.scans, touch()) == ["a.mhd", "b.nhdr"]
    assert found.left_out == ["notes.txt (not an image of this kind)", "c/lone.raw (not an image of this kind)"]


def test_hidden_files_and_folders_are_left_out_by_name(touch):
    found = list_scans(touch("a.nii.gz", "._a.nii.gz", ".cache/b.nii.gz", "__MACOSX/a.nii.gz", "x/.c.nii"))
    assert _names(found.scans, touch()) == ["a.nii.gz"]
    hidden = [".cache/", "__MACOSX/", "._a.nii.gz", "x/.c.nii"]
    assert found.left_out == [f"{name} (hidden)" for name in hidden]


def test_copies_in_a_prepared_folder_are_no_scans(touch):
    folder = touch("a.nii.gz", "own/prepare.json", "own/images/a.nii.gz")
    found = list_scans(folder)
    assert [path.name for path in found.scans] == ["a.nii.gz"]
    assert found.left_out == ["own/ (a prepared dataset folder)"]
    assert len(list_scans(folder / "own" / "images").scans) == 1


def test_a_folder_that_is_itself_hidden_is_searched(touch):
    assert len(list_scans(touch(".data/a.nii") / ".data").scans) == 1


def test_links_to_files_and_folders_are_followed_once(touch):
    top = touch("data/a.nii", "elsewhere/p/b.nii", "elsewhere/c.nii") / "data"
    (top / "0_link.nii").symlink_to(top / "a.nii")
    (top / "c.nii").symlink_to(top.parent / "elsewhere" / "c.nii")
    (top / "p").symlink_to(top.parent / "elsewhere" / "p")
    (top / "q").symlink_to(top.parent / "elsewhere" / "p")
    (top / "gone.nii").symlink_to(top / "nothing.nii")
    found = list_scans(top)
    assert _names(found.scans, top) == ["a.nii", "c.nii", "p/b.nii"]
    assert sorted(found.left_out) == [
        "0_link.nii (the same file as a.nii)",
        "gone.nii (link to nothing)",
        "q/ (the same folder as p/)",
    ]


def test_only_regular_files_are_scans(touch):
    top = touch("a.nii", "elsewhere/b.nii") / "."
    os.mkfifo(top / "pipe.nii.gz")
    (top / "link.nii.gz").symlink_to(top / "pipe.nii.gz")
    (top / "b.nii").symlink_to(top / "elsewhere" / "b.nii")
    found = list_scans(top, skip=[top / "elsewhere"])
    assert _names(found.scans, top) == ["a.nii", "b.nii"]
    assert sorted(found.left_out) == [f"{name}.nii.gz (a pipe, a socket or a device)" for name in ("link", "pipe")]


def test_links_that_lead_back_end(touch):
    top = touch("data/a/b.nii", "data/c.nii", "beside/d.nii") / "data"
    (top / "a" / "up").symlink_to(top)
    (top / "itself").symlink_to(top / "itself")
    (top / "beside").symlink_to(top.parent / "beside")
    (top.parent / "beside" / "back").symlink_to(top)
    found = list_scans(top)
    assert _names(found.scans, top) == ["a/b.nii", "beside/d.nii", "c.nii"]
    assert sorted(found.left_out) == [
        "a/up/ (link to a folder above it)",
        "beside/back/ (the same folder as ./)",
        "itself (link to nothing)",
    ]


def test_a_folder_is_entered_by_its_own_name_before_a_link_to_it(touch):
    top = touch("z/a.nii")
    (top / "a_link").symlink_to(top / "z")
    assert _names(walk(top)[0], top) == [".", "z"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_told(touch):
    top = touch("a.nii", "b/c.nii")
    (top / "b").chmod(0)
    try:
        assert walk(top) == ([top], ["b/ (no permission to read it)"])
    finally:
        (top / "b").chmod(0o700)


def test_visible_files_are_those_that_exist_and_are_not_hidden(touch):
    top = touch("a.h5", "b/c.h5", "b/._c.h5")
    (top / "gone.h5").symlink_to(top / "nothing")
    files, left_out = visible_files(top)
    assert _names(files, top) == ["a.h5", "b/c.h5"]
    assert left_out == ["b/._c.h5 (hidden)", "gone.h5 (link to nothing)"]


def test_files_and_folders_to_skip_are_not_taken_under_any_name(touch):
    top = touch("a.nii", "out/b.nii", "c.nii")
    (top / "link").symlink_to(top / "out")
    (top / "d.nii").symlink_to(top / "c.nii")
    assert list_scans(top, skip=[top / "out", top / "c.nii"]) == ([top / "a.nii"], [], [])


@pytest.mark.parametrize(
    "label",
    [
        *("a_seg.nii.gz", "a-mask.nii.gz", "a.label.nii.gz", "a_GT.nii.gz", "a_segmentation.nii.gz"),
        *(
            "seg_a.nii.gz",
            "Label-a.nii.gz",
            "mask a.nii.gz",
            "labels/a.nii.gz",
            "labelsTr/a.NII.GZ",
            "GroundTruth/A.nii",
        ),
        *("masks/a_mask.nii.gz", "masks/amask.nii.gz", "GroundTruth/A.nii"),
    ],
)
def test_a_label_is_told_from_scans_by_its_name_or_folder_and_finds_its_scan(label, touch):
    images = touch("in/a.nii.gz", "in/b.nii.gz", f"in/{label}") / "in"
    assert _pairs(images) == {"a.nii.gz": label, "b.nii.gz": None}


@pytest.mark.parametrize(
    ("scans", "labels"),
    [
        (["p0/scan.nii", "p1/scan.nii"], ["p0/seg.nii", "p1/seg.nii"]),
        (["p0/scan.nii", "p1/scan.nii"], ["p0/scan_seg.nii", "p1/scan_seg.nii"]),
        (["p0/images/scan.nii", "p1/images/scan.nii"], ["p0/labels/scan.nii", "p1/labels/scan.nii"]),
        (["images/p0/scan.nii", "images/p1/scan.nii"], ["labels/p0/scan.nii", "labels/p1/scan.nii"]),
        (["p0/scan.nii", "p1/scan.nii"], ["labels/p0_scan.nii", "labels/p1_scan.nii"]),
        (["p0/scan.nii", "p1/scan.nii"], ["labels/p0.nii", "labels/p1_seg.nii"]),
        (["imagesTr/a_0000.nii", "imagesTr/b_0000.nii"], ["labelsTr/a.nii", "labelsTr/b.nii"]),
        (["image_1.nii", "image_2.nii"], ["label_1.nii", "label_2.nii"]),
        (["img01.nii", "img02.nii"], ["label01.nii", "label02.nii"]),
        (["p0_scan.nii", "p1_scan.nii"], ["p0_seg.nii", "p1_seg.nii"]),
        (["A.nii", "B.nii"], ["a_seg.nii", "b_SEG.nii"]),
    ],
)
def test_each_label_finds_its_own_scan(scans, labels, touch):
    assert _pairs(touch(*(f"in/{name}" for name in (*scans, *labels))) / "in") == dict(zip(scans, labels, strict=True))


@pytest.mark.parametrize(
    "label",
    [
        "sub-01/anat/sub-01_desc-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_T1w_desc-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_space-orig_label-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_label-lesion_roi.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_space-orig_dseg.nii.gz",
        "derivatives/manual/sub-01/anat/sub-01_T1w_desc-lesion_mask.nii.gz",
        "sub-01/anat/sub-01_T1w_manual.nii.gz",
        "sub-01/anat/sub-01_T1w_manual_seg.nii.gz",
    ],
)
def test_a_label_named_as_bids_has_it_finds_its_scan(label, touch):
    scans = [f"sub-0{number}/anat/sub-0{number}_T1w.nii.gz" for number in (1, 2)]
    images = touch(*(f"in/{name}" for name in (*scans, label))) / "in"
    assert _pairs(images) == {scans[0]: label, scans[1]: None}


@pytest.mark.parametrize("ends", [("", "_followup"), ("", "_2"), ("_T1w", "_space-MNI_T1w")])
def test_names_that_are_longer_than_others_are_told_apart(ends, touch):
    top = touch(*(f"in/sub-01{end}.nii" for end in ends), *(f"labels/sub-01{end}_seg.nii" for end in ends))
    assert _pairs(top / "in", top / "labels") == {f"sub-01{end}.nii": f"sub-01{end}_seg.nii" for end in ends}


def test_a_label_in_a_space_is_of_the_image_in_that_space(touch):
    top = touch("in/sub-01_T1w.nii", "in/sub-01_space-MNI_T1w.nii", "in/sub-01_space-MNI_mask.nii")
    assert _pairs(top / "in") == {"sub-01_T1w.nii": None, "sub-01_space-MNI_T1w.nii": "sub-01_space-MNI_mask.nii"}


def test_only_beside_its_image_a_manual_file_is_a_label(touch):
    top = touch("in/a.nii", "in/a_manual.nii", "in/b_manual.nii", "in/b_manual_seg.nii")
    assert _pairs(top / "in") == {"a.nii": "a_manual.nii", "b_manual.nii": "b_manual_seg.nii"}
    assert len(list_scans(top / "in").scans) == 3


def test_a_bids_label_of_one_of_two_images_is_refused(touch):
    images = touch(*(f"in/sub-01_{end}.nii.gz" for end in ("T1w", "T2w", "desc-lesion_mask"))) / "in"
    with pytest.raises(UserError, match=r"lesion_mask.nii.gz: may be of .*T1w.nii.gz or .*T2w.nii.gz"):
        own_scans(images, None, images.parent / "out")


@pytest.mark.parametrize("name", ["a_roi.nii", "a_lesion.nii", "a_manual.nii"])
def test_more_ends_are_taken_off_in_a_folder_of_labels(name, touch):
    top = touch("in/a.nii", "in/b.nii", f"labels/{name}")
    assert _pairs(top / "in", top / "labels") == {"a.nii": name, "b.nii": None}


def test_an_image_that_ends_in_roi_is_a_scan(touch):
    assert _names(list_scans(touch("a.nii", "a_roi.nii", "b_lesion.nii")).scans, touch()) == [
        "a.nii",
        "a_roi.nii",
        "b_lesion.nii",
    ]


@pytest.mark.parametrize("link", [False, True])
def test_the_folder_of_scans_may_be_given_as_that_of_labels(link, touch):
    images = touch("in/a.nii", "in/a_seg.nii", "in/b.nii") / "in"
    (images.parent / "link").symlink_to(images)
    pairs = own_scans(images, images.parent / "link" if link else images, images.parent / "out")
    a, b = images / "a.nii", images / "b.nii"
    assert pairs == {a: ([a], images / "a_seg.nii"), b: ([b], None)}


@pytest.mark.parametrize("labels", ["labels", "in/labels", "in/manual", "."])
def test_a_folder_of_labels_may_be_beside_in_or_around_that_of_scans(labels, touch, capsys):
    top = touch("in/a.nii", "in/b.nii", f"{labels}/a.nii" if labels != "." else "a.nii")
    assert _pairs(top / "in", top / labels) == {"a.nii": "a.nii", "b.nii": None}
    assert capsys.readouterr().out == ""


def test_labels_beside_scans_are_told_of_where_another_folder_of_labels_is_given(touch, capsys):
    top = touch("in/a.nii", "in/a_seg.nii", "labels/a.nii")
    assert _pairs(top / "in", top / "labels") == {"a.nii": "a.nii"}
    assert f"left out 1: a_seg.nii (a label, not in {top / 'labels'})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (
            ["a.nii", "labels/task-0-annotation-3-tag-Liver-0.nii"],
            r"tag-Liver-0.nii: no image of that name\n.*called as its image is, such as a, a_seg, a_label, a_mask, ",
        ),
        (["a.nii", "a_seg.nii", "a_mask.nii"], r"a_seg.nii: so is a_mask.nii, of .*a.nii"),
        (["p/a.nii", "p/b.nii", "p/seg.nii"], r"seg.nii: may be of .*a.nii or .*b.nii"),
        (["p/a.nii", "q/a.nii", "labels/a.nii"], r"labels/a.nii: may be of .*p/a.nii or .*q/a.nii"),
    ],
)
def test_a_label_without_a_scan_of_its_own_is_refused_by_name(names, problem, touch):
    images = touch(*(f"in/{name}" for name in names)) / "in"
    with pytest.raises(UserError, match=rf"(?s)1 label.* an image of their own, nothing was written.*{problem}"):
        own_scans(images, None, images.parent / "out")


@pytest.mark.parametrize("names", ["BraTS_{n}/BraTS_{n}_{c}.nii.gz", "{n}_{c}.nii", "{n}/{c}.nii"])
def test_files_that_seem_to_be_channels_are_told_with_their_names(names, touch):
    ends = ("t1", "t1ce", "t2", "flair", "seg")
    images = touch(*(f"in/{names.format(n=f'{n:03d}', c=c)}" for n in (1, 2) for c in ends)) / "in"
    with pytest.raises(UserError, match=r"give --channels t1,t1ce,t2,flair$"):
        own_scans(images, None, images.parent / "out")
    assert len(own_scans(images, None, images.parent / "out", ["t1", "t1ce", "t2", "flair"])) == 2


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("s1/ct.nii.gz", "s1/segmentations/{}.nii.gz"),
        ("s1.nii.gz", "s1_{}_mask.nii.gz"),
        ("images/s1.nii.gz", "labels/s1_{}.nii.gz"),
    ],
)
def test_labels_of_a_structure_each_are_told_as_such(image, labels, touch):
    found = [labels.format(name) for name in ("liver", "spleen")]
    images = touch("in/" + image, "in/" + image.replace("s1", "s2"), *(f"in/{name}" for name in found)) / "in"
    with pytest.raises(UserError) as raised:
        own_scans(images, None, images.parent / "out")
    names = ", ".join(Path(name).name for name in found)
    expected = (
        f"{images / image}: 2 label files, {names}; if each marks a structure of it, merge them into one label map"
    )
    assert str(raised.value).count("\n") == 1
    assert expected in str(raised.value)


def test_a_label_of_the_same_folder_comes_before_one_of_the_same_name(touch):
    top = touch("p/a.nii", "q/a.nii")
    labels = [top / "p" / "a_seg.nii", top / "q" / "a_seg.nii"]
    assert pair_labels([top / "p" / "a.nii", top / "q" / "a.nii"], labels, top, top) == (
        {top / "p" / "a.nii": labels[0], top / "q" / "a.nii": labels[1]},
        {},
    )


def test_an_empty_label_may_be_linked_to_for_many_scans(touch):
    top = touch("in/a.nii", "in/b.nii", "labels/a.nii")
    (top / "labels" / "b.nii").symlink_to(top / "labels" / "a.nii")
    assert _pairs(top / "in", top / "labels") == {"a.nii": "a.nii", "b.nii": "b.nii"}


def test_earlier_predictions_are_no_scans_and_no_labels(touch):
    names = ["a.nii", "a_probs.nii", "predictions/a_seg.nii", "out/volumes.csv", "out/a_seg.nii", "out/review/a.png"]
    names += ["out/inference.json", "out/review/p/a.png"]
    found = list_scans(touch(*names), endings=(".nii", ".png"))
    assert _names(found.scans, touch()) == ["a.nii"]
    assert found.labels == []
    earlier = [text for text in found.left_out if "earlier prediction" in text]
    expected = ("a_probs.nii", "out/a_seg.nii", "out/review/a.png", "out/review/p/a.png", "predictions/a_seg.nii")
    assert sorted(earlier) == [f"{name} (earlier prediction)" for name in expected]


def test_photographs_in_a_folder_of_that_name_are_scans(touch):
    assert _names(list_scans(touch("review/a.png"), endings=(".png",)).scans, touch()) == ["review/a.png"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ("nowhere", None, "nowhere: no such folder."),
        ("in", "nowhere", "nowhere: no such folder."),
        ("in/a.nii", None, "a.nii: a file; expected the folder in which it is"),
        ("packed/a.ZIP", None, "a.ZIP: an archive; unpack it first, and give the folder"),
        ("in", "packed/b.tar.gz", "b.tar.gz: an archive; unpack it first, and give the folder"),
        ("packed", None, r"packed: no scans; .* Found a.ZIP \(an archive, unpack it first\), b.tar.gz \(an archive"),
        ("empty", None, r"empty: no scans; expected files ending in \.nii\.gz"),
        ("out/images", None, "files written to --output .* would lie among these"),
        ("out", None, "files written to --output .* would lie among these"),
    ],
)
def test_folders_that_cannot_be_taken_are_refused(images, labels, message, touch):
    top = touch("in/a.nii", "empty/notes.txt", "out/images/a.nii", "packed/a.ZIP", "packed/b.tar.gz")
    with pytest.raises(UserError, match=message):
        own_scans(top / images, labels and top / labels, top / "out")


def test_labels_beside_channels_are_named_as_the_case(touch, capsys):
    top = touch("in/p1_t1.nii", "in/p1_t2.nii", "in/p1_seg.nii", "in/p2/t1.nii", "in/p2/T2.nii", "in/p2/mask.nii")
    top = touch("in/p3-T1.nii.gz", "in/p3-t2.nii", "in/p1_flair.nii", "labels/p2.nii") / "in"
    pairs = own_scans(top, None, top.parent / "out", ["t1", "t2"])
    assert pairs == {
        top / "p1.nii": ([top / "p1_t1.nii", top / "p1_t2.nii"], top / "p1_seg.nii"),
        top / "p2" / "p2.nii": ([top / "p2" / "t1.nii", top / "p2" / "T2.nii"], top / "p2" / "mask.nii"),
        top / "p3.nii.gz": ([top / "p3-T1.nii.gz", top / "p3-t2.nii"], None),
    }
    assert "left out 1: p1_flair.nii (none of the channels)" in capsys.readouterr().out
    (top / "p1_seg.nii").unlink()
    (top / "p2" / "mask.nii").unlink()
    pairs = own_scans(top, top.parent / "labels", top.parent / "out", ["t1", "t2"])
    assert [label and label.name for _, label in pairs.values()] == [None, "p2.nii", None]


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (
            ["p1_t1.nii", "p1_t2.nii", "p2_t1.nii"],
            {"channels": ["t1", "t2"]},
            "p2: channel t2 is missing, expected .*p2_t2.nii$",
        ),
        (
            ["p1_t1.nii", "p1-T1.nii", "p1_t2.nii"],
            {"channels": ["t1", "t2"]},
            "p1: several files of channel t1, .*p1-T1.nii, ",
        ),
        (["p1.nii", "p2.nii"], {"channels": ["t1", "t2"]}, "in: no file ends in _t1 or _t2, as --channels says"),
        (["a_0000.nii", "a_0001.nii", "b_0000.nii"], {}, "b: channel 0001 is missing, expected .*in/b_0001.nii$"),
        (
            ["a_0000.nii", "a_0002.nii", "b_0000.nii", "b_0001.nii"],
            {},
            "a: channel 0001 is missing, expected .*a_0001.nii",
        ),
        (["a_0000.nii", "b_0000.nii"], {"count": 2}, "(?s)a: channel 0001 is missing, .*b: channel 0001 is missing"),
        (["a_0000.nii", "a_0001.nii", "b.nii"], {}, "in/b.nii: has no number of a channel"),
        (
            ["a_0000.nii", "a_0001.nii", "b.nii"],
            {"count": 1},
            "a: several channels, as nnU-Net names .* _0000, _0001, expected 1",
        ),
    ],
)
def test_a_case_without_the_channels_of_the_others_is_refused_by_name(names, options, message, touch):
    images = touch(*(f"in/{name}" for name in names)) / "in"
    with pytest.raises(UserError, match=message):
        own_scans(images, None, images.parent / "out", **options)


def test_what_is_left_out_is_counted_and_the_first_are_named(capsys):
    tell_left_out([])
    tell_left_out([f"{number}.txt" for number in range(25)])
    out = capsys.readouterr().out
    assert out.startswith("left out 25: 0.txt, 1.txt, ")
    assert out.endswith("19.txt, and 5 more\n")


def test_results_in_folders_are_known_by_the_table_and_the_record_above_them(tmp_path):
    labels = [tmp_path / "patient" / "scan_seg.nii.gz", tmp_path / "scan_seg.nii.gz"]
    labels[0].parent.mkdir()
    for label in labels:
        label.write_bytes(b"")
    (tmp_path / "volumes.csv").write_text("case,frame\n")
    assert sorted(list_scans(tmp_path).labels) == labels  # a table of volumes may be anybody's
    (tmp_path / "inference.json").write_text("{}")
    found = list_scans(tmp_path)
    assert (found.scans, found.labels) == ([], [])
    assert "patient/scan_seg.nii.gz (earlier prediction)" in found.left_out


def test_a_label_beside_predictions_is_no_prediction(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}_seg.nii.gz").write_bytes(b"")
    (tmp_path / "volumes.csv").write_text("case,frame\n")
    entries = {"a": {"outputs": {"a_seg.nii.gz": [0, 0]}}, "b": {"begun": True}}
    (tmp_path / "inference.json").write_text(json.dumps({"version": 2, "scans": entries}))
    found = list_scans(tmp_path)
    assert found.labels == [tmp_path / "c_seg.nii.gz"]
    assert found.left_out[:2] == ["a_seg.nii.gz (earlier prediction)", "b_seg.nii.gz (earlier prediction)"]
