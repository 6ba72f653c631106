"""A training that is cut off goes on as if nothing had happened."""

import json
import os
import random
import re
import shutil
import signal
import time
import zipfile
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from conftest import BUNDLES, LEFT_ATRIUM, SHORT_AXIS, refused
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from starter import finish, start

from custom.handlers import EXIT_STOPPED, Checkpoints
from custom.report.pages import read_curves
from custom.report.record import training_seconds
from custom.utils.errors import UserError

#: What a checkpoint has to bring back: momentum, schedules, averaged weights, re-estimated batch norm, the best metric.
SETTINGS = {
    "max_iterations": 40,
    "ckpt_interval": 3,
    "val_interval": 5,
    "panel_interval": 1000,
    "ema_decay": 0.9,
    "batch_norm_recalibration": 3,
    "unsupervised_weight": {"start": 0.0, "end": 1.0, "delay": 6, "rampup_iterations": 10},
}
WEIGHTS = ("model.pt", "model_best.pt", "model_ema.pt")


def _settings(datalist: Path, folder: Path, **changes) -> dict:
    places = {"datalist": str(datalist), "ckpt_dir": str(folder / "models"), "output_dir": str(folder / "eval")}
    return BUNDLES["crossmatch_acdc"].settings("training", **SETTINGS | places | changes)


def _start(datalist: Path, folder: Path, **changes) -> BaseProcess:
    folder.mkdir(exist_ok=True)
    return start(_train, _settings(datalist, folder, **changes), log=folder / "log.txt")


def _train(settings: dict) -> None:
    workflow = ConfigWorkflow(str(BUNDLES["crossmatch_acdc"].configs / "train.yaml"), run_id="training", **settings)
    workflow.initialize()
    workflow.run()


def _wait_for(found, process: BaseProcess, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not found() and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.002)


def _states(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {name: torch.load(folder / "models" / name, weights_only=True) for name in WEIGHTS}


def _newest(folder: Path) -> int:
    numbers = [int(path.stem.split("_")[1]) for path in (folder / "models" / "checkpoints").glob("iteration_*.pt")]
    return max(numbers, default=0)


def _is_writing(folder: Path) -> bool:
    return any((folder / "models" / "checkpoints").glob(".part-*"))


def _assert_same(states, expected) -> None:
    for name in WEIGHTS:
        assert states[name].keys() == expected[name].keys()
        assert all(torch.equal(value, expected[name][key]) for key, value in states[name].items()), name


@SHORT_AXIS
def test_a_training_killed_again_and_again_ends_with_the_same_weights_bit_by_bit(tiny_dataset, tmp_path):
    """At ten random moments, every third of them while a checkpoint is being written."""
    whole = tmp_path / "whole"
    assert finish(_start(tiny_dataset, whole)) == 0, _log(whole)

    moments, broken = random.Random(1), tmp_path / "broken"
    kills, writing = 0, 0
    while kills < 10:
        process = _start(tiny_dataset, broken, num_workers=kills % 2)
        before = _newest(broken)
        if kills % 3 == 0:
            _wait_for(lambda: _is_writing(broken), process)
        else:
            # A new checkpoint is written now and then, so that the training gets on; between, any moment is good.
            _wait_for(lambda before=before: _newest(broken) > before, process)
            time.sleep(moments.uniform(0, 0.3))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
        writing += _is_writing(broken)
    print(
        f"{kills} kills, {writing} of them while a checkpoint was written, the last after iteration {_newest(broken)}"
    )
    assert kills == 10, _log(broken)
    assert finish(_start(tiny_dataset, broken)) == 0, _log(broken)
    _assert_same(_states(broken), _states(whole))
    assert not _is_writing(broken)
    assert "Resuming after iteration" in _log(broken)


@SHORT_AXIS
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_request_to_stop_writes_a_checkpoint_and_exits_with_its_own_code(stop, tiny_dataset, tmp_path):
    long = {"ckpt_interval": 1000, "max_iterations": 400, "num_workers": 1}
    process = _start(tiny_dataset, tmp_path, **long)
    _wait_for(lambda: re.search(r"\| [1-9]\d*/400", _log(tmp_path)), process)
    assert _newest(tmp_path) == 0
    for worker in _children(process.pid):  # some clusters, and every terminal, signal every process of a job
        os.kill(worker, stop)
    time.sleep(0.2)  # a worker that obeys is gone by now
    os.kill(process.pid, stop)
    assert finish(process) == EXIT_STOPPED == 75
    assert _newest(tmp_path) > 0
    assert f"Stopped after iteration {_newest(tmp_path)} on request" in _log(tmp_path)
    assert not re.search("Traceback|ERROR", _log(tmp_path))
    assert not list(tmp_path.rglob("training.lock"))


def _stop_twice(folder: Path) -> None:
    def step(engine, batch):
        os.kill(os.getpid(), signal.SIGINT)
        (folder / "after the first").touch()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)
        (folder / "after the second").touch()

    trainer = Engine(step)
    trainer.state.epoch_length, trainer.state.max_epochs = 4, 1
    checkpoints = Checkpoints(str(folder / "checkpoints"), {"network": torch.nn.Linear(2, 2)}, {}, max_iterations=9)
    checkpoints.attach(trainer)
    with checkpoints.stop_request:
        trainer.run([None] * 4)


def test_a_second_interrupt_ends_at_once(tmp_path):
    assert finish(start(_stop_twice, tmp_path, log=tmp_path / "log.txt")) == -signal.SIGINT
    assert (tmp_path / "after the first").exists()
    assert not (tmp_path / "after the second").exists()
    assert "Ctrl-C again ends at once" in _log(tmp_path)


@SHORT_AXIS
def test_a_second_training_in_the_same_folder_is_refused_and_the_first_goes_on(tiny_dataset, tmp_path):
    first = _start(tiny_dataset, tmp_path, max_iterations=400, ckpt_interval=1000)
    _wait_for(lambda: (tmp_path / "models" / "training.lock").is_file(), first)
    second = start(_train, _settings(tiny_dataset, tmp_path, seed=2), log=tmp_path / "second.txt")
    assert finish(second) == 1
    assert f"another training is running there, process {first.pid} on" in (tmp_path / "second.txt").read_text()
    _wait_for(lambda: re.search(r"\| [1-9]\d*/400", _log(tmp_path)), first)
    os.kill(first.pid, signal.SIGTERM)
    assert finish(first) == EXIT_STOPPED
    assert json.loads((tmp_path / "eval" / "run.json").read_text())["seed"] != 2


@SHORT_AXIS
@pytest.mark.parametrize(("flag", "cache"), [("ckpt_dir", "memory"), ("output_dir", "memory"), ("cache_dir", "disk")])
def test_a_training_without_a_place_for_its_results_does_not_start(flag, cache, run_bundle, tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    with refused(f"is a file, not a folder; choose another --{flag}"):
        _run_times(run_bundle, tiny_dataset, cache=cache, **{flag: str(tmp_path / "file" / "models")})
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file"]


@SHORT_AXIS
@pytest.mark.parametrize(("run", "configs"), [("evaluating", ["train", "evaluate"]), ("inference", ["inference"])])
def test_results_without_a_place_are_not_computed(run, configs, run_bundle, tiny_dataset, tmp_path):
    (tmp_path / "file").write_text("")
    data = {"dataset_dir" if run == "inference" else "datalist": str(tiny_dataset)}
    with refused("is a file, not a folder; choose another --output_dir"):
        run_bundle(run, configs, output_dir=str(tmp_path / "file" / "out"), **data)


@SHORT_AXIS
@pytest.mark.parametrize(("run", "configs"), [("evaluating", ["train", "evaluate"]), ("inference", ["inference"])])
def test_missing_weights_are_named_before_a_scan_is_read(run, configs, run_bundle, tiny_dataset, tmp_path, capsys):
    data = {"dataset_dir" if run == "inference" else "datalist": str(tiny_dataset)}
    with refused("none.pt: no such weights; train first, or set --ckpt_path"):
        run_bundle(run, configs, ckpt_path=str(tmp_path / "none.pt"), **data)
    assert "Checking" not in capsys.readouterr().err


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _log(folder: Path) -> str:
    path = folder / "log.txt"
    return path.read_text() if path.is_file() else ""


def _run_times(run_bundle, tiny_dataset, **settings):
    return run_bundle("training", ["train"], datalist=str(tiny_dataset), **{"ckpt_interval": 1} | settings)


def _trainer(workflow):
    return workflow.parser.get_parsed_content("train::trainer")


@SHORT_AXIS
def test_a_finished_training_says_so_and_does_nothing(run_bundle, tiny_dataset, tmp_path, capsys):
    _run_times(run_bundle, tiny_dataset)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    workflow = _run_times(run_bundle, tiny_dataset)
    assert "this training is finished, after 3 iterations; nothing to do" in capsys.readouterr().out
    assert _trainer(workflow).state.iteration == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == before
    _run_times(run_bundle, tiny_dataset, resume=False)
    assert sorted(path.name for path in (tmp_path / "models" / "checkpoints_previous").iterdir()) == [
        "iteration_00000002.pt",
        "iteration_00000003.pt",
    ]


@SHORT_AXIS
def test_results_of_two_trainings_do_not_share_a_folder(run_bundle, tiny_dataset, tmp_path):
    first = _run_times(run_bundle, tiny_dataset)
    record = Path(first.parser["output_dir"]) / "run.json"
    before = record.read_bytes()
    other, data = str(tmp_path / "other"), {"datalist": str(tiny_dataset)}
    theirs = os.path.realpath(first.parser["ckpt_dir"])
    with refused(f"{record} is of the training in {theirs}, and {other}/model.pt lies elsewhere"):
        _run_times(run_bundle, tiny_dataset, ckpt_dir=other)
    assert record.read_bytes() == before
    assert not Path(other).exists()
    _run_times(run_bundle, tiny_dataset, ckpt_dir=other, output_dir=str(tmp_path / "other_eval"))
    with refused("choose another --output_dir"):
        run_bundle("evaluating", ["train", "evaluate"], ckpt_path=f"{other}/model.pt", **data)
    run_bundle("evaluating", ["train", "evaluate"], ckpt_path=f"{first.parser['ckpt_dir']}/model_best.pt", **data)
    for name, put in (("copied", shutil.copytree), ("moved", shutil.move)):
        for folder in ("models", "eval"):
            put(tmp_path / folder, tmp_path / name / folder)
        there = {"ckpt_dir": str(tmp_path / name / "models"), "output_dir": str(tmp_path / name / "eval")}
        run_bundle("evaluating", ["train", "evaluate"], **there, **data)


@SHORT_AXIS
def test_a_finished_training_goes_on_when_more_iterations_are_asked_for(run_bundle, tiny_dataset):
    schedule = {"schedule_iterations": 10}
    _run_times(run_bundle, tiny_dataset, **schedule)
    iterations = []
    workflow = _run_times(run_bundle, tiny_dataset, **schedule, max_iterations=5)
    iterations.append(_trainer(workflow).state.iteration)
    record = json.loads((Path(workflow.parser["output_dir"]) / "run.json").read_text())
    assert [session["after_iteration"] for session in record["sessions"]] == [0, 3]
    seconds = [session["seconds"] for session in record["sessions"]]
    assert min(seconds) > 0
    assert training_seconds(record) == sum(seconds)
    assert iterations == [5]


@SHORT_AXIS
def test_another_configuration_is_refused_and_the_differing_keys_are_shown(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")}
    with refused(
        "is of another configuration",
        "eta: there 0.3, now 0.5",
        "schedule_iterations: there 3, now 9; the learning rate falls to 0 over these",
    ) as error:
        _run_times(run_bundle, tiny_dataset, eta=0.5, max_iterations=9)
    assert "num_workers" not in str(error.getrepr(chain=True))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pt")} == before


def _inside_the_largest_tensor(path: Path) -> int:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        with archive.open(largest) as record:
            return path.read_bytes().index(record.read()) + largest.file_size // 2


@SHORT_AXIS
@pytest.mark.parametrize("damage", ["cut off", "one byte"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(damage, run_bundle, tiny_dataset, tmp_path, capsys):
    _run_times(run_bundle, tiny_dataset, schedule_iterations=10)
    expected = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    newest = tmp_path / "models" / "checkpoints" / "iteration_00000003.pt"
    content = bytearray(newest.read_bytes())
    if damage == "cut off":
        content = content[: len(content) // 2]
    else:
        content[_inside_the_largest_tensor(newest)] ^= 1
    newest.write_bytes(content)
    workflow = _run_times(run_bundle, tiny_dataset, schedule_iterations=10)
    shown = capsys.readouterr().out
    assert "iteration_00000003.pt is damaged" in shown
    assert "Resuming after iteration 2" in shown
    assert _trainer(workflow).state.iteration == 3
    state = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(value, expected[key]) for key, value in state.items())


@SHORT_AXIS
def test_weights_from_before_a_training_are_not_scored_as_its_own(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset)
    record = tmp_path / "eval" / "run.json"
    content = json.loads(record.read_text())
    content["sessions"][0]["started"] = "2099-01-01T00:00:00+00:00"  # as if a second training had begun and stopped
    record.write_text(json.dumps(content))
    with refused("model.pt: is from before the training that"):
        run_bundle("evaluating", ["train", "evaluate"], datalist=str(tiny_dataset))
    assert not (tmp_path / "eval" / "metrics.csv").exists()
    other = str(tmp_path / "other")
    run_bundle("evaluating", ["train", "evaluate"], datalist=str(tiny_dataset), output_dir=other)


@SHORT_AXIS
def test_settings_of_a_finished_training_are_written_again(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset)
    settings = tmp_path / "models" / "model.json"
    before = settings.read_bytes()
    settings.unlink()
    _run_times(run_bundle, tiny_dataset)
    assert settings.read_bytes() == before


@SHORT_AXIS
def test_where_all_checkpoints_are_damaged_nothing_is_trained_unless_asked(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset)
    folder, weights = tmp_path / "models" / "checkpoints", tmp_path / "models" / "model.pt"
    for path in folder.iterdir():
        path.write_bytes(b"damaged")
    before = weights.read_bytes()
    with refused(f"{folder}: none of the 2 checkpoint(s) can be read, so training cannot resume"):
        _run_times(run_bundle, tiny_dataset, schedule_iterations=10)
    assert weights.read_bytes() == before
    workflow = _run_times(run_bundle, tiny_dataset, resume=False)
    assert _trainer(workflow).state.iteration == 3
    assert len(list(folder.with_name("checkpoints_previous").iterdir())) == 2


@SHORT_AXIS
def test_a_training_that_starts_anew_keeps_all_checkpoints_of_those_before(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset)
    for seed in (2, 3):
        _run_times(run_bundle, tiny_dataset, resume=False, seed=seed)
    folders = sorted(path.name for path in (tmp_path / "models").glob("checkpoints*"))
    assert folders == ["checkpoints", "checkpoints_previous", "checkpoints_previous_2"]
    seeds = [json.loads(_newest_content(tmp_path / "models" / name)["config"])["seed"] for name in folders]
    assert seeds == [3, 1337, 2]


def _newest_content(folder: Path) -> dict:
    return torch.load(max(folder.iterdir()), weights_only=True)


@SHORT_AXIS
def test_curves_are_of_the_training_that_started_anew_alone(run_bundle, tiny_dataset, tmp_path):
    """Killed before the first checkpoint, or on purpose; what came from the other one is forgotten."""
    settings = {"val_interval": 1, "schedule_iterations": 10}
    _run_times(run_bundle, tiny_dataset, max_iterations=4, **settings)
    time.sleep(1.1)  # TensorBoard names its files by the second
    _run_times(run_bundle, tiny_dataset, max_iterations=2, resume=False, **settings)
    assert [step for step, _ in read_curves(tmp_path / "eval")["val_mean_dice"]] == [1, 2]


@SHORT_AXIS
def test_weights_of_a_finished_training_that_were_removed_are_written_again(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset, ema_decay=0.9)
    paths = [tmp_path / "models" / name for name in ("model.pt", "model_ema.pt")]
    expected = [torch.load(path, weights_only=True) for path in paths]
    for path in paths:
        path.unlink()
    _run_times(run_bundle, tiny_dataset, ema_decay=0.9)
    for path, state in zip(paths, expected, strict=True):
        found = torch.load(path, weights_only=True)
        assert found.keys() == state.keys()
        assert all(torch.equal(value, state[name]) for name, value in found.items())


@SHORT_AXIS
def test_a_request_to_stop_before_the_first_iteration_has_the_same_exit_code(tiny_dataset, tmp_path):
    process = _start(tiny_dataset, tmp_path, start_from="$[print('not yet'), __import__('time').sleep(60)]")
    _wait_for(lambda: "not yet" in _log(tmp_path), process)
    process.terminate()
    assert finish(process) == EXIT_STOPPED
    assert not list(tmp_path.rglob("training.lock"))


@SHORT_AXIS
def test_an_end_before_the_newest_checkpoint_is_refused(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset, schedule_iterations=10)
    (tmp_path / "models" / "checkpoints" / "iteration_00000003.pt").unlink()  # as if it had been killed before
    with refused("is already past --max_iterations 2"):
        _run_times(run_bundle, tiny_dataset, schedule_iterations=10, max_iterations=2)


@SHORT_AXIS
def test_a_resumed_training_does_not_overwrite_a_better_model(run_bundle, tiny_dataset, tmp_path):
    settings = {"val_interval": 1, "schedule_iterations": 10}
    _run_times(run_bundle, tiny_dataset, **settings)
    path = tmp_path / "models" / "checkpoints" / "iteration_00000003.pt"
    content = torch.load(path, weights_only=True)
    assert 0 <= content["parts"]["best_weights"]["metric"] < 0.9
    content["parts"]["best_weights"] = {"metric": 0.9, "iteration": 2}  # as if it had been that good
    torch.save(content, path)
    before = (tmp_path / "models" / "model_best.pt").read_bytes()
    workflow = _run_times(run_bundle, tiny_dataset, **settings, max_iterations=6)
    assert workflow.parser.get_parsed_content("validate::evaluator").state.metrics["val_mean_dice"] < 0.9
    assert (tmp_path / "models" / "model_best.pt").read_bytes() == before


@SHORT_AXIS
def test_the_best_weights_score_what_they_scored_in_validation(run_bundle, tiny_dataset, tmp_path):
    settings = {"val_interval": 1, "max_iterations": 6, "batch_norm_recalibration": 2, "learning_rate": 0.05}
    workflow = _run_times(run_bundle, tiny_dataset, **settings)
    best = workflow.parser.get_parsed_content("best_weights").best
    assert 1 <= best["iteration"] <= 6
    evaluated = run_bundle(
        "evaluating",
        ["train", "evaluate"],
        datalist=str(tiny_dataset),
        evaluation_list="validation",
        ckpt_path=str(tmp_path / "models" / "model_best.pt"),
    )
    metrics = evaluated.parser.get_parsed_content("validate::evaluator").state.metrics
    assert metrics["val_mean_dice"] == pytest.approx(best["metric"], abs=1e-6)


@LEFT_ATRIUM
def test_averaged_weights_are_written_when_asked_for(run_bundle, tiny_dataset, tmp_path):
    _run_times(run_bundle, tiny_dataset, ema_decay=0.5, max_iterations=2)
    last, average = (torch.load(tmp_path / "models" / name, weights_only=True) for name in WEIGHTS[::2])
    assert last.keys() == average.keys()
    assert not torch.equal(last["head.weight"], average["head.weight"])


@SHORT_AXIS
@pytest.mark.parametrize("end", ["failure", "stop"])
def test_signals_do_what_they_did_before_once_training_has_ended(end, tiny_dataset, tmp_path):
    def end_it(engine):
        if end == "failure":
            raise RuntimeError("out of memory")
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    configs = str(BUNDLES["crossmatch_acdc"].configs / "train.yaml")
    workflow = ConfigWorkflow(configs, run_id="training", **_settings(tiny_dataset, tmp_path))
    workflow.initialize()
    _trainer(workflow).add_event_handler(Events.ITERATION_STARTED(once=2), end_it)
    with pytest.raises((RuntimeError, SystemExit)):
        workflow.run()
    assert signal.getsignal(signal.SIGINT) == before


def test_settings_that_would_lose_a_run_are_refused(tmp_path):
    for wrong in ({"interval": 0}, {"n_saved": 1}):
        with pytest.raises(UserError, match="--ckpt_interval must be at least 1 and --n_saved at least 2"):
            Checkpoints(str(tmp_path), {"network": None}, {}, max_iterations=1, **wrong)


@SHORT_AXIS
def test_a_checkpoint_is_not_executed(run_bundle, tiny_dataset, tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    folder = tmp_path / "models" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"iteration": Hostile()}, folder / "iteration_00000002.pt")
    assert zipfile.is_zipfile(folder / "iteration_00000002.pt")
    with refused("none of the 1 checkpoint(s) can be read"):
        _run_times(run_bundle, tiny_dataset)
    assert "is damaged" in capsys.readouterr().out
    assert not (tmp_path / "executed").exists()


def _plain_trainer(folder: Path, losses: list[float], **parts) -> tuple[Engine, Checkpoints]:
    """An engine whose iterations give these losses; after the last one it is asked to stop."""
    engine = Engine(lambda engine, batch: {"loss": torch.tensor(losses[engine.state.iteration - 1])})
    engine.state.dataloader, engine.state.epoch_length, engine.state.max_epochs = [None] * 4, 4, 1
    checkpoints = Checkpoints(str(folder), {"network": torch.nn.Linear(2, 2), **parts}, {}, max_iterations=9)
    at_the_end = Events.ITERATION_COMPLETED(once=len(losses))
    engine.add_event_handler(at_the_end, lambda: setattr(checkpoints.stop_request, "made", True))
    checkpoints.attach(engine)
    return engine, checkpoints


@pytest.mark.parametrize("loss", [0.5, float("nan")])
def test_a_stop_on_request_does_not_write_spoilt_weights(loss, tmp_path, capsys):
    """On a GPU the loss is looked at every few iterations only; a stop may come in between."""
    _, checkpoints = _plain_trainer(tmp_path / "checkpoints", [0.5, loss])
    with pytest.raises(SystemExit) as stopped:
        checkpoints.train()
    assert stopped.value.code == EXIT_STOPPED
    written = [path.name for path in (tmp_path / "checkpoints").glob("*.pt")]
    assert written == (["iteration_00000002.pt"] if loss == 0.5 else [])
    assert ("so no checkpoint is written" in capsys.readouterr().out) == (loss != 0.5)


def test_a_training_goes_on_where_gradients_need_scaling_or_no_longer_do(tmp_path):
    for before, now in ((False, True), (True, False)):
        folder = tmp_path / str(now) / "checkpoints"
        _, checkpoints = _plain_trainer(folder, [0.5, 0.5], scaler=torch.amp.GradScaler("cpu", enabled=before))
        with pytest.raises(SystemExit):
            checkpoints.train()
        trainer, _ = _plain_trainer(folder, [0.5], scaler=torch.amp.GradScaler("cpu", enabled=now))
        assert trainer.state.iteration == 2
