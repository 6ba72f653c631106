import errno
import logging

import pytest
import torch
from conftest import LEFT_ATRIUM, refused
from ignite.engine import Engine, Events

from custom.handlers.guards import CollapseWarning, NonFiniteGuard, SizeAdvice
from custom.utils.errors import UserError


def _engine(outputs: list[dict], device: str = "cpu") -> Engine:
    """An engine whose iterations give these outputs; an exception is raised."""

    def step(engine, batch):
        output = outputs[engine.state.iteration - 1]
        if isinstance(output, BaseException):
            raise output
        return {name: torch.tensor(value) for name, value in output.items()}

    engine = Engine(step)
    engine.state.device = torch.device(device)
    return engine


def _run(engine: Engine, count: int) -> None:
    engine.add_event_handler(Events.EXCEPTION_RAISED, _raise)  # last, as the trainer does
    engine.run([{"labeled": {"case": [f"case {i}"]}, "unlabeled": {"case": ["other"]}} for i in range(1, count + 1)])


def _raise(_: Engine, error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_iteration_cases_and_terms(value):
    engine = _engine([{"loss": 0.5}, {"loss": value, "supervised": value, "threshold": 0.5}, {"loss": 0.5}])
    NonFiniteGuard().attach(engine)
    with pytest.raises(UserError, match=r"(?s)loss of iteration 2 .*Cases in the batch: case 2, other\. Terms:.*"):
        _run(engine, 3)
    assert engine.state.iteration == 2


def test_on_a_gpu_the_loss_is_looked_at_now_and_then_and_none_is_missed():
    guard, looks = NonFiniteGuard(every=4, before=[3]), []
    engine = Engine(lambda engine, batch: {"loss": torch.empty((), device="meta")})  # not on the CPU, as a GPU's
    guard._look = lambda engine: looks.append(engine.state.iteration)
    guard.attach(engine)
    _run(engine, 10)
    assert looks == [3, 4, 6, 8, 9, 10]
    assert [step.iteration for step in guard.steps] == list(range(1, 11))


@LEFT_ATRIUM
def test_training_stops_at_a_bad_loss_and_keeps_the_checkpoint_before(run_bundle, tiny_dataset, tmp_path):
    """The weights are spoilt after the third iteration; a checkpoint is due after the second and the fourth."""
    spoil = "lambda engine: [p.data.fill_(float('nan')) for p in engine.network.parameters()]"
    steps = [
        "$@best_weights.attach(@train::trainer)",
        "$@checkpoints.attach(@train::trainer)",
        f"$@train::trainer.add_event_handler(ignite.engine.Events.ITERATION_COMPLETED(once=3), {spoil})",
        "$@train::trainer.run()",
    ]
    settings = {
        "max_iterations": 6,
        "ckpt_interval": 2,
        "val_interval": 10,
        "training": steps,
        "imports": ["$import ignite"],
    }
    with refused("the loss of iteration 4 is not a finite number", "supervised: nan"):
        run_bundle("training", ["train"], datalist=str(tiny_dataset), **settings)
    checkpoints = sorted((tmp_path / "models" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["iteration_00000002.pt"]
    state = torch.load(checkpoints[0], weights_only=True)["parts"]["network"]
    assert all(value.isfinite().all() for value in state.values())


def _shares(*by_class: tuple[float, float, float]) -> list[dict]:
    each = [{f"confident_share_{index}": share for index, share in enumerate(shares)} for shares in by_class]
    return [{"loss": 0.0, "confident_share": sum(shares.values()), **shares} for shares in each]


NONE, NO_TUMOR, NO_LIVER, ALL = (0.0, 0.0, 0.0), (0.9, 0.02, 0.0), (0.9, 0.0, 0.01), (0.9, 0.02, 0.01)
A_PIXEL_NOW_AND_THEN = [(0.9, 0.02, 3e-4), *[NO_TUMOR] * 9]


@pytest.mark.parametrize(
    ("shares", "trouble"),
    [
        ([NONE] * 40, "0.00% of the voxels were confident, so"),
        ([(0.009, 0.0, 0.0)] * 40, "0.90% of the voxels were confident, so"),
        ([NO_TUMOR] * 40, "0.0000% of the voxels were confidently tumor (class 2)"),
        ([NO_TUMOR] * 10 + [(1.0, 0.0, 0.0)] * 10, "0.0000% of the voxels were confidently tumor (class 2)"),
        (A_PIXEL_NOW_AND_THEN * 4, "confidently tumor (class 2)"),
        ([(0.9, 0.02, 9e-5)] * 40, "0.0090% of the voxels were confidently tumor (class 2)"),
        ([(0.9, 0.02, 1.1e-4)] * 40, None),
        ([(0.02, 0.001, 0.001)] * 40, None),
        ([ALL] * 40, None),
        ([NONE] * 15 + [ALL] * 5 + [NONE] * 15, None),
        ([NO_TUMOR] * 15 + [NO_LIVER] * 15 + [NO_TUMOR] * 15, None),  # each class is there now and then
    ],
)
def test_collapsed_pseudo_labels_are_reported_once_with_advice(shares, trouble, caplog):
    engine = _engine(_shares(*shares))
    CollapseWarning(["liver", "tumor"], patience=20, every=5).attach(engine)
    with caplog.at_level(logging.WARNING):
        _run(engine, len(shares))
    texts = [record.getMessage() for record in caplog.records if "collapsed" in record.getMessage()]
    assert len(texts) == (trouble is not None)
    if trouble is not None:
        assert "over the last 20 iterations, up to 20" in texts[0]
        assert trouble in texts[0]
        assert "--threshold" in texts[0]
        assert "--unsupervised_weight" in texts[0]


def test_supervised_training_has_nothing_to_collapse(caplog):
    engine = _engine([{"loss": 0.0}] * 30)
    CollapseWarning(["liver"], patience=10, every=5).attach(engine)
    _run(engine, 30)
    assert "collapsed" not in caplog.text


@pytest.mark.parametrize(
    ("batches", "advice"),
    [((12, 8), "--batch_size 6 --unlabeled_batch_size 4"), ((2, 2), r"--patch_size '\[80, 80, 48\]'")],
)
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),  # of a file mapped into memory
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_which_setting_to_lower(batches, advice, error):
    engine = _engine([{"loss": 0.0}, error])
    SizeAdvice([112, 112, 80], *batches).attach(engine)
    with pytest.raises(UserError, match=f"iteration 2 ran out of memory on cpu; lower the .*{advice}"):
        _run(engine, 2)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    engine = _engine([RuntimeError("shapes differ")])
    SizeAdvice([16, 16], 2, 2).attach(engine)
    with pytest.raises(RuntimeError, match="shapes differ"):
        _run(engine, 1)
