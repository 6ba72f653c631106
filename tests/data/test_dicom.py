"""DICOM series are read whole, on the grid of their headers, or refused by name."""

import io
import json
import os
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from scan_files import read_scans, write_dicom, write_multiframe, write_nifti

from custom.data.checks import read_image
from custom.data.datalist import load_datalist
from custom.data.dicom import dicom_files
from custom.data.scans import find_scans
from custom.utils.errors import UserError
from tools.prepare import commands as prepare
from tools.prepare.layouts import series_folders

#: Without the plan, which takes time and is tested by itself.
own = partial(prepare.own, plan=None)

GRID = np.diag([-0.7, -0.8, 2.0, 1])  # DICOM's x and y point the other way


def _volume(slices=8) -> np.ndarray:
    return np.random.default_rng(0).integers(-1000, 1000, (7, 6, slices))


def _set(**values):
    """Make an ``edit`` of headers: None removes an attribute, a function gets the slice's number."""

    def edit(header, k):
        for name, value in values.items():
            value = value(k) if callable(value) else value
            delattr(header, name) if value is None else setattr(header, name, value)

    return edit


def _assert_read(path: Path, expected: np.ndarray, affine: np.ndarray = GRID) -> None:
    image, problems = read_image(str(path))
    assert problems == []
    np.testing.assert_allclose(image.numpy()[0], expected, rtol=1e-6)
    np.testing.assert_allclose(image.affine.numpy(), affine, atol=1e-9)


def _problem(path: Path) -> str:
    image, problems = read_image(str(path))
    assert image is None
    (problem,) = problems
    assert "\n" not in problem
    assert path.name in problem
    return problem


@pytest.mark.parametrize("name", ["SliceThickness", "SeriesDate", "SequenceName", "SeriesNumber", "ProtocolName"])
def test_slices_that_differ_in_a_tag_by_which_itk_splits_are_all_read(name, tmp_path):
    values = {"SliceThickness": 2.5, "SeriesDate": "20240102", "SeriesNumber": 2}
    write_dicom(
        tmp_path / "a",
        _volume(),
        edit=lambda header, k: setattr(header, name, values.get(name, "x") if k > 4 else None),
    )
    _assert_read(tmp_path / "a", _volume())


def test_the_order_of_slices_is_that_of_their_positions(tmp_path):
    places = [3, 0, 7, 1, 6, 2, 5, 4]
    write_dicom(tmp_path / "a", _volume(), edit=_set(ImagePositionPatient=lambda k: [0, 0, 2.0 * places[k]]))
    _assert_read(tmp_path / "a", _volume()[:, :, np.argsort(places)])


def test_an_oblique_series_lies_where_its_headers_say(tmp_path):
    angle = np.deg2rad(20)
    row, column = np.array([np.cos(angle), np.sin(angle), 0]), np.array([0, 0, -1.0])
    normal = np.cross(row, column)
    edit = _set(
        ImageOrientationPatient=[*row, *column],
        ImagePositionPatient=lambda k: (np.array([5, 6, 7]) + 3 * k * normal).tolist(),
    )
    write_dicom(tmp_path / "a", _volume(), edit=edit)
    affine = np.eye(4)
    affine[:3] = np.stack([0.7 * row, 0.8 * column, 3 * normal, [5, 6, 7]], axis=1)
    _assert_read(tmp_path / "a", _volume(), np.diag([-1, -1, 1, 1]) @ affine)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (lambda k: [0, 0, 5 * k if k < 5 else 20 + 2.5 * (k - 4)], "uneven steps between slices, 2.500 to 5.000 mm"),
        (lambda k: [0, 0, 5 * k if k < 3 else 10 + 2.5 * (k - 2)], "uneven steps"),
        (lambda k: [0, 0, 3 * k if k < 4 else 9 + 4.2 * (k - 3)], "uneven steps"),
        (lambda k: [0, 0, 2 * k + 0.05 * (k == 3)], "uneven steps between slices, 1.950 to 2.050 mm"),
        (lambda k: [0.5 * (k == 3), 0, 2 * k], "uneven: 003.dcm is shifted by 0.50 mm in its plane"),
        (lambda k: [0, 2 * k * np.tan(np.deg2rad(14)), 2 * k], "tilted by 14.0 degrees"),
        (lambda k: [0, 0, 2 * k if k < 4 else 2 * k + 4], "missing between 6.00 and 12.00 mm .003.dcm and 004.dcm"),
        (lambda k: [0, 0, 2 * (k // 2)], "there twice, at the same position .000.dcm and 001.dcm"),
    ],
)
def test_slices_off_one_grid_are_refused(places, words, tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=_set(ImagePositionPatient=lambda k: [float(x) for x in places(k)]))
    with pytest.raises(UserError, match=words):
        raise UserError(_problem(tmp_path / "a"))


def test_rounded_positions_are_on_the_grid(tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=_set(ImagePositionPatient=lambda k: [0, 0, 2.0 * k + 0.01 * (k == 3)]))
    _assert_read(tmp_path / "a", _volume())


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("TemporalPositionIdentifier", (1, 2), "a time series, 8 images at 4 position"),
        ("TriggerTime", (0, 30), "a time series"),
        ("AcquisitionTime", ("100000", "100001"), "a time series or several acquisitions"),
        ("AcquisitionNumber", (1, 2), "several acquisitions"),
        ("EchoNumbers", (1, 2), "several echoes"),
        ("DiffusionBValue", (0.0, 800.0), "several diffusion weightings"),
        ("ImageType", (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]), "several kinds of image"),
    ],
)
def test_several_volumes_in_one_series_are_called_what_they_are(name, values, words, tmp_path):
    edit = _set(**{name: lambda k: values[k % 2], "ImagePositionPatient": lambda k: [0, 0, 2.0 * (k // 2)]})
    write_dicom(tmp_path / "a", _volume(), edit=edit)
    assert f"{words}" in _problem(tmp_path / "a")


def test_copies_of_slices_are_named_with_their_originals(tmp_path):
    write_dicom(tmp_path / "a", _volume())
    (tmp_path / "a" / "copy.dcm").write_bytes((tmp_path / "a" / "003.dcm").read_bytes())
    assert "1 slice(s) are there twice, at the same position (003.dcm and copy.dcm)" in _problem(tmp_path / "a")


@pytest.mark.parametrize(("between", "expected"), [(None, 2.0), (3.0, 3.0), (-3.0, 3.0)])
def test_a_single_slice_is_as_thick_as_its_header_says(between, expected, tmp_path):
    edit = None if between is None else _set(SpacingBetweenSlices=between)
    write_dicom(tmp_path / "a", _volume(1), edit=edit)
    _assert_read(tmp_path / "a", _volume(1), np.diag([-0.7, -0.8, expected, 1]))


def test_a_single_slice_of_unknown_thickness_is_refused(tmp_path):
    write_dicom(tmp_path / "a", _volume(1), edit=_set(SliceThickness=None))
    assert "000.dcm, which lacks SpacingBetweenSlices and SliceThickness" in _problem(tmp_path / "a")


def test_every_slice_has_the_values_of_its_own_slope(tmp_path):
    slopes = np.array([1, 0.23, 0.36, 0.49, 2, 0.75, 0.88, 1.01])
    intercepts = np.array([0, -1024, 0, 0.5, 0, 7, 0, 0])
    edit = _set(RescaleSlope=lambda k: slopes[k], RescaleIntercept=lambda k: intercepts[k])
    write_dicom(tmp_path / "a", _volume(), edit=edit)
    _assert_read(tmp_path / "a", _volume() * slopes + intercepts)


def test_slices_of_8_and_16_bits_are_read_together(tmp_path):
    volume = _volume() % 256

    def edit(header, k):
        if k % 2:
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 8, 8, 7, 0
            header.PixelData = np.ascontiguousarray(volume[:, :, k].T.astype(np.uint8)).tobytes()

    write_dicom(tmp_path / "a", volume, edit=edit)
    _assert_read(tmp_path / "a", volume)


@pytest.mark.parametrize(
    "name",
    [
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "SeriesInstanceUID",
        "Rows",
        "PixelRepresentation",
        "PhotometricInterpretation",
        "PixelData",
    ],
)
def test_a_missing_attribute_is_named_with_its_file(name, tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=lambda header, k: delattr(header, name) if k == 3 else None)
    assert f"003.dcm lacks {name}" in _problem(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PixelSpacing": "1.0"}, "003.dcm has PixelSpacing '1.0', expected 2 positive number"),
        ({"PixelSpacing": [0, 1]}, "003.dcm has PixelSpacing"),
        ({"PixelSpacing": [0.8, 0.71]}, "differ in PixelSpacing"),
        ({"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, "2 different orientations"),
        ({"FrameOfReferenceUID": "1.5"}, "differ in FrameOfReferenceUID"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "differ in PhotometricInterpretation"),
        ({"RescaleSlope": 0}, "003.dcm has RescaleSlope"),
        ({"Modality": "SEG"}, "003.dcm is no slice of a scan but a SEG object"),
        ({"Modality": "RTSTRUCT"}, "003.dcm is no slice of a scan but a RTSTRUCT object"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "003.dcm is a localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "003.dcm is a mosaic"),
        ({"BitsAllocated": 12}, "003.dcm has SamplesPerPixel 1 and BitsAllocated 12"),
        ({"RescaleSlope": ["1", "2"]}, "a header cannot be understood"),
        ({"NumberOfFrames": 3}, "003.dcm is multi-frame, 3 frames without positions"),
    ],
)
def test_an_odd_slice_is_named(change, words, tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=lambda header, k: _set(**change)(header, k) if k == 3 else None)
    assert words in _problem(tmp_path / "a")


@pytest.mark.parametrize("colors", ["MONOCHROME1", "RGB", "PALETTE COLOR"])
def test_pictures_instead_of_values_are_refused(colors, tmp_path):
    samples = 3 if colors == "RGB" else 1
    edit = _set(PhotometricInterpretation=colors, SamplesPerPixel=samples, Columns=7)
    write_dicom(tmp_path / "a", np.repeat(_volume(), samples, axis=0), edit=edit)
    assert f"000.dcm is a picture in {colors}" in _problem(tmp_path / "a")


def test_colors_that_are_called_gray_are_refused(tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=_set(SamplesPerPixel=3, Columns=2))
    assert "000.dcm has SamplesPerPixel 3" in _problem(tmp_path / "a")


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    "damage", [_shorten, lambda path: path.write_bytes(path.read_bytes()[:300]), lambda path: path.write_bytes(b"DICM")]
)
def test_a_damaged_file_is_named(damage, compressed, tmp_path):
    write_dicom(tmp_path / "a", _volume())
    if compressed:
        header = pydicom.dcmread(tmp_path / "a" / "003.dcm")
        header.compress(pydicom.uid.RLELossless)
        header.save_as(tmp_path / "a" / "003.dcm")
    damage(tmp_path / "a" / "003.dcm")
    assert "003.dcm is truncated" in _problem(tmp_path / "a")


def _to_jpeg_2000(header, k):
    buffer = io.BytesIO()
    Image.fromarray(header.pixel_array.astype(np.uint16)).save(buffer, "JPEG2000", irreversible=False)
    header.PixelData = encapsulate([buffer.getvalue()])
    header["PixelData"].is_undefined_length = True
    header.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
    header.PixelRepresentation = 0


@pytest.mark.parametrize(
    "compress", [lambda header, k: header.compress(pydicom.uid.RLELossless), _to_jpeg_2000], ids=["rle", "jpeg2000"]
)
def test_compressed_slices_have_the_same_values(compress, tmp_path):
    volume = np.arange(7 * 6 * 8).reshape(8, 6, 7).T // 5
    write_dicom(tmp_path / "a", volume, edit=compress)
    _assert_read(tmp_path / "a", volume)


def test_files_without_preamble_or_ending_are_found_and_others_are_not_taken_for_slices(tmp_path):
    write_dicom(tmp_path / "a", _volume())
    for path in list((tmp_path / "a").iterdir()):
        path.with_suffix("").write_bytes(path.read_bytes()[132:])
        path.unlink()
    expected = dicom_files(tmp_path / "a")
    (tmp_path / "a" / "._000.dcm").write_bytes(b"\0\5\26\7")  # what macOS leaves on foreign disks
    (tmp_path / "a" / ".hidden").write_bytes(expected[0].read_bytes())
    (tmp_path / "a" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "a" / "notes.txt").write_text("not a slice")
    write_dicom(tmp_path / "a" / "below", _volume(3), uid="1.2.9")
    assert len(expected) == 8
    assert dicom_files(tmp_path / "a") == expected
    assert series_folders(tmp_path) == [tmp_path / "a", tmp_path / "a" / "below"]
    _assert_read(tmp_path / "a", _volume())


@pytest.mark.parametrize(
    ("names", "lost"),
    [("slice{:03d}.dcm", "slice008.dcm"), ("IM{:03d}", "IM008"), ("1.2.840.{}", "1.2.840.8"), ("a{}.IMA", "a8.ima")],
)
def test_an_empty_file_named_as_the_slices_is_refused(names, lost, tmp_path):
    _write_named(tmp_path / "a", names)
    (tmp_path / "a" / lost).touch()
    image, problems = read_image(str(tmp_path / "a"))
    assert image is None
    assert problems == [f"{tmp_path / 'a' / lost}: is empty; copy it again, or remove it."]


def test_a_file_named_as_the_slices_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    _write_named(tmp_path / "a", "IM{:03d}")
    lost = tmp_path / "a" / "IM003"
    lost.write_bytes(bytes(200))  # as nobody sees what is in it
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != lost and allowed(path, mode))
    image, problems = read_image(str(tmp_path / "a"))
    assert image is None
    assert problems == [f"{lost}: no permission to read it; have the permission changed, or remove it."]


def test_empty_files_of_other_kinds_do_not_matter(tmp_path):
    write_dicom(tmp_path / "a", _volume())
    for name in ("done", "notes.txt", ".lock.dcm", "DICOMDIR"):
        (tmp_path / "a" / name).touch()
    _assert_read(tmp_path / "a", _volume())


def _write_named(folder: Path, names: str) -> None:
    write_dicom(folder, _volume())
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / names.format(k))


def test_linked_folders_are_found_once(tmp_path):
    write_dicom(tmp_path / "elsewhere" / "b", _volume(3))
    write_dicom(tmp_path / "scans" / "a", _volume(3))
    (tmp_path / "scans" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "scans" / "a" / "back").symlink_to(tmp_path / "scans")
    assert [path.name for path in series_folders(tmp_path / "scans")] == ["a", "b"]


@pytest.mark.parametrize("as_file", [False, True])
def test_a_multi_frame_file_lies_where_its_frames_say(as_file, tmp_path):
    places, slopes = [5, 3, 4, 0, 1, 2], [1, 0.5, 2, 0.25, 1, 3]
    write_multiframe(tmp_path / "a" / "all.dcm", _volume(6), [2.0 * place for place in places], slopes)
    expected = (_volume(6) * slopes)[:, :, np.argsort(places)]
    _assert_read(tmp_path / "a" / "all.dcm" if as_file else tmp_path / "a", expected)


@pytest.mark.parametrize(
    ("heights", "words"),
    [
        ([0.0, 0.0, 2.0, 2.0, 4.0, 4.0], "a time series, 6 images at 3 position"),
        ([0.0, 2.0, 4.0, 6.0, 9.0, 12.0], "uneven steps"),
        ([0.0, 2.0, None, 6.0, 8.0, 10.0], "all.dcm, which is multi-frame, lacks ImagePositionPatient"),
        ([0.0, 2.0, 4.0], "all.dcm is multi-frame and describes 3 of its 6 frames"),
    ],
)
def test_a_multi_frame_file_that_is_no_volume_is_refused(heights, words, tmp_path):
    write_multiframe(tmp_path / "a" / "all.dcm", _volume(6), heights)
    assert words in _problem(tmp_path / "a")


def test_several_multi_frame_files_in_a_folder_are_refused(tmp_path):
    for name in ("one", "two"):
        write_multiframe(tmp_path / "a" / f"{name}.dcm", _volume(6), [2.0 * k for k in range(6)])
    assert "expected one multi-frame file, found 2" in _problem(tmp_path / "a")


def _two_bad_and_a_good(folder: Path, names=("bad", "good", "worse")) -> None:
    edits = (_set(ImageOrientationPatient=None), None, _set(ImagePositionPatient=lambda k: [0, 0, k**2]))
    for number, (name, edit) in enumerate(zip(names, edits, strict=True)):
        write_dicom(folder / name, _volume(), uid=f"1.2.{number}", edit=edit)


def _assert_names_both(error: BaseException, names=("bad", "worse")) -> None:
    lines = [line for line in str(error).splitlines() if line.startswith("  - ")]
    assert len(lines) == 2
    assert f"{names[0]}: 000.dcm lacks ImageOrientationPatient" in lines[0]
    assert f"{names[1]}: uneven steps" in lines[1]


def test_own_lists_all_series_that_cannot_be_read(tmp_path):
    _two_bad_and_a_good(tmp_path / "in")
    with pytest.raises(UserError, match="2 DICOM series cannot be read, nothing was written") as caught:
        own(str(tmp_path / "in"), str(tmp_path / "out"))
    _assert_names_both(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", ["in/scan", "in/scan/", "."])
def test_a_series_may_be_given_by_its_own_folder(given, tmp_path, monkeypatch):
    write_dicom(tmp_path / "in" / "scan", _volume())
    monkeypatch.chdir(tmp_path / "in" / "scan" if given == "." else tmp_path)
    own(given, str(tmp_path / "out"), patient_pattern="sc.n")
    assert [path.name for path in (tmp_path / "out" / "images").iterdir()] == ["scan.nii.gz"]
    assert [case["case"] for case in find_scans(given, 1, dimensions=3).cases] == ["scan"]


def test_one_of_several_slices_is_no_volume(tmp_path):
    write_dicom(tmp_path / "a", _volume(), edit=_set(SpacingBetweenSlices=2.0))
    path = tmp_path / "a" / "000.dcm"
    assert _problem(path) == f"{path}: is one of 8 slices of one series; give its folder, {path.parent}."


def test_a_series_of_one_slice_stays_a_volume(tmp_path):
    write_dicom(tmp_path / "in" / "scan", _volume(1), edit=_set(SpacingBetweenSlices=2.0))
    own(str(tmp_path / "in"), str(tmp_path / "out"))
    prepared = nib.load(tmp_path / "out" / "images" / "scan.nii.gz")
    assert prepared.shape == (*_volume().shape[:2], 1)
    np.testing.assert_allclose(np.diag(prepared.affine)[2], 2)


def test_pancreas_lists_all_series_that_cannot_be_read(tmp_path):
    names = [f"PANCREAS_000{number}" for number in (1, 2, 3)]
    _two_bad_and_a_good(tmp_path / "in", names)
    with pytest.raises(UserError, match=r"2 patient\(s\) cannot be read") as caught:
        prepare.pancreas(str(tmp_path / "in"), str(tmp_path / "out"), allow_missing=True)
    _assert_names_both(caught.value, names[::2])


def test_inference_goes_on_without_the_series_that_cannot_be_read(tmp_path):
    _two_bad_and_a_good(tmp_path / "in")
    good, problems = read_scans(tmp_path / "in")
    assert good == ["good"]
    _assert_names_both(UserError("", problems))


def test_training_and_check_list_all_series_that_cannot_be_read(tmp_path):
    _two_bad_and_a_good(tmp_path)
    cases = [{"image": name} for name in ("bad", "good", "worse")]
    write_nifti(tmp_path / "label.nii.gz", np.ones((7, 6, 8), np.uint8), GRID)
    content = {"training": [{"image": "good", "label": "label.nii.gz"}], "unlabeled": cases[::2]}
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as caught:
        load_datalist(str(tmp_path / "list.json"), ["training", "unlabeled"], 1, 2, 3)
    _assert_names_both(caught.value)
    with pytest.raises(UserError):
        prepare.check(str(tmp_path))
    report = (tmp_path / "check" / "report.json").read_text()
    assert "000.dcm lacks ImageOrientationPatient" in report
    assert "uneven steps" in report


def test_prepared_series_have_all_slices_and_values(tmp_path):
    edit = _set(SliceThickness=lambda k: 2 + k % 2, RescaleSlope=lambda k: 1 if k == 0 else 0.5)
    write_dicom(tmp_path / "in" / "scan", _volume(), edit=edit)
    own(str(tmp_path / "in"), str(tmp_path / "out"))
    prepared = nib.load(tmp_path / "out" / "images" / "scan.nii.gz")
    np.testing.assert_allclose(prepared.get_fdata(), _volume() * np.where(np.arange(8) == 0, 1, 0.5))
    np.testing.assert_allclose(prepared.affine, GRID, atol=1e-6)
