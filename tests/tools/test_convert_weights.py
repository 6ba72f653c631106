"""Weights of the original code become ours, and anything else is refused in words that help."""

import json
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from starter import run_command

from custom.networks import PerturbedNetwork, UNet, VNet
from custom.utils.errors import UserError
from tools.convert_weights import FAMILIES, _original_name, convert, convert_file, describe

NETWORKS = {
    "vnet": lambda: VNet(in_channels=1, out_channels=2, base_filters=4),
    "unet": lambda: UNet(in_channels=3, out_channels=4, base_filters=8),
}
WRAPPED = {
    "plain": lambda state: state,
    "model": lambda state: {"model": state, "epoch": 3},
    "state_dict": lambda state: {"state_dict": state},
    "parallel": lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    "older": lambda state: {name: value for name, value in state.items() if "num_batches_tracked" not in name},
}


def _original(network: PerturbedNetwork) -> dict[str, torch.Tensor]:
    """The network's weights under the original's names."""
    family = next(family for family in FAMILIES if isinstance(network, family.network))
    return {_original_name(name, family): value for name, value in network.state_dict().items()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of the original's V-Net."""
    torch.save(_original(NETWORKS["vnet"]()), tmp_path / "original.pth")
    return tmp_path / "original.pth"


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_converted_weights_give_the_same_logits(build, wrap, tmp_path, capsys):
    network = build().eval()
    torch.save(wrap(_original(network)), tmp_path / "original.pth")
    convert_file(str(tmp_path / "original.pth"), str(tmp_path / "out" / "model.pt"))
    again = build().eval()
    again.load_state_dict(torch.load(tmp_path / "out" / "model.pt", weights_only=True))
    channels = network.encoder[0][0].in_channels
    image = torch.randn(1, channels, *[16] * (3 if isinstance(network, VNet) else 2))
    assert torch.equal(network(image), again(image))
    said = capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert f"{'1 channel' if channels == 1 else '3 channels'}, {network.head.out_channels} classes, " in said
    assert f"{parameters:,} parameters -> " in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["model.json", "model.pt"]
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == {}


@pytest.mark.parametrize(
    ("network", "line"),
    [
        (VNet(), "V-Net, 1 channel, 2 classes, 16 base filters, 9,448,866 parameters"),
        (UNet(), "U-Net, 1 channel, 4 classes, 16 base filters, 1,813,764 parameters"),
        (VNet(2, 1, 1), "V-Net, 2 channels, 1 class, 1 base filter, 37,456 parameters"),
    ],
)
def test_sizes_are_read_off_the_weights(network, line):
    assert describe(convert(_original(network))) == line


def test_half_precision_becomes_full():
    state = {name: value.half() if value.is_floating_point() else value for name, value in _original(UNet()).items()}
    assert {value.dtype for value in convert(state).parameters()} == {torch.float32}


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def _change(**tensors: torch.Tensor | None):
    def change(state):
        changed = {**state, **{name.replace("__", "."): value for name, value in tensors.items()}}
        return {name: value for name, value in changed.items() if value is not None}

    return change


REFUSED = {
    "shape": (
        _change(block_two__conv__0__weight=torch.zeros(1)),
        r"1 tensor\(s\) differ .* V-Net.*block_two\.conv\.0\.weight: expected \(8, 8, 3, 3, 3\), found \(1,\)",
    ),
    "missing": (_change(block_nine__conv__0__bias=None), r"block_nine\.conv\.0\.bias: expected \(4,\), found nothing"),
    "extra": (_change(aux=torch.zeros(2)), r"aux: expected nothing, found \(2,\)"),
    "doubled": (
        _change(module__out_conv__bias=torch.zeros(2)),
        r"module\.out_conv\.bias: expected nothing, found \(2,\)",
    ),
    "no head": (
        _change(out_conv__weight=None),
        r"expected two convolutions.*and out_conv\.weight, found .*and nothing",
    ),
    "no channels": (_change(block_one__conv__0__weight=torch.zeros(4, 0, 3, 3, 3)), r"found \(4, 0, 3, 3, 3\) and"),
    "too wide": (_change(block_one__conv__0__weight=torch.zeros(4096, 1, 1, 1, 1)), r"\d+ tensor\(s\) differ"),
    "integers": (_change(out_conv__bias=torch.zeros(2, dtype=torch.int32)), r"floating-point numbers, found int32"),
    "not finite": (_change(out_conv__bias=torch.tensor([torch.nan, 0])), r"out_conv\.bias: 1 of 2 values are NaN"),
    "complex": (_change(out_conv__bias=torch.zeros(2, dtype=torch.complex64)), r"numbers, found complex64"),
    "sparse": (_change(out_conv__bias=torch.zeros(2).to_sparse()), r"expected a dense tensor.*sparse_coo"),
    "numbers as names": (
        lambda state: {1: torch.zeros(1)},
        r"expected a state dictionary.*a dictionary with 1 \(Tensor\)",
    ),
    "nothing": (lambda state: {}, r"expected a state dictionary.*found an empty dictionary"),
    "other network": (lambda state: {"conv1.weight": torch.zeros(1)}, r"not of the original's networks.*conv1\.weight"),
    "no state": (lambda state: {"epoch": 3}, r"expected a state dictionary.*a dictionary with 'epoch' \(int\)"),
    "a list": (lambda state: [1, 2], r"expected a state dictionary.*found list"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_anything_else_is_refused_and_nothing_written(change, message, source, tmp_path):
    torch.save(change(torch.load(source, weights_only=True)), source)
    with pytest.raises(UserError, match=r"(?s)original\.pth: .*" + message):
        convert_file(str(source), str(tmp_path / "model.pt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original.pth"]


def test_only_the_first_differences_are_named():
    state = _original(NETWORKS["vnet"]())
    with pytest.raises(UserError) as error:
        convert({name: value for name, value in state.items() if "block_five" not in name})
    assert len(str(error.value).splitlines()) == 4


def test_a_file_that_would_run_code_is_refused(tmp_path):
    torch.save({"model": Evil(tmp_path / "made")}, tmp_path / "original.pth")
    with pytest.raises(UserError, match="holds more than tensors, or is damaged; reading it could run code"):
        convert_file(str(tmp_path / "original.pth"), str(tmp_path / "model.pt"))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("spoil", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_damaged_file_is_refused(spoil, source, tmp_path):
    source.write_bytes(spoil(source.read_bytes()))
    with pytest.raises(UserError, match=r"original\.pth: .*(probably truncated or not PyTorch weights|is damaged)"):
        convert_file(str(source), str(tmp_path / "model.pt"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"absent\.pth: no such file"):
        convert_file(str(tmp_path / "absent.pth"), str(tmp_path / "model.pt"))


def test_an_output_is_not_overwritten_unasked(source, tmp_path):
    (tmp_path / "model.pt").write_bytes(b"precious")
    with pytest.raises(UserError, match=r"model\.pt: is there already"):
        convert_file(str(source), str(tmp_path / "model.pt"))
    assert (tmp_path / "model.pt").read_bytes() == b"precious"
    convert_file(str(source), str(tmp_path / "model.pt"), overwrite=True)
    assert "head.weight" in torch.load(tmp_path / "model.pt", weights_only=True)


def test_settings_beside_the_output_are_not_overwritten_unasked(source, tmp_path):
    (tmp_path / "model.json").write_text("mine")
    with pytest.raises(UserError, match=r"model\.json: is there already"):
        convert_file(str(source), str(tmp_path / "model.pt"))
    assert (tmp_path / "model.json").read_text() == "mine"
    assert not (tmp_path / "model.pt").exists()


def test_a_bad_source_leaves_the_output_it_should_overwrite(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"precious")
    (tmp_path / "original.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"original\.pth: "):
        convert_file(str(tmp_path / "original.pth"), str(tmp_path / "model.pt"), overwrite=True)
    assert (tmp_path / "model.pt").read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["original.pth", "link.pt"])
def test_the_source_is_never_overwritten(name, source, tmp_path):
    (tmp_path / "link.pt").symlink_to(source)
    before = source.read_bytes()
    with pytest.raises(UserError, match="is the source too, which would be lost; give --output another name"):
        convert_file(str(source), str(tmp_path / name), overwrite=True)
    assert source.read_bytes() == before


def test_a_folder_is_no_output(source, tmp_path):
    with pytest.raises(UserError, match="is a folder; give --output a file"):
        convert_file(str(source), str(tmp_path), overwrite=True)


def test_an_output_that_cannot_be_written_is_named(source, tmp_path):
    with pytest.raises(UserError, match=r"model\.pt: cannot be written"):
        convert_file(str(source), str(source / "model.pt"))


def test_wrong_flags_are_refused(source, tmp_path):
    with pytest.raises(UserError, match="--overwrite must be true or false"):
        convert_file(str(source), str(tmp_path / "model.pt"), overwrite="no")


@pytest.mark.parametrize("there", [True, False])
def test_command_line_converts_or_says_why_not(there, source, tmp_path):
    given = source if there else tmp_path / "absent.pth"
    done = run_command("tools.convert_weights", "--source", given, "--output", tmp_path / "model.pt", cwd=ROOT)
    assert done.returncode == (0 if there else 1)
    assert "Traceback" not in done.stderr
    assert (tmp_path / "model.pt").exists() == there
    assert ("V-Net, 1 channel, 2 classes, 4 base filters" in done.stdout) == there
    assert ("error: " in done.stderr) != there
