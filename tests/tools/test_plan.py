"""A plan fits the data and the machine, and its commands lead from scans to predictions."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import fire
import nibabel as nib
import numpy as np
import pytest
import yaml
from conftest import BUNDLES, ROOT
from PIL import Image
from scan_files import write_nifti
from starter import run_command

from custom.data.datalist import load_datalist
from custom.report import data_list_record
from custom.utils.errors import UserError
from tools.plan.choices import FEW_ITERATIONS, FEWEST_ITERATIONS, Choice, choose
from tools.plan.command import _command, plan
from tools.plan.facts import DataFacts, ScanFacts, read_facts
from tools.plan.sizes import VOLUMES, geometry, is_stack, sizes
from tools.plan.timing import StepTimes
from tools.synthetic import make_case, make_photo, write_hearts


def _facts(shape, spacing, extent, ct=False, photo=False, classes=1, scans=3) -> DataFacts:
    """Labeled scans that are all alike; structures differ in nothing but their number."""
    one = ScanFacts(
        *("case", 1, shape, spacing, tuple(range(len(shape))), photo, ct),
        extents=dict.fromkeys(range(1, classes + 1), extent),
        shares=dict.fromkeys(range(1, classes + 1), 0.01),
        whole=dict.fromkeys(range(1, classes + 1), 1.0),
        values=np.arange(-100, 201),
    )
    counts = {"training": scans, "unlabeled": 0, "validation": 2}
    return DataFacts([f"structure {k}" for k in range(classes)], counts, [one] * scans)


ATRIUM = _facts((191, 142, 88), (0.625,) * 3, (153, 84, 56))
HEART = _facts((216, 256, 9), (1.5, 1.5, 10.0), (54, 62, 9), classes=3)
ABDOMEN = _facts((512, 512, 200), (0.8, 0.8, 1.5), (150, 90, 60), ct=True)


def test_a_patch_sees_the_structures_and_holds_no_more_voxels_than_it_may():
    for size in VOLUMES:
        patch, spacing = geometry(ATRIUM, size)
        assert np.prod(patch) <= size.voxels
        assert all(side % 16 == 0 for side in patch)
        assert patch[0] == patch[1]  # quarter turns swap them
        assert np.prod(np.multiply(patch, spacing)) >= 0.25 * np.prod(np.multiply(ATRIUM.shape, ATRIUM.spacing))
    assert geometry(ATRIUM, VOLUMES[0]).spacing == pytest.approx([0.625] * 3, rel=0.02)
    assert geometry(ATRIUM, VOLUMES[3]) == ([64, 64, 48], pytest.approx([1.1] * 3, rel=0.1))  # as overnight.yaml


def test_spacing_never_loses_the_smallest_structure():
    nodule = _facts((512, 512, 300), (0.7, 0.7, 1.0), (12, 12, 9), ct=True)
    for size in VOLUMES:
        spacing = np.asarray(geometry(nodule, size).spacing)
        assert (spacing <= np.maximum(nodule.smallest / 6, nodule.spacing) * 1.01).all()


def test_the_spacing_of_a_thick_axis_is_that_of_the_finer_scans():
    scans = [_facts((64, 64, 20), (1.0, 1.0, thick), (9, 9, 9), ct=True).scans[0] for thick in (4.0, 5.0, 5.0, 8.0)]
    facts = DataFacts(["organ"], ATRIUM.counts, scans)
    assert facts.spacing[2] == pytest.approx(np.percentile([4.0, 5.0, 5.0, 8.0], 10))


def test_thick_slices_of_mri_are_a_stack_unless_they_lie_along_another_axis():
    assert is_stack(HEART)
    assert not is_stack(ATRIUM)
    assert not is_stack(_facts((216, 256, 9), (1.5, 1.5, 10.0), (54, 62, 9), ct=True))
    assert [is_stack(_facts((64, 64, slices), (1.0,) * 3, (9, 9, 1))) for slices in (1, 7, 8)] == [True, True, False]
    turned = ScanFacts(**{**vars(HEART.scans[0]), "stored_axes": (1, 2, 0)})
    assert not is_stack(DataFacts(HEART.class_names, HEART.counts, [turned]))


def test_memory_and_the_images_limit_the_size():
    assert sizes(ATRIUM, 1000.0, 16)[0] == VOLUMES[0]
    gigabytes = [sizes(ATRIUM, memory, 32)[0].voxels for memory in (8.0, 4.0, 1.0)]
    assert gigabytes == sorted(gigabytes, reverse=True)
    assert gigabytes[0] > gigabytes[-1]
    assert max(size.voxels for size in sizes(_facts((100, 90), (1, 1), (20, 20), photo=True), 1000.0, 16)) == 96


def _machine(speed: float):
    """A machine on which a step takes as long as its patches are large."""

    def measure(files, settings) -> StepTimes:
        step = np.prod(settings["patch_size"]) * settings["base_filters"] / speed
        return StepTimes(0.01, 0.2 * step, step, 10 * step)

    return measure


def test_the_more_time_there_is_the_larger_the_size_and_never_more_iterations_than_published():
    plans = [choose(ATRIUM, list(VOLUMES), hours * 3600, 14000, _machine(1e6)) for hours in (0.2, 1, 8, 100)]
    voxels = [np.prod(found.settings["patch_size"].value) for found in plans]
    assert voxels == sorted(voxels)
    assert voxels[0] < voxels[-1]
    assert plans[-1].iterations == plans[-1].settings["max_iterations"].value == 14000
    for found, hours in zip(plans, (0.2, 1, 8, 100), strict=True):
        assert found.seconds <= hours * 3600
        assert found.settings["val_interval"].value <= found.iterations


def test_a_budget_that_is_too_small_says_which_is_enough():
    with pytest.raises(UserError, match=r"--budget of 60 s is too small: 50 iterations .* validation of 2 case\(s\)"):
        choose(ATRIUM, list(VOLUMES), 60, 14000, _machine(1e5))


def test_few_iterations_come_with_the_budget_for_more():
    few = choose(ATRIUM, list(VOLUMES), 180, 14000, _machine(1e6))
    assert FEWEST_ITERATIONS <= few.iterations < FEW_ITERATIONS
    advised = re.search(rf"{few.iterations} iterations are few, .* --budget (\d+)min", few.advice)
    assert advised is not None
    more = choose(ATRIUM, list(VOLUMES), 60 * int(advised[1]), 14000, _machine(1e6))
    assert more.iterations >= FEW_ITERATIONS
    assert more.advice == ""
    names = Choice(["atrium", "ventricle"], "")
    assert "are few" in more._replace(settings=more.settings | {"class_names": names}).advice  # several take more


def test_what_is_chosen_follows_the_kind_of_the_data():
    chosen = {name: choose(facts, list(VOLUMES), 1e5, 14000, _machine(1e6)) for name, facts in _kinds().items()}
    bundles = {name: found.bundle for name, found in chosen.items()}
    assert bundles == {"atrium": "crossmatch_la", "abdomen": "crossmatch_pancreas"}
    assert chosen["abdomen"].files == ["train", "full_volume"]
    assert chosen["abdomen"].settings["window"].value == pytest.approx([-98.5, 198.5], abs=1)
    assert "window" not in chosen["atrium"].settings


def _kinds() -> dict[str, DataFacts]:
    return {"atrium": ATRIUM, "abdomen": ABDOMEN}


@pytest.mark.parametrize("name", ["crossmatch_acdc", "crossmatch_isic"])
@pytest.mark.slow
def test_a_plan_is_a_short_config_of_the_bundle_with_a_reason_for_every_choice(name, tmp_path):
    bundle = BUNDLES[name]
    datalist = bundle.write(tmp_path / "data", {"training": 2, "unlabeled": 2, "validation": 1}, size=bundle.size)
    plan(str(datalist), budget="2h")
    text = (tmp_path / "data" / "plan.yaml").read_text()
    lines = text.splitlines()
    settings = yaml.safe_load(text)
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 120
    assert f"Lay it over {name}" in text
    chosen = [line for line in lines if not line.startswith(("#", " ", "optimizer", "planned_for"))]
    assert [line for line in chosen if "# " not in line] == []
    assert settings["patch_size"] == [32, 32] or max(settings["patch_size"]) <= 64
    assert settings["max_iterations"] >= 50
    with pytest.raises(UserError, match="--overwrite true makes a new one"):
        plan(str(datalist), budget="2h")


@pytest.mark.slow
def test_the_printed_commands_lead_from_scans_to_predictions(tmp_path):
    for folder in ("photos", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        image, mask = make_photo(np.random.default_rng(number), (40, 36))
        _write_photo(tmp_path / "photos" / f"p{number}.png", image)
        if number < 4:
            _write_photo(tmp_path / "masks" / f"p{number}.png", mask)
    _follow_commands(tmp_path, "--images", "photos", "--labels", "masks", "--validation", "0.3")
    assert len(list((tmp_path / "runs" / "own" / "predictions").glob("*_seg.png"))) == 6


@pytest.mark.slow
def test_scans_that_count_as_patients_of_their_own_are_trained_and_scored_so(tmp_path):
    hearts = write_hearts(tmp_path / "hearts", {"training": 3, "unlabeled": 1, "validation": 1, "test": 0}, (48, 44, 3))
    images = [f"hearts/images/patient00{number}_frame01.nii.gz" for number in (1, 2, 3)]
    assert all((hearts.parent.parent / image).is_file() for image in images)  # which the short axis's pattern finds
    _follow_commands(tmp_path, "--images", "hearts/images", "--labels", "hearts/labels", "--validation", "0.4")
    plan = yaml.safe_load((tmp_path / "own" / "plan.yaml").read_text())
    assert plan["patient_pattern"] is None


def _follow_commands(tmp_path: Path, *arguments: str) -> None:
    """Prepare scans, and do what is printed then."""
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    done = run_command("tools", "prepare", "own", *arguments, "--output", "own", "--budget", "2h", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[2:] for line in done.stdout.splitlines() if line.startswith("python -m monai.bundle")]
    assert [command[2] for command in commands] == ["training", "evaluating", "inference"]
    for command in commands:
        short = ["--max_iterations", "2", "--val_interval", "2"] if command[2] == "training" else []
        done = run_command(*command, *short, "--device", "$torch.device('cpu')", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "own" / "metrics.csv").is_file()


def _write_photo(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


def _dataset(folder: Path, images: dict[str, np.ndarray], modality: str = "unknown") -> Path:
    """Write scans of which all are labeled."""
    entries = []
    for name, image in images.items():
        label = np.zeros(image.shape[:3], np.uint8)
        label[2:6, 2:6, 2:6] = 1
        write_nifti(folder / "images" / f"{name}.nii.gz", image, np.eye(4))
        write_nifti(folder / "labels" / f"{name}.nii.gz", label, np.eye(4))
        entries.append({"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"})
    about = {"modality": {"0": modality}, "labels": {"0": "background", "1": "organ"}}
    (folder / "datalist.json").write_text(json.dumps({**about, "training": entries}))
    return folder / "datalist.json"


def _scan(lowest: float) -> np.ndarray:
    scan, _ = make_case(np.random.default_rng(0), (16, 16, 16))
    return np.where(scan < scan.mean(), lowest, scan).astype(np.float32)


def test_ct_beside_mri_is_refused_with_the_names_of_both(tmp_path):
    datalist = _dataset(tmp_path, {"body": _scan(-1000), "head": _scan(0)})
    with pytest.raises(UserError, match="CT beside MRI") as error:
        read_facts(datalist)
    assert re.search(r"as CT: 1 case\(s\), body", str(error.value))
    assert re.search(r"as MRI: 1 case\(s\), head", str(error.value))
    assert read_facts(_dataset(tmp_path, {"body": _scan(-1000), "head": _scan(0)}, "CT")).kind == "CT"


def test_scans_of_several_channel_counts_are_refused(tmp_path):
    datalist = _dataset(tmp_path, {"one": _scan(0), "two": np.stack([_scan(0)] * 2, -1)})
    with pytest.raises(UserError, match="number of channels") as error:
        read_facts(datalist)
    assert "2 channels: 1 case(s), two" in str(error.value)


@pytest.mark.parametrize("budget", ["2", "soon", "-1h", "0h", "2 weeks"])
def test_a_budget_is_a_duration(tmp_path, budget):
    with pytest.raises(UserError, match="--budget: expected a number and its unit"):
        plan(str(_dataset(tmp_path, {"one": _scan(0)})), budget=budget)


def test_a_plan_for_data_that_have_changed_is_told_once(tmp_path, caplog):
    datalist = _dataset(tmp_path, {"one": _scan(0)})
    lists = {"lists": ["training"], "in_channels": 1, "num_classes": 2, "dimensions": 3}
    now = data_list_record(str(datalist))["sha256"]
    for planned_for, is_told in (("3f2a", True), (["3f2a"], True), (now, False), (["3f2a", now], False)):
        caplog.clear()
        load_datalist(str(datalist), **lists, planned_for=planned_for)
        assert ("has changed since the plan was made" in caplog.text) == is_told


def test_a_plan_holds_for_the_folds_beside_its_data_list(tmp_path, caplog):
    datalist = _dataset(tmp_path, {"one": _scan(0)})
    fold = datalist.with_name("fold_0.json")
    fold.write_text(datalist.read_text() + "\n")
    plan(str(datalist), budget="1h")
    planned_for = yaml.safe_load(datalist.with_name("plan.yaml").read_text())["planned_for"]
    for path in (datalist, fold):
        load_datalist(str(path), ["training"], 1, 2, 3, planned_for=planned_for)
    assert "has changed" not in caplog.text


@pytest.mark.parametrize("name", ["plain", "a b", "it's", 'a$HOME`b"', "ünï"])
def test_printed_commands_can_be_pasted(name):
    files = [f"{name}/train.yaml", f"{name}/plan.yaml"]
    command = _command("training", files, ["--datalist", f"{name}/datalist.json", "--keep_largest", "[1, 2]"])
    shown = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    words = shown.stdout.split("\0")[:-1]
    assert fire.parser.DefaultParseValue(words[words.index("--config_file") + 1]) == files
    assert words[words.index("--datalist") + 1] == f"{name}/datalist.json"
    assert words[-1] == "[1, 2]"
    if name == "plain":
        assert "--config_file \"['plain/train.yaml','plain/plan.yaml']\"" in command


def test_facts_are_in_the_order_of_the_training_grid(tmp_path):
    datalist = _dataset(tmp_path, {"one": _scan(0)})
    affine = np.eye(4)[[2, 0, 1, 3]] @ np.diag([1.0, 2.0, 3.0, 1.0])
    for folder in ("images", "labels"):
        values = np.asarray(nib.load(tmp_path / folder / "one.nii.gz").dataobj)[:, :14, :12]
        write_nifti(tmp_path / folder / "one.nii.gz", values, affine)
    scan = read_facts(datalist).scans[0]
    assert scan.shape == (12, 16, 14)  # the file's third axis runs from left to right
    assert scan.spacing == pytest.approx((3.0, 1.0, 2.0))
