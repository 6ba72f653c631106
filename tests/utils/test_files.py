import errno
import multiprocessing
import os

import pytest

from custom.utils.errors import UserError, _print_user_error
from custom.utils.files import refuse_unwritable


def test_places_that_can_be_made_pass_and_are_not_made(tmp_path):
    refuse_unwritable(output_dir=str(tmp_path / "a" / "b"), cache_dir=None, ckpt_dir=[str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_every_place_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError) as caught:
        refuse_unwritable(ckpt_dir=[str(tmp_path), str(tmp_path / "file")], output_dir=str(tmp_path / "file" / "b"))
    assert str(caught.value).count("is a file, not a folder") == 2
    assert "choose another --output_dir" in str(caught.value)


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs a folder in which nothing can be made")
def test_a_folder_that_takes_nothing_whatever_its_permissions_is_named():
    with pytest.raises(UserError, match=r"/proc/x/y: /proc is not writable \(.*\); choose another --output"):
        refuse_unwritable(output="/proc/x/y")


def _try_as_nobody(folder, connection):
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        refuse_unwritable(output_dir=str(folder / "new"))
    except UserError as error:
        connection.send(str(error))
    connection.close()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
def test_a_folder_that_may_not_be_written_is_named(tmp_path):
    tmp_path.chmod(0o555)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=_try_as_nobody, args=(tmp_path, theirs))
    process.start()
    theirs.close()
    assert "is not writable (Permission denied); choose another --output_dir" in ours.recv()
    process.join()
    tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.EACCES, "no permission"), (errno.EROFS, "read-only file system"), (errno.ENOSPC, "disk is full")],
)
def test_what_the_system_says_about_a_place_is_one_line(code, words, capsys):
    try:
        try:
            raise OSError(code, "text", "/some/place")
        except OSError as error:
            raise RuntimeError("Failed to instantiate") from error  # as MONAI does
    except RuntimeError as error:
        _print_user_error(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith("\nerror: /some/place: ")
    assert words in shown
    assert shown.count("\n") == 2
