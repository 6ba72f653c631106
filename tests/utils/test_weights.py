import resource

import pytest
import torch
from conftest import BUNDLES, refused

from custom.networks import VNet
from custom.utils.errors import UserError
from custom.utils.weights import read_settings, save_weights, start_from


def _save(network, path):
    torch.save(network.state_dict(), path)
    return path


def test_weights_of_other_classes_are_taken_but_for_the_head_which_is_named(tmp_path, capsys):
    source, target = VNet(base_filters=2, out_channels=2), VNet(base_filters=2, out_channels=4)
    head = target.head.weight.clone()
    start_from(_save(source, tmp_path / "model.pt"), target)
    others = [name for name in source.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(source.state_dict()[name], target.state_dict()[name]) for name in others)
    assert torch.equal(target.head.weight, head)
    lines = capsys.readouterr().out.splitlines()
    count = len(target.state_dict())
    assert lines[0] == f"Starting from {tmp_path / 'model.pt'}, {count - 2} of {count} tensors"
    assert lines[1:] == [
        "  not taken: head.weight: expected (4, 2, 1, 1, 1), found (2, 2, 1, 1, 1).",
        "  not taken: head.bias: expected (4,), found (2,).",
    ]


def test_a_full_disk_names_the_file_and_keeps_what_was_there(tmp_path):
    save_weights(VNet(base_filters=2), tmp_path / "model.pt")
    before = (tmp_path / "model.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # a file that may not grow fails as a disk that is full does
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_weights(VNet(base_filters=4), tmp_path / "model.pt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.filename == str(tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == before


def test_weights_of_other_channels_are_taken_but_for_the_first_layer(tmp_path, capsys):
    start_from(_save(VNet(base_filters=2), tmp_path / "model.pt"), VNet(base_filters=2, in_channels=3))
    (line,) = capsys.readouterr().out.splitlines()[1:]
    assert line.endswith("expected (2, 3, 3, 3, 3), found (2, 1, 3, 3, 3).")


@pytest.mark.parametrize(
    "content", [VNet(base_filters=4).state_dict(), {"epoch": 3}, [1, 2]], ids=["another width", "no weights", "a list"]
)
def test_weights_of_another_network_are_refused_and_change_nothing(content, tmp_path):
    network = VNet(base_filters=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"model.pt: fits \d+% of the network's parameters, at least 50% are needed"):
        start_from(tmp_path / "model.pt", network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("bundle", ["crossmatch_pancreas"], indirect=True)
def test_the_pancreas_starts_from_the_left_atrium_s_weights(run_bundle, tiny_dataset, tmp_path, capsys):
    tiny = BUNDLES["crossmatch_pancreas"].tiny
    source = VNet(base_filters=tiny["base_filters"])
    settings = {"datalist": str(tiny_dataset), "init_weights": str(_save(source, tmp_path / "la.pt"))}
    run_bundle("training", ["train"], learning_rate=1e-12, ema_decay=0.9, **settings)
    count = len(source.state_dict())
    assert f"Starting from {tmp_path / 'la.pt'}, {count} of {count} tensors\n" in capsys.readouterr().out
    for name in ("model.pt", "model_ema.pt"):
        trained = torch.load(tmp_path / "models" / name, weights_only=True)
        for key, value in source.named_parameters():
            torch.testing.assert_close(trained[key], value, msg=f"{name}: {key}")


@pytest.mark.parametrize("bundle", ["crossmatch_la"], indirect=True)
def test_a_training_that_began_otherwise_does_not_resume_with_other_weights(run_bundle, tiny_dataset, tmp_path):
    run_bundle("training", ["train"], datalist=str(tiny_dataset))
    source = _save(VNet(base_filters=BUNDLES["crossmatch_la"].tiny["base_filters"]), tmp_path / "la.pt")
    with refused("is of another configuration", f'init_weights: there null, now "{source.name}"'):
        run_bundle("training", ["train"], datalist=str(tiny_dataset), init_weights=str(source), max_iterations=9)


@pytest.mark.parametrize("bundle", ["crossmatch_la"], indirect=True)
def test_a_training_resumes_though_the_weights_that_it_started_from_have_moved(run_bundle, tiny_dataset, tmp_path):
    source = _save(VNet(base_filters=BUNDLES["crossmatch_la"].tiny["base_filters"]), tmp_path / "la.pt")
    run_bundle("training", ["train"], datalist=str(tiny_dataset), init_weights=str(source))
    source.unlink()
    moved = {"init_weights": str(tmp_path / "elsewhere" / source.name), "max_iterations": 5}
    trainer = run_bundle("training", ["train"], datalist=str(tiny_dataset), schedule_iterations=3, **moved)
    assert trainer.parser.get_parsed_content("train::trainer").state.iteration == 5


@pytest.mark.parametrize("bundle", ["crossmatch_la"], indirect=True)
def test_missing_weights_to_start_from_are_named(run_bundle, tiny_dataset):
    with refused("--init_weights none.pt: no such file"):
        run_bundle("training", ["train"], datalist=str(tiny_dataset), init_weights="none.pt")


def test_weights_without_their_settings_are_told_once_each(tmp_path, caplog):
    alone, whole = tmp_path / "site1.pt", tmp_path / "model.pt"
    save_weights(VNet(base_filters=2), alone)
    save_weights(VNet(base_filters=2), whole, {"spacing": [1.0, 1.0, 1.0]})
    assert read_settings([str(alone), str(alone)]) == {}
    (line,) = caplog.messages
    assert line.startswith(f"{alone}: there is no site1.json beside it, which says with which spacing, patch and")
    assert "the settings of the config are taken. Copy it along, or give the settings." in line
    caplog.clear()
    assert read_settings([str(alone), str(whole)]) == {"spacing": [1.0, 1.0, 1.0]}
    (line,) = caplog.messages
    assert line.startswith(f"{alone}: ")
    assert f"the settings of {whole} are taken" in line


def test_weights_with_settings_and_those_that_do_not_exist_are_not_told(tmp_path, caplog):
    save_weights(VNet(base_filters=2), tmp_path / "model.pt", {})
    assert read_settings([tmp_path / "model.pt", tmp_path / "none.pt"]) == {}
    assert caplog.messages == []
