"""Processes that train one network together learn what one process with a larger batch does."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import COMPILES, SHORT_AXIS, read_csv, refused
from monai.bundle import ConfigParser
from starter import finish, start
from sync_batch_norm import synchronize_batch_norm
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from custom.losses import CrossMatchLoss
from custom.networks import UNet, VNet
from custom.perturbations import CutMix
from custom.trainer import CrossMatchTrainer
from custom.utils.distributed import any_rank, gather_in_turn, to_ddp
from custom.utils.distributed import start as start_processes
from custom.utils.errors import UserError

WEIGHTS = {"supervised": 0.5, "image_perturbation": 0.25, "distillation": 0.5}
NETWORKS = {"3D": (VNet, (16, 16, 16)), "2D": (UNet, (32, 32))}
BATCH = 2


def _batch(kind: str, ranks: range) -> dict[str, dict[str, torch.Tensor]]:
    """What the ranks draw, put together."""
    size = NETWORKS[kind][1]
    streams = {"labeled": ("image", "label"), "unlabeled": ("image", "strong_1", "strong_2")}
    batch = {stream: {name: [] for name in names} for stream, names in streams.items()}
    for rank in ranks:
        generator = torch.Generator().manual_seed(rank)
        for images in batch.values():
            for name, parts in images.items():
                drawn = torch.randn(BATCH, 1, *size, generator=generator)
                parts.append((drawn > 0).float() if name == "label" else drawn)
    return {stream: {name: torch.cat(parts) for name, parts in images.items()} for stream, images in batch.items()}


def _train_one_step(kind: str, ranks: range, prepare, compiled: bool = False) -> dict[str, torch.Tensor]:
    """Gradients, batch statistics and loss of a step with batch norm in sync and dropout off."""
    torch.manual_seed(0)
    network = NETWORKS[kind][0](base_filters=2, dropout=[0.0] * 5 if kind == "2D" else 0.0, feature_dropout=[0.0, 0.0])
    for norm in (module for module in network.modules() if isinstance(module, _BatchNorm)):
        nn.init.uniform_(norm.bias, 0.1, 0.5)  # else a channel that is constant lies on the kink of ReLU, at 0
    trainer = CrossMatchTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[_batch(kind, ranks)],
        network=prepare(network),
        optimizer=torch.optim.SGD(network.parameters(), lr=0.0),
        loss_function=CrossMatchLoss(WEIGHTS),
        cutmix=CutMix(prob=0.0),  # whose partners are patches of the same process
        compile=compiled,
    )
    trainer.state.threshold = 0.55
    trainer.run()
    assert 0.05 < trainer.state.output["confident_share"] < 0.95  # so that the mask differs from rank to rank
    gradients = {f"gradient of {name}": value.grad for name, value in network.named_parameters()}
    return gradients | dict(network.named_buffers()) | {"loss": trainer.state.output["loss"]}


def _join(rank: int, num_ranks: int, folder: Path) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=num_ranks)


def _in_ranks(target, num_ranks: int, folder: Path, *arguments) -> list:
    """What ``target`` returns in each of several processes."""
    processes = [
        start(_rank, target, rank, num_ranks, folder, arguments, log=folder / "log.txt") for rank in range(num_ranks)
    ]
    codes = [finish(process) for process in processes]
    assert codes == [0] * num_ranks, (folder / "log.txt").read_text()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(num_ranks)]


def _rank(target, rank: int, num_ranks: int, folder: Path, arguments: tuple) -> None:
    _join(rank, num_ranks, folder)
    torch.save(target(rank, *arguments), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def _step_of_a_rank(rank: int, kind: str, compiled: bool) -> dict[str, torch.Tensor]:
    ranks = range(rank, rank + 1)
    return _train_one_step(kind, ranks, lambda network: to_ddp(synchronize_batch_norm(network)), compiled)


@pytest.mark.parametrize(
    ("kind", "num_ranks", "compiled"),
    [("3D", 2, False), ("3D", 3, False), ("2D", 2, False), pytest.param("2D", 2, True, marks=COMPILES)],
)
def test_ranks_learn_what_one_process_with_all_their_batches_does(kind, num_ranks, compiled, tmp_path):
    expected = _train_one_step(kind, range(num_ranks), lambda network: network)
    assert max(value.abs().max() for name, value in expected.items() if name.startswith("gradient")) > 0.01
    largest = 0.0
    for found in _in_ranks(_step_of_a_rank, num_ranks, tmp_path, kind, compiled):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            largest = max(largest, (found[name].double() - value.double()).abs().max().item())
            torch.testing.assert_close(
                found[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
            )
    print(f"{kind}, {num_ranks} ranks: largest difference {largest:.1e}")


def _exchanges_of_a_rank(rank: int) -> list[bool]:
    """Whether each of the two passes of a step exchanges gradients."""
    exchanges = []

    def prepare(network: nn.Module) -> nn.Module:
        wrapped = to_ddp(network)
        wrapped.register_forward_pre_hook(lambda module, _: exchanges.append(module.require_backward_grad_sync))
        return wrapped

    _train_one_step("3D", range(rank, rank + 1), prepare)
    return exchanges


def test_gradients_are_exchanged_once_a_step(tmp_path):
    assert _in_ranks(_exchanges_of_a_rank, 2, tmp_path) == [[False, True]] * 2


def _ask(rank: int) -> list:
    return [any_rank(rank == 1), any_rank(False), gather_in_turn([10 * rank + i for i in range(3 - rank)])]


def test_ranks_agree_and_put_together_what_they_have(tmp_path):
    assert _in_ranks(_ask, 2, tmp_path) == [[True, False, [0, 10, 1, 11, 2]]] * 2


def test_one_process_exchanges_nothing():
    assert (any_rank(True), any_rank(False), gather_in_turn([1, 2])) == (True, False, [1, 2])


@pytest.mark.parametrize("bundle", ["crossmatch_la"], indirect=True)
def test_batch_norm_in_sync_is_pytorch_s_and_keeps_names_and_number_of_parameters(bundle):
    def read(sync_batch_norm: bool) -> nn.Module:
        parser = ConfigParser()
        parser.read_config([bundle.configs / "train.yaml", bundle.configs / "multi_gpu_train.yaml"])
        changes = {"bundle_root": str(bundle.folder), "device": "cpu", "base_filters": 2}
        parser.update(changes | {"sync_batch_norm": sync_batch_norm})
        return parser.get_parsed_content("network")

    own, synchronized = read(False), read(True)
    assert sum(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules()) > 10
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in own.modules())
    assert list(synchronized.state_dict()) == list(own.state_dict())


def _torchrun(
    bundle, datalist: Path, folder: Path, run_id: str, configs: list[str], *options: str, **changes
) -> list[str]:
    places = {"datalist": datalist, "ckpt_dir": folder / "models", "output_dir": folder / "eval"}
    files = [str(bundle.configs / f"{name}.yaml") for name in (*configs, "multi_gpu_train")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *options]
    command += ["-m", "monai.bundle", "run", run_id, "--config_file", str(files)]
    settings = bundle.settings(run_id, **places, device=..., **changes)
    return command + [f"--{name}={value}" for name, value in settings.items()]


def _start_job(command: list[str], log: Path) -> subprocess.Popen:
    return subprocess.Popen(command, stdout=open(log, "w"), stderr=subprocess.STDOUT)


def _workers(job: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split()]


def _wait_for(happened: Callable[[], bool], log: Path, job: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert job.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def _shown_iteration(text: str) -> int:
    """The last iteration that the progress bar showed; it skips some when they follow each other quickly."""
    return max(map(int, re.findall(r"\| (\d+)/5000", text)), default=0)


@SHORT_AXIS
def test_a_rank_that_dies_ends_the_job_or_restarts_it_from_the_last_checkpoint(
    bundle, tiny_dataset, tmp_path, monkeypatch
):
    log, checkpoints = tmp_path / "log.txt", tmp_path / "models" / "checkpoints"
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    long = {"max_iterations": 5000, "ckpt_interval": 2, "val_interval": 5000}
    job = _start_job(_torchrun(bundle, tiny_dataset, tmp_path, "training", ["train"], "--max_restarts=1", **long), log)
    try:
        _wait_for(lambda: _shown_iteration(log.read_text()) >= 4, log, job)
        newest = max(checkpoints.glob("*.pt"))
        os.kill(_workers(job)[-1], signal.SIGKILL)
        _wait_for(lambda: "Resuming after iteration" in log.read_text(), log, job)
        resumed = int(re.search(r"Resuming after iteration (\d+)", log.read_text())[1])
        assert resumed >= int(newest.stem.split("_")[1])
        _wait_for(lambda: _shown_iteration(log.read_text().partition("Resuming")[2]) >= resumed + 4, log, job)
        os.kill(_workers(job)[0], signal.SIGKILL)
        assert job.wait(60) != 0
    finally:
        job.kill()
    assert "ChildFailedError" in log.read_text()


@SHORT_AXIS
def test_several_processes_train_and_score_every_case_once(bundle, tiny_dataset, tmp_path):
    for run_id, configs in (("training", ["train"]), ("evaluating", ["train", "evaluate"])):
        command = _torchrun(bundle, tiny_dataset, tmp_path, run_id, configs)
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stderr.count("Checking:   0%") == 1  # one process shows bars
    assert {path.name for path in (tmp_path / "models").glob("*.pt")} == {"model.pt", "model_best.pt"}
    rows = read_csv(tmp_path / "eval" / "metrics.csv")
    cases = [row["case"] for row in rows if row["case"] != "mean" and row["class"] == "all"]
    assert len(cases) == len(set(cases)) == 4  # two patients, two phases


@SHORT_AXIS
def test_without_torchrun_the_overlay_says_what_to_do(run_bundle, tiny_dataset, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with refused("several processes need torchrun"):
        run_bundle("training", ["train", "multi_gpu_train"], datalist=str(tiny_dataset), device=...)


def test_restarts_that_would_fail_are_refused_at_once(monkeypatch):
    for name, value in {
        "LOCAL_RANK": "0",
        "TORCHELASTIC_MAX_RESTARTS": "3",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 before torchrun"):
        start_processes()
