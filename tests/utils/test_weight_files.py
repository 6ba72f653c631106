"""Files of weights that a network cannot take are refused, and say what they hold and what to do."""

import pickle

import pytest
import torch

from custom.networks import UNet, VNet
from custom.utils.errors import UserError
from custom.utils.weights import read_weights, start_from
from tools.convert_weights import FAMILIES, convert_file

READERS = [read_weights, start_from]


@pytest.fixture
def network():
    torch.manual_seed(0)
    return VNet(base_filters=2)


def _original(network: VNet | UNet) -> dict[str, torch.Tensor]:
    """Call the tensors of a network as the original code does."""
    (prefixes,) = [family.prefixes for family in FAMILIES if isinstance(network, family.network)]
    names = {ours: next(prefix for prefix in prefixes if ours.startswith(prefix)) for ours in network.state_dict()}
    return {prefixes[names[n]] + n.removeprefix(names[n]): value for n, value in network.state_dict().items()}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_counted_by_tensor(read, value, network, tmp_path):
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state["head.bias"][1] = value
    state["encoder.0.0.weight"].flatten()[:3] = value
    torch.save(state, tmp_path / "model.pt")
    before = network.head.bias.clone()
    with pytest.raises(UserError) as error:
        read(tmp_path / "model.pt", network)
    summary, *lines = str(error.value).splitlines()
    assert f"model.pt: values in 2 of {len(state)} tensors are not finite, so nothing can be predicted" in summary
    assert lines == [
        "  - encoder.0.0.weight: 3 of 54 values are NaN or infinite.",
        "  - head.bias: 1 of 2 values are NaN or infinite.",
    ]
    assert torch.equal(network.head.bias, before)


def test_values_too_large_for_float32_count_as_infinite(network, tmp_path):
    state = {name: tensor.double() for name, tensor in network.state_dict().items()}
    state["head.bias"] += 1e300
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"head\.bias: 2 of 2 values"):
        read_weights(tmp_path / "model.pt", network)


def _checkpoint(network: VNet) -> dict:
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.rand(2, 1, 16, 16, 16)).sum().backward()
    optimizer.step()
    return {"iteration": 3, "optimizer": optimizer.state_dict(), "parts": {"network": network.state_dict()}}


def _parallel(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"module.{name}": value for name, value in state.items()}


WRAPPED = {
    "in model": (lambda net: {"epoch": 3, "model": net.state_dict()}, "holds its weights in 'model'; expected"),
    "in state_dict": (lambda net: {"state_dict": net.state_dict()}, "holds its weights in 'state_dict'; expected"),
    "checkpoint": (_checkpoint, "holds its weights in 'network' within 'parts'; expected"),
    "parallel": (lambda net: _parallel(net.state_dict()), "holds weights with names that begin with 'module.'; ex"),
    "both": (
        lambda net: {"model": _parallel(net.state_dict())},
        "holds its weights in 'model' with names that begin with 'module.'; expected",
    ),
}


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("wrap", "message"), WRAPPED.values(), ids=WRAPPED)
def test_wrapped_weights_say_how_to_save_them_plainly_which_works(read, wrap, message, network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(wrap(network), "best.pt")
    with pytest.raises(UserError) as error:
        read("best.pt", network)
    assert f"best.pt: {message}" in str(error.value)
    exec(str(error.value).partition("Save it so: ")[2], {"torch": torch})
    assert read_weights("model.pt", network).keys() == network.state_dict().keys()


@pytest.mark.parametrize("kind", [VNet, UNet])
def test_weights_of_the_original_code_are_sent_to_its_converter_which_takes_them(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = kind(base_filters=2)
    torch.save({"model": _parallel(_original(network))}, "original.pth")
    with pytest.raises(UserError, match=r"original.pth: weights of the original CrossMatch code.*`crossmatch convert "):
        read_weights("original.pth", network)
    convert_file("original.pth", "model.pt")
    assert read_weights("model.pt", network)


def test_wrapped_weights_of_another_network_are_named_too(network, tmp_path):
    torch.save({"model": {"conv1.weight": torch.zeros(1)}}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="holds its weights in 'model'; expected a state dictionary alone"):
        read_weights(tmp_path / "model.pt", network)


@pytest.mark.parametrize("read", READERS)
def test_files_that_are_not_whole_or_not_of_pytorch_are_told(read, network, tmp_path):
    torch.save(network.state_dict(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"hello world\n"):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(UserError, match=r"model.pt: cannot be read, probably truncated or not PyTorch weights \("):
            read(tmp_path / "model.pt", network)
    (tmp_path / "model.pt").write_bytes(pickle.dumps(network))
    with pytest.raises(UserError, match=r"model\.pt: holds more than tensors, or is damaged; .* save its state dictio"):
        read(tmp_path / "model.pt", network)
