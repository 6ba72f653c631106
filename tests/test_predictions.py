import errno

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from custom.inference import LabelMapd, SavePredictiond
from custom.utils.errors import UserError


def test_label_map_takes_the_most_probable_class_of_every_frame():
    probs = MetaTensor(torch.rand(2 * 3, 4, 4, 2), affine=torch.diag(torch.tensor([2.0, 2.0, 8.0, 1.0])))
    labels = LabelMapd("pred", num_classes=3)({"pred": probs})["pred"]
    assert labels.shape == (2, 4, 4, 2)
    for frame, part in enumerate((probs[:3], probs[3:])):
        assert torch.equal(labels[frame].as_tensor().long(), part.as_tensor().argmax(0))
    assert torch.equal(labels.affine, probs.affine)


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


def test_a_prediction_that_the_writer_cannot_write_is_named(tmp_path):
    (tmp_path / "file").touch()
    pred = MetaTensor(torch.ones(1, 6, 5, 4), affine=torch.eye(4), meta={"filename_or_obj": "somewhere/scan.nii.gz"})
    with pytest.raises(UserError, match=r"scan_seg\.nii\.gz: cannot be written"):
        SavePredictiond("pred", str(tmp_path / "file"), "seg", writer="custom.data.nifti.NiftiWriter")({"pred": pred})
