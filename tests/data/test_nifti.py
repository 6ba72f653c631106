import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import ITKReader, MetaTensor
from monai.transforms import Compose, Invertd, LoadImage, Orientationd, SaveImage
from scan_files import OBLIQUE, write_dicom, write_itk

from custom.data.nifti import NiftiWriter, SeriesWriter
from custom.data.readers import LoadScan, LoadScand
from custom.utils.errors import UserError

SHEARED = np.array([[1.0, 0.2, 0.1, 5], [0, 1.5, 0.3, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def _write(array: MetaTensor, path, writer=SeriesWriter) -> nib.Nifti1Image:
    save = SaveImage(
        output_ext=".nii.gz", output_dtype=np.uint8, resample=False, print_log=False, writer=writer
    )  # fmt: skip
    save(array, filename=str(path).removesuffix(".nii.gz"))
    return nib.load(path)


def _seen_by_itk(path) -> tuple[np.ndarray, tuple[int, ...]]:
    image = LoadImage(reader=ITKReader(), image_only=True)(path)
    return np.asarray(image.affine), tuple(image.shape)


def _same_grid(written, source) -> None:
    found, true = nib.load(written), nib.load(source)
    np.testing.assert_allclose(found.affine, true.affine, atol=1e-5)
    np.testing.assert_allclose(found.header.get_zooms()[:3], true.header.get_zooms()[:3], atol=1e-5)
    for code in ("qform_code", "sform_code"):
        assert found.header[code] == true.header[code]
    np.testing.assert_allclose(_seen_by_itk(written)[0], _seen_by_itk(source)[0], atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 1), (6, 5, 4, 3), (6, 5, 1, 3)], ids=str)
def test_written_labels_have_the_geometry_of_the_image(shape, tmp_path):
    affine = np.array([[0.0, -1.4, 0, 5], [1.3, 0, 0, 6], [0, 0, 8, 7], [0, 0, 0, 1]])
    image = nib.Nifti1Image(np.zeros(shape, np.float32), affine)
    image.header.set_xyzt_units("mm", "msec")
    if len(shape) == 4:
        image.header["pixdim"][4] = 35.0
    nib.save(image, tmp_path / "scan.nii.gz")
    saved = _write(LoadScan()(tmp_path / "scan.nii.gz") + 1, tmp_path / "scan_seg.nii.gz")
    assert saved.shape == shape
    assert saved.get_data_dtype() == np.uint8
    np.testing.assert_allclose(saved.affine, affine, atol=1e-6)
    assert saved.header.get_xyzt_units() == ("mm", "msec")
    np.testing.assert_allclose(saved.header.get_zooms(), image.header.get_zooms(), atol=1e-6)
    assert (np.asarray(saved.dataobj) == 1).all()


def _header(affine: np.ndarray, sizes, qform: bool = False) -> nib.Nifti1Image:
    image = nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), affine)
    image.set_qform(np.diag([*sizes, 1]) if qform else None, int(qform))
    image.set_sform(affine, 1)
    image.header["pixdim"][1:4] = sizes
    return image


@pytest.mark.parametrize("scale", [2.0, 0.5, 1.02])
def test_a_header_that_says_two_sizes_of_voxels_is_refused(scale, tmp_path):
    affine = np.diag([-scale, -scale, 4.0, 1.0])
    nib.save(_header(affine, (1.0, 1.0, 4.0)), tmp_path / "a.nii.gz")
    found = f"voxels of {scale:g}x{scale:g}x4 mm in sform, but 1x1x4 mm in pixdim; mend it."
    with pytest.raises(UserError, match=found):
        LoadScan()(tmp_path / "a.nii.gz")


@pytest.mark.parametrize(("scale", "qform"), [(2.0, True), (1.0, False), (1.0001, False)])
def test_a_header_with_a_qform_or_a_rounded_affine_is_taken(scale, qform, tmp_path):
    nib.save(_header(np.diag([scale, scale, 4.0, 1.0]), (1.0, 1.0, 4.0), qform), tmp_path / "a.nii.gz")
    affine = LoadScan()(tmp_path / "a.nii.gz").affine
    np.testing.assert_allclose(np.abs(np.diag(affine))[:3], (1, 1, 4), rtol=1e-3)


def _write_pixdim(path, shape, pixdim, qform_code, sform_code, sform=1.0) -> None:
    """Write a header as it is, which nibabel would mend."""
    image = nib.Nifti1Image(np.random.default_rng(0).random(shape).astype(np.float32), np.diag([sform] * 3 + [1]))
    nib.save(image, path)
    content = bytearray(path.read_bytes())
    content[80:92] = np.array(pixdim, np.float32).tobytes()
    content[252:256] = np.array([qform_code, sform_code], np.int16).tobytes()
    path.write_bytes(content)


@pytest.mark.parametrize("codes", [(1, 0), (1, 1), (0, 0), (0, 1)])
@pytest.mark.parametrize(("pixdim", "found"), [((2, 2, 0), "2x2x0"), ((0, 2, 2), "0x2x2"), ((0, 0, 1.5), "0x0x1.5")])
def test_a_header_without_the_size_of_some_axes_is_refused(codes, pixdim, found, tmp_path):
    _write_pixdim(tmp_path / "a.nii", (4, 4, 4), pixdim, *codes)
    with pytest.raises(UserError, match=f"a.nii: its header says voxels of {found} mm; mend it."):
        LoadScan()(tmp_path / "a.nii")


@pytest.mark.parametrize(("shape", "pixdim"), [((4, 4, 1), (2, 2, 0)), ((4, 4), (2, 2, 0)), ((4, 4, 4), (0, 0, 0))])
def test_zeros_in_the_header_of_axes_of_one_voxel_or_of_all_axes_are_taken(shape, pixdim, tmp_path):
    _write_pixdim(tmp_path / "a.nii", shape, pixdim, 0, 0)
    assert LoadScan()(tmp_path / "a.nii").shape == (1, *shape)


@pytest.mark.parametrize("axes", ["LAS", "PIR", "ASL", "SRA"])
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 1)], ids=str)
def test_a_volume_with_a_last_axis_of_one_is_written_in_any_orientation(axes, shape, tmp_path):
    codes = nib.orientations.axcodes2ornt(axes)
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) @ nib.orientations.inv_ornt_aff(codes, shape[:3])
    nib.save(nib.Nifti1Image(np.arange(120, dtype=np.float32).reshape(shape), affine), tmp_path / "scan.nii.gz")
    turn = Compose([LoadScand("image"), Orientationd("image", "RAS", labels=None)])
    sample = turn({"image": str(tmp_path / "scan.nii.gz")})
    sample["pred"] = sample["image"].clone()
    pred = Invertd("pred", transform=turn, orig_keys="image", nearest_interp=False)(sample)["pred"]
    saved = _write(pred, tmp_path / "scan_seg.nii.gz")
    _same_grid(tmp_path / "scan_seg.nii.gz", tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj).ravel(), np.arange(120))


def _sform_of_one_millimetre(header):
    header.set_qform(np.diag([-1.4, -1.4, 10.0, 1.0]), code=0)
    header.set_sform(np.diag([-1.0, -1.0, 1.0, 1.0]), code=2)
    header["pixdim"][1:4] = 1.4, 1.4, 10


def _qform_alone(header):
    header.set_sform(None, code=0)
    header.set_qform(np.diag([-1.4, -1.4, 10.0, 1.0]), code=1)


def _no_code(header):
    header.set_sform(None, code=0)
    header.set_qform(None, code=0)


def _sheared_sform(header):
    header.set_qform(None, code=0)
    header.set_sform(SHEARED, code=1)
    header["pixdim"][1:4] = np.linalg.norm(SHEARED[:3, :3], axis=0)


@pytest.mark.parametrize("change", [_sform_of_one_millimetre, _qform_alone, _no_code, _sheared_sform])
def test_a_prediction_repeats_the_header_of_its_scan_also_where_that_contradicts_itself(change, tmp_path):
    image = nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), None)
    change(image.header)
    path = tmp_path / "scan.nii"
    # As bytes: nibabel would make the header consistent.
    path.write_bytes(image.header.binaryblock + bytes(4) + image.get_fdata().astype(np.int16).tobytes("F"))
    header = nib.load(path).header
    for field in ("qform_code", "sform_code"):
        assert header[field] == image.header[field]
    _write(LoadScan()(path), tmp_path / "scan_seg.nii.gz")
    _same_grid(tmp_path / "scan_seg.nii.gz", path)


def test_sheared_axes_get_no_qform(tmp_path):
    array = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.from_numpy(SHEARED))
    saved = _write(array, tmp_path / "a.nii.gz", NiftiWriter)
    assert saved.header["qform_code"] == 0
    np.testing.assert_allclose(saved.affine, SHEARED, atol=1e-6)
    np.testing.assert_allclose(saved.header.get_zooms(), np.linalg.norm(SHEARED[:3, :3], axis=0), atol=1e-6)


@pytest.mark.parametrize("name", ["series", "scan.nrrd"])
def test_a_label_of_a_scan_that_is_no_nifti_file_is_in_millimetres(name, tmp_path):
    volume = np.arange(120).reshape(6, 5, 4).astype(np.int16)
    if name == "series":
        write_dicom(tmp_path / name, volume)
    else:
        write_itk(tmp_path / name, volume, OBLIQUE)
    saved = _write(LoadScan()(tmp_path / name), tmp_path / "a.nii.gz")
    assert saved.header.get_xyzt_units() == ("mm", "unknown")


def test_a_label_of_a_scan_without_a_unit_has_none(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((6, 5, 4), np.int16), SHEARED), tmp_path / "scan.nii.gz")
    saved = _write(LoadScan()(tmp_path / "scan.nii.gz"), tmp_path / "a.nii.gz")
    assert saved.header.get_xyzt_units() == ("unknown", "unknown")


def test_a_spacing_that_was_lost_is_not_declared(tmp_path):
    meta = {"qform_code": 0, "sform_code": 0, "pixdim": np.array([1.0, 1, 1, 10])}
    array = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.diag(torch.tensor([1.0, 1, 10, 1])), meta=meta)
    saved = _write(array, tmp_path / "a.nii.gz", NiftiWriter)
    assert (saved.header["qform_code"], saved.header["sform_code"]) == (0, 0)
    assert saved.header.get_xyzt_units() == ("unknown", "unknown")
    assert saved.header.get_zooms() == (1, 1, 10)
