"""Scans as they come from scanners and archives are segmented on their own grid, with the options of the config."""

import csv
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pytest
import torch
from by_intensity import ByIntensity
from conftest import LEARNABLE, LEFT_ATRIUM, ROOT, SHORT_AXIS, read_csv, refused
from monai.transforms import LoadImage
from scan_files import OBLIQUE, write_dicom, write_itk, write_nifti
from starter import run_command

from benchmarks.bundle import bundle_config
from custom.networks import VNet
from custom.utils.errors import _print_user_error

GRIDS = {
    "oblique": OBLIQUE,
    "flipped": np.diag([-0.9, -1.1, -2.0, 1.0]),
    "swapped": np.array([[0, 0, 1.2, 5], [0.8, 0, 0, 6], [0, -0.9, 0, 7], [0, 0, 0, 1.0]]),
}
RAW = {"spacing": [1.0, 1.0, 1.0], "amp": False}


def _noise(shape=(26, 22, 12)) -> np.ndarray:
    return 100 * np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _by_intensity(folder: Path) -> dict:
    """Settings of a network that knows classes by their brightness."""
    torch.save(ByIntensity().state_dict(), folder / "by_intensity.pt")
    return {"ckpt_path": str(folder / "by_intensity.pt"), "network_def": {"_target_": "by_intensity.ByIntensity"}}


@pytest.fixture
def untrained(bundle, tmp_path) -> str:
    """Weights of the tiny network as it is initialized."""
    torch.manual_seed(0)
    torch.save(VNet(base_filters=2).state_dict(), tmp_path / "untrained.pt")
    return str(tmp_path / "untrained.pt")


@LEFT_ATRIUM
@pytest.mark.parametrize("affine", GRIDS.values(), ids=GRIDS)
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.mha"])
def test_predictions_have_the_geometry_of_files_of_any_orientation(name, affine, untrained, run_bundle, tmp_path):
    write = write_nifti if ".nii" in name else write_itk
    write(tmp_path / "scans" / name, _noise(), affine)
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"), ckpt_path=untrained, **RAW)
    pred = nib.load(tmp_path / "eval" / "scan_seg.nii.gz")
    assert pred.shape == (26, 22, 12)
    np.testing.assert_allclose(pred.affine, affine, atol=1e-5)


@LEFT_ATRIUM
def test_predictions_of_dicom_folders_lie_in_their_place_and_on_their_grid(untrained, run_bundle, tmp_path):
    write_dicom(tmp_path / "scans" / "patient" / "1.2.840.77", _noise())
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"), ckpt_path=untrained, **RAW)
    image = LoadImage(ensure_channel_first=True)(tmp_path / "scans" / "patient" / "1.2.840.77")
    pred = nib.load(tmp_path / "eval" / "patient" / "1.2.840.77_seg.nii.gz")
    assert pred.shape == tuple(image.shape[1:])
    np.testing.assert_allclose(pred.affine, image.affine, atol=1e-5)


@LEFT_ATRIUM
def test_a_turned_and_resampled_scan_is_segmented_as_the_plain_one(learned, run_bundle, tmp_path):
    datalist, settings, weights = learned[:3]
    case = json.loads(datalist.read_text())["validation"][0]
    image = nib.load(datalist.parent / case["image"])
    turned = image.slicer[:, :, :].as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
    for name, scan in {"plain": image, "turned": turned}.items():
        (tmp_path / "scans").mkdir(exist_ok=True)
        nib.save(scan, tmp_path / "scans" / f"{name}.nii.gz")
    run_bundle(
        "inference", ["inference"], dataset_dir=str(tmp_path / "scans"), ckpt_path=str(weights), **settings, amp=False
    )
    plain, back = (nib.load(tmp_path / "eval" / f"{name}_seg.nii.gz") for name in ("plain", "turned"))
    assert back.shape == turned.shape
    again = np.asarray(nib.as_closest_canonical(back).dataobj)
    expected = np.asarray(nib.as_closest_canonical(plain).dataobj)
    assert expected.any()
    np.testing.assert_array_equal(again, expected)


@LEFT_ATRIUM
def test_probabilities_are_written_on_request_and_give_the_label_map(learned, run_bundle, tmp_path):
    datalist, settings, weights = learned[:3]
    run_bundle(
        "inference",
        ["inference"],
        datalist=str(datalist),
        ckpt_path=str(weights),
        save_probabilities=True,
        keep_largest=[],
        **settings,
    )
    for path in (tmp_path / "eval").glob("*_seg.nii.gz"):
        probs = nib.load(str(path).replace("_seg", "_probs"))
        assert probs.shape == (32, 32, 32, 2)
        values = np.asarray(probs.dataobj)
        np.testing.assert_allclose(values.sum(-1), 1, atol=1e-4)
        np.testing.assert_array_equal(values.argmax(-1), np.asarray(nib.load(path).dataobj))
        np.testing.assert_allclose(probs.affine, nib.load(path).affine)


@SHORT_AXIS
@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (["cyst", "tumor", "vessel"], {"cyst_ml", "tumor_ml", "vessel_ml"}),
        (["tumor", "myocardium", "vessel"], {"tumor_ml", "myocardium_ml", "myocardium_g", "vessel_ml"}),
    ],
)
def test_structures_of_other_organs_have_no_mass_and_no_ejection_fraction(names, columns, run_bundle, tmp_path):
    write_nifti(tmp_path / "scans" / "scan.nii.gz", _noise((32, 32, 3)), np.diag([1.4, 1.4, 8, 1]))
    options = _by_intensity(tmp_path) | {"class_names": names}
    run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"), patch_size=[32, 32], **options)
    (row,) = read_csv(tmp_path / "eval" / "volumes.csv")
    assert {name for name in row if name.endswith(("_ml", "_g"))} == columns
    assert not (tmp_path / "eval" / "ejection_fraction.csv").exists()


@SHORT_AXIS
def test_only_the_largest_component_of_each_class_is_kept_in_every_frame(run_bundle, tmp_path):
    intensity = np.zeros((32, 32, 3, 2), np.float32)
    intensity[2:10, 2:10], intensity[20:24, 20:24], intensity[14:18, 2:6] = 1 / 3, 1 / 3, 1
    write_nifti(tmp_path / "scans" / "scan.nii.gz", intensity, np.diag([1.4, 1.4, 8, 1]))
    options = _by_intensity(tmp_path)
    expected = np.rint(intensity * 3)
    for keep in ([], [1, 2, 3]):
        run_bundle(
            "inference",
            ["inference"],
            dataset_dir=str(tmp_path / "scans"),
            patch_size=[32, 32],
            keep_largest=keep,
            **options,
        )
        expected[20:24, 20:24] = 0 if keep else 1
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "eval" / "scan_seg.nii.gz").dataobj), expected)


@pytest.mark.parametrize("bundle", list(LEARNABLE), indirect=True)
def test_the_most_uncertain_tenth_of_the_voxels_holds_half_of_the_errors(learned, run_bundle, tmp_path):
    datalist, settings, weights = learned[:3]
    run_bundle("inference", ["inference"], datalist=str(datalist), ckpt_path=str(weights), uncertainty=True, **settings)
    uncertainty, wrong = [], []
    for case in json.loads(datalist.read_text())["validation"]:
        stem = str(tmp_path / "eval" / Path(case["image"]).name.removesuffix(".nii.gz"))
        found = nib.load(f"{stem}_uncertainty.nii.gz")
        pred, label = (np.asarray(nib.load(p).dataobj) for p in (f"{stem}_seg.nii.gz", datalist.parent / case["label"]))
        assert found.shape == pred.shape
        uncertainty.append(np.asarray(found.dataobj).ravel())
        wrong.append((pred != label).ravel())
    uncertainty, wrong = np.concatenate(uncertainty), np.concatenate(wrong)
    assert uncertainty.min() >= 0
    assert uncertainty.max() <= 1
    assert wrong.sum() > 100
    most = np.argsort(uncertainty, kind="stable")[-len(uncertainty) // 10 :]
    share = wrong[most].sum() / wrong.sum()
    print(f"\nshare of the errors in the top decile: {share:.3f}, error rate {wrong.mean():.3f}")
    assert share >= 0.5


@SHORT_AXIS
def test_uncertainty_of_a_series_has_its_frames_and_changes_no_label(learned, run_bundle, tmp_path):
    _, settings, weights = learned[:3]
    write_nifti(tmp_path / "scans" / "cine.nii.gz", _noise((40, 36, 3, 4)), np.diag([1.4, 1.4, 8, 1]))
    options = {"dataset_dir": str(tmp_path / "scans"), "ckpt_path": str(weights), **settings}
    preds, doubts = [], []
    for uncertainty in (False, True):
        run_bundle("inference", ["inference"], uncertainty=uncertainty, **options)
        preds.append(np.asarray(nib.load(tmp_path / "eval" / "cine_seg.nii.gz").dataobj))
        doubts += [float(row["boundary_uncertainty"]) for row in read_csv(tmp_path / "eval" / "review.csv")]
    np.testing.assert_array_equal(*preds)
    assert 0 < doubts[1] != doubts[0] > 0  # of the disagreement, of the entropy
    assert nib.load(tmp_path / "eval" / "cine_uncertainty.nii.gz").shape == (40, 36, 3, 4)


@pytest.mark.slow
@LEFT_ATRIUM
def test_one_bad_volume_of_many_is_named_at_the_end_and_the_others_are_segmented(untrained, tmp_path):
    for name in ("a", "b", "c"):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", _noise())
    (tmp_path / "scans" / "b.nii.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    command = ["monai.bundle", "run", "inference"]
    command += ["--config_file", "bundles/crossmatch_la/configs/inference.yaml", "--base_filters", "2"]
    command += ["--patch_size", "[16,16,16]", "--stride", "[16,16,16]", "--spacing", "[1.0,1.0,2.0]"]
    command += ["--dataset_dir", tmp_path / "scans", "--ckpt_path", untrained, "--output_dir", tmp_path / "out"]
    done = run_command(*command, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: 2 scan(s) segmented; left out, with 1 problem(s):" in done.stderr
    assert "b.nii.gz: cannot be read" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a_seg.nii.gz", "c_seg.nii.gz"]
    with open(tmp_path / "out" / "volumes.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == ["a", "c"]


@pytest.fixture
def members(bundle, tmp_path) -> list[str]:
    """Weights of two networks."""
    paths = [tmp_path / "fold_0" / "model.pt", tmp_path / "fold_1" / "model.pt"]
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        path.parent.mkdir()
        torch.save(VNet(base_filters=2).state_dict(), path)
    return [str(path) for path in paths]


@LEFT_ATRIUM
def test_the_probabilities_of_several_weights_are_averaged_and_their_disagreement_counts(members, run_bundle, tmp_path):
    write_nifti(tmp_path / "scans" / "scan.nii.gz", _noise(), OBLIQUE)

    def maps(weights: str | list[str]) -> tuple[np.ndarray, np.ndarray]:
        options = {"save_probabilities": True, "uncertainty": True, "feature_dropout": [0.0, 0.0]}
        run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "scans"), ckpt_path=weights, **options, **RAW)
        return tuple(
            nib.load(tmp_path / "eval" / f"scan_{name}.nii.gz").get_fdata() for name in ("probs", "uncertainty")
        )

    (first, certain), (second, _), (both, uncertain) = maps(members[0]), maps(members[1]), maps(members)
    np.testing.assert_allclose(both, (first + second) / 2, atol=1e-5)
    assert np.abs(first - second).max() > 0.01
    assert certain.max() < 1e-5
    # Each member alone differs from the mean by half of their distance; so do its two perturbed decodings. It is the
    # mean over windows of what differs within each, so no less than what differs between the means.
    distance = np.abs(first - second).sum(-1) / 4
    assert (uncertain > distance - 1e-4).all()
    assert np.median(uncertain - distance) < 1e-4


@LEFT_ATRIUM
def test_weights_that_are_no_ensemble_are_named(members, run_bundle, tiny_dataset, tmp_path):
    for number, path in enumerate(members):
        Path(path).with_suffix(".json").write_text(json.dumps({"base_filters": 2, "spacing": [1.0 + number] * 3}))
    data = {"dataset_dir": str(tiny_dataset.parent), "spacing": ...}
    line = f"spacing: [1.0, 1.0, 1.0] in {members[0]}, [2.0, 2.0, 2.0] in {members[1]}"
    with refused("the weights of an ensemble must be trained alike, but differ in", line):
        run_bundle("inference", ["inference"], ckpt_path=members, **data)
    with refused("none.pt: no such weights"):
        run_bundle("inference", ["inference"], ckpt_path=[members[0], str(tmp_path / "none.pt")], **data)


@LEFT_ATRIUM
def test_an_ensemble_is_scored(members, run_bundle, tiny_dataset, tmp_path):
    run_bundle("evaluating", ["train", "evaluate"], datalist=str(tiny_dataset), ckpt_path=members)
    assert (tmp_path / "eval" / "metrics.csv").is_file()


def _write_series(folder: Path, step: float = 8.0, leave_out: str | None = None) -> np.ndarray:
    """Write an oblique series, its files named from the last slice to the first, and return its classes, 0 to 3."""
    classes = np.random.default_rng(0).integers(0, 4, (32, 28, 5))
    turn = np.deg2rad(25)
    row, column = np.array([np.cos(turn), 0, -np.sin(turn)]), np.array([0, 1.0, 0])

    def edit(header, k):
        header.ImageOrientationPatient = [*row, *column]
        header.ImagePositionPatient = (np.array([9, 8, 7]) - k * step * np.cross(row, column)).tolist()
        if leave_out is not None:
            delattr(header, leave_out)

    write_dicom(folder, 100 * classes, edit=edit)
    return classes[:, :, ::-1]


@SHORT_AXIS
def test_a_series_gets_a_segmentation_like_its_label_map_and_the_others_are_told(run_bundle, tmp_path, capsys):
    classes = _write_series(tmp_path / "scans" / "good")
    _write_series(tmp_path / "scans" / "bad", leave_out="FrameOfReferenceUID")
    write_nifti(tmp_path / "scans" / "plain.nii.gz", 100.0 * classes, np.diag([1.4, 1.4, 8, 1]))
    with refused("2 scan(s) segmented; left out, with 1 problem(s)", "bad: 000.dcm lacks FrameOfReferenceUID"):
        run_bundle(
            "inference",
            ["inference"],
            dataset_dir=str(tmp_path / "scans"),
            output="dicom_seg",
            patch_size=[32, 28],
            keep_largest=[],
            review=False,
            **_by_intensity(tmp_path),
        )
    assert "not DICOM, so without a DICOM segmentation: plain\n" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "eval").glob("[!.]*")}
    assert written == {"good_seg.nii.gz", "good_seg.dcm", "plain_seg.nii.gz", "volumes.csv", "inference.json"}
    label = nib.load(tmp_path / "eval" / "good_seg.nii.gz")
    np.testing.assert_array_equal(np.asarray(label.dataobj), classes)
    content = highdicom.seg.segread(tmp_path / "eval" / "good_seg.dcm")
    volume = content.get_volume(combine_segments=True)
    to_label = np.linalg.inv(np.diag([-1, -1, 1, 1]) @ label.affine) @ volume.affine
    found = np.zeros(label.shape)
    for index in np.ndindex(volume.shape):
        found[tuple(np.rint(to_label[:3, :3] @ index + to_label[:3, 3]).astype(int))] = volume.array[index]
    np.testing.assert_array_equal(found, classes)
    kinds = [content.get_segment_description(k).segmented_property_type.meaning for k in (1, 2, 3)]
    assert kinds == ["Right ventricle", "Left Ventricle Myocardium", "Left ventricle"]


@LEFT_ATRIUM
def test_without_highdicom_one_line_says_how_to_install_it_before_anything_is_read(untrained, tmp_path):
    write_dicom(tmp_path / "scans" / "a", _noise())
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text("import sys\nsys.modules['highdicom'] = None\n")
    command = [sys.executable, "-m", "monai.bundle", "run", "inference", "--output", "dicom_seg"]
    command += ["--config_file", "bundles/crossmatch_la/configs/inference.yaml", "--ckpt_path", untrained]
    command += ["--dataset_dir", tmp_path / "scans", "--output_dir", tmp_path / "out", "--base_filters", "2"]
    path = os.pathsep.join([str(tmp_path / "blocked"), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: --output dicom_seg needs highdicom")
    assert "run `pip install highdicom`" in line
    assert "Traceback" not in done.stderr
    assert "Checking" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "stride", "expected"),
    [
        ("la", None, [56, 56, 40]),
        ("la", [80, 60, 8], [80, 60, 40]),
        ("pancreas", None, [48, 48, 48]),
        ("acdc", None, [256, 256, 1]),
        ("isic", None, [256, 256]),
    ],
)
def test_fast_inference_has_windows_at_least_half_a_patch_apart(name, stride, expected):
    inferer = bundle_config(name, ["inference"], {"fast": True, "stride": stride}).get_parsed_content("inferer")
    steps = [int(size * (1 - overlap)) for size, overlap in zip(inferer.roi_size, inferer.overlap, strict=True)]
    assert steps == expected


def _write_bright(folder: Path, bright: dict[str, slice]) -> None:
    """Scans of which a part, by name, is the left ventricle to :class:`ByIntensity`, around it the two others."""
    for name, where in bright.items():
        intensity = np.zeros((32, 32, 3), np.float32)
        intensity[where, 4:12], intensity[where, 12:20], intensity[where, 20:28] = 1 / 3, 2 / 3, 1
        write_nifti(folder / f"{name}.nii.gz", intensity, np.diag([1.4, 1.4, 8, 1]))


@SHORT_AXIS
def test_the_review_has_every_scan_the_empty_one_first(run_bundle, tmp_path):
    _write_bright(tmp_path / "scans", {f"usual_{i}": slice(8, 24) for i in range(5)} | {"edge": slice(0, 16)})
    speck = np.zeros((128, 128, 3), np.float32)
    speck[0, 0, 0] = 1  # too small for the network's grid; an image of one value alone would be refused
    write_nifti(tmp_path / "scans" / "empty.nii.gz", speck, np.diag([0.35, 0.35, 8, 1]))
    write_nifti(tmp_path / "scans" / "cine.nii.gz", _noise((32, 32, 3, 2)), np.diag([1.4, 1.4, 8, 1]))
    torch.save(ByIntensity().state_dict(), tmp_path / "model.pt")
    options = {"ckpt_path": str(tmp_path / "model.pt"), "network_def": {"_target_": "by_intensity.ByIntensity"}}
    options |= {"dataset_dir": str(tmp_path / "scans"), "patch_size": [32, 32]}
    run_bundle("inference", ["inference"], **options)
    folder = tmp_path / "eval"
    rows = read_csv(folder / "review.csv")
    names = sorted(path.name.removesuffix(".nii.gz") for path in (tmp_path / "scans").iterdir())
    assert rows[0]["case"] == "empty"
    assert rows[0]["why"] == "empty"
    assert sorted(row["case"] for row in rows) == names
    assert {row["case"] for row in rows if row["touches_border"] == "1"} >= {"edge"}
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    assert sorted(path.stem for path in (folder / "review").iterdir()) == names
    page = (folder / "review.html").read_text()
    places = [page.index(f'data-case="{row["case"]}"') for row in rows]
    assert places == sorted(places)
    assert page.count("data:image/jpeg") == len(names)


@LEFT_ATRIUM
def test_a_scan_without_picture_is_in_the_review_all_the_same(untrained, run_bundle, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("no plane")

    write_nifti(tmp_path / "scans" / "scan.nii.gz", _noise())
    options = {"dataset_dir": str(tmp_path / "scans"), "ckpt_path": untrained} | RAW
    run_bundle("inference", ["inference"], **options)
    monkeypatch.setattr("custom.handlers.review.plane_picture", broken)
    run_bundle("inference", ["inference"], overwrite=True, **options)
    assert "scan: there is no picture for the review (no plane)." in "".join(capsys.readouterr())
    assert 'data-case="scan"' in (tmp_path / "eval" / "review.html").read_text()
    assert not list((tmp_path / "eval" / "review").iterdir())


class _FullDisk:
    def save(self, _: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@LEFT_ATRIUM
def test_a_disk_that_is_full_at_a_picture_ends_the_run_and_the_next_one_draws_it(
    untrained, run_bundle, tmp_path, monkeypatch, capsys
):
    write_nifti(tmp_path / "scans" / "scan.nii.gz", _noise())
    options = {"dataset_dir": str(tmp_path / "scans"), "ckpt_path": untrained} | RAW
    with monkeypatch.context() as patch, refused("No space left on device") as found:
        patch.setattr("custom.handlers.review.plane_picture", lambda *_: _FullDisk())
        run_bundle("inference", ["inference"], **options)
    _print_user_error(found.type, found.value, found.tb)
    picture = tmp_path / "eval" / "review" / "scan.png"
    assert capsys.readouterr().err.endswith(
        f"error: {picture}: the disk is full; make space, or choose another place.\n"
    )
    run_bundle("inference", ["inference"], **options)
    assert picture.is_file()


@LEFT_ATRIUM
def test_there_is_no_review_where_none_is_wanted(untrained, run_bundle, tmp_path):
    write_nifti(tmp_path / "scans" / "scan.nii.gz", _noise())
    run_bundle(
        "inference", ["inference"], dataset_dir=str(tmp_path / "scans"), ckpt_path=untrained, review=False, **RAW
    )
    written = sorted(path.name for path in (tmp_path / "eval").iterdir() if not path.name.startswith("."))
    assert written == ["inference.json", "scan_seg.nii.gz", "volumes.csv"]
