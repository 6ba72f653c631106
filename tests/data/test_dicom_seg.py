"""Label maps of DICOM series are written as DICOM Segmentation objects that lie voxel for voxel on the NIfTI file."""

import errno
import hashlib
import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from conftest import BUNDLES
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from pydicom.sr._concepts_dict import concepts
from scan_files import write_dicom, write_multiframe

from custom.data.checks import read_image
from custom.data.dicom_seg import SaveDicomSegmentationd, segmentation_problem
from custom.data.finding import list_scans
from custom.data.readers import LoadScan
from custom.utils.errors import UserError

SIZE = (7, 6, 8)
AXIAL = (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]))
CORONAL = (np.array([1.0, 0, 0]), np.array([0, 0, -1.0]))
TURN = np.deg2rad(20)
OBLIQUE = (
    np.array([np.cos(TURN), np.sin(TURN), 0]),
    np.array([0.3 * -np.sin(TURN), 0.3 * np.cos(TURN), -np.sqrt(0.91)]),
)
CODES = {"category": ["91723000", "SCT", "Anatomical Structure"], "type": ["15776009", "SCT", "Pancreas"]}


def _place(plane, step=3.0, order=None):
    """Make an ``edit`` that puts slices along the normal of a plane, file k at place ``order[k]``."""

    def edit(header, k):
        row, column = plane
        place = k if order is None else order[k]
        header.ImageOrientationPatient = [*row, *column]
        header.ImagePositionPatient = (np.array([5, -6, 7]) + place * step * np.cross(row, column)).tolist()
        header.PatientName, header.PatientSex, header.StudyDate = "Doe^Jane", "F", "20240102"

    return edit


def _labels(shape=SIZE, classes=3) -> np.ndarray:
    """Labels of which each slice has other ones, and the first and the last have none."""
    labels = np.random.default_rng(1).integers(0, classes + 1, shape)
    labels[..., 0] = labels[..., -1] = 0
    return labels


def _save(series: Path, labels: np.ndarray, output: Path, classes=("a", "b", "c"), terminology=None) -> Path:
    """Write a segmentation of a series, whose label map is given on the grid as it is read; return its path."""
    image = LoadScan()(str(series))
    pred = MetaTensor(torch.as_tensor(labels)[None], affine=image.affine, meta=dict(image.meta))
    weights = output / "model.pt"
    output.mkdir(exist_ok=True)
    weights.write_bytes(b"weights")
    bundle = BUNDLES["crossmatch_la"].folder
    save = SaveDicomSegmentationd("pred", str(output), classes, terminology or {}, str(bundle), str(weights))
    assert save({"pred": pred})["pred"] is pred
    name = series.name if series.is_dir() else series.stem
    return output / f"{name}_seg.dcm"


def _labels_on(path: Path, shape, affine: np.ndarray) -> np.ndarray:
    """Read a segmentation frame by frame, with pydicom alone, onto a grid of NIfTI's convention."""
    header = pydicom.dcmread(path)
    frames = header.pixel_array.reshape(-1, header.Rows, header.Columns)
    shared = header.SharedFunctionalGroupsSequence[0]
    row, column = np.split(np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, float), 2)
    down, along = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    found = np.zeros(shape, int)
    to_grid = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ affine)
    for group, frame in zip(header.PerFrameFunctionalGroupsSequence, frames, strict=True):
        segment = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence[0]
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        i, j = np.nonzero(frame)
        points = origin + np.outer(j, row * along) + np.outer(i, column * down)
        index = points @ to_grid[:3, :3].T + to_grid[:3, 3]
        np.testing.assert_allclose(index, np.rint(index), atol=1e-3)
        place = tuple(np.rint(index).astype(int).T)
        assert not found[place].any()
        found[place] = segment.ReferencedSegmentNumber
    return found


def _affine(series: Path) -> np.ndarray:
    return LoadScan()(str(series)).affine.numpy()


def _referenced(segmentation: pydicom.Dataset) -> dict[str, list[np.ndarray]]:
    """Positions of frames by the instance that each refers to."""
    found: dict[str, list[np.ndarray]] = {}
    for group in segmentation.PerFrameFunctionalGroupsSequence:
        source = group.DerivationImageSequence[0].SourceImageSequence[0]
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        found.setdefault(str(source.ReferencedSOPInstanceUID), []).append(position)
    return found


@pytest.mark.parametrize("order", [None, range(7, -1, -1), [3, 0, 7, 1, 6, 2, 5, 4]], ids=["sorted", "back", "mixed"])
@pytest.mark.parametrize("plane", [AXIAL, CORONAL, OBLIQUE], ids=["axial", "coronal", "oblique"])
def test_every_voxel_of_every_class_lies_where_the_label_map_has_it(plane, order, tmp_path):
    series = tmp_path / "scan"
    write_dicom(series, np.zeros(SIZE), edit=_place(plane, order=order))
    labels = _labels()
    path = _save(series, labels, tmp_path / "out")
    np.testing.assert_array_equal(_labels_on(path, SIZE, _affine(series)), labels)
    content = highdicom.seg.segread(path)
    volume = content.get_volume(combine_segments=True)
    to_grid = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ _affine(series)) @ volume.affine
    found = np.zeros(SIZE, int)
    for index in np.argwhere(volume.array):
        found[tuple(np.rint(to_grid[:3, :3] @ index + to_grid[:3, 3]).astype(int))] = volume.array[tuple(index)]
    np.testing.assert_array_equal(found, labels)


def test_frames_refer_to_the_slices_on_which_they_lie(tmp_path):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(OBLIQUE, order=range(7, -1, -1)))
    content = pydicom.dcmread(_save(tmp_path / "scan", _labels(), tmp_path / "out"))
    sources = {}
    for path in (tmp_path / "scan").iterdir():
        header = pydicom.dcmread(path)
        sources[str(header.SOPInstanceUID)] = np.array(header.ImagePositionPatient, float)
    assert {str(item.ReferencedSOPInstanceUID) for item in content.SourceImageSequence} == set(sources)
    found = _referenced(content)
    assert len(found) == 6  # of 8, the outer two of which have no label
    for uid, positions in found.items():
        assert len(positions) == 3  # a frame of each class
        np.testing.assert_allclose(positions, [sources[uid]] * 3)
    assert content.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3"
    assert (content.StudyInstanceUID, content.FrameOfReferenceUID) == ("1.2", "1.4")
    assert content.SeriesInstanceUID not in ("1.2.3", "1.2")
    assert (str(content.PatientName), content.PatientSex, content.StudyDate) == ("Doe^Jane", "F", "20240102")


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        (None, "Doe^Jane"),
        ("", "Doe^Jane"),
        ("ISO_IR 100", "Müller^Jürg"),
        ("ISO 2022 IR 100", "Müller^Jürg"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
        ("ISO_IR 192", "Müller^山田"),
    ],
)
def test_names_are_kept_in_any_character_set(charset, name, tmp_path):
    def edit(header, k):
        _place(AXIAL)(header, k)
        if charset is not None:
            header.SpecificCharacterSet = charset
        header.PatientName = name
        other = pydicom.Dataset()
        other.PatientID, other.IssuerOfPatientID = "7", name.partition("^")[0]
        header.OtherPatientIDsSequence = [other]

    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=edit)
    content = pydicom.dcmread(_save(tmp_path / "scan", _labels(), tmp_path / "out"))
    assert str(content.PatientName) == name
    assert content.OtherPatientIDsSequence[0].IssuerOfPatientID == name.partition("^")[0]


def test_no_message_tells_the_patient_s_name(tmp_path, recwarn, capfd):
    def edit(header, k):
        _place(AXIAL)(header, k)
        header.PatientName = "Zaphod"  # without the parts that the standard wants

    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=edit)
    _save(tmp_path / "scan", _labels(), tmp_path / "out")
    assert "Zaphod" not in " ".join([*map(str, recwarn), *capfd.readouterr()])


def test_slices_whose_orientations_are_rounded_differently_are_one_series(tmp_path):
    def edit(header, k):
        _place(OBLIQUE)(header, k)
        header.ImageOrientationPatient = [round(float(x), 6 if k else 4) for x in header.ImageOrientationPatient]

    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=edit)
    labels = _labels()
    path = _save(tmp_path / "scan", labels, tmp_path / "out")
    np.testing.assert_array_equal(_labels_on(path, SIZE, _affine(tmp_path / "scan")), labels)


def test_the_distance_between_slices_is_the_measured_one_not_the_header_s_gap(tmp_path):
    def edit(header, k):
        _place(AXIAL)(header, k)
        header.SpacingBetweenSlices = 1.0
        del header.SliceThickness

    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=edit)
    content = highdicom.seg.segread(_save(tmp_path / "scan", _labels(), tmp_path / "out"))
    np.testing.assert_allclose(content.get_volume(combine_segments=True).spacing, (3, 0.8, 0.7))


@pytest.mark.parametrize("heights", [range(8), range(7, -1, -1), [3, 0, 7, 1, 6, 2, 5, 4]], ids=["up", "down", "mixed"])
@pytest.mark.parametrize("where", ["shared", "per frame"])
def test_frames_of_a_multiframe_file_are_segmented_where_they_lie(heights, where, tmp_path):
    path = tmp_path / "scan" / "all.dcm"
    write_multiframe(path, np.zeros(SIZE), [2.0 * height for height in heights])
    if where == "per frame":
        header = pydicom.dcmread(path)
        shared = header.SharedFunctionalGroupsSequence[0]
        for group in header.PerFrameFunctionalGroupsSequence:
            group.PixelMeasuresSequence = shared.PixelMeasuresSequence
            group.PlaneOrientationSequence = shared.PlaneOrientationSequence
        del header.SharedFunctionalGroupsSequence
        header.save_as(path)
    labels = _labels()
    result = _save(tmp_path / "scan", labels, tmp_path / "out")
    np.testing.assert_array_equal(_labels_on(result, SIZE, _affine(tmp_path / "scan")), labels)
    source = pydicom.dcmread(path)
    for group in pydicom.dcmread(result).PerFrameFunctionalGroupsSequence:
        referred = group.DerivationImageSequence[0].SourceImageSequence[0]
        assert referred.ReferencedSOPInstanceUID == source.SOPInstanceUID
        frame = source.PerFrameFunctionalGroupsSequence[referred.ReferencedFrameNumber - 1]
        assert frame.PlanePositionSequence == group.PlanePositionSequence


@pytest.mark.parametrize("present", [(), (2,)], ids=["no class", "one class"])
def test_absent_classes_are_described_without_voxels(present, tmp_path):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(AXIAL))
    labels = np.where(np.isin(_labels(), present), _labels(), 0)
    path = _save(tmp_path / "scan", labels, tmp_path / "out")
    content = highdicom.seg.segread(path)
    assert [item.SegmentLabel for item in content.SegmentSequence] == ["a", "b", "c"]
    found = (labels == 2).any(axis=(0, 1)).sum()
    assert content.NumberOfFrames == (found if present else 3 * SIZE[2])
    np.testing.assert_array_equal(_labels_on(path, SIZE, _affine(tmp_path / "scan")), labels)


def test_a_single_slice_is_segmented(tmp_path):
    write_dicom(tmp_path / "scan", np.zeros((7, 6, 1)), edit=_place(OBLIQUE))
    labels = np.random.default_rng(0).integers(0, 4, (7, 6, 1))
    path = _save(tmp_path / "scan", labels, tmp_path / "out")
    np.testing.assert_array_equal(_labels_on(path, (7, 6, 1), _affine(tmp_path / "scan")), labels)


def test_segments_say_what_they_are_and_what_made_them(tmp_path, capsys):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(AXIAL))
    path = _save(tmp_path / "scan", _labels(classes=2), tmp_path / "out", ("pancreas", "lump"), {"pancreas": CODES})
    content = highdicom.seg.segread(path)
    metadata = json.loads((BUNDLES["crossmatch_la"].configs / "metadata.json").read_text())
    assert content.SegmentationType == "BINARY"
    assert (content.ManufacturerModelName, content.SoftwareVersions) == (metadata["name"], metadata["version"])
    assert content.DeviceSerialNumber == hashlib.sha256(b"weights").hexdigest()
    found = {}
    for number in content.segment_numbers:
        segment = content.get_segment_description(number)
        algorithm = segment.algorithm_identification
        assert segment.algorithm_type.value == "AUTOMATIC"
        assert (algorithm.name, algorithm.version) == (metadata["name"], metadata["version"])
        assert algorithm.family.value == "123110"
        category, kind = segment.segmented_property_category, segment.segmented_property_type
        found[segment.segment_label] = (category.value, kind.value, kind.meaning)
    tissue = ("85756007", "85756007", "Tissue")
    assert found == {"pancreas": ("91723000", "15776009", "Pancreas"), "lump": tissue}
    assert capsys.readouterr().out == "not in --terminology, written as Tissue (SCT 85756007): lump\n"


def test_the_codes_of_the_bundles_are_those_of_the_standard_and_cover_their_classes(bundle):
    config = ConfigParser.load_config_file(bundle.configs / "inference.yaml")
    if bundle.name != "crossmatch_isic":  # photographs
        assert list(config["terminology"]) == config["class_names"]
    known = {(value, meaning) for names in concepts["SCT"].values() for value, (meaning, _) in names.items()}
    for codes in config["terminology"].values():
        assert codes["category"] == CODES["category"]
        for value, scheme, meaning in codes.values():
            assert scheme == "SCT"
            assert (value, meaning) in known


@pytest.mark.parametrize(
    "codes",
    [
        {},
        "abc",
        {"type": CODES["type"]},
        CODES | {"category": "abc"},
        CODES | {"type": ["15776009", "SCT"]},
        CODES | {"type": ["", "SCT", "x"]},
        CODES | {"type": ["15776009", "SCT", "x" * 65]},
    ],
)
def test_codes_that_are_none_are_refused(codes, tmp_path):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(AXIAL))
    with pytest.raises(UserError, match="--terminology: a must have a category and a type"):
        _save(tmp_path / "scan", _labels(), tmp_path / "out", terminology={"a": codes})


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("FrameOfReferenceUID", None, "000.dcm lacks FrameOfReferenceUID"),
        ("StudyInstanceUID", None, "000.dcm lacks StudyInstanceUID"),
        ("PatientSex", "unknown", "cannot refer to it .*unknown"),
        ("StudyInstanceUID", lambda k: f"1.2.{k}", "cannot refer to it .*part of the same"),
    ],
)
def test_a_series_to_which_nothing_can_refer_is_refused_by_name(attribute, value, words, tmp_path):
    def edit(header, k):
        _place(AXIAL)(header, k)
        given = value(k) if callable(value) else value
        delattr(header, attribute) if given is None else setattr(header, attribute, given)

    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=edit)
    assert "\n" not in segmentation_problem(str(tmp_path / "scan"))
    with pytest.raises(UserError, match=words) as error:
        _save(tmp_path / "scan", _labels(), tmp_path / "out")
    assert str(error.value) == segmentation_problem(str(tmp_path / "scan"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt"]


def test_enhanced_files_of_one_frame_each_are_refused(tmp_path):
    for k in range(3):
        path = tmp_path / "scan" / f"enhanced_{k}.dcm"
        write_multiframe(path, np.zeros((7, 6, 1)), [2.0 * k])
        header = pydicom.dcmread(path)
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{k + 7}"
        header.save_as(path)
    assert read_image(str(tmp_path / "scan"))[1] == []
    assert "scan: several enhanced files, one for each slice" in segmentation_problem(str(tmp_path / "scan"))


def test_a_label_map_of_another_grid_is_refused(tmp_path):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(AXIAL))
    with pytest.raises(UserError, match="not on the grid of this series"):
        _save(tmp_path / "scan", _labels()[:, :, :-1], tmp_path / "out")


def test_our_segmentations_beside_a_series_or_below_it_are_no_scans(tmp_path):
    series = tmp_path / "scan"
    write_dicom(series, np.zeros(SIZE), edit=_place(AXIAL))
    path = _save(series, _labels(), tmp_path / "predictions")
    for name in ("volumes.csv", "inference.json"):
        (series / name).touch()
    (series / "scan_seg.dcm").write_bytes(path.read_bytes())
    assert list_scans(tmp_path).scans == [series]
    assert read_image(str(series))[1] == []
    (series / "volumes.csv").unlink()  # then it is somebody else's
    assert "is no slice of a scan but a SEG object" in read_image(str(series))[1][0]


def test_a_segmentation_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_dicom(tmp_path / "scan", np.zeros(SIZE), edit=_place(AXIAL))
    path = _save(tmp_path / "scan", _labels(), tmp_path / "out")
    whole = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=r"scan_seg\.dcm: cannot be written .*No space left"):
        _save(tmp_path / "scan", _labels(), tmp_path / "out")
    assert path.read_bytes() == whole
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.pt", path.name]
