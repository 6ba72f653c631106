"""Many scans: none is segmented twice, whatever ends the run, and one that fails ends nothing."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LEFT_ATRIUM, ROOT, SHORT_AXIS, read_csv, refused
from hungry import Hungry
from scan_files import write_dicom, write_nifti
from starter import CONTEXT, _run_module

from custom.data import list_scans, share_out
from custom.data.record import RECORD, InferenceRecord
from custom.networks import UNet, VNet
from custom.utils.errors import UserError

pytestmark = pytest.mark.slow
SHAPE = (26, 22, 12)
RAW = {"spacing": [1.0, 1.0, 2.0], "patch_size": [16, 16, 16], "stride": [16, 16, 16], "amp": False}


def _noise(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return 100 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def scans(tmp_path) -> Path:
    """Five scans, of different sizes."""
    for number, name in enumerate("abcde"):
        write_nifti(tmp_path / "scans" / f"{name}.nii.gz", _noise(number, (20 + 2 * number, 22, 12)))
    return tmp_path / "scans"


@pytest.fixture
def weights(tmp_path) -> str:
    """Of the tiny network, as it is initialized."""
    torch.manual_seed(0)
    torch.save(VNet(base_filters=2).state_dict(), tmp_path / "untrained.pt")
    return str(tmp_path / "untrained.pt")


@pytest.fixture
def segment(run_bundle, scans, weights):
    """Segment the scans in this process."""

    def run(**changes):
        options = {"dataset_dir": str(scans), "ckpt_path": weights} | RAW | changes
        return run_bundle("inference", ["inference"], **options)

    return run


def _contents(folder: Path) -> dict[str, bytes]:
    """Results by name; the record holds times, and the page is called by the folder."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    results = {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != RECORD}
    return {name: content.replace(f"Review of {folder.name}".encode(), b"") for name, content in results.items()}


def _times(folder: Path) -> dict[str, int]:
    """When each label map was written; hidden files are being written, and may be gone by now."""
    written = [path for path in folder.rglob("*_seg.nii.gz") if not path.name.startswith(".")]
    return {path.name: path.stat().st_mtime_ns for path in written}


def _read_by(workflow) -> list[str]:
    return [case["case"] for case in workflow.parser.get_parsed_content("dataset").data]


@LEFT_ATRIUM
def test_a_second_start_does_nothing_and_says_so(segment, tmp_path, capsys):
    segment()
    first, times = _contents(tmp_path / "eval"), _times(tmp_path / "eval")
    assert len(times) == 5
    assert "are done already" not in capsys.readouterr().out
    (tmp_path / "eval" / "volumes.csv").unlink()
    assert _read_by(segment()) == []
    assert "5 of 5 scans are done already" in capsys.readouterr().out
    assert _times(tmp_path / "eval") == times
    assert _contents(tmp_path / "eval") == first
    assert _read_by(segment(overwrite=True)) == list("abcde")
    assert _contents(tmp_path / "eval") == first
    assert all(time > times[name] for name, time in _times(tmp_path / "eval").items())


def _move_away_after(monkeypatch, count: int, change) -> None:
    """Change the results as soon as so many scans are noted."""
    add = InferenceRecord.add

    def add_and_change(record, *arguments):
        add(record, *arguments)
        if len(record.added) == count:
            change()

    monkeypatch.setattr(InferenceRecord, "add", add_and_change)


@LEFT_ATRIUM
@pytest.mark.parametrize("whole_folder", [True, False])
def test_results_that_vanish_meanwhile_are_not_called_done(whole_folder, segment, tmp_path, monkeypatch):
    out, lost = tmp_path / "eval", "ab" if whole_folder else "b"
    hint = "are gone or were changed while this ran; run the same command again."
    lines = [f"{5 - len(lost)} scan(s) segmented; left out, with {len(lost)} problem(s):"]
    lines += [f"{name}: its results in {out} {hint}" for name in lost]
    with monkeypatch.context() as patch, refused(*lines):
        change = partial(out.rename, tmp_path / "moved") if whole_folder else (out / "b_seg.nii.gz").unlink
        _move_away_after(patch, 2, change)
        segment()
    assert _read_by(segment()) == list(lost)


@LEFT_ATRIUM
def test_a_folder_is_known_by_any_spelling(segment, scans, monkeypatch):
    segment()
    monkeypatch.chdir(scans.parent)
    assert _read_by(segment(dataset_dir="scans")) == []
    assert _read_by(segment(dataset_dir=str(scans / ".." / "scans"))) == []


@LEFT_ATRIUM
def test_scans_are_known_where_they_are_moved_to(segment, scans, tmp_path, capsys):
    segment()
    scans.rename(tmp_path / "elsewhere")
    assert _read_by(segment(dataset_dir=str(tmp_path / "elsewhere"))) == []
    assert "5 of 5 scans are done already" in capsys.readouterr().out


@LEFT_ATRIUM
def test_a_new_scan_of_the_same_name_in_another_folder_changes_no_other(segment, scans, tmp_path):
    segment()
    write_nifti(scans / "patient" / "a.nii.gz", _noise(9))
    assert _read_by(segment()) == ["patient_a"]
    assert [row["case"] for row in read_csv(tmp_path / "eval" / "volumes.csv")] == [*"abcde", "patient_a"]


@LEFT_ATRIUM
def test_tables_and_review_are_of_all_scans_that_lie_in_the_folder(segment, scans, tmp_path):
    segment()
    write_nifti(tmp_path / "new" / "f.nii.gz", _noise(9))
    assert _read_by(segment(dataset_dir=str(tmp_path / "new"))) == ["f"]
    for table in ("volumes.csv", "review.csv"):
        assert {row["case"] for row in read_csv(tmp_path / "eval" / table)} == set("abcdef")


@LEFT_ATRIUM
def test_scans_of_one_name_from_two_sources_are_told_apart(segment, tmp_path):
    for source, patient in (("one", "p1"), ("two", "p2")):
        write_nifti(tmp_path / source / patient / "mr.nii.gz", _noise(len(source)))
        segment(dataset_dir=str(tmp_path / source))
    folder, places = tmp_path / "eval", {"p1/mr", "p2/mr"}
    assert {row["case"] for row in read_csv(folder / "volumes.csv")} == places
    rows = read_csv(folder / "review.csv")
    assert {row["case"] for row in rows} == places
    assert {row["prediction"] for row in rows} == {f"{place}_seg.nii.gz" for place in places}
    assert {str(path.relative_to(folder / "review")) for path in folder.rglob("review/*/*.png")} == {
        f"{place}.png" for place in places
    }
    assert (folder / "review.html").read_text().count("data:image/jpeg") == 2


@LEFT_ATRIUM
@pytest.mark.parametrize("name", ["volumes.csv", "review.csv", "review.html", "review/a.png", RECORD])
def test_tables_that_no_inference_has_written_are_kept(name, segment, tmp_path):
    mine = tmp_path / "eval" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("my own")
    with refused(f"{name.partition('/')[0]}: is there, and no inference has written it; nothing was segmented."):
        segment()
    assert mine.read_text() == "my own"
    segment(overwrite=True)
    assert len(read_csv(tmp_path / "eval" / "volumes.csv")) == 5


@LEFT_ATRIUM
def test_scans_where_pictures_are_written_are_kept(segment, scans, tmp_path):
    scans.rename(tmp_path / "review")
    with refused("a.nii.gz: lies where pictures for the review are written"):
        segment(dataset_dir=str(tmp_path / "review"), output_dir=str(tmp_path), overwrite=True)


@LEFT_ATRIUM
def test_files_of_earlier_settings_are_known_and_named(segment, scans, tmp_path, capsys):
    segment(save_probabilities=True)
    capsys.readouterr()
    segment(keep_largest=[])
    assert "files of earlier settings, which this inference has not written again: a_probs.nii.gz," in (
        capsys.readouterr().out
    )
    segment(save_probabilities=True)
    assert list_scans(tmp_path / "eval").scans == []
    assert "files of earlier settings" not in capsys.readouterr().out


@LEFT_ATRIUM
def test_tables_stay_as_they_were_where_nothing_could_be_segmented(segment, tmp_path):
    segment()
    before = _contents(tmp_path / "eval")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "f.nii.gz").write_bytes(b"damaged")
    with refused("1 problem(s), nothing was segmented"):
        segment(dataset_dir=str(tmp_path / "new"), keep_largest=[])
    assert _contents(tmp_path / "eval") == before


@LEFT_ATRIUM
@pytest.mark.parametrize("failed", [True, False], ids=["of a scan that failed", "of another scan"])
def test_a_file_in_the_place_of_results_is_kept(failed, segment, scans, tmp_path):
    if failed:
        content = (scans / "c.nii.gz").read_bytes()
        (scans / "c.nii.gz").write_bytes(b"damaged")
        with refused("4 scan(s) segmented; left out, with 1 problem(s)"):
            segment()
        (tmp_path / "eval" / "c_seg.nii.gz").write_bytes(b"my label")
        (scans / "c.nii.gz").write_bytes(content)
    else:
        segment()
        write_nifti(tmp_path / "new" / "c.nii.gz", _noise(9))
    before = _contents(tmp_path / "eval")
    page = before.pop("review.html")
    with refused("c_seg.nii.gz: is there, and is not, or no longer, what this inference wrote for this scan"):
        segment(dataset_dir=str(scans if failed else tmp_path / "new"))
    after = _contents(tmp_path / "eval")
    assert after.pop("review.html") != page  # which says what was left out
    assert after == before


@pytest.mark.parametrize("is_written", [False, True])
def test_what_was_written_of_a_scan_that_then_failed_is_no_other_s_file(is_written, scans, weights, tmp_path):
    case, label = {"case": "a", "image": str(scans / "a.nii.gz")}, tmp_path / "a_seg.nii.gz"
    first, second, third = (InferenceRecord(str(tmp_path), [case], weights, {"setting": n}) for n in range(3))
    first.begin("a")
    label.write_bytes(b"first")
    first.add("a", [str(label)], {})
    assert second.remaining([case]) == [case]
    second.begin("a")
    if is_written:
        label.write_bytes(b"of the second")
    second.leave_out([])
    assert third.remaining([case]) == [case]
    label.write_bytes(b"somebody's label")
    assert third.remaining([case]) == ([case] if is_written else [])


def test_a_record_is_read_again_only_where_another_process_has_written_it(weights, tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.nii.gz").write_bytes(b"scan")
    cases = [{"case": name, "image": str(tmp_path / f"{name}.nii.gz")} for name in "abc"]
    reads = []
    monkeypatch.setattr("custom.data.record.read_json", lambda path: reads.append(path) or json.loads(path.read_text()))
    ours, theirs = (InferenceRecord(str(tmp_path / "out"), cases, weights, {}) for _ in range(2))
    for name in "ab":
        ours.begin(name)
        ours.add(name, [], {"of": name})
        assert list(ours.found()) == list("ab")[: "ab".index(name) + 1]
    assert reads == []
    theirs.begin("c")
    theirs.add("c", [], {"of": "c"})
    assert ours.found() == theirs.found() == {name: {"of": name} for name in "abc"}
    assert len(reads) == 2


@LEFT_ATRIUM
def test_results_within_the_folder_of_a_series_leave_it_as_it_was(segment, tmp_path):
    series = tmp_path / "series"
    write_dicom(series, 200 * _noise().astype(np.int16))
    places = {"dataset_dir": str(series), "output_dir": str(series / "predictions")}
    assert len(_read_by(segment(**places))) == 1
    assert _read_by(segment(**places)) == []


def _other_input(scans: Path, eval_dir: Path, weights: str) -> None:
    write_nifti(scans / "c.nii.gz", _noise(7))


def _other_output(scans: Path, eval_dir: Path, weights: str) -> None:
    (eval_dir / "c_seg.nii.gz").write_bytes(b"cut off")


def _no_output(scans: Path, eval_dir: Path, weights: str) -> None:
    (eval_dir / "c_seg.nii.gz").unlink()


def _other_weights(scans: Path, eval_dir: Path, weights: str) -> None:
    torch.manual_seed(1)
    torch.save(VNet(base_filters=2).state_dict(), weights)


def _same_weights_copied(scans: Path, eval_dir: Path, weights: str) -> None:
    shutil.copy(weights, f"{weights}.copy")
    os.replace(f"{weights}.copy", weights)


def _damaged_record(scans: Path, eval_dir: Path, weights: str) -> None:
    (eval_dir / RECORD).write_text((eval_dir / RECORD).read_text()[:100])


def _older_record(scans: Path, eval_dir: Path, weights: str) -> None:
    content = json.loads((eval_dir / RECORD).read_text())
    (eval_dir / RECORD).write_text(json.dumps(content | {"version": 0}))


def _nothing(scans: Path, eval_dir: Path, weights: str) -> None:
    pass


@LEFT_ATRIUM
@pytest.mark.parametrize(
    ("change", "settings", "again"),
    [
        (_other_input, {}, "c"),
        (_no_output, {}, "c"),
        (_other_weights, {}, "abcde"),
        (_same_weights_copied, {}, ""),
        (_nothing, {"stride": [8, 16, 16]}, "abcde"),
        (_nothing, {"keep_largest": []}, "abcde"),
        (_nothing, {"densities": {"left_atrium": 1.05}}, "abcde"),
        (_nothing, {"sw_batch_size": 2}, ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_only_what_has_changed_is_segmented_again(change, settings, again, segment, scans, weights, tmp_path):
    segment()
    change(scans, tmp_path / "eval", weights)
    assert _read_by(segment(**settings)) == list(again)
    found = _contents(tmp_path / "eval")
    segment(**settings, output_dir=str(tmp_path / "undisturbed"))
    assert found == _contents(tmp_path / "undisturbed")


@LEFT_ATRIUM
@pytest.mark.parametrize("settings", [{}, {"keep_largest": []}], ids=["same settings", "other settings"])
@pytest.mark.parametrize(
    ("change", "kept"),
    [(_other_output, "c"), (_damaged_record, "abcde"), (_older_record, "abcde")],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_files_that_are_not_as_the_record_left_them_are_kept(change, kept, settings, segment, scans, weights, tmp_path):
    segment()
    change(scans, tmp_path / "eval", weights)
    names = [f"{name}_seg.nii.gz" for name in kept]
    before = [(tmp_path / "eval" / name).read_bytes() for name in names]
    with refused(*(f"{name}: is there, and is not, or no longer, what this inference wrote" for name in names)):
        segment(**settings)
    assert [(tmp_path / "eval" / name).read_bytes() for name in names] == before
    assert len(read_csv(tmp_path / "eval" / "volumes.csv")) == (5 - len(kept) or 5)  # nothing new, nothing lost
    segment(**settings, overwrite=True)
    segment(**settings, output_dir=str(tmp_path / "undisturbed"))
    assert _contents(tmp_path / "eval") == _contents(tmp_path / "undisturbed")


@LEFT_ATRIUM
@pytest.mark.parametrize("name", ["c_seg.nii.gz", "c_probs.nii.gz", "c_uncertainty.nii.gz"])
def test_a_file_beside_the_scans_is_not_overwritten_by_results(name, segment, scans):
    mine = scans / name
    mine.write_bytes(b"my own work")
    options = {"files": [str(scans / f"{case}.nii.gz") for case in "abcde"], "output_dir": str(scans)}
    with refused("4 scan(s) segmented; left out, with 1 problem(s):", f"{name}: is there", "c is left out"):
        segment(uncertainty=True, save_probabilities=True, **options)
    assert mine.read_bytes() == b"my own work"
    assert (scans / "d_seg.nii.gz").exists()
    assert [line.split(": ")[0] for line in _left_out(scans)] == [str(mine)]


@LEFT_ATRIUM
def test_a_new_scan_is_added_to_the_table_in_its_place(segment, scans, tmp_path):
    segment()
    write_nifti(scans / "bb.nii.gz", _noise(9))
    assert _read_by(segment()) == ["bb"]
    assert [row["case"] for row in read_csv(tmp_path / "eval" / "volumes.csv")] == ["a", "b", "bb", "c", "d", "e"]


def _command(scans: Path, weights: str, out: Path) -> list[str]:
    arguments = ["monai.bundle", "run", "inference"]
    arguments += ["--config_file", "bundles/crossmatch_la/configs/inference.yaml", "--base_filters", "2"]
    arguments += [text for name, value in RAW.items() for text in (f"--{name}", str(value).replace(" ", ""))]
    return [*arguments, "--dataset_dir", str(scans), "--ckpt_path", weights, "--output_dir", str(out)]


def _start(command: list[str], folder: Path):
    files = [folder / name for name in ("stdout.txt", "stderr.txt")]
    process = CONTEXT.Process(target=_run_module, args=(command[0], command[1:], ROOT, {}, files))
    process.start()
    return process


@LEFT_ATRIUM
def test_a_run_that_is_killed_again_and_again_ends_as_an_undisturbed_one(segment, scans, weights, tmp_path):
    for number in range(20):
        shutil.copy(scans / f"{'abcde'[number % 5]}.nii.gz", scans / f"copy_{number}.nii.gz")
    segment(output_dir=str(tmp_path / "undisturbed"))
    out, kills = tmp_path / "out", 0
    command = _command(scans, weights, out)
    for wait in (0.0, 0.05, 0.11, 0.02):
        process = _start(command, tmp_path)
        before = len(_times(out))
        deadline = time.monotonic() + 120
        while len(_times(out)) < min(25, before + 3) and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(wait)
        process.kill()
        process.join(60)
        kills += process.exitcode == -signal.SIGKILL
        known = json.loads((out / RECORD).read_text())["scans"] if (out / RECORD).exists() else {}
        assert len(known) >= len(_times(out)) - 1  # of no more than one scan the entry is lost
    assert kills >= 2
    process = _start(command, tmp_path)
    process.join(200)
    assert process.exitcode == 0, (tmp_path / "stderr.txt").read_text()
    assert "of 25 scans are done already" in (tmp_path / "stdout.txt").read_text()
    assert _contents(out) == _contents(tmp_path / "undisturbed")


@contextmanager
def _address_space(more: int):
    """Let this process take so many bytes more than it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _write_too_large(path: Path) -> None:
    """Write a volume of 27 GB that takes no place on the disk."""
    write_nifti(path, np.zeros((2, 2, 2), np.int8))
    with open(path, "r+b") as file:
        file.seek(40)
        file.write(np.array([3, 3000, 3000, 3000, 1, 1, 1, 1], np.int16).tobytes())
        file.truncate(352 + 3000**3)


def _left_out(out: Path) -> list[str]:
    """What the page for the review says about scans that were left out."""
    return re.findall(r"<li>(.*?)</li>", (out / "review.html").read_text(), re.DOTALL)


@LEFT_ATRIUM
def test_scans_that_fail_are_named_at_the_end_and_the_others_are_segmented(segment, scans, tmp_path):
    (scans / "a_corrupt.nii.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    volume = _noise()
    volume[3, 3, 3] = np.nan
    write_nifti(scans / "b_nan.nii.gz", volume)
    _write_too_large(scans / "c_large.nii")
    (tmp_path / "eval" / "d_seg.nii.gz").mkdir(parents=True)  # cannot be written
    lines = [
        "4 scan(s) segmented; left out, with 4 problem(s):",
        "a_corrupt.nii.gz: cannot be read, probably truncated",
    ]
    lines += ["b_nan.nii.gz: 1 voxel(s) are NaN", "c_large.nii: there is not enough memory to read it", "d_seg.nii.gz"]
    for _ in range(2):
        with _address_space(more=3 * 2**30), refused(*lines):
            segment()
        assert [row["case"] for row in read_csv(tmp_path / "eval" / "volumes.csv")] == ["a", "b", "c", "e"]
        assert [line.split(": ")[0] for line in _left_out(tmp_path / "eval")] == [
            *(str(scans / name) for name in ("a_corrupt.nii.gz", "b_nan.nii.gz", "c_large.nii")),
            str(tmp_path / "eval" / "d_seg.nii.gz"),
        ]
    (tmp_path / "eval" / "d_seg.nii.gz").rmdir()
    for name in ("a_corrupt.nii.gz", "b_nan.nii.gz", "c_large.nii"):
        (scans / name).unlink()
    assert _read_by(segment()) == ["d"]
    assert [row["case"] for row in read_csv(tmp_path / "eval" / "volumes.csv")] == list("abcde")
    assert _left_out(tmp_path / "eval") == []


@LEFT_ATRIUM
def test_where_nothing_can_be_segmented_every_scan_is_named(segment, scans):
    for path in scans.iterdir():
        path.write_bytes(b"no image")
    with refused("5 problem(s), nothing was segmented:", "a.nii.gz: cannot be read", "e.nii.gz: cannot be read"):
        segment()


@LEFT_ATRIUM
@pytest.mark.parametrize(("most", "tried"), [(1, {2: 5, 1: 5}), (2, {2: 3, 1: 0})])  # three scans have four windows
def test_where_memory_runs_out_fewer_windows_are_taken_at_once(most, tried, segment, tmp_path, capfd):
    torch.save(Hungry(most).state_dict(), tmp_path / "hungry.pt")
    network = {"network_def": {"_target_": "hungry.Hungry", "most": most}, "ckpt_path": str(tmp_path / "hungry.pt")}
    segment(**network, sw_batch_size=4)
    shown = "".join(capfd.readouterr())
    assert {size: shown.count(f"trying again with --sw_batch_size {size}") for size in tried} == tried
    found = _contents(tmp_path / "eval")
    segment(**network, sw_batch_size=1, output_dir=str(tmp_path / "small"))
    assert found == _contents(tmp_path / "small")
    assert sum(name.endswith("_seg.nii.gz") for name in found) == 5


@LEFT_ATRIUM
def test_a_scan_that_does_not_fit_one_window_at_a_time_is_named(segment, tmp_path):
    torch.save(Hungry(0).state_dict(), tmp_path / "hungry.pt")
    network = {"network_def": {"_target_": "hungry.Hungry", "most": 0}, "ckpt_path": str(tmp_path / "hungry.pt")}
    with refused("5 problem(s), nothing was segmented:", "e.nii.gz: there is not enough memory to segment it"):
        segment(**network)


def test_shares_hold_every_scan_once_the_largest_first(tmp_path):
    for number, size in enumerate([5, 30, 10, 30, 1, 20, 7]):
        (tmp_path / f"{number}.nii").write_bytes(bytes(size))
    cases = [{"image": str(tmp_path / f"{number}.nii"), "case": str(number)} for number in range(7)]
    assert share_out(cases) == cases
    assert [case["case"] for case in share_out(cases, "1/2")] == ["1", "5", "6", "4"]
    assert [case["case"] for case in share_out(cases, "2/2")] == ["3", "2", "0"]
    for count, ranks in ((1, 3), (2, 2), (8, 1), (3, 4)):
        places = [(f"{i}/{count}", rank, ranks) for i in range(1, count + 1) for rank in range(ranks)]
        dealt = sorted(case["case"] for place in places for case in share_out(cases, *place))
        assert dealt == [case["case"] for case in cases]


def test_a_dicom_folder_is_as_large_as_its_files(tmp_path):
    (tmp_path / "series").mkdir()
    for number in range(3):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(bytes(10))
    (tmp_path / "scan.nii").write_bytes(bytes(20))
    cases = [{"image": str(tmp_path / name), "case": name} for name in ("scan.nii", "series")]
    assert [case["case"] for case in share_out(cases, "1/2")] == ["series"]


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_part_that_there_is_not_is_refused(shard):
    with pytest.raises(UserError, match="--shard must be such as 2/8"):
        share_out([], shard)


@LEFT_ATRIUM
def test_jobs_that_do_not_know_of_each_other_share_the_scans_and_the_last_one_writes_the_table(segment, tmp_path):
    segment(output_dir=str(tmp_path / "undisturbed"))
    shares = [_read_by(segment(shard=f"{number}/3")) for number in (3, 1, 2)]
    assert sorted(case for share in shares for case in share) == list("abcde")
    assert max(map(len, shares)) == 2
    assert _contents(tmp_path / "eval") == _contents(tmp_path / "undisturbed")


@LEFT_ATRIUM
def test_the_page_names_what_every_job_left_out_until_it_is_mended(segment, scans, tmp_path):
    for name in "fg":
        (scans / f"{name}.nii.gz").write_bytes(b"no image")
    for number in (1, 2):  # the smallest files are the last that are dealt, one to each job
        with refused("1 problem(s)"):
            segment(shard=f"{number}/2")
    named = [line.partition(":")[0] for line in _left_out(tmp_path / "eval")]
    assert sorted(named) == [str(scans / f"{name}.nii.gz") for name in "fg"]
    for name in "fg":
        (scans / f"{name}.nii.gz").unlink()
    segment()
    assert not _left_out(tmp_path / "eval")


@LEFT_ATRIUM
def test_label_maps_of_other_settings_are_counted(segment, scans, tmp_path, capsys):
    segment()
    write_nifti(tmp_path / "new" / "f.nii.gz", _noise(9))
    assert "with other weights or settings" not in capsys.readouterr().out
    segment(dataset_dir=str(tmp_path / "new"), keep_largest=[])
    assert f"5 scan(s) in {tmp_path / 'eval'} were segmented with other weights or settings" in capsys.readouterr().out
    assert [row["case"] for row in read_csv(tmp_path / "eval" / "volumes.csv")] == ["f"]


def _torchrun(command: list[str]) -> subprocess.CompletedProcess:
    place = command.index("--config_file") + 1
    files = [command[place], command[place].replace("inference.yaml", "multi_gpu_inference.yaml")]
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"]
    command = [*run, *command[:place], str(files), *command[place + 1 :]]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False, cwd=ROOT)


@LEFT_ATRIUM
def test_two_processes_segment_as_one_and_name_together_what_failed(segment, scans, weights, tmp_path):
    segment(output_dir=str(tmp_path / "undisturbed"))
    out = tmp_path / "out"
    done = _torchrun(_command(scans, weights, out))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Segmenting:   0%") == 1  # one process shows bars
    assert done.stdout.count("Predictions:") == 1
    assert _contents(out) == _contents(tmp_path / "undisturbed")
    times = _times(out)
    for name in ("f", "g", "h"):
        (scans / f"{name}.nii.gz").write_bytes(b"no image")
    write_nifti(scans / "i.nii.gz", _noise())
    done = _torchrun(_command(scans, weights, out))
    assert done.returncode == 1
    assert done.stdout.count("5 of 9 scans are done already") == 1
    assert done.stderr.count("error: 6 scan(s) segmented; left out, with 3 problem(s):") == 1
    for name in ("f", "g", "h"):
        assert f"  - {scans / name}.nii.gz: cannot be read" in done.stderr
        assert sum(line.startswith(f"{scans / name}.nii.gz: cannot be read") for line in _left_out(out)) == 1
    assert [row["case"] for row in read_csv(out / "volumes.csv")] == [*"abcde", "i"]
    assert times.items() <= _times(out).items()


@SHORT_AXIS
def test_a_folder_per_patient_gives_a_folder_per_patient(run_bundle, tmp_path):
    torch.save(UNet(base_filters=2, out_channels=4).state_dict(), tmp_path / "untrained.pt")
    for patient in ("patient001", "patient002"):  # as ACDC comes
        folder = tmp_path / "in" / "training" / patient
        (folder / "Info.cfg").parent.mkdir(parents=True)
        (folder / "Info.cfg").write_text("ED: 1")
        for name in (f"{patient}_frame01", f"{patient}_frame01_gt", "scan"):
            write_nifti(folder / f"{name}.nii.gz", _noise(shape=(20, 18, 3)), np.diag([1.4, 1.4, 8, 1]))
        write_nifti(folder / f"{patient}_4d.nii.gz", _noise(shape=(20, 18, 3, 2)), np.diag([1.4, 1.4, 8, 1]))
    options = {"ckpt_path": str(tmp_path / "untrained.pt"), "save_probabilities": True}
    options["output_dir"] = out = str(tmp_path / "in" / "results")
    for _ in range(2):  # results within the folder of scans are no scans
        workflow = run_bundle("inference", ["inference"], dataset_dir=str(tmp_path / "in"), **options)
        written = sorted(str(path.relative_to(out)) for path in Path(out).rglob("*_seg.nii.gz"))
        names = [
            f"training/patient{n}/{name}"
            for n in ("001", "002")
            for name in (f"patient{n}_4d", f"patient{n}_frame01", "scan")
        ]
        assert written == [f"{name}_seg.nii.gz" for name in names]
        assert all((Path(out) / f"{name}_probs.nii.gz").is_file() for name in names)
        assert sorted(row["prediction"] for row in read_csv(Path(out) / "review.csv")) == written
        cases = list(dict.fromkeys(row["case"] for row in read_csv(Path(out) / "volumes.csv")))
        assert cases == [
            *("patient001_4d", "patient001_frame01", "patient001_scan"),
            *("patient002_4d", "patient002_frame01", "patient002_scan"),
        ]
    assert _read_by(workflow) == []
    found = list_scans(tmp_path / "in")
    assert [path.name for path in found.labels] == ["patient001_frame01_gt.nii.gz", "patient002_frame01_gt.nii.gz"]
