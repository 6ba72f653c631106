"""Suggest what to label next: ``crossmatch suggest --datalist LIST --ckpt_path MODEL --output FOLDER``.

The bundle's inference segments the unlabeled scans; its review says which predictions are doubtful, and
:mod:`tools.suggest.candidates` chooses among these. What is chosen is laid out for a label tool, with the data lists
for now and for afterwards.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser, ConfigWorkflow
from monai.utils import ensure_tuple

from custom.data.checks import Case
from custom.data.datalist import overlap_problems, read_lists
from custom.report.ranking import review_order
from custom.utils.errors import UserError
from custom.utils.files import read_json, refuse_unwritable, sha256_of, write_json
from custom.utils.settings import guess
from custom.utils.tables import Row, format_table, write_csv
from custom.utils.weights import read_weights, refuse_missing_weights

from ..plan.command import PLAN
from .candidates import POOL, Patient, bottleneck_features, by_patient, farthest_first, most_doubtful, standardized
from .layout import LABELED, LABELS, REST, TO_LABEL, copy_images, write_lists

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
TABLE, PREDICTIONS = "suggestions.csv", "predictions"
#: What a folder of suggestions was made from, in that folder.
RECORD = "suggest.json"
#: Of how a dataset folder was prepared, see :mod:`tools.prepare.writer`.
PREPARED = "prepare.json"
#: Settings of inference that are given by the command itself.
OWN = ("files", "dataset_dir", "output_dir", "ckpt_dir", "review", "shard")


def suggest(
    datalist: str,
    output: str,
    count: int = 10,
    bundle: str | None = None,
    ckpt_path: str | None = None,
    patient_pattern: str | None = None,
    **settings: Any,
) -> None:
    r"""Choose unlabeled patients that the network doubts, unlike each other, and lay out their images for a label tool.

    Of the 3 x count patients with the most doubtful predictions, it takes, one after the other, the one whose features
    differ most from those that are labeled or chosen already. With very few labels, patients chosen at random gave
    better results, see docs/results/experiments.md. The same command resumes where it was interrupted.

    Args:
        datalist: a data list with ``unlabeled`` scans, or the folder of ``datalist.json``.
        output: folder for suggestions.csv, to_label/, predictions/ and two data lists: unlabeled_rest.json lacks the
            suggested scans, labeled_next.json has them in ``training``, with labels expected in labels/.
        count: how many patients.
        bundle: in bundles/, such as crossmatch_la, or a bundle's folder; by default that of the data
            set's plan or preparation.
        ckpt_path: weights with their .json file, such as runs/own/model.pt; the bundle's own by default.
        patient_pattern: regular expression that finds the patient in a file name, such as 'patient\d+'; by default that
            of the data set's preparation, else the bundle's.
        settings: of the bundle's inference, such as ``--amp false``.

    Raises:
        UserError: says what is wrong with the data list, the weights or the folder, before anything is computed; and
            which scans cannot be segmented.
    """
    path, folder = Path(datalist), Path(output)
    path = path / "datalist.json" if path.is_dir() else path
    configs = _configs(bundle, path)
    pattern = _patient_pattern(patient_pattern, configs, path)
    lists = _lists(path, pattern, count)
    if not isinstance(ckpt_path, str | None):
        raise UserError(f"--ckpt_path: expected one file, found {ckpt_path}; features are those of one network.")
    weights = str(Path(ckpt_path) if ckpt_path else configs.parent / "models" / "model.pt")
    refuse_missing_weights(weights)
    _refuse_own(settings)
    given = {name: guess(value) if isinstance(value, str) else value for name, value in settings.items()}
    record = {"datalist": sha256_of(path), "weights": sha256_of(Path(weights)), "bundle": configs.parent.name}
    _take(folder, record | {"count": count, "patient_pattern": pattern, "settings": _without_runtime(given, configs)})
    config, scans, review = _segmented(configs, lists["unlabeled"], folder, given | {"ckpt_path": weights})
    pool = most_doubtful(by_patient(scans, pattern, path.parent), review, POOL * count)
    chosen = _choose(config, pool, list(by_patient(lists["training"], pattern, path.parent).values()), count)
    _write(folder, path, chosen, config.get_parsed_content("output_ext"))


def _configs(bundle: str | None, datalist: Path) -> Path:
    """Find the folder of a bundle's configs."""
    name = bundle or _planned_bundle(datalist) or f"crossmatch_{_prepared(datalist).get('command')}"
    folder = BUNDLES / name if (BUNDLES / name).is_dir() else Path(name)
    if not (folder / "configs" / "inference.yaml").is_file():
        known = ", ".join(sorted(path.name for path in BUNDLES.glob("*/")))
        found = "none was given" if bundle is None else f"got {bundle}"
        raise UserError(f"--bundle: expected the one of the weights, {known}, or a bundle's folder; {found}.")
    return folder / "configs"


def _planned_bundle(datalist: Path) -> str | None:
    """Read for which bundle the plan beside a data list is, as its head says."""
    path = datalist.parent / PLAN
    match = re.search(r"crossmatch_\w+", path.read_text()) if path.is_file() else None
    return match[0] if match else None


def _patient_pattern(given: str | None, configs: Path, datalist: Path) -> str | None:
    prepared = _prepared(datalist).get("options", {}).get("patient_pattern")
    training = configs / "train.yaml"
    of_bundle = ConfigParser.load_config_file(training).get("patient_pattern") if training.is_file() else None
    return given or prepared or of_bundle


def _prepared(datalist: Path) -> dict[str, Any]:
    """Read how the data list's folder was prepared; empty where that is not known."""
    path = datalist.parent / PREPARED
    return read_json(path) if path.is_file() else {}


def _lists(path: Path, pattern: str | None, count: int) -> dict[str, list[Case]]:
    """Read the data list, which must have enough unlabeled patients, none of them in another list too."""
    lists = read_lists(path)
    if not lists["unlabeled"]:
        found = ", ".join(f"{len(cases)} in {name!r}" for name, cases in lists.items())
        raise UserError(
            f"{path}: expected scans in the list 'unlabeled', found none ({found}); add those without label."
        )
    problems = overlap_problems(lists, pattern, path.parent)
    if problems:
        raise UserError(f"{path}: {len(problems)} problem(s), nothing was run:", problems)
    patients = len(by_patient(lists["unlabeled"], pattern, path.parent))
    if not 1 <= count <= patients:
        raise UserError(
            f"--count: {path} has {patients} unlabeled patient(s), expected 1 to as many; got {count}, where 10 is the "
            "default."
        )
    return lists


def _refuse_own(settings: Mapping[str, Any]) -> None:
    problems = [f"--{name} is given to inference by this command; leave it out." for name in OWN if name in settings]
    if problems:
        raise UserError("setting that cannot be given, nothing was run:", problems)


def _without_runtime(settings: Mapping[str, Any], configs: Path) -> dict[str, Any]:
    """Leave out the settings that say where and how inference runs, not what it computes."""
    runtime = ConfigParser.load_config_file(configs / "inference.yaml").get("runtime_keys", [])
    return {name: value for name, value in settings.items() if name not in runtime}


def _take(folder: Path, record: Mapping[str, Any]) -> None:
    """Make the folder this command's own, or find that it is; what is laid out in it is not mixed with others."""
    refuse_unwritable(output=str(folder))
    path, now = folder / RECORD, json.loads(json.dumps(record))
    if path.is_file():
        before = read_json(path) if (folder / TO_LABEL).is_dir() else now
        changed = {key: f"{before.get(key)} before, {now[key]} now" for key in now if before.get(key) != now[key]}
        changed |= {key: "another file, or another content" for key in ("datalist", "weights") if key in changed}
        if changed:
            lines = [f"{key}: {text}" for key, text in changed.items()]
            raise UserError(f"{folder}: holds suggestions made otherwise; choose another --output:", lines)
    elif folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty, and holds no suggestions; choose another --output.")
    write_json(path, now)


def _segmented(
    configs: Path, cases: Sequence[Case], folder: Path, settings: Mapping[str, Any]
) -> tuple[ConfigParser, list[Case], list[Row]]:
    """Run the bundle's inference; give its config, with weights in the network, its cases, and their review."""
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)  # it warns of files that a bundle may lack
    files = [list(ensure_tuple(case["image"])) for case in cases]  # a list for each, so that no name makes two a pair
    places = {"files": files, "output_dir": str(folder / PREDICTIONS)}
    workflow = ConfigWorkflow(str(configs / "inference.yaml"), run_id="inference", **{**settings, **places})
    workflow.initialize()
    config = workflow.parser
    network = config.get_parsed_content("network")
    network.load_state_dict(read_weights(settings["ckpt_path"], network))
    network.eval()
    workflow.run()
    workflow.finalize()
    review = review_order([found["review"] for found in config.get_parsed_content("record").found().values()])
    return config, config.get_parsed_content("scans").cases, review


def _choose(
    config: ConfigParser, pool: Sequence[Patient], labeled: Sequence[Sequence[Case]], count: int
) -> list[tuple[Patient, float]]:
    """Choose among doubtful patients, farthest first, with the distance of each."""
    features = standardized(bottleneck_features(config, [*labeled, *(patient.cases for patient in pool)]))
    chosen = farthest_first(features[len(labeled) :], features[: len(labeled)], count)
    return [(pool[place], distance) for place, distance in chosen]


def _row(rank: int, patient: Patient, distance: float) -> Row:
    files = [str(file) for case in patient.cases for file in ensure_tuple(case["image"])]
    numbers = {"doubt": patient.doubt, "distance": distance}
    return {"rank": rank, "patient": patient.name, **numbers, "why": patient.why, "files": ";".join(files)}


def _write(folder: Path, datalist: Path, chosen: Sequence[tuple[Patient, float]], ending: str) -> None:
    """Write what is chosen, the table last, and tell."""
    cases = [case for patient, _ in chosen for case in patient.cases]
    copy_images(cases, folder)
    write_lists(datalist, cases, ending, folder)
    rows = [_row(rank, *choice) for rank, choice in enumerate(chosen, start=1)]
    write_csv(folder / TABLE, rows)
    _tell(folder, datalist, rows, cases, ending)


def _tell(folder: Path, datalist: Path, rows: Sequence[Row], cases: Sequence[Case], ending: str) -> None:
    """Print what was chosen, and what comes next."""
    example = cases[0]["case"]
    print("\n" + format_table([{name: row[name] for name in row if name != "files"} for row in rows]))
    print(
        f"\nSuggestions: {folder / TABLE}; doubt and distance in standard deviations. Next:\n\n"
        f"1. Label the {len(cases)} scan(s) in {folder / TO_LABEL}. To correct a draft instead of drawing: "
        f"{folder / PREDICTIONS / f'{example}_seg{ending}'} and so on.\n"
        f"2. Put the label maps into {folder / LABELS}, named as the scans: {example}{ending}.\n"
        f"3. Train again, with another --ckpt_dir and --datalist {folder / LABELED}. "
        f"Until then {folder / REST} is the data list without the scan(s)."
    )
    if _prepared(datalist).get("command") == "own":
        named = f"as {example}_seg{ending}"
        print(f"   Or put them with your other labels, {named}, and give `crossmatch prepare own` as before.")
