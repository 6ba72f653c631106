"""One training at a time in a folder."""

import json
import multiprocessing
import os
import platform
import signal

import pytest

from custom.utils.errors import UserError
from custom.utils.lock import LOCK, TrainingLock


def _hold(folders, connection):
    lock = TrainingLock(folders)
    try:
        lock.take()
    except UserError as error:
        connection.send(str(error))
        return
    connection.send("locked")
    connection.recv()
    lock.release()
    connection.send("released")


@pytest.fixture
def other():
    """Another process that takes a lock, says so, and waits for a word to release it."""
    context, started = multiprocessing.get_context("fork"), []

    def start(**folders):
        ours, theirs = context.Pipe()
        process = context.Process(target=_hold, args=(folders, theirs))
        process.start()
        started.append(process)
        return process, ours

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_training_is_told_who_trains_there(tmp_path, other):
    process, connection = other(ckpt_dir=tmp_path)
    assert connection.recv() == "locked"
    with pytest.raises(UserError) as caught:
        TrainingLock({"ckpt_dir": str(tmp_path)}).take()
    assert f"process {process.pid} on {platform.node()} since 20" in str(caught.value)
    assert "choose another --ckpt_dir" in str(caught.value)
    connection.send("release")
    assert connection.recv() == "released"
    lock = TrainingLock({"ckpt_dir": str(tmp_path)})
    lock.take()
    assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()
    lock.release()
    assert not (tmp_path / LOCK).exists()


def test_two_trainings_do_not_share_an_output_folder_either(tmp_path, other):
    _, connection = other(ckpt_dir=tmp_path / "a", output_dir=tmp_path / "out")
    assert connection.recv() == "locked"
    with pytest.raises(UserError, match="choose another --output_dir"):
        TrainingLock({"ckpt_dir": str(tmp_path / "b"), "output_dir": str(tmp_path / "out")}).take()
    assert not (tmp_path / "b" / LOCK).exists()  # nothing of the one that was refused stays


def test_the_lock_of_a_killed_training_is_taken_over_though_its_number_is_another_s_now(tmp_path, other):
    process, connection = other(ckpt_dir=tmp_path)
    assert connection.recv() == "locked"
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    left = json.loads((tmp_path / LOCK).read_text())
    assert left["process"] == process.pid
    (tmp_path / LOCK).write_text(json.dumps(left | {"process": os.getppid()}))  # a process that lives
    lock = TrainingLock({"ckpt_dir": str(tmp_path)})
    lock.take()
    lock.release()


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_lock_that_was_cut_off_while_it_was_written_is_taken_over(content, tmp_path):
    (tmp_path / LOCK).write_text(content)
    lock = TrainingLock({"ckpt_dir": str(tmp_path)})
    lock.take()
    lock.release()


def test_a_lock_of_another_machine_is_left_to_the_user(tmp_path):
    (tmp_path / LOCK).write_text(json.dumps({"host": "elsewhere", "process": 7, "since": "2026-01-01"}))
    with pytest.raises(UserError, match=r"process 7 on elsewhere since 2026-01-01.* if it has ended, remove .*lock"):
        TrainingLock({"ckpt_dir": str(tmp_path)}).take()
    (tmp_path / LOCK).unlink()
    lock = TrainingLock({"ckpt_dir": str(tmp_path)})
    lock.take()
    lock.release()


def test_a_process_may_train_again_where_it_trained(tmp_path):
    first, second = (TrainingLock({"ckpt_dir": str(tmp_path)}) for _ in range(2))
    first.take()
    second.take()
    second.release()
    first.release()
    assert not (tmp_path / LOCK).exists()


def test_only_the_first_of_the_processes_that_train_together_locks(tmp_path, monkeypatch):
    monkeypatch.setattr("custom.utils.lock.is_first", lambda: False)
    TrainingLock({"ckpt_dir": str(tmp_path)}).take()
    assert not (tmp_path / LOCK).exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/models: cannot be written to .*choose another --ckpt_dir"):
        TrainingLock({"ckpt_dir": str(tmp_path / "file" / "models")}).take()
