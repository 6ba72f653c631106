import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from custom.predictions import LabelMapd


def test_label_map_takes_the_most_probable_class_of_every_frame():
    probs = MetaTensor(torch.rand(2 * 3, 4, 4, 2), affine=torch.diag(torch.tensor([2.0, 2.0, 8.0, 1.0])))
    labels = LabelMapd("pred", num_classes=3)({"pred": probs})["pred"]
    assert labels.shape == (2, 4, 4, 2)
    for frame, part in enumerate((probs[:3], probs[3:])):
        assert torch.equal(labels[frame].as_tensor().long(), part.as_tensor().argmax(0))
    assert torch.equal(labels.affine, probs.affine)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1), (6, 5, 4, 3), (6, 5, 1, 3)], ids=str)
def test_written_labels_have_the_geometry_of_the_image(shape, tmp_path):
    affine = np.array([[0.0, -1.4, 0, 5], [1.3, 0, 0, 6], [0, 0, 8, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    image.header.set_xyzt_units("mm", "msec")
    if len(shape) == 4:
        image.header["pixdim"][4] = 35.0
    nib.save(image, tmp_path / "scan.nii.gz")
    save = SaveImage(
        output_dir=tmp_path, output_postfix="seg", output_dtype=np.uint8, resample=False, separate_folder=False,
        writer="custom.predictions.SeriesWriter", print_log=False,
    )  # fmt: skip
    save(LoadImage(ensure_channel_first=True)(tmp_path / "scan.nii.gz") + 1)

    saved = nib.load(tmp_path / "scan_seg.nii.gz")
    assert saved.shape == shape
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, affine, atol=1e-6)
    assert saved.header.get_xyzt_units() == ("mm", "msec")
    np.testing.assert_allclose(saved.header.get_zooms(), image.header.get_zooms(), atol=1e-6)
    assert (np.asarray(saved.dataobj) == 1).all()
