import errno
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, LoadImage, Orientationd, Spacingd
from PIL import Image

from custom.predictions import LabelMapd, ResampleToScand, SavePredictiond
from custom.utils.errors import UserError
from custom.utils.ranges import LOSSLESS


def test_label_map_takes_the_most_probable_class_of_every_frame():
    probs = MetaTensor(torch.rand(2 * 3, 4, 4, 2), affine=torch.diag(torch.tensor([2.0, 2.0, 8.0, 1.0])))
    labels = LabelMapd("pred", num_classes=3)({"pred": probs})["pred"]
    assert labels.shape == (2, 4, 4, 2)
    for frame, part in enumerate((probs[:3], probs[3:])):
        assert torch.equal(labels[frame].as_tensor().long(), part.as_tensor().argmax(0))
    assert torch.equal(labels.affine, probs.affine)


TILTED = [[0, 0.9, 0, 3], [-1.3, 0, 0, 5], [0, 0.1, 2.1, 7], [0, 0, 0, 1.0]]
TURNED = [[0, 0.9, 0, 3], [-1.3, 0, 0, 5], [0, 0, 2.1, 7], [0, 0, 0, 1.0]]
#: A right angle, with axes in none of the patient's directions.
OBLIQUE = [[0.0, 0.72, 1.26, 3], [-1.3, 0, 0, 5], [0, 0.54, -1.68, 7], [0, 0, 0, 1.0]]


@pytest.fixture(params=[TILTED, TURNED, OBLIQUE], ids=["tilted", "turned", "oblique"])
def resampled(request):
    """A scan on the network's grid, with probabilities of seven classes and two frames."""
    torch.manual_seed(0)
    affine = torch.tensor(request.param)
    preprocessing = Compose([Orientationd("image", "RAS", labels=None), Spacingd("image", [1.0] * 3, dtype=np.float32)])
    scan = MetaTensor(torch.rand(1, 14, 12, 9), affine=affine, meta={"original_affine": affine.numpy()})
    image = preprocessing({"image": scan})["image"]
    invert = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False)
    probs = MetaTensor(torch.rand(2 * 7, *image.shape[1:]))
    probs[1] = probs[0]  # equals, of which the first counts
    sample = {"image": image, "pred": probs}
    leans = request.param is TILTED
    return SimpleNamespace(leans=leans, scan=scan, sample=sample, invert=invert, expected=invert(dict(sample))["pred"])


@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_label_map_of_a_few_channels_at_a_time_is_that_of_all(channels, resampled):
    expected = LabelMapd("pred", 7)({"pred": resampled.expected})["pred"]
    values = channels * resampled.sample["pred"][0].numel()
    found = LabelMapd("pred", 7, invert=resampled.invert, values=values)(dict(resampled.sample))["pred"]
    assert found.shape == (2, 14, 12, 9)
    assert found.dtype == torch.uint8
    assert expected[0].unique().numel() == 6
    assert torch.equal(found.as_tensor(), expected.as_tensor())
    assert torch.equal(found.affine, expected.affine)
    assert found.affine.allclose(resampled.scan.affine.double())


@pytest.mark.parametrize("values", [1, 5 * (14 + 7) * 12 * 9, 2**26])
def test_slabs_make_up_the_scan(values, resampled):
    back = ResampleToScand("pred", values=values)
    found = back(dict(resampled.sample))["pred"]
    assert torch.allclose(found.as_tensor(), resampled.expected.as_tensor(), atol=1e-5)
    assert found.affine.allclose(resampled.scan.affine.double())
    assert found.meta["original_affine"] is resampled.sample["image"].meta["original_affine"]
    labels = LabelMapd("pred", 7, invert=back)(dict(resampled.sample))["pred"]
    assert labels.shape == (2, 14, 12, 9)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels.as_tensor(), LabelMapd("pred", 7)({"pred": found})["pred"].as_tensor())
    assert torch.equal(labels.affine, found.affine)
    assert not torch.equal(resampled.sample["image"].affine, found.affine)


def test_only_a_grid_that_leans_is_looked_up_voxel_by_voxel(resampled, monkeypatch):
    back = ResampleToScand("pred")
    monkeypatch.setattr(back, "resample", None)
    with pytest.raises(TypeError) if resampled.leans else nullcontext():
        back(dict(resampled.sample))


def test_slabs_of_a_scan_that_was_not_changed_are_the_scan():
    image = MetaTensor(torch.rand(1, 4, 3, 2), affine=torch.eye(4), meta={"original_affine": np.eye(4)})
    probs = torch.rand(2, 4, 3, 2)
    found = ResampleToScand("pred")({"image": image, "pred": MetaTensor(probs)})["pred"]
    assert torch.allclose(found.as_tensor(), probs)


@pytest.mark.parametrize("ending", [".nii.gz", ".png"])
def test_a_prediction_is_written_whole_or_not_at_all(ending, tmp_path, monkeypatch):
    meta = {"filename_or_obj": "somewhere/scan" + ending, "original_affine": np.eye(4)}
    shape = (1, 6, 5, 4) if ending == ".nii.gz" else (1, 6, 5)
    pred = MetaTensor(torch.ones(shape, dtype=torch.uint8), affine=torch.eye(4), meta=meta)
    writer = "custom.data.nifti.NiftiWriter" if ending == ".nii.gz" else "PILWriter"
    save = SavePredictiond("pred", str(tmp_path), "seg", output_dtype=np.uint8, output_ext=ending, writer=writer)
    save({"pred": pred})
    path = tmp_path / f"scan_seg{ending}"
    whole = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(UserError, match=rf"scan_seg{ending}: cannot be written .*No space left"):
        save({"pred": pred * 0})
    assert path.read_bytes() == whole
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(("writer", "ending"), [(name, end) for name, ends in LOSSLESS.items() for end in ends])
def test_writers_lose_no_label_in_the_files_that_inference_takes(writer, ending, tmp_path):
    is_picture = writer in ("MaskWriter", "PILWriter")
    shape, count = (1, 6, 5) if is_picture else (1, 6, 5, 4), 2 if writer == "MaskWriter" else 200
    labels = np.random.default_rng(0).integers(0, count, shape)
    meta = {"filename_or_obj": "somewhere/scan.mha", "original_affine": np.eye(4)}
    pred = MetaTensor(torch.from_numpy(labels.astype(np.uint8)), affine=torch.eye(4), meta=meta)
    module = {"MaskWriter": "custom.predictions.", "SeriesWriter": "custom.data.", "NiftiWriter": "custom.data.nifti."}
    options = {"output_dtype": np.uint8, "output_ext": ending, "writer": module.get(writer, "") + writer}
    (path,) = SavePredictiond("pred", str(tmp_path), "seg", **options)({"pred": pred})["written"]
    assert [file.name for file in tmp_path.iterdir()] == [f"scan_seg{ending}"]
    found = np.asarray(Image.open(path)).T if is_picture else LoadImage()(path).numpy()
    np.testing.assert_array_equal(found // 255 if writer == "MaskWriter" else found, labels[0])


def test_a_prediction_that_the_writer_cannot_write_is_named(tmp_path):
    (tmp_path / "file").touch()
    pred = MetaTensor(torch.ones(1, 6, 5, 4), affine=torch.eye(4), meta={"filename_or_obj": "somewhere/scan.nii.gz"})
    with pytest.raises(UserError, match=r"scan_seg\.nii\.gz: cannot be written"):
        SavePredictiond("pred", str(tmp_path / "file"), "seg", writer="custom.data.nifti.NiftiWriter")({"pred": pred})
