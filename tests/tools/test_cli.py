"""Our own commands refuse what they do not know before they do anything."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from custom.utils.errors import UserError
from tools.__main__ import COMMANDS, main
from tools.cli import run

DONE = []


def segment(*files: str, output: str = "out", overwrite: bool = False):
    """Do it."""
    DONE.append((files, output, overwrite))


@pytest.fixture(autouse=True)
def nothing_done():
    DONE.clear()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--outptu", "x"], "unknown flag --outptu; did you mean --output?"),
        (["--zzz"], "unknown flag --zzz; see --help"),
        (["--overwrite", "maybe"], "--overwrite: expected true or false"),
    ],
)
def test_unknown_flags_are_refused_before_anything_is_done(flags, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segment", "a", *flags])
    with pytest.raises(UserError, match=re.escape(message)):
        run(segment)
    assert not DONE


def test_known_flags_are_read(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segment", "a", "b", "--output", "1e3", "--overwrite"])
    run(segment)
    assert DONE == [(("a", "b"), "1e3", True)]


@pytest.mark.parametrize("name", ["20240611", "-", "a,b", "#1", "it's", "True", "1e3", "a=b", "[x", "C:\\new"])
def test_texts_are_taken_as_they_are(name, monkeypatch):
    for flags in (["--output", name], [f"--output={name}"]):
        monkeypatch.setattr(sys, "argv", ["segment", name, *flags])
        run(segment)
    assert [*DONE] == [((name,), name, False)] * 2


def test_paths_may_begin_with_the_users_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["segment", "~/a", "--output=~/out"])
    run(segment)
    assert [((f"{tmp_path}/a",), f"{tmp_path}/out", False)] == DONE


@pytest.mark.parametrize(("word", "value"), [("no", False), ("off", False), ("true", True), ("yes", True)])
def test_booleans_are_read_as_yaml_does(word, value, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segment", "a", f"--overwrite={word}"])
    run(segment)
    assert [(("a",), "out", value)] == DONE


def test_a_flag_without_its_value_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["segment", "a", "--output"])
    with pytest.raises(UserError, match="--output: expected a text, such as TEXT; got no value"):
        run(segment)


def test_all_commands_have_one_name(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crossmatch"])
    main()
    printed = capsys.readouterr().out
    assert all(command in printed for command in COMMANDS)
    monkeypatch.setattr(sys, "argv", ["crossmatch", "prepar"])
    with pytest.raises(SystemExit, match=r"unknown command prepar; did you mean prepare\?"):
        main()


def test_help_that_nobody_reads_to_its_end_ends_quietly():
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "tools", "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_there(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["crossmatch", command, "given", "--output", "x", "--help"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    printed = "".join(capsys.readouterr())
    assert not [word for word in ("refused", "GROUP", "FIRE_METADATA", "'str", "Optional[co") if word in printed]
