"""`--tracking mlflow` of MONAI's command line."""

import json
import sqlite3
from pathlib import Path

import pytest
from conftest import SHORT_AXIS


def _query(folder: Path, text: str) -> list[tuple]:
    with sqlite3.connect(folder / "mlruns.db") as connection:
        return connection.execute(text).fetchall()


@SHORT_AXIS
@pytest.mark.parametrize("output_dir", ["the bundle's own", "a literal path"])
def test_mlflow_gets_every_term_and_the_config(run_bundle, tiny_dataset, tmp_path, output_dir):
    folder = tmp_path / "eval"
    given = f"$@bundle_root and {str(folder)!r}" if output_dir == "the bundle's own" else str(folder)
    run_bundle(
        "training", ["train"], datalist=str(tiny_dataset), output_dir=given, max_iterations=20, tracking="mlflow"
    )
    names = {name for (name,) in _query(folder, "select distinct key from metrics")}
    assert {"loss", "supervised", "confident_share", "learning_rate", "val_mean_dice"} <= names
    assert _query(folder, "select step from metrics where key = 'loss' order by step") == [(10,), (20,)]
    (config,) = folder.glob("mlruns/**/artifacts/config_*.json")
    assert json.loads(config.read_text())["eta"] == 0.3
