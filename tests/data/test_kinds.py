"""Files of another kind than their names say are named, with what to do, by whatever reads them."""

import gzip
import os

import itk
import numpy as np
import pytest
from scan_files import read_scans, write_nifti

from custom.data.checks import read_image, read_label
from custom.data.scans import find_scans


@pytest.fixture
def noise():
    return np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)


def test_a_zipped_file_without_gz_and_a_plain_one_with_it_say_how_to_rename_them(noise, tmp_path):
    write_nifti(tmp_path / "a.nii", noise)
    content = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii").write_bytes(gzip.compress(content))
    (tmp_path / "c.nii.gz").write_bytes(content)
    good, problems = read_scans(tmp_path)
    assert good == ["a"]
    assert problems == [
        f"{tmp_path}/b.nii: is compressed with gzip, but its name does not end in .gz; rename it to b.nii.gz.",
        f"{tmp_path}/c.nii.gz: is not compressed, but its name ends in .gz; rename it to c.nii.",
    ]
    image, _ = read_image(str(tmp_path / "a.nii"))
    assert "rename it to b.nii.gz" in read_label(str(tmp_path / "b.nii"), image, 2)[1][0]
    for name in ("b.nii", "c.nii.gz"):
        (tmp_path / name).rename(tmp_path / problems[name == "c.nii.gz"].split()[-1].removesuffix("."))
    (tmp_path / "a.nii").unlink()
    assert read_scans(tmp_path) == (["b", "c"], [])


def test_a_zipped_file_that_no_reader_unzips_is_to_be_unpacked(noise, tmp_path):
    itk.imwrite(itk.image_from_array(noise), str(tmp_path / "a.nrrd"))
    (tmp_path / "a.nrrd").write_bytes(gzip.compress((tmp_path / "a.nrrd").read_bytes()))
    (problem,) = read_scans(tmp_path)[1]
    assert "a.nrrd: is compressed with gzip" in problem
    assert "unpack it, such as with gunzip" in problem


@pytest.mark.parametrize("name", ["a.nii.gz", "a.dcm", "a"])
def test_a_pipe_is_refused_and_not_waited_for(name, tmp_path):
    os.mkfifo(tmp_path / name)
    assert find_scans(str(tmp_path / name), 1, 3, dicom_seg=True).problems == []
    assert read_scans(tmp_path / name)[1] == [f"{tmp_path / name}: is a pipe, a socket or a device; expected a file."]
