"""The packaged bundle, unzipped in an empty folder, works where nobody has this repository.

``PACKAGE_PYTHON`` may name the interpreter of an environment with the packages of a bundle's metadata, and nothing
else; without it, one is made that has the packages of this environment, but neither this repository nor what the
metadata do not list. ``LEFT_ATRIUM_VOLUME`` may name a real volume for the comparison of exports.
"""

import hashlib
import json
import os
import subprocess
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import jsonschema
import nibabel as nib
import numpy as np
import onnxruntime
import pytest
import torch
from conftest import LEFT_ATRIUM, ROOT, Bundle
from monai.bundle import ConfigParser
from monai.transforms import LoadImage, NormalizeIntensity, Orientation
from starter import run_command

from custom import __version__
from custom.inference import SlidingWindowProbabilities
from custom.utils.config import refuse_newer_bundle
from custom.utils.errors import UserError
from tools.package import check_archive, package, write_archive

SCHEMA = ROOT / "tests" / "schema" / "meta_schema_20240725.json"
#: Installed for development, and not in the metadata of any bundle.
NOT_LISTED = ("h5py", "highdicom", "matplotlib", "onnxruntime", "pytest", "ruff")


#: The other bundles have the same files but for the heads of their configs.
VOLUMES_AND_SLICES = pytest.mark.parametrize("bundle", ["crossmatch_la", "crossmatch_acdc"], indirect=True)


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Python of an environment that does not have this repository."""
    if "PACKAGE_PYTHON" in os.environ:
        return os.environ["PACKAGE_PYTHON"]
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    found = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True)
    packages = Path(found.stdout.strip())
    # Installed packages are visible, this repository, of which a .pth file in there tells, is not.
    (packages / "packages.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    (packages / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({NOT_LISTED!r}))\n")
    return str(python)


@pytest.fixture(scope="session")
def python(interpreter: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Run Python without this repository, in a folder that has nothing to do with it."""
    folder = tmp_path_factory.mktemp("cwd")

    def run(*arguments: object) -> str:
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"MPLBACKEND": "agg"}
        command = [interpreter, *map(str, arguments)]
        done = subprocess.run(command, cwd=folder, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    return run


@pytest.fixture(scope="session")
def trained(unzipped: Path, bundle: Bundle, python: Callable[..., str], tiny_dataset: Path) -> Path:
    """The unzipped bundle with the weights of a tiny training, by its own command, in its own folder."""
    python("-m", "monai.bundle", "run", "training", *_configs(unzipped, "train"), *_tiny(bundle, tiny_dataset))
    assert (unzipped / "models" / "model.pt").is_file()
    return unzipped


def _configs(folder: Path, *names: str, ending: str = "yaml") -> list[str]:
    return ["--config_file", str([str(folder / "configs" / f"{name}.{ending}") for name in names])]


def _tiny(bundle: Bundle, datalist: Path, run_id: str = "training") -> list[str]:
    settings = bundle.settings(run_id, datalist=str(datalist), max_iterations=2, val_interval=2)
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


@VOLUMES_AND_SLICES
def test_unzipped_bundle_trains_evaluates_and_segments(trained, bundle, python, tiny_dataset):
    run = ("-m", "monai.bundle", "run")
    python(*run, "evaluating", *_configs(trained, "train", "evaluate"), *_tiny(bundle, tiny_dataset))
    assert (trained / "eval" / "metrics.csv").is_file()
    settings = _tiny(bundle, tiny_dataset, "inference")
    python(*run, "inference", *_configs(trained, "inference", ending="json"), *settings)
    assert len(list((trained / "eval" / "predictions").glob("*_seg.*"))) == len(
        [case for name in ("validation", "test") for case in json.loads(tiny_dataset.read_text())[name]]
    )


#: What MONAI's own commands make of a bundle, in a process that has seen neither its code nor its folder.
SCRIPT = """
import sys, torch
from pathlib import Path
from monai.bundle import create_workflow, load, verify_metadata, verify_net_in_out
folder, schema = Path(sys.argv[1]), sys.argv[2]
configs = folder / "configs"
files = {"meta_file": str(configs / "metadata.json"), "config_file": str(configs / "inference.yaml")}
verify_metadata(meta_file=files["meta_file"], filepath=schema)
verify_net_in_out(net_id="network_def", device="cpu", **files)
net = load(folder.name, bundle_dir=str(folder.parent), net_override={"base_filters": 2})
state = torch.load(folder / "models" / "model.pt", weights_only=True)
assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
workflow = create_workflow(config_file=str(configs / "train.yaml"), workflow_type="train", init_id="none")
print(sys.modules[type(net).__module__].__file__, workflow.bundle_root)
"""


@VOLUMES_AND_SLICES
def test_monai_verifies_and_loads_the_unzipped_bundle_with_its_own_code(trained, python, tmp_path):
    (tmp_path / "schema.json").write_bytes(SCHEMA.read_bytes())  # found there, it is not downloaded
    code, root = python("-c", SCRIPT, trained, tmp_path / "schema.json").split()[-2:]
    assert Path(code) == trained / "custom" / "networks.py"
    assert Path(root) == trained


@LEFT_ATRIUM
def test_monai_s_command_line_verifies_the_unzipped_bundle(trained, python, tmp_path):
    meta = ("--meta_file", trained / "configs" / "metadata.json")
    (tmp_path / "schema.json").write_bytes(SCHEMA.read_bytes())
    python("-m", "monai.bundle", "verify_metadata", *meta, "--filepath", tmp_path / "schema.json")
    inference = ("--config_file", trained / "configs" / "inference.json")
    python("-m", "monai.bundle", "verify_net_in_out", "network_def", *meta, *inference, "--device", "cpu")


def _probabilities(bundle: Bundle, image: torch.Tensor, network: Callable[[torch.Tensor], torch.Tensor]) -> np.ndarray:
    inferer = SlidingWindowProbabilities(bundle.tiny["patch_size"], bundle.tiny["stride"])
    with torch.no_grad():
        return inferer(image[None], network)[0].numpy()


@LEFT_ATRIUM
def test_inference_torchscript_and_onnx_agree(trained, bundle, python, tiny_dataset, tmp_path):
    export, settings = ("-m", "monai.bundle"), ["--base_filters", "2"]
    places = [*_configs(trained, "inference"), "--bundle_root", trained]
    python(*export, "ckpt_export", *places, "--filepath", tmp_path / "model.ts", *settings)
    shape = [1, 1, *bundle.tiny["patch_size"]]
    onnx = ["--filepath", tmp_path / "model.onnx", "--ckpt_file", trained / "models" / "model.pt"]
    python(*export, "onnx_export", "network_def", *places, *onnx, "--input_shape", shape, *settings)
    image_file = os.environ.get("LEFT_ATRIUM_VOLUME") or sorted((tiny_dataset.parent / "images").iterdir())[0]
    options = ["--files", str([str(image_file)]), "--output_dir", tmp_path, "--save_probabilities", "True"]
    settings = [text for name, value in bundle.settings("inference").items() for text in (f"--{name}", str(value))]
    python("-m", "monai.bundle", "run", "inference", *_configs(trained, "inference"), *options, *settings)

    (written,) = tmp_path.glob("*_probs.nii.gz")
    probs = np.moveaxis(np.asarray(nib.load(written).dataobj), -1, 0)
    image = NormalizeIntensity(channel_wise=True)(
        Orientation("RAS", labels=None)(LoadImage(ensure_channel_first=True)(image_file))
    ).as_tensor()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (name,) = (value.name for value in session.get_inputs())
    networks = {
        "TorchScript": torch.jit.load(tmp_path / "model.ts"),
        "ONNX Runtime": lambda window: torch.from_numpy(session.run(None, {name: window.numpy()})[0]),
    }
    for kind, network in networks.items():
        difference = np.abs(_probabilities(bundle, image, network) - probs).max()
        print(f"{kind}, {tuple(image.shape[1:])} voxels: largest difference {difference:.2e}")
        assert difference < 1e-4, kind


@LEFT_ATRIUM
def test_download_unzips_the_archive(bundle, tmp_path, python):
    package(str(bundle.folder), str(tmp_path / "dist"), weights=None)
    url = (tmp_path / "dist" / f"{bundle.name}.zip").as_uri()
    python("-m", "monai.bundle", "download", "--name", bundle.name, "--url", url, "--bundle_dir", tmp_path / "got")
    assert (tmp_path / "got" / bundle.name / "configs" / "metadata.json").is_file()


def test_the_same_bundle_gives_the_same_bytes(bundle, tmp_path):
    for name in ("first", "second"):
        package(str(bundle.folder), str(tmp_path / name), weights=None)
        os.utime(bundle.configs / "train.yaml")
    first, second = ((tmp_path / name / f"{bundle.name}.zip").read_bytes() for name in ("first", "second"))
    assert first == second


def test_archive_holds_nothing_that_was_written_by_running(unzipped):
    places = {path.relative_to(unzipped).parts[0] for path in unzipped.rglob("*") if path.is_file()}
    assert places - {"models", "eval"} == {"LICENSE", "README.md", "configs", "custom", "docs"}
    package_files = {path.name for path in (unzipped / "custom").iterdir()} - {"__pycache__"}
    assert package_files == {path.name for path in (ROOT / "custom").iterdir()} - {"__pycache__"}


def test_json_configs_say_what_the_yaml_configs_say(unzipped):
    yamls = sorted((unzipped / "configs").glob("*.yaml"))
    assert {"train", "evaluate", "inference", "quick"} <= {path.stem for path in yamls}
    for path in yamls:
        twin = path.with_suffix(".json")
        assert ConfigParser.load_config_file(twin) == ConfigParser.load_config_file(path), path.name


def test_metadata_satisfies_the_schema_and_lists_the_packages_that_were_tested(bundle):
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    assert metadata["schema"].endswith(SCHEMA.name)
    assert metadata["version"] == __version__
    assert {"intended_use", "references", "eval_metrics"} <= set(metadata)
    pins = (ROOT / "requirements.txt").read_text() + (ROOT / "requirements-dev.txt").read_text()
    listed = metadata["required_packages_version"] | {
        "monai": metadata["monai_version"],
        "torch": metadata["pytorch_version"],
        "numpy": metadata["numpy_version"],
    }
    missing = [f"{name}=={version}" for name, version in listed.items() if f"{name}=={version}" not in pins]
    assert missing == []


def test_published_figures_stand_in_the_results(bundle):
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    results = (ROOT / "docs" / "results.md").read_text()
    for name, value in metadata["eval_metrics"].items():
        assert f"{value:.4f}" in results, name


def test_licence_and_figures_are_of_the_weights_that_are_shipped(bundle):
    shipped = bundle.folder / "models" / "model.pt"
    if not shipped.is_file():
        return
    metadata = json.loads((bundle.configs / "metadata.json").read_text())
    assert hashlib.sha256(shipped.read_bytes()).hexdigest() == metadata["weights_sha256"]
    assert "weights_license" in metadata


@pytest.fixture
def archive(bundle, tmp_path) -> Path:
    """A whole archive."""
    package(str(bundle.folder), str(tmp_path), weights=None)
    return tmp_path / f"{bundle.name}.zip"


def test_a_whole_archive_passes_the_check(archive, capsys):
    package(str(archive))
    assert "fit for use and for the model zoo" in capsys.readouterr().out


def _contents(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as source:
        return {name.partition("/")[2]: source.read(name) for name in source.namelist()}


def _edited(files: dict[str, bytes], **changes: object) -> dict[str, bytes]:
    metadata = json.loads(files["configs/metadata.json"]) | changes
    return files | {"configs/metadata.json": json.dumps(metadata).encode()}


SPOILED = {
    "missing": (lambda files: {k: v for k, v in files.items() if k != "LICENSE"}, r"LICENSE: is missing"),
    "twin": (lambda files: files | {"configs/train.json": b"{}"}, r"train\.json: differs from configs/train\.yaml"),
    "config": (lambda files: files | {"configs/train.yaml": b"{"}, r"train\.json: differs .*cannot be read"),
    "list": (lambda files: files | {"configs/metadata.json": b"[1]"}, r"metadata\.json: must be an object"),
    "large": (lambda files: files | {"models/model.pt": bytes(26 * 2**20)}, r"26\.0 MB, more than the limit of 25 MB"),
    "changelog": (lambda files: _edited(files, changelog={}), r"changelog does not tell of version"),
    "newer": (
        lambda files: _edited(files, version="99.0.0", changelog={"99.0.0": "x"}),
        r"version 99\.0\.0, newer than the code",
    ),
    "no metadata": (lambda files: _edited(files) | {"configs/metadata.json": b"{"}, r"metadata\.json: is not JSON"),
}


@LEFT_ATRIUM
@pytest.mark.parametrize(("spoil", "message"), SPOILED.values(), ids=SPOILED)
def test_an_archive_that_lacks_something_is_refused(spoil, message, archive):
    write_archive(archive, archive.stem, spoil(_contents(archive)))
    with pytest.raises(UserError, match=message):
        check_archive(archive)


DAMAGED = {
    "cut": (lambda content: content[: len(content) // 2], "is not a whole zip archive"),
    "changed": (lambda content: content[:200] + bytes(64) + content[264:], "is damaged|not a whole zip"),
    "empty": (lambda content: b"", "is not a whole zip archive"),
}


@LEFT_ATRIUM
@pytest.mark.parametrize(("spoil", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_archive_is_refused(spoil, message, archive):
    archive.write_bytes(spoil(archive.read_bytes()))
    with pytest.raises(UserError, match=message):
        check_archive(archive)


@LEFT_ATRIUM
def test_an_encrypted_archive_is_refused(archive):
    content = bytearray(archive.read_bytes())
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # local and central header, first file
        content[content.index(mark) + flags] |= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a whole zip archive .*encrypted"):
        check_archive(archive)


@LEFT_ATRIUM
def test_an_archive_whose_files_would_lie_elsewhere_is_refused(archive):
    with zipfile.ZipFile(archive, "a") as target:
        target.writestr("../outside.txt", "x")
    with pytest.raises(UserError, match="everything must lie in one folder named crossmatch_la/"):
        check_archive(archive)


@LEFT_ATRIUM
def test_weights_are_packed_listed_or_refused(bundle, tmp_path):
    weights = tmp_path / "model.pt"
    parser = ConfigParser(ConfigParser.load_config_file(bundle.configs / "inference.yaml"))
    torch.save(parser.get_parsed_content("network_def").state_dict(), weights)
    with pytest.raises(UserError, match=r"model\.json: no such file; it says with which spacing, patch and filters"):
        package(str(bundle.folder), str(tmp_path / "a"), weights=str(weights), limit_mb=50)
    weights.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match=r"models/model\.pt: 36\.\d MB, more than the limit of 25 MB.*--weights_url"):
        package(str(bundle.folder), str(tmp_path / "a"), weights=str(weights))
    assert not (tmp_path / "a").exists()
    package(str(bundle.folder), str(tmp_path / "a"), weights=str(weights), limit_mb=50)
    assert _contents(tmp_path / "a" / "crossmatch_la.zip")["models/model.pt"] == weights.read_bytes()
    package(str(bundle.folder), str(tmp_path / "b"), weights=str(weights), weights_url="https://example.org/model.pt")
    files = _contents(tmp_path / "b" / "crossmatch_la.zip")
    assert b"url: https://example.org/model.pt" in files["large_files.yml"]
    assert b"hash_type: sha256" in files["large_files.yml"]
    assert "models/model.pt" not in files
    torch.save({"head.weight": torch.zeros(1)}, weights)
    with pytest.raises(UserError, match="was trained with another network; pack weights of the network in inference"):
        package(str(bundle.folder), str(tmp_path / "c"), weights=str(weights))


@LEFT_ATRIUM
def test_an_archive_is_not_overwritten_unasked(bundle, archive):
    with pytest.raises(UserError, match="is there already"):
        package(str(bundle.folder), str(archive.parent), weights=None)
    package(str(bundle.folder), str(archive.parent), weights=None, overwrite=True)


def test_a_bundle_newer_than_the_code_is_refused():
    refuse_newer_bundle({"version": __version__})
    with pytest.raises(UserError, match=r"the bundle is version 99\.0\.0, newer than the code"):
        refuse_newer_bundle({"version": "99.0.0"})


@LEFT_ATRIUM
def test_command_line_names_a_damaged_archive_in_one_line(archive):
    archive.write_bytes(archive.read_bytes()[:1000])
    done = run_command("tools.package", archive, cwd=ROOT)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
