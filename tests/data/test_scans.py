"""What people point at, files of many formats and DICOM folders, is found, and what is broken is named."""

import json
import re
import threading
import time
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pydicom
import pytest
from monai.data import Dataset
from scan_files import OBLIQUE, read_scans, write_dicom, write_itk, write_multiframe, write_nifti

from custom.data import LoadScand, ScanLoader
from custom.data.scans import find_scans
from custom.utils.errors import UserError
from custom.utils.names import case_name


def _find(source, dimensions=3, **options):
    return find_scans(str(source) if isinstance(source, Path) else source, 1, dimensions, **options).cases


def _noise(shape=(12, 10, 8)) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_scans_are_found_in_a_folder_a_data_set_a_file_and_a_list(own_dataset):
    root = own_dataset.parent
    in_folder = _find(str(root / "images"))
    assert len(in_folder) == 5
    assert _find(str(root)) == in_folder
    assert [case.pop("prediction") for case in in_folder] == [f"case_00{number}" for number in range(5)]
    assert _find(in_folder[0]["image"]) == in_folder[:1]
    assert _find([case["image"] for case in in_folder[:2]]) == in_folder[:2]


def test_scans_of_a_data_list_are_its_validation_and_test_images(own_dataset):
    (case,) = _find("unused", datalist=str(own_dataset))
    assert Path(case["image"]).name == "case_004.nii.gz"


def test_files_of_every_format_and_dicom_folders_are_found(tmp_path):
    write_nifti(tmp_path / "a.nii", _noise())
    write_itk(tmp_path / "b.nrrd", _noise(), OBLIQUE)
    write_itk(tmp_path / "c.mha", _noise(), OBLIQUE)
    write_itk(tmp_path / "d.mhd", _noise(), OBLIQUE)
    write_dicom(tmp_path / "patient" / "1.2.840.5", 100 * _noise())
    write_dicom(tmp_path / "other" / "1.2.840.6", 100 * _noise(), uid="1.2.4")
    for path in (tmp_path / "other" / "1.2.840.6").iterdir():  # many archives give DICOM files no ending
        path.rename(path.with_name(f"IM{path.stem}"))
    (tmp_path / "notes.txt").write_text("not a scan")
    names = [case_name(case["image"]) for case in _find(str(tmp_path))]
    assert names == ["a", "b", "c", "d", "1.2.840.6", "1.2.840.5"]


def test_a_dicom_folder_can_be_given_itself(tmp_path):
    write_dicom(tmp_path / "series", 100 * _noise())
    (case,) = _find(str(tmp_path / "series"))
    assert case["image"] == str(tmp_path / "series")


def test_slices_of_one_series_are_refused_and_their_folder_is_asked_for(tmp_path):
    write_dicom(tmp_path / "s", 100 * _noise())
    first, *_ = slices = [str(path) for path in sorted((tmp_path / "s").iterdir())]
    hint = rf"of one DICOM series, expected scans; give its folder, {tmp_path / 's'}\.$"
    with pytest.raises(UserError, match=rf"^{first}, .*{slices[-1]}: slices {hint}"):
        _find(slices)
    for source in (first, [first]):
        with pytest.raises(UserError, match=f"^{first}: one of several slices {hint}"):
            _find(source)
    with pytest.raises(UserError, match=f"^{first}, {slices[1]}: slices {hint}"):
        find_scans([slices[:2]], in_channels=2, dimensions=3)
    (tmp_path / "list.json").write_text(json.dumps({"test": [{"image": path} for path in slices[:2]]}))
    with pytest.raises(UserError, match=f"^{first}, {slices[1]}: slices {hint}"):
        _find("unused", datalist=str(tmp_path / "list.json"))


def test_slices_of_one_series_in_several_folders_are_refused_too(tmp_path):
    write_dicom(tmp_path / "s", 100 * _noise())
    (tmp_path / "t").mkdir()
    moved = (tmp_path / "s" / "000.dcm").rename(tmp_path / "t" / "000.dcm")
    with pytest.raises(UserError, match="slices of one DICOM series, expected scans; put them into one folder"):
        _find([str(moved), str(tmp_path / "s" / "001.dcm")])


def test_files_of_different_series_in_one_folder_are_scans(tmp_path):
    for number in range(2):
        write_dicom(tmp_path / f"{number}", 100 * _noise((6, 5, 1)), uid=f"1.2.{number}")
        (tmp_path / f"{number}" / "000.dcm").rename(tmp_path / f"{number}.dcm")
    write_multiframe(tmp_path / "many" / "a.dcm", 100 * _noise((6, 5, 2)), [0, 2])
    write_multiframe(tmp_path / "many" / "b.dcm", 100 * _noise((6, 5, 2)), [4, 6])
    files = [tmp_path / "0.dcm", tmp_path / "1.dcm", *sorted((tmp_path / "many").iterdir())]
    assert [case["image"] for case in _find(list(map(str, files)))] == list(map(str, files))


def test_missing_input_folder_is_named(tmp_path):
    with pytest.raises(
        UserError, match="nowhere: no such file or folder; give --dataset_dir a folder of images, or --files a list"
    ):
        _find(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(("dimensions", "kinds"), [(3, "NIfTI, NRRD, MetaImage or DICOM"), (2, "photographs")])
def test_folder_with_nothing_readable_is_named(dimensions, kinds, tmp_path):
    (tmp_path / "notes.txt").write_text("not a scan")
    with pytest.raises(UserError, match=f"no image to segment; expected {kinds}"):
        _find(str(tmp_path), dimensions=dimensions)


def test_scans_of_one_name_are_told_apart_by_their_folders_or_refused(own_dataset):
    image = own_dataset.parent / "images" / "case_000.nii.gz"
    twin = own_dataset.parent / "case_000.nii"
    nib.save(nib.load(image), twin)
    names = [case["case"] for case in _find([str(image), str(twin)])]
    assert names == ["images_case_000", "own_case_000"]
    nib.save(nib.load(image), image.with_name("case_000.nii"))
    found = find_scans(str(image.parent), in_channels=1, dimensions=3)
    assert "case_000" not in [case["case"] for case in found.cases]
    assert len(found.cases) == len(list(image.parent.iterdir())) - 2
    assert "case_000.nii, " in found.problems[0]
    assert "their predictions would have one name; rename them" in found.problems[0]


def test_a_series_can_be_segmented_where_it_is_asked_for(tmp_path):
    write_nifti(tmp_path / "cine.nii.gz", _noise((12, 10, 3, 5)))
    assert read_scans(tmp_path, series=True) == (["cine"], [])
    assert "save the frames of a series" in read_scans(tmp_path)[1][0]
    write_nifti(tmp_path / "cine.nii.gz", _noise((12, 10)))
    assert "expected 3 dimensions" in read_scans(tmp_path, series=True)[1][0]


def _not_finite(path: Path) -> None:
    volume = _noise()
    volume[3, 3, 3] = np.nan
    write_nifti(path, volume)


def _flat(path: Path) -> None:
    image = nib.Nifti1Image(_noise(), None)
    image.header["pixdim"][1:4] = (1, 1, 0)
    image.header.set_sform(np.diag([1.0, 1.0, 0.0, 1.0]), code=1)
    nib.save(image, path)


def _without_spacing(path: Path) -> None:
    nib.save(nib.Nifti1Image(_noise(), None), path)


def _in_unit(unit: str, scale: float):
    """Write a NIfTI header in another unit than millimetres, and say so."""

    def write(path: Path) -> None:
        image = nib.Nifti1Image(_noise(), np.diag([scale, scale, 2 * scale, 1]))
        image.header.set_xyzt_units(unit, "msec")
        nib.save(image, path)

    return write


def _of_size(*sizes: float):
    return lambda path: write_nifti(path, _noise(), np.diag([*sizes, 1.0]))


def _write_constant(path: Path) -> None:
    write_nifti(path, np.full((12, 10, 8), 7, np.int16))


BROKEN = {
    "constant": (_write_constant, r"bad\.nii\.gz: all voxels are 7; expected an image, perhaps an empty export\.$"),
    "metres": (_in_unit("meter", 0.000625), r"bad\.nii\.gz: its header is in metres, expected millimetres; write its"),
    "microns": (_in_unit("micron", 625), r"bad\.nii\.gz: its header is in microns, expected millimetres; write its"),
    "tiny": (_of_size(6.25e-4, 6.25e-4, 1.25e-3), r"bad\.nii\.gz: its .* of 0\.000625x0\.000625x0\.00125 mm, expected"),
    "nothing": (
        _of_size(6.25e-5, 6.25e-5, 1.25e-4),
        r"bad\.nii\.gz: its .* of 6\.25e-05x6.25e-05x0\.000125 mm",
    ),
    "huge": (_of_size(625, 625, 1250), r"expected 0\.001 to 100 mm; .* Write the affine in millimetres\.$"),
    "voxel": (_not_finite, r"bad\.nii\.gz: 1 voxel\(s\) are NaN or infinite"),
    "flat": (_flat, r"bad\.nii\.gz: its header says voxels of 1x1x0 mm; mend it\.$"),
    "spacing": (_without_spacing, r"bad\.nii\.gz: its header has no spacing, which resampling needs; .*--spacing null"),
    "truncated": (lambda path: path.write_bytes(b"\x1f\x8b"), r"bad\.nii\.gz: cannot be read"),
}


@pytest.mark.parametrize(("write", "message"), BROKEN.values(), ids=BROKEN)
def test_a_bad_scan_is_named_and_the_others_areread_scans(write, message, tmp_path):
    for name in ("a_good", "z_good"):
        write_nifti(tmp_path / f"{name}.nii.gz", _noise())
    write(tmp_path / "bad.nii.gz")
    good, (problem,) = read_scans(tmp_path, needs_spacing=True)
    assert good == ["a_good", "z_good"]
    assert re.search(message, problem)


@pytest.mark.parametrize("unit", ["mm", "unknown"])
@pytest.mark.parametrize("size", [0.001, 0.7, 100])
def test_millimetres_and_unknown_units_and_the_voxels_of_a_microscope_are_taken(unit, size, tmp_path):
    _in_unit(unit, size if size < 100 else 50)(tmp_path / "a.nii.gz")
    assert read_scans(tmp_path) == (["a"], [])


@pytest.mark.parametrize(
    ("name", "before", "field", "unit"),
    [
        ("a.nrrd", b"\nencoding", b'\nspace units: "m" "m" "m"', "metres"),
        ("a.nrrd", b"\nencoding", b'\nspace units: "\xc2\xb5m" "\xc2\xb5m" "mm"', "microns"),
        ("a.nrrd", b"\nencoding", b'\nspace units: "mm" "mm" "mm"', None),
        ("a.mha", b"\nElementSpacing", b"\nDistanceUnits = um", "microns"),
        ("a.mhd", b"\nElementSpacing", b"\nDistanceUnits = cm", "centimetres"),
        ("a.mhd", b"\nElementSpacing", b"\nDistanceUnits = mm", None),
    ],
)
def test_text_headers_in_another_unit_are_refused(name, before, field, unit, tmp_path):
    write_itk(tmp_path / name, _noise(), OBLIQUE)
    content = (tmp_path / name).read_bytes()
    assert content.count(before) == 1
    (tmp_path / name).write_bytes(content.replace(before, field + before))
    good, problems = read_scans(tmp_path)
    assert good == ([] if unit else ["a"])
    assert [f"its header is in {unit}, expected millimetres" in problem for problem in problems] == [True] * (not good)


def test_a_file_that_is_not_there_is_named(tmp_path):
    write_nifti(tmp_path / "good.nii.gz", _noise())
    good, (problem,) = read_scans([str(tmp_path / "gone.nii.gz"), str(tmp_path / "good.nii.gz")])
    assert good == ["good"]
    assert problem == f"{tmp_path / 'gone.nii.gz'}: no such file."


def test_a_scan_is_read_while_the_one_before_is_used_and_no_further(tmp_path):
    for name in "abcd":
        write_nifti(tmp_path / f"{name}.nii.gz", _noise())
    begun, go_on = [], threading.Event()

    def slow(sample):
        begun.append(sample["case"])
        assert len(begun) == 1 or go_on.wait(10)
        return LoadScand("image")(sample)

    scans = iter(ScanLoader(Dataset(_find(tmp_path), slow)))
    next(scans)
    deadline = time.monotonic() + 10
    while len(begun) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert begun == ["a", "b"]  # b is being read while a is used
    go_on.set()
    time.sleep(0.1)
    assert begun == ["a", "b"]
    assert len(list(scans)) == 3


def test_voxels_without_spacing_are_taken_as_they_are_where_nothing_is_resampled(tmp_path):
    _without_spacing(tmp_path / "plain.nii.gz")
    assert read_scans(tmp_path, needs_spacing=False) == (["plain"], [])


def test_a_metaimage_without_spacing_is_told_from_one_of_1_mm(tmp_path):
    for name in ("silent", "one_mm"):
        itk.imwrite(itk.image_from_array(_noise()), str(tmp_path / f"{name}.mhd"))
    header = tmp_path / "silent.mhd"
    lines = [line for line in header.read_text().splitlines() if not line.startswith("ElementSpacing")]
    header.write_text("\n".join(lines) + "\n")
    good, problems = read_scans(tmp_path, needs_spacing=True)
    assert good == ["one_mm"]
    assert "silent.mhd: its header has no spacing" in problems[0]


def test_two_dicom_series_in_a_folder_are_left_out(tmp_path):
    write_nifti(tmp_path / "good.nii.gz", _noise())
    write_dicom(tmp_path / "mixed", 100 * _noise())
    for path in list((tmp_path / "mixed").iterdir()):
        path.rename(path.with_name(f"first_{path.name}"))
    write_dicom(tmp_path / "mixed", 100 * _noise(), uid="1.2.9")
    good, problems = read_scans(tmp_path)
    assert good == ["good"]
    assert "expected one DICOM series, found 2" in json.dumps(problems)


def test_a_dicom_series_without_spacing_is_left_out(tmp_path):
    write_nifti(tmp_path / "good.nii.gz", _noise())
    write_dicom(tmp_path / "series", 100 * _noise())
    for path in (tmp_path / "series").iterdir():
        header = pydicom.dcmread(path)
        del header.PixelSpacing
        header.save_as(path)
    assert "lacks PixelSpacing" in read_scans(tmp_path)[1][0]


def test_a_disc_s_table_of_contents_is_no_scan(tmp_path):
    write_dicom(tmp_path / "IMAGES" / "series", 100 * _noise())
    (tmp_path / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    assert read_scans(tmp_path) == (["series"], [])


def test_results_lie_as_the_scans_do_and_cases_have_names_of_their_own(tmp_path):
    for name in (
        "scan.nii.gz",
        "p0/scan.nii.gz",
        "p1/ct/scan_0000.nii.gz",
        "p1/mean.nii.gz",
        "p2/a_0000.nii",
        "p2/a.nii",
    ):
        write_nifti(tmp_path / "in" / name, _noise())
    write_dicom(tmp_path / "in" / "p3" / "1.2.840.5", 100 * _noise())
    (tmp_path / "linked").mkdir()
    write_nifti(tmp_path / "linked" / "scan.nii.gz", _noise())
    (tmp_path / "in" / "z").symlink_to(tmp_path / "linked")
    cases = _find(tmp_path / "in")
    places = {case["prediction"]: case["case"] for case in cases}
    assert sorted(places) == [
        *("p0/scan", "p1/ct/scan", "p1/mean", "p2/a", "p2/a_0000", "p3/1.2.840.5", "scan", "z/scan")
    ]
    assert (places["p0/scan"], places["scan"], places["p1/mean"]) == ("p0_scan", "in_scan", "p1_mean")
    assert len({case["case"] for case in cases}) == len(cases)
    assert all("prediction" not in case for case in _find([str(tmp_path / "in"), str(tmp_path / "linked")]))


def test_a_series_that_is_the_folder_itself_is_called_by_it(tmp_path, monkeypatch):
    write_dicom(tmp_path / "series", 100 * _noise())
    assert [case["prediction"] for case in _find(tmp_path / "series")] == ["series"]
    monkeypatch.chdir(tmp_path / "series")
    assert [case["prediction"] for case in _find(".")] == ["series"]
