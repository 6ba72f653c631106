"""Small synthetic data sets and a way to run the bundle on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from custom.synthetic import write_dataset

ROOT = Path(__file__).resolve().parent.parent
BUNDLE = ROOT / "bundles" / "crossmatch_la"

#: The smallest settings that still go through every part of the bundle.
TINY = {
    "patch_size": [16, 16, 16],
    "stride": [16, 16, 16],
    "base_filters": 2,
    "max_iterations": 3,
    "val_interval": 2,
    "num_workers": 0,
    "device": "$torch.device('cpu')",
    "amp": False,
}


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data list of a data set that no test may change."""
    counts = {"training": 2, "unlabeled": 3, "validation": 2, "test": 2}
    return write_dataset(tmp_path_factory.mktemp("tiny"), counts, size=(24, 24, 20))


@pytest.fixture
def own_dataset(tmp_path: Path) -> Path:
    """Data list of a data set that a test may break."""
    return write_dataset(tmp_path / "own", {"training": 2, "unlabeled": 2, "validation": 1}, size=(16, 16, 16))


@pytest.fixture
def edit() -> Callable[[Path, Callable[[dict], Any]], None]:
    """Change a data list in place."""

    def change(datalist: Path, how: Callable[[dict], Any]) -> None:
        content = json.loads(datalist.read_text())
        how(content)
        datalist.write_text(json.dumps(content))

    return change


@pytest.fixture
def run_bundle(tmp_path: Path) -> Callable[..., ConfigWorkflow]:
    """Run a section of the left-atrium bundle in this process, with tiny settings and outputs in ``tmp_path``."""

    def run(run_id: str, configs: list[str], folder: Path | str = BUNDLE / "configs", **overrides: Any):
        places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "eval")}
        files = [str(Path(folder) / f"{name}.yaml") for name in configs]
        settings = places | TINY | overrides
        if run_id == "inference":
            settings = {key: settings[key] for key in settings if key not in ("max_iterations", "val_interval")}
        workflow = ConfigWorkflow(files, run_id=run_id, **{k: v for k, v in settings.items() if v is not ...})
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow

    return run
