"""Cases of two channels go the whole way: preparation, check, training, evaluation, inference with uncertainty."""

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import refused
from PIL import Image

from tools.prepare import commands as prepare

COUNTS = {"training": 4, "unlabeled": 3}
#: With this seed the split has both labeled lists.
SPLIT = {"validation": 0.5, "seed": 2, "patient_pattern": r"[a-z]+_?\d{3}"}
#: What a channel and its inverse sum to when each has mean 0, and when each lies between 0 and 1.
NORMALIZED = {"crossmatch_la": 0.0, "crossmatch_acdc": 1.0}
NETWORK = {"in_channels": 2, "channels": ["t1", "t2"]}


@pytest.fixture
def prepared(bundle, tmp_path, capsys) -> Path:
    """Data list of cases with a second channel, which shows the same on another scale, prepared by names."""
    datalist = bundle.write(tmp_path / "one", COUNTS, size=bundle.size)
    content = json.loads(datalist.read_text())
    images, labels = tmp_path / "raw" / "images", tmp_path / "raw" / "labels"
    images.mkdir(parents=True)
    labels.mkdir()
    for case in [*content["training"], *content["unlabeled"]]:
        image = nib.load(datalist.parent / case["image"])
        name = Path(case["image"]).name.removesuffix(".nii.gz")
        voxels = np.asarray(image.dataobj)
        for end, channel in (("t1", voxels), ("T2", 700 - 50 * voxels)):
            nib.save(nib.Nifti1Image(channel.astype(np.float32), image.affine), images / f"{name}_{end}.nii.gz")
        if "label" in case:
            (labels / f"{name}.nii.gz").write_bytes((datalist.parent / case["label"]).read_bytes())
    structures = [f"structure_{number}" for number in range(1, len(content["labels"]))]
    prepare.own(str(images), str(tmp_path / "data"), labels=str(labels), channels="t1,t2", classes=structures, **SPLIT)
    prepare.check(str(tmp_path / "data"))
    return tmp_path / "data" / "datalist.json"


@pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_acdc", "crossmatch_pancreas"], indirect=True)
def test_two_channels_are_learned_scored_and_segmented(bundle, prepared, run_bundle, tmp_path):
    training = run_bundle("training", ["train"], datalist=str(prepared), panel_interval=1, **NETWORK)
    batch = next(iter(training.parser.get_parsed_content("train::trainer").state.dataloader))
    assert {stream["image"].shape[1] for stream in batch.values()} == {2}
    volume = training.parser.get_parsed_content("validate::dataset")[0]["image"].as_tensor()
    if bundle.name in NORMALIZED:  # each channel for itself, of which the second shows the first inverted
        torch.testing.assert_close(
            volume.sum(0), torch.full(volume.shape[1:], NORMALIZED[bundle.name]), atol=1e-3, rtol=0
        )
    settings = json.loads((tmp_path / "models" / "model.json").read_text())
    assert (settings["in_channels"], settings["channels"]) == (2, ["t1", "t2"])

    run_bundle("evaluating", ["train", "evaluate"], datalist=str(prepared), in_channels=2)
    validation = json.loads(prepared.read_text())["validation"]
    names = sorted(Path(case["label"]).name.removesuffix(".nii.gz") for case in validation)
    with open(tmp_path / "eval" / "metrics.csv", newline="") as file:
        assert sorted({row["case"] for row in csv.DictReader(file)} - {"mean"}) == names
    assert sorted(path.stem for path in (tmp_path / "eval" / "panels").iterdir()) == names
    picture = np.asarray(Image.open(tmp_path / "eval" / "panels" / f"{names[0]}.png").convert("RGB"))
    assert picture.std() > 0
    assert names[0] in (tmp_path / "eval" / "report.html").read_text()

    scans = tmp_path / "raw" / "images"
    first, second = sorted(scans.glob(f"{names[0]}_*"), key=lambda path: path.name.lower())
    for place, files in {"folder": str(scans), "listed": [[str(first), str(second)]]}.items():
        run_bundle("inference", ["inference"], files=files, output_dir=str(tmp_path / place), uncertainty=True)
    cases = sorted({path.name.rpartition("_")[0] for path in scans.iterdir()})
    assert sorted(path.name for path in (tmp_path / "folder").glob("*_seg.nii.gz")) == [
        f"{c}_seg.nii.gz" for c in cases
    ]
    with open(tmp_path / "folder" / "volumes.csv", newline="") as file:
        assert [row["case"] for row in csv.DictReader(file)] == cases
    for kind in ("seg", "uncertainty"):
        whole, alone = (nib.load(tmp_path / place / f"{names[0]}_{kind}.nii.gz") for place in ("folder", "listed"))
        np.testing.assert_allclose(whole.affine, nib.load(first).affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(whole.dataobj), np.asarray(alone.dataobj))

    second.unlink()
    with refused(f"{len(cases) - 1} scan(s) segmented", f"{names[0]}: channel t2 is missing, expected", "_t2.nii.gz"):
        run_bundle("inference", ["inference"], files=str(scans))
