"""Prove that the packaged bundle works in the real MONAI Label: ``python tests/monai_label.py --venv DIR``.

DIR is a virtual environment for MONAI Label, which brings packages that do not go with ours; it is made when missing,
in about six minutes. Then the left-atrium bundle is packaged, unzipped into MONAI Label's ``monaibundle`` app, given
tiny settings and weights, and served on 127.0.0.1; the server is asked what it has, segments a volume, ranks the
unlabeled studies, and trains on the labeled ones, all through its REST API.
"""

from __future__ import annotations

import argparse
import email
import email.policy
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from custom.networks import VNet  # noqa: E402
from tools.package import package  # noqa: E402
from tools.synthetic import write_dataset  # noqa: E402

NAME = "crossmatch_la"
#: MONAI Label's pydicom-seg imports what pydicom 3 no longer has.
LABEL = ["monailabel==0.8.5", "monai==1.6.1"]
LABEL += ["pydicom<3", "dicomweb-client<0.60", "pynetdicom<3"]
#: Of the bundle's packages, those that MONAI Label does not need and that want a newer NumPy than it does.
EXPORT_ONLY = ("onnx", "onnxscript")
#: MONAI Label takes the numbers of the config as they are, so they are made small in the unzipped copy.
TINY = {"patch_size": [32, 32, 32], "stride": [16, 16, 16], "base_filters": 4, "spacing": None, "num_workers": 0}


def main() -> None:
    """Run every step and say how long it took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--venv", required=True, type=Path, help="environment of MONAI Label, made when missing")
    venv = parser.parse_args().venv.resolve()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        step("environment", prepare_environment, venv)
        studies = step("studies, one of them labeled", write_studies, work)
        app = step("app with the packaged bundle", make_app, venv, work)
        log = work / "server.log"
        port = free_port()
        with open(log, "w") as stream:
            server = subprocess.Popen(server_command(venv, app, studies, port), stdout=stream, stderr=stream)
        try:
            url = f"http://127.0.0.1:{port}"
            step("server", wait_for_server, url, server)
            step("GET /info/", check_info, url)
            step("POST /infer/", check_inference, url, studies)
            step("GET /scoring/", check_scoring, url)
            step("POST /train/", check_training, url, app)
        except BaseException:
            print(log.read_text()[-6000:], file=sys.stderr)
            raise
        finally:
            server.terminate()
            server.wait(30)


def step(title: str, action: Any, *arguments: Any) -> Any:
    """Do something and print what came of it."""
    start = time.monotonic()
    result = action(*arguments)
    print(f"{title}: done in {time.monotonic() - start:.0f} s" + (f", {result}" if isinstance(result, str) else ""))
    return result


def prepare_environment(venv: Path) -> None:
    """Install MONAI Label, and of the bundle's packages those that it does not bring itself."""
    python = venv / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *LABEL], check=True)
    metadata = json.loads((ROOT / "bundles" / NAME / "configs" / "metadata.json").read_text())
    listed = subprocess.run([python, "-m", "pip", "list", "--format", "json"], check=True, capture_output=True)
    found = {entry["name"].lower() for entry in json.loads(listed.stdout)}
    needed = metadata["required_packages_version"]
    for name in EXPORT_ONLY:
        del needed[name]
    missing = [f"{name}=={version}" for name, version in needed.items() if name.lower() not in found]
    if missing:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *missing], check=True)


def write_studies(work: Path) -> Path:
    """Write four volumes, of which three have a final label, as MONAI Label keeps them."""
    datalist = write_dataset(work / "data", {"training": 3, "unlabeled": 1}, size=(40, 36, 34))
    studies = work / "studies"
    shutil.copytree(datalist.parent / "images", studies)
    shutil.copytree(datalist.parent / "labels", studies / "labels" / "final")
    return studies


def make_app(venv: Path, work: Path) -> Path:
    """Copy the app and unzip the packaged bundle into it, with tiny settings and fresh weights."""
    label = [*server_python(venv), "apps", "--download", "--name", "monaibundle", "--output", work / "apps"]
    subprocess.run(label, check=True, capture_output=True)
    app = work / "apps" / "monaibundle"
    package(str(ROOT / "bundles" / NAME), str(work / "dist"), weights=None)
    with zipfile.ZipFile(work / "dist" / f"{NAME}.zip") as archive:
        archive.extractall(app / "model")
    bundle = app / "model" / NAME
    for config in ("train", "inference"):  # MONAI Label prefers the JSON twin where there are both
        path = bundle / "configs" / f"{config}.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {key: value for key, value in TINY.items() if key in content}))
    (bundle / "models").mkdir()
    torch.manual_seed(0)
    torch.save(VNet(base_filters=TINY["base_filters"]).state_dict(), bundle / "models" / "model.pt")
    return app


def server_command(venv: Path, app: Path, studies: Path, port: int) -> list[Any]:
    """Serve the bundle alone, without the network.

    The app's other model, SAM 2, would be downloaded; and only with a zoo source other than ``monaihosting`` is what
    lies in ``model/`` taken unasked.
    """
    command = [*server_python(venv), "start_server", "--app", app, "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", port, "--conf", "models", NAME, "--conf", "zoo_source", "ngc"]
    command += ["--conf", "sam2", "false"]
    command += ["--conf", "epistemic_model", NAME, "--conf", "epistemic_simulation_size", "2"]
    return [str(part) for part in command]


def server_python(venv: Path) -> list[Any]:
    """MONAI Label's own script takes whatever Python is first on the path, so its module is run instead."""
    return [venv / "bin" / "python", "-m", "monailabel.main"]


def free_port() -> int:
    """Ask the system for a port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for_server(url: str, server: subprocess.Popen, seconds: float = 300) -> None:
    """Wait until the server answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended with exit code {server.returncode}")
        try:
            request(f"{url}/info/")
            return
        except OSError:
            time.sleep(1)
    raise TimeoutError(f"no answer from {url} in {seconds} s")


def request(url: str, form: Mapping[str, str] | None = None) -> tuple[str, bytes]:
    """Get a page, or post a form; returns the type of the content and the content."""
    data, headers = None, {}
    if form is not None:
        boundary = uuid.uuid4().hex
        headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in form.items()]
        data = ("".join(parts) + f"--{boundary}--\r\n").encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=600) as answer:
        return answer.headers["Content-Type"], answer.read()


def check_info(url: str) -> str:
    """Find the model, its label and its trainer."""
    info = json.loads(request(f"{url}/info/")[1])
    model = info["models"][NAME]
    assert model["type"] == "segmentation", model
    assert list(model["labels"]) == ["left atrium"], model
    assert NAME in info["trainers"], info["trainers"]
    strategies = list(info["strategies"])
    assert strategies == ["random", "first"], strategies  # none of them looks at the scores, see docs/sharing.md
    return f"{info['name']}: {NAME} {model['version']}, labels {model['labels']}, strategies {strategies}"


def check_inference(url: str, studies: Path) -> str:
    """Segment a study; the label map lies on the study's grid."""
    study = sorted(studies.glob("*.nii.gz"))[-1]
    case = study.name.removesuffix(".nii.gz")
    kind, content = request(f"{url}/infer/{NAME}?image={case}&output=all", {"params": json.dumps({"device": "cpu"})})
    message = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + content, policy=email.policy.default)
    parts = {part.get_param("name", header="content-disposition"): part for part in message.iter_parts()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "label.nii.gz"
        path.write_bytes(parts["image"].get_payload(decode=True))
        image, found = nib.load(study), nib.load(path)
        assert found.shape == image.shape, (found.shape, image.shape)
        np.testing.assert_allclose(found.affine, image.affine, atol=1e-4)
        values = sorted(np.unique(np.asarray(found.dataobj)).tolist())
        assert set(values) <= {0, 1}, values
    return f"{case}: {found.shape}, labels {values}, on the study's grid"


def check_scoring(url: str) -> str:
    """Rank the study without a label by how much predictions under dropout differ; the server begins by itself."""
    wait_for_task(f"{url}/scoring/")
    objects = json.loads(request(f"{url}/datastore/?output=all")[1])["objects"]
    scores = {case: entry["image"]["info"].get("epistemic_entropy") for case, entry in objects.items()}
    scored = {case: score for case, score in scores.items() if score is not None}
    assert len(scored) == 1, scores
    assert all(score > 0 for score in scored.values()), scored
    return f"epistemic entropy {scored}"


def wait_for_task(url: str) -> None:
    """Wait until the server has done a task in the background."""
    while (status := json.loads(request(url)[1]))["status"] == "RUNNING":
        time.sleep(2)
    assert status["status"] == "DONE", status


def check_training(url: str, app: Path, epochs: int = 2) -> str:
    """Train on the labeled studies; the bundle's weights are new afterwards."""
    weights = app / "model" / NAME / "models" / "model.pt"
    before = weights.read_bytes()
    options = {"model": NAME, "max_epochs": epochs, "val_split": 0.34, "device": "cpu", "pretrained": True}
    headers = {"Content-Type": "application/json"}
    body = json.dumps(options).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/train/{NAME}", body, headers), timeout=60).close()
    wait_for_task(f"{url}/train/")
    assert weights.read_bytes() != before, "training left the weights as they were"
    return f"{epochs} epochs, weights are new"


if __name__ == "__main__":
    main()
