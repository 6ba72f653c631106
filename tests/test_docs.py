"""The commands of the documentation run, on synthetic scans and with tiny settings."""

import re
import runpy
import shlex
import shutil

import pytest
from conftest import BUNDLES, ROOT
from starter import run_command

from custom.losses import PAIRS
from tools.synthetic import write_dataset

STEP = ROOT / "docs" / "figures" / "step.svg"


def _commands(page: str) -> list[str]:
    """The page's commands, each a line."""
    blocks = re.findall(r"```\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(("crossmatch ", "python -m "))]


@pytest.mark.slow
def test_own_data_guide_leads_from_scans_to_predictions(tmp_path):
    datalist = write_dataset(tmp_path / "made", {"training": 5, "unlabeled": 3}, size=(24, 24, 20))
    shutil.copytree(datalist.parent / "images", tmp_path / "scans")
    shutil.copytree(datalist.parent / "labels", tmp_path / "labels")
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    prepare, *others = _commands("own_data.md")
    rest = [command for command in others if command.startswith("python ")]
    done = run_command("tools", *shlex.split(prepare)[1:], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("python ")] == rest
    done = run_command("tools", "prepare", "check", "data/own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[2:] for line in rest]
    assert [command[2] for command in commands] == ["training", "evaluating", "inference"]
    for command in commands:
        settings = BUNDLES["crossmatch_la"].settings(command[2], num_workers=0, class_names=["foreground"])
        command += [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        done = run_command(*command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert re.findall("NvImgCodec.*|.*Warning.*", done.stdout + done.stderr) == []
    (suggest,) = [command for command in others if command.startswith("crossmatch suggest")]
    words = shlex.split(suggest.replace("--count 10", "--count 2"))
    done = run_command("tools", *words[1:], "--amp", "false", "--device", "cpu", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "runs" / "next" / "to_label").iterdir())) == 2
    assert (tmp_path / "runs" / "own" / "metrics.csv").is_file()
    assert len(list((tmp_path / "runs" / "own" / "predictions").glob("*_seg.nii.gz"))) == 8


def test_flags_are_written_as_yaml_writes_them():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("bundles/*/docs/*.md")]
    texts = {path: path.read_text() for path in [*pages, *(ROOT / "custom").glob("*.py")]}
    # The benchmarks are read by Fire, which knows True and False only.
    found = {path.name: re.findall(r"--(?!one_process)\w+[ =](?:True|False)\b", text) for path, text in texts.items()}
    assert {name: flags for name, flags in found.items() if flags} == {}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "bundles").glob("*/configs/*.yaml")), ids=lambda path: f"{path.parts[-3]}-{path.stem}"
)
def test_configs_fit_a_screen_and_find_the_package_once(path):
    lines = path.read_text().splitlines()
    assert [line for line in lines if len(line) > 120] == []
    assert sum("_requires_" in line for line in lines) <= 2  # the network and the checks
    assert [line for line in lines if line.startswith("- $@_code_path")] == []


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("bundles/*/docs/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    for link in links:
        target, _, anchor = link.partition("#")
        if re.match(r"https?:|mailto:", link):
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}, link


def test_the_figure_of_the_step_shows_every_pair_as_it_is(tmp_path):
    script = runpy.run_path(str(ROOT / "docs" / "figures" / "step.py"))
    script["draw"](tmp_path / "step.svg")
    drawn, kept = (re.findall(r'id="(pair-\w+)"', path.read_text()) for path in (tmp_path / "step.svg", STEP))
    assert drawn == kept == [f"pair-{pair.name}" for pairs in PAIRS.values() for pair in pairs]
