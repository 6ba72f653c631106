"""A study trains, scores and compares its arms, goes on after a kill, and refuses what would mean nothing."""

import copy
import csv
import fcntl
import functools
import itertools
import json
import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from conftest import BUNDLES, ROOT
from matplotlib.figure import Figure
from monai.bundle import ConfigParser
from monai.data import list_data_collate
from PIL import Image
from starter import start
from torch import nn

from custom.handlers import EXIT_STOPPED
from custom.handlers.schedule import SigmoidRampUp
from custom.report.record import read_run_record
from custom.trainer import CrossMatchTrainer
from custom.utils.errors import UserError
from custom.utils.randomness import private_generators
from tools.study import study
from tools.study.planning import Run
from tools.synthetic import write_hearts

TINY = BUNDLES["crossmatch_acdc"].settings("training", max_iterations=10, val_interval=10, ckpt_interval=2)
#: As small as it gets, by bundle.
SMALL = {"base_filters": 1, "max_iterations": 20, "val_interval": 20, "panel_interval": 100}
ALL_SMALLEST = {
    name: bundle.settings("training", **SMALL, batch_norm_recalibration=2) for name, bundle in BUNDLES.items()
}
SMALLEST = ALL_SMALLEST["crossmatch_acdc"]
ARMS = {"supervised": {"unsupervised_weight": 0.0}, "crossmatch": {}}


@pytest.fixture
def hearts(tmp_path) -> Path:
    return write_hearts(tmp_path / "data", {"training": 2, "unlabeled": 2, "validation": 1}, size=(24, 20, 3))


def _write(folder: Path, hearts: Path, name: str = "study.yaml", **changes) -> Path:
    content = {"bundle": "crossmatch_acdc", "datalist": str(hearts), "seeds": [1], "settings": TINY, "arms": ARMS}
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in (content | changes).items() if v is not ...}, sort_keys=False))
    return path


class InThisProcess:
    """A training or an evaluation without the seconds that a process needs to start."""

    def __init__(self, command: list[str], **_: Any) -> None:
        _run_module(command)

    def poll(self) -> int:
        return 0


class InAFork:
    """A training or an evaluation in a process that has imported all already."""

    def __init__(self, command: list[str], stdout: Any, **_: Any) -> None:
        self.process = start(_run_module, command, log=Path(stdout.name))
        self.terminate = self.process.terminate

    def poll(self) -> int | None:
        return self.process.exitcode


def _run_module(command: list[str]) -> None:
    """What ``python -m`` does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command[2:])
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)


def _replace_process(monkeypatch: pytest.MonkeyPatch, replacement: type) -> None:
    monkeypatch.setattr("tools.study.running.subprocess", SimpleNamespace(Popen=replacement, STDOUT=None))


def _checkpoint(run: Path) -> int:
    """The iteration of the newest checkpoint."""
    files = (run / "models" / "checkpoints").glob("iteration_*.pt")
    return max((int(path.stem.split("_")[1]) for path in files), default=0)


def _wait_until(reached: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)


def _is_free(output: Path) -> bool:
    """Whether no run of a study that is gone is left."""
    with open(output / ".lock") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@pytest.mark.slow
def test_a_study_that_was_killed_and_stopped_goes_on_to_the_same_table(tmp_path, hearts, monkeypatch, capsys):
    """SIGKILL and SIGTERM in the middle of a training; the same study in one go has the same table."""
    settings = SMALLEST | {"max_iterations": 120, "ckpt_interval": 5, "val_interval": 120}
    path = _write(tmp_path, hearts, settings=settings, arms={"crossmatch": {}}, seeds=[3])
    output = tmp_path / "runs"
    run = output / "crossmatch" / "seed_3"
    monkeypatch.chdir(ROOT)
    killed = start(study, str(path), str(output), log=tmp_path / "killed.txt")
    _wait_until(lambda: _checkpoint(run) > 0 or not killed.is_alive())
    killed.kill()
    killed.join()
    _wait_until(lambda: _is_free(output))  # the training has seen the end of the study, and ended too
    first = _checkpoint(run)
    assert "on request; a checkpoint is written" in (run / "log.txt").read_text()
    assert 0 < first < 120, (tmp_path / "killed.txt").read_text()

    def stop() -> None:
        _wait_until(lambda: _checkpoint(run) > first + 5)
        os.kill(os.getpid(), signal.SIGTERM)

    _replace_process(monkeypatch, InAFork)
    threading.Thread(target=stop).start()
    with pytest.raises(SystemExit) as ended:
        study(str(path), str(output))
    assert ended.value.code == EXIT_STOPPED
    log = (run / "log.txt").read_text()
    assert first < _checkpoint(run) < 120, log
    assert f"Stopped after iteration {_checkpoint(run)} on request; a checkpoint is written" in log

    study(str(path), str(output))
    log = (run / "log.txt").read_text()
    assert log.count("Resuming after iteration") == 2, log
    sessions = read_run_record(run / "eval")["sessions"]
    assert len(sessions) == 3
    assert all(session["seconds"] > 0 for session in sessions)
    _replace_process(monkeypatch, InThisProcess)
    study(str(path), str(tmp_path / "whole"))
    for table in ("cases.csv", "summary.csv"):
        tables = [(folder / "comparison" / table).read_text() for folder in (output, tmp_path / "whole")]
        assert tables[0] == tables[1]
    capsys.readouterr()
    study(str(path), str(output))
    assert capsys.readouterr().out.count("finished before") == 1


#: What a training and an evaluation do: fail, meet the other one that runs beside, or leave what they should.
SCRIPT = """
import os, pathlib, sys, time
run_id, run = sys.argv[1], pathlib.Path(sys.argv[2])
begin = time.monotonic()
if (run.parent.name, run_id) == ("broken", "training") and not (run.parents[1] / "mended").exists():
    sys.exit(3)
if run_id == "training" and run.parent.name != "broken":
    (run / "begun").touch()
    while len(list(run.parents[1].glob("*/*/begun"))) < 2 and time.monotonic() < begin + 20:
        time.sleep(0.01)
if run_id == "evaluating":
    (run / "eval").mkdir()
    for name in ("metrics.csv", "report.html"):
        (run / "eval" / name).touch()
print(os.environ["OMP_NUM_THREADS"], begin, time.monotonic())
"""


@pytest.mark.slow
def test_runs_go_side_by_side_and_one_that_fails_stops_no_other(tmp_path, hearts, monkeypatch, capsys):
    compared = []
    monkeypatch.setattr(Run, "command", lambda run, run_id: ["-c", SCRIPT, run_id, str(run.folder)])
    monkeypatch.setattr("tools.study.command.compare_arms", lambda arms, *_, notes: compared.append((arms, notes)))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(6), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = _write(tmp_path, hearts, arms={"broken": {"eta": 0.1}, **ARMS})
    runs = tmp_path / "runs"
    with pytest.raises(SystemExit) as ended:
        study(str(path), str(runs), jobs=2)
    assert ended.value.code == 1
    failure = f"broken/seed_1: training ended with exit code 3, see {runs / 'broken' / 'seed_1' / 'log.txt'}"
    assert capsys.readouterr().out.endswith(f"1 of 3 run(s) failed:\n  - {failure}\n")
    done = {arm: [runs / arm / "seed_1" / "eval"] for arm in ARMS}
    assert compared == [(done, [failure])]
    lines = [line.split() for arm in ARMS for line in (runs / arm / "seed_1" / "log.txt").read_text().splitlines()]
    assert [threads for threads, _, _ in lines] == ["3"] * 4
    first, second = [(float(begin), float(end)) for _, begin, end in lines[::2]]
    assert max(first[0], second[0]) < min(first[1], second[1])

    (runs / "mended").touch()
    study(str(path), str(runs), jobs=2)
    assert capsys.readouterr().out.count("finished before") == 2
    assert list(compared[1][0]) == ["broken", *ARMS]


def test_runs_that_were_only_looked_at_do_not_bind_a_study(tmp_path, hearts):
    path, output = str(_write(tmp_path, hearts)), tmp_path / "runs"
    for seeds in ([1], [1, 2], [1]):
        study(path, str(output), dry_run=True, seeds=seeds)
    assert list(json.loads((output / "study.json").read_text())["runs"]) == ["supervised/seed_1", "crossmatch/seed_1"]
    study(path, str(output), dry_run=True, seeds=[1, 2])
    (output / "supervised" / "seed_2").mkdir(parents=True)
    with pytest.raises(UserError, match="supervised/seed_2: not a run of this study"):
        study(path, str(output), dry_run=True)


def test_a_dry_run_prints_one_command_a_line_and_trains_nothing(tmp_path, hearts, capsys):
    study(str(_write(tmp_path, hearts, seeds=[1, 2])), str(tmp_path / "runs"), dry_run=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("run training" in line and "&& python -m monai.bundle run evaluating" in line for line in lines)
    assert (tmp_path / "runs" / "jobs.txt").read_text().splitlines() == lines
    assert not (tmp_path / "runs" / "supervised").exists()


def test_data_lists_of_the_command_line_take_the_place_of_the_file_s(tmp_path, hearts, capsys):
    lists = [str(hearts.with_name(f"{name}.json")) for name in ("few", "many")]
    for path in lists:
        shutil.copy(hearts, path)
    study(str(_write(tmp_path, hearts)), str(tmp_path / "runs"), dry_run=True, datalist=lists)
    shown = capsys.readouterr().out.splitlines()
    assert [[f"--datalist {path} " in line for path in lists] for line in shown] == 2 * [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"a": {"etaa": 0.1}}}, "arm a: --etaa: did you mean --eta?"),
        ({"arms": {"a": {"eta": 2.0}}}, "arm a: --eta: must be at least 0 and at most 1, got 2."),
        ({"arms": {"a": {}, "b": {"eta": "high"}}}, "arm b: --eta: expected a number, such as --eta 0.3; got high."),
        ({"settings": {"etaa": 0.1}}, "arm supervised, crossmatch: --etaa: did you mean --eta?"),
        ({"arms": {"a": {"loss_weights::distilation": 0.1}}}, "did you mean loss_weights::distillation?"),
        ({"arms": {"a": {"trainn::handlers::0::x": 1}}}, "did you mean train::handlers::0::x?"),
        ({"arms": {"a": {"train::handlers::99::x": 1}}}, "there is no train::handlers::99::x in the bundle's config"),
        ({"arms": {"a": {"seed_::x": 1}}}, "there is no seed_::x"),
        ({"arms": {"a": {"seed": 3}}}, "arm a: seed is given to each run by the study"),
        ({"arms": {"a": {}, "b": {"eta": 0.3}}}, "the arms a and b are equal"),
        ({"arms": {"a": {"unsupervised_weight": 0}, "b": {"unsupervised_weight": 0.0}}}, "a and b are equal"),
        ({"arms": {"../a": {}}}, "an arm's name is that of its folder"),
        ({"arms": ...}, "'arms' must give settings by name"),
        ({"seeds": [1, 2, 1]}, "the seed 1 is given twice"),
        ({"seeds": [1, 2**32]}, "whole numbers from 0 to 4294967295, such as [1, 2, 3]; found [1, 4294967296]"),
        ({"seeds": "1"}, "'seeds' must be a list of whole numbers"),
        ({"bundle": "crossmatch_liver"}, "'bundle' must be one of"),
        ({"overlays": ["fast.yaml"]}, "the overlay fast.yaml is neither"),
        ({"datalist": "absent.json"}, "absent.json: no such data list"),
        ({"baseline": "other"}, "'baseline' must be one of 'supervised', 'crossmatch'; found 'other'"),
        ({"arm": {}}, "the key 'arm' is unknown; did you mean arms?"),
    ],
)
def test_a_study_that_cannot_be_meant_is_refused(tmp_path, hearts, changes, message):
    with pytest.raises(UserError) as error:
        study(str(_write(tmp_path, hearts, **changes)), str(tmp_path / "runs"))
    assert message in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_data_lists_with_other_evaluation_cases_are_refused(tmp_path, hearts):
    content = json.loads(hearts.read_text())
    other = hearts.with_name("other.json")
    other.write_text(json.dumps(content | {"validation": content["validation"][:1]}))
    with pytest.raises(UserError, match="its evaluation cases differ from those of"):
        study(str(_write(tmp_path, hearts, datalist=..., datalists=[str(hearts), str(other)])), str(tmp_path / "runs"))


def test_another_study_s_output_is_refused_and_kept(tmp_path, hearts, capsys):
    output = tmp_path / "runs"
    study(str(_write(tmp_path, hearts)), str(output), dry_run=True)
    before = (output / "study.json").read_text()
    study(str(_write(tmp_path, hearts)), str(output), dry_run=True, num_workers=1)  # computes the same
    with pytest.raises(UserError, match=r"holds another study.*\n.*crossmatch/seed_1: settings there"):
        study(str(_write(tmp_path, hearts, arms=ARMS | {"crossmatch": {"eta": 0.9}})), str(output), dry_run=True)
    with pytest.raises(UserError, match="holds no study"):
        study(str(_write(tmp_path, hearts)), str(hearts.parent), dry_run=True)
    assert (output / "study.json").read_text() == before


STUDIES = pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.yaml")), ids=lambda path: path.stem)
RAMP = {"start": 0.0, "end": 1.0, "delay": 3, "rampup_iterations": 5}


@pytest.mark.slow
@STUDIES
def test_every_study_in_the_repository_runs_and_its_arms_learn_otherwise(path, tmp_path, monkeypatch):
    """Through the study's own commands, with the smallest network and the file's warm-up made short."""
    content = yaml.safe_load(path.read_text())
    assert len(path.read_text().splitlines()) <= 30
    bundle, smallest = BUNDLES[content["bundle"]], ALL_SMALLEST[content["bundle"]]
    (tmp_path / "smallest.yaml").write_text(yaml.safe_dump(smallest | {"unsupervised_weight": RAMP}))
    content["overlays"].append(str(tmp_path / "smallest.yaml"))
    for settings in (content.get("settings", {}), *content["arms"].values()):
        for name in smallest.keys() & settings.keys():
            del settings[name]
        if isinstance(settings.get("unsupervised_weight"), dict):
            settings["unsupervised_weight"] = RAMP
    counts = {"training": 2, "unlabeled": 2, "validation": 1}
    lists = [bundle.write(tmp_path / "data", counts, size=bundle.size)]
    if "datalists" in content:
        cases = json.loads(lists[0].read_text())
        lists.append(lists[0].with_name("one_patient.json"))
        lists[1].write_text(json.dumps(cases | {"training": cases["training"][:2]}))
    given = {"datalist": str(lists[0])} if len(lists) == 1 else {}
    content |= {} if given else {"datalists": list(map(str, lists))}
    (tmp_path / path.name).write_text(yaml.safe_dump(content, sort_keys=False))
    _replace_process(monkeypatch, InThisProcess)
    monkeypatch.setattr("tools.study.running.PAUSE", 0)
    load = functools.cache(ConfigParser.load_config_file)
    monkeypatch.setattr(ConfigParser, "load_config_file", staticmethod(lambda file: copy.deepcopy(load(str(file)))))
    monkeypatch.setattr(Figure, "savefig", lambda _, file, **kwargs: Image.new("RGB", (90, 30)).save(file))  # fast
    study(str(tmp_path / path.name), str(tmp_path / "runs"), seeds=[1], max_iterations=20, **given)
    with open(tmp_path / "runs" / "comparison" / "summary.csv", newline="") as file:
        assert [row["arm"] for row in csv.DictReader(file)] == [arm for arm in content["arms"] for _ in lists]
    models = sorted((tmp_path / "runs").glob("**/seed_1/models/model.pt"))
    weights = [torch.cat([value.flatten().double() for value in torch.load(model).values()]) for model in models]
    assert len(weights) == len(content["arms"]) * len(lists)
    assert not any(torch.equal(*pair) for pair in itertools.combinations(weights, 2))


@STUDIES
def test_every_arm_changes_the_loss_of_one_step(path):
    """One step of each arm, at its full unsupervised weight, on one batch with one confident network."""
    content, losses = yaml.safe_load(path.read_text()), {}
    configs = BUNDLES[content["bundle"]].configs
    for arm, settings in [*content["arms"].items(), ("again", next(iter(content["arms"].values())))]:
        parser = ConfigParser()
        parser.read_config([configs / "train.yaml", *(configs / name for name in content["overlays"])])
        parser.update({"base_filters": 1, "seed": 0, "bundle_root": str(configs.parent), **settings})
        parser.parse(reset=True)
        losses[arm] = _loss_of_one_step(parser)
    assert losses.pop("again") == next(iter(losses.values()))  # nothing else makes them differ
    for first, second in itertools.combinations(losses, 2):
        assert losses[first] != pytest.approx(losses[second], rel=1e-4), (first, second)


def _loss_of_one_step(parser: ConfigParser) -> float:
    with private_generators(0):
        network = parser.get_parsed_content("network_def")
        size = [parser.get_parsed_content("in_channels"), *[16] * len(parser.get_parsed_content("patch_size"))]
        image, unlabeled = torch.rand(2, *size), torch.rand(2, *size)
        strong = parser.get_parsed_content("unlabeled::strong_views").set_random_state(0)
        views = [strong({"image": view}) for view in unlabeled]
    with torch.no_grad():
        for output in [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Conv3d))][-1:]:
            output.weight *= 30  # softmax values on both sides of every threshold
    batch = {"labeled": {"image": image, "label": (image[:, :1] > 0.5).float()}, "unlabeled": list_data_collate(views)}
    trainer = CrossMatchTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters()),
        loss_function=parser.get_parsed_content("loss"),
        cutmix=parser.get_parsed_content("cutmix"),
    )
    for name in ("threshold", "unsupervised_weight"):
        ramp = SigmoidRampUp(name, parser.get_parsed_content(name))
        setattr(trainer.state, name, ramp.value_at(10**9))
    trainer.run()
    return trainer.state.output["loss"].item()
