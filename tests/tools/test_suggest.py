"""What to label next: doubtful patients unlike each other, laid out for a label tool and for the next training."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import BUNDLES, LEFT_ATRIUM, ROOT, SHORT_AXIS, Bundle, read_csv
from monai.bundle import ConfigParser, ConfigWorkflow
from scan_files import write_dicom, write_itk, write_nifti

from custom.data.datalist import load_datalist, read_lists
from custom.utils.errors import UserError
from custom.utils.weights import save_weights
from tools.suggest import suggest
from tools.suggest.candidates import bottleneck_features, by_patient, farthest_first, most_doubtful, standardized
from tools.suggest.layout import copy_images, write_lists


def write_weights(bundle: Bundle, path: Path, **changes: object) -> str:
    """Random weights of the tiny network, large enough that its features follow the image, and its settings."""
    trained = {name: bundle.tiny[name] for name in ("base_filters", "patch_size", "stride") if name in bundle.tiny}
    trained |= ({"spacing": None} if "spacing" in bundle.tiny else {}) | changes
    config = ConfigParser(ConfigParser.load_config_file(bundle.configs / "inference.yaml"))
    config.update({"bundle_root": str(bundle.folder), **trained})
    torch.manual_seed(0)
    network = config.get_parsed_content("network_def")
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(2.5 if weight.ndim > 1 else 1)
    save_weights(network, path, trained)
    return str(path)


@pytest.fixture
def weights(bundle, tmp_path) -> str:
    return write_weights(bundle, tmp_path / "model.pt")


@pytest.fixture
def hearts_model(tmp_path) -> dict:
    return {"bundle": "crossmatch_acdc", "ckpt_path": write_weights(BUNDLES["crossmatch_acdc"], tmp_path / "model.pt")}


@pytest.fixture
def volumes_model(tmp_path) -> dict:
    return {"bundle": "crossmatch_la", "ckpt_path": write_weights(BUNDLES["crossmatch_la"], tmp_path / "model.pt")}


CPU = {"amp": False, "device": "cpu"}


def test_what_is_suggested_is_laid_out_and_can_be_trained_with(bundle, tiny_dataset, weights, tmp_path, capsys):
    folder = tmp_path / "next"
    suggest(str(tiny_dataset), str(folder), count=2, bundle=bundle.name, ckpt_path=weights, **CPU)
    rows, before = read_csv(folder / "suggestions.csv"), read_lists(tiny_dataset)
    assert list(rows[0]) == ["rank", "patient", "doubt", "distance", "why", "files"]
    assert [row["rank"] for row in rows] == ["1", "2"]
    chosen = [Path(file) for row in rows for file in row["files"].split(";")]
    assert sorted(path.name for path in (folder / "to_label").iterdir()) == sorted(path.name for path in chosen)
    assert all((folder / "to_label" / path.name).read_bytes() == path.read_bytes() for path in chosen)

    rest, after = read_lists(folder / "unlabeled_rest.json"), read_lists(folder / "labeled_next.json")
    assert {name: cases for name, cases in rest.items() if name != "unlabeled"} == {
        name: cases for name, cases in before.items() if name != "unlabeled"
    }
    assert {case["image"] for case in rest["unlabeled"]} == {case["image"] for case in before["unlabeled"]} - {
        str(path) for path in chosen
    }
    assert after["training"][: len(before["training"])] == before["training"]
    added = after["training"][len(before["training"]) :]
    assert sorted(case["image"] for case in added) == sorted(map(str, chosen))
    assert after | {"training": before["training"]} == rest

    config = ConfigParser.load_config_file(bundle.configs / "train.yaml")
    rule = {"in_channels": config["in_channels"], "num_classes": len(config["class_names"]) + 1}
    rule["dimensions"] = 2 if "isic" in bundle.name else 3
    with pytest.raises(UserError, match=rf"{re.escape(added[0]['label'])}: no such file"):
        load_datalist(str(folder / "labeled_next.json"), ["training"], **rule)
    ending = Path(before["training"][0]["label"]).name.partition(".")[2]
    drafts = folder / "predictions"
    for case in added:  # a draft is a label
        assert case["label"] == str(folder / "labels" / f"{case['case']}.{ending}")
        shutil.copy(drafts / f"{case['case']}_seg.{ending}", case["label"])
    assert load_datalist(str(folder / "labeled_next.json"), ["training"], **rule) == after
    shown = capsys.readouterr().out
    assert f"--datalist {folder / 'labeled_next.json'}" in shown
    assert str(drafts / f"{chosen[0].name.partition('.')[0]}_seg.{ending}") in shown
    assert str(folder / "to_label") in shown


def test_all_scans_of_a_patient_are_labeled_together(own_hearts, hearts_model, tmp_path):
    suggest(str(own_hearts), str(tmp_path / "next"), count=1, **hearts_model, **CPU)
    (row,) = read_csv(tmp_path / "next" / "suggestions.csv")
    assert re.fullmatch(r"patient\d+", row["patient"])
    assert [Path(file).name for file in row["files"].split(";")] == [
        f"{row['patient']}_frame0{number}.nii.gz" for number in (1, 2)
    ]
    assert {case["case"][:10] for case in read_lists(tmp_path / "next" / "unlabeled_rest.json")["unlabeled"]} == {
        "patient003",
        "patient004",
    } - {row["patient"]}


def test_images_of_several_channels_are_copied_with_numbers(own_dataset, edit, tmp_path):
    def add_channel(content: dict) -> None:
        for case in [*content["training"], *content["unlabeled"], *content["validation"]]:
            second = case["image"].replace(".nii.gz", "_t2.nii.gz")
            shutil.copy(own_dataset.parent / case["image"], own_dataset.parent / second)
            case["image"] = [case["image"], second]

    edit(own_dataset, add_channel)
    weights = write_weights(BUNDLES["crossmatch_la"], tmp_path / "model.pt", in_channels=2)
    suggest(str(own_dataset), str(tmp_path / "next"), count=1, bundle="crossmatch_la", ckpt_path=weights, **CPU)
    (row,) = read_csv(tmp_path / "next" / "suggestions.csv")
    copies = sorted(path.name for path in (tmp_path / "next" / "to_label").iterdir())
    assert copies == [f"{row['patient']}_{number:04d}.nii.gz" for number in (0, 1)]
    assert len(row["files"].split(";")) == 2
    added = read_lists(tmp_path / "next" / "labeled_next.json")["training"][-1]
    assert added["image"] == row["files"].split(";")
    assert added["label"] == str(tmp_path / "next" / "labels" / f"{row['patient']}.nii.gz")


def test_the_preparation_tells_bundle_and_patients(own_dataset, volumes_model, tmp_path, capsys):
    del volumes_model["bundle"]
    with pytest.raises(UserError, match=r"--bundle: expected the one of the weights, crossmatch_acdc.*none was given"):
        suggest(str(own_dataset), str(tmp_path / "next"), count=1, **volumes_model, **CPU)
    record = {"command": "la", "options": {"patient_pattern": "case"}}
    (own_dataset.parent / "prepare.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"case is in 'training' and 'unlabeled' and 'validation'"):
        suggest(str(own_dataset), str(tmp_path / "next"), count=1, **volumes_model, **CPU)
    suggest(str(own_dataset), str(tmp_path / "next"), count=1, patient_pattern=r"case_\d+", **volumes_model, **CPU)
    assert "prepare own" not in capsys.readouterr().out


def test_the_same_command_again_segments_nothing_twice_and_gives_the_same(own_hearts, hearts_model, tmp_path, capsys):
    folder = tmp_path / "next"
    suggest(str(own_hearts), str(folder), count=1, **hearts_model, **CPU)
    names = ("suggestions.csv", "unlabeled_rest.json", "labeled_next.json")
    before = {name: (folder / name).read_bytes() for name in names}
    (folder / "labels" / "patient003_frame01.nii.gz").write_text("a label in the making")
    (folder / "suggestions.csv").unlink()  # as if the end had not been reached
    capsys.readouterr()
    suggest(str(own_hearts), str(folder), count=1, stitch_device="cpu", **hearts_model, **CPU)
    assert "4 of 4 scans are done already" in capsys.readouterr().out
    assert {name: (folder / name).read_bytes() for name in names} == before
    assert (folder / "labels" / "patient003_frame01.nii.gz").read_text() == "a label in the making"
    with pytest.raises(UserError, match=r"holds suggestions made otherwise.*\n.*count: 1 before, 2 now"):
        suggest(str(own_hearts), str(folder), count=2, **hearts_model, **CPU)


def test_a_scan_like_a_labeled_one_comes_last(own_dataset, volumes_model, tmp_path):
    lists = read_lists(own_dataset)
    shutil.copy(lists["training"][0]["image"], lists["unlabeled"][0]["image"])
    suggest(str(own_dataset), str(tmp_path / "next"), count=2, **volumes_model, **CPU)
    rows = read_csv(tmp_path / "next" / "suggestions.csv")
    assert [row["patient"] for row in rows] == [lists["unlabeled"][index]["case"] for index in (1, 0)]
    assert float(rows[0]["distance"]) > 0.1
    assert float(rows[1]["distance"]) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"count": 3}, r"synthetic\.json has 2 unlabeled patient\(s\), expected 1 to as many; got 3"),
        ({"count": 0}, r"expected 1 to as many; got 0"),
        ({"bundle": "crossmatch_heart"}, r"--bundle: .*got crossmatch_heart"),
        ({"ckpt_path": "nowhere/model.pt"}, r"nowhere/model\.pt: no such weights; train first, or set --ckpt_path"),
        ({"ckpt_path": ["a.pt", "b.pt"]}, r"--ckpt_path: expected one file, found \[.a\.pt., .b\.pt.\]; features are"),
        ({"review": False}, r"--review is given to inference by this command; leave it out"),
        ({"patient_pattern": "("}, r"--patient_pattern \( is not a regular expression"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(changes, message, own_hearts, hearts_model, tmp_path):
    with pytest.raises(UserError, match=message):
        suggest(str(own_hearts), str(tmp_path / "next"), **{"count": 1} | hearts_model | changes, **CPU)
    assert not (tmp_path / "next").exists()


def test_a_data_list_without_unlabeled_scans_is_refused(own_hearts, hearts_model, tmp_path):
    content = json.loads(own_hearts.read_text())
    own_hearts.write_text(json.dumps(content | {"unlabeled": []}))
    with pytest.raises(UserError, match=r"expected scans in the list 'unlabeled', found none \(4 in 'training', 0 in"):
        suggest(str(own_hearts), str(tmp_path / "next"), count=1, **hearts_model, **CPU)


def test_a_folder_with_other_files_is_refused_and_kept(own_hearts, hearts_model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"mine: is not empty, and holds no suggestions; choose another --output"):
        suggest(str(own_hearts), str(tmp_path / "mine"), count=1, **hearts_model, **CPU)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_weights_of_another_network_and_unknown_settings_are_refused(own_hearts, hearts_model, tmp_path):
    other = write_weights(BUNDLES["crossmatch_la"], tmp_path / "other.pt")
    (tmp_path / "other.json").unlink()
    with pytest.raises(UserError, match=r"other\.pt was trained with another network"):
        suggest(str(own_hearts), str(tmp_path / "a"), count=1, bundle="crossmatch_acdc", ckpt_path=other, **CPU)
    with pytest.raises(RuntimeError) as error:
        suggest(str(own_hearts), str(tmp_path / "b"), count=1, flipps="[0]", **hearts_model, **CPU)
    assert "flipps is not a key of this bundle's configs" in str(error.getrepr(chain=True))
    suggest(str(own_hearts), str(tmp_path / "b"), count=1, test_time_flips=[0], **hearts_model, **CPU)
    assert (tmp_path / "b" / "suggestions.csv").is_file()


def test_a_scan_that_cannot_be_segmented_is_named_and_mended_the_command_goes_on(
    own_hearts, hearts_model, tmp_path, capsys
):
    image = Path(read_lists(own_hearts)["unlabeled"][0]["image"])
    whole = image.read_bytes()
    image.write_bytes(whole[:100])
    with pytest.raises(RuntimeError) as error:
        suggest(str(own_hearts), str(tmp_path / "next"), count=1, **hearts_model, **CPU)
    assert f"{image}: cannot be read" in str(error.getrepr(chain=True))
    assert not (tmp_path / "next" / "suggestions.csv").exists()
    image.write_bytes(whole)
    suggest(str(own_hearts), str(tmp_path / "next"), count=1, **hearts_model, **CPU)
    assert "3 of 4 scans are done already" in capsys.readouterr().out


def test_the_farthest_from_all_that_is_chosen_comes_next():
    pool = np.array([[1.0], [5.0], [9.0], [9.0]])
    assert farthest_first(pool, np.array([[0.0], [2.0]]), 4) == [(2, 7.0), (1, 3.0), (0, 1.0), (3, 0.0)]


def test_without_labels_the_most_doubtful_comes_first():
    (first, nothing), *others = farthest_first(np.array([[0.0], [1.0], [3.0]]), np.empty((0, 1)), 3)
    assert (first, others) == (0, [(2, 3.0), (1, 1.0)])
    assert np.isnan(nothing)


def test_features_count_alike_whatever_their_unit_and_number():
    values = np.random.default_rng(0).normal(size=(50, 1))
    once = standardized(values)
    np.testing.assert_allclose([once.mean(), once.std()], [0, 1], atol=1e-12)
    often = standardized(np.concatenate([values, 1000 * values + 7, np.full((50, 1), 3.0)], axis=1))
    assert often.shape == (50, 2)  # without the one that is the same for all
    np.testing.assert_allclose(np.linalg.norm(often[0] - often[1]), abs(once[0, 0] - once[1, 0]))
    assert standardized(np.ones((3, 2))).shape == (3, 0)


def test_a_patient_is_as_doubtful_as_its_scans_are_on_average():
    cases = [{"image": f"/data/images/{name}.nii.gz", "case": name} for name in ("p1_a", "p1_b", "p2_a", "other")]
    patients = by_patient(cases, r"p\d", Path("/data"))
    assert {name: [case["case"] for case in found] for name, found in patients.items()} == {
        "p1": ["p1_a", "p1_b"],
        "p2": ["p2_a"],
        "other": ["other"],
    }
    scores = {"p1_a": (5.0, "empty"), "p1_b": (1.0, "empty; touches the border"), "p2_a": (4.0, ""), "other": (0.0, "")}
    review = [{"case": case, "score": score, "why": why} for case, (score, why) in scores.items()]
    found = most_doubtful(patients, review, 2)
    assert [(patient.name, patient.doubt, patient.why) for patient in found] == [
        ("p2", 4.0, ""),
        ("p1", 3.0, "empty; touches the border"),
    ]


@SHORT_AXIS
def test_features_are_means_over_slices_frames_and_scans(bundle, weights, tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.random((24, 20, 3), dtype=np.float32) for _ in range(2)]
    for name, array in {"a": frames[0], "b": frames[1], "series": np.stack(frames, -1)}.items():
        write_nifti(tmp_path / f"{name}.nii.gz", array, np.diag([1.5, 1.5, 8.0, 1.0]))
    cases = {name: {"image": str(tmp_path / f"{name}.nii.gz"), "case": name} for name in ("a", "b", "series")}
    settings = {"files": [[case["image"]] for case in cases.values()], "output_dir": str(tmp_path / "out")}
    workflow = ConfigWorkflow(str(bundle.configs / "inference.yaml"), run_id="inference", ckpt_path=weights,
                              **settings, **CPU)  # fmt: skip
    workflow.initialize()
    config = workflow.parser
    network = config.get_parsed_content("network").eval()
    alone = bottleneck_features(config, [[cases["a"]], [cases["b"]], [cases["a"], cases["b"]], [cases["series"]]])
    assert alone.shape == (4, 2 * 2**4)
    np.testing.assert_allclose(alone[2], alone[:2].mean(0), rtol=1e-4)
    np.testing.assert_allclose(alone[3], alone[:2].mean(0), rtol=1e-4)
    image = config.get_parsed_content("preprocessing")(dict(cases["a"]))["image"].as_tensor()
    with torch.no_grad():
        by_hand = network.encode(image.permute(3, 0, 1, 2))[-1].mean((0, 2, 3))
    np.testing.assert_allclose(alone[0], by_hand.numpy(), rtol=1e-4)


def test_copies_keep_their_kind_and_are_named_as_their_cases(tmp_path):
    scans = tmp_path / "scans"
    volume = np.zeros((6, 5, 4), np.int16)
    write_nifti(scans / "p1" / "t1.nii.gz", volume)
    write_nifti(scans / "p1" / "t2.nii.gz", volume)
    write_dicom(scans / "1.2.840", volume)
    write_itk(scans / "detached.mhd", volume, np.eye(4))
    write_itk(scans / "b.nrrd", volume, np.eye(4))
    cases = [
        {"image": [str(scans / "p1" / "t1.nii.gz"), str(scans / "p1" / "t2.nii.gz")], "case": "p1"},
        {"image": str(scans / "1.2.840"), "case": "1.2.840"},
        {"image": str(scans / "detached.mhd"), "case": "x_detached"},
        {"image": str(scans / "b.nrrd"), "case": "p2_b"},
    ]
    copy_images(cases, tmp_path)
    found = {str(path.relative_to(tmp_path / "to_label")) for path in (tmp_path / "to_label").rglob("*.*")}
    slices = {f"1.2.840/{path.name}" for path in (scans / "1.2.840").iterdir()}
    voxels = {f"x_detached/{path.name}" for path in scans.glob("detached.*")}
    assert len(voxels) == 2
    assert {path for path in found if (tmp_path / "to_label" / path).is_file()} == {
        "p1_0000.nii.gz", "p1_0001.nii.gz", "p2_b.nrrd", *slices, *voxels
    }  # fmt: skip


def test_data_lists_lead_to_the_same_files_from_another_folder_and_through_a_link(tmp_path):
    (tmp_path / "real" / "deep" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real" / "deep")
    content = {
        "name": "mine",
        "training": [{"image": ["images/a_t1.nii", "images/a_t2.nii"], "label": "labels/a.nii", "fold": 3}],
        "unlabeled": [{"image": "images/b.nii", "label": "never/opened.nii"}, {"image": "/far/c.nii"}],
        "test": ["images/d.nii"],
    }
    datalist = tmp_path / "link" / "data" / "own.json"
    datalist.write_text(json.dumps(content))
    folder = tmp_path / "next"
    folder.mkdir()
    write_lists(datalist, [{"image": "/far/c.nii", "case": "c"}], ".nii.gz", folder)
    rest, after = (json.loads((folder / name).read_text()) for name in ("unlabeled_rest.json", "labeled_next.json"))
    place = "../real/deep/data"
    assert rest == {
        "name": "mine",
        "training": [
            {"image": [f"{place}/images/a_t1.nii", f"{place}/images/a_t2.nii"], "label": f"{place}/labels/a.nii"}
            | {"fold": 3}
        ],
        "unlabeled": [{"image": f"{place}/images/b.nii"}],
        "test": [f"{place}/images/d.nii"],
    }
    added = {"image": "/far/c.nii", "label": "labels/c.nii.gz"}
    assert after == rest | {"training": [*rest["training"], added]}


@LEFT_ATRIUM
def test_the_bundle_s_own_weights_are_the_default(bundle, tiny_dataset, tmp_path, monkeypatch):
    copy = tmp_path / bundle.name
    shutil.copytree(bundle.configs, copy / "configs")
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=rf"{re.escape(str(copy / 'models' / 'model.pt'))}: no such weights"):
        suggest(str(tiny_dataset), str(tmp_path / "next"), count=1, bundle=str(copy), **CPU)
    write_weights(bundle, copy / "models" / "model.pt")
    suggest(str(tiny_dataset), str(tmp_path / "next"), count=1, bundle=str(copy), **CPU)
    assert nib.load(next((tmp_path / "next" / "to_label").iterdir())).shape == (24, 24, 20)
