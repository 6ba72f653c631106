"""Handlers that write a CSV about every case and print it as a table."""

import logging
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.utils import ensure_tuple

from ..data.geometry import lacks_spacing
from ..data.loading import Unreadable
from ..data.record import LOCK, InferenceRecord
from ..metrics import case_metrics
from ..report.ranking import structure_volumes
from ..utils.distributed import any_rank, gather_in_turn, is_first
from ..utils.errors import UserError
from ..utils.files import write_json
from ..utils.lock import one_at_a_time
from ..utils.names import ALL, MEAN, case_of, first_names
from ..utils.tables import Row, _columns, format_table, write_csv

logger = logging.getLogger(__name__)

#: Tables of a run are written anew after so many times the seconds that it takes, which grow with the scans.
SELDOM = 20


class CaseTable:
    """Score every case and class, and average per class and over all.

    Unlike MONAI's ``MetricsSaver``, it puts all metrics into one table, knows heart phases, and counts empty
    predictions.

    A mean says in ``cases`` over how many cases it is, and in ``cases_mm`` over how many in millimetres it is, where
    those are fewer because some headers have no spacing. Of processes that evaluate together the first writes the cases
    of all.

    Args:
        path: the CSV file. It is written when the evaluation is complete.
        class_names: foreground classes, in the order of their labels.
        phases: regular expression by name of a heart phase, searched in the case's name; the first that is found
            fills the column ``phase``, and each phase gets means of its own. Empty for no such column.
        scored: what the table is about, such as the weights' file; it is written beside, as ``metrics.json``.
    """

    def __init__(
        self,
        path: str,
        class_names: Sequence[str],
        phases: Mapping[str, str] | None = None,
        scored: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = Path(path)
        self.scored = dict(scored or {})
        self.class_names = tuple(class_names)
        self.phases = dict(phases or {})
        self.rows: dict[str, list[Row]] = {}

    def attach(self, engine: Engine) -> None:
        """Collect cases at each iteration of an evaluator whose ``pred`` and ``label`` are one-hot, NH[WD]."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _collect(self, engine: Engine) -> None:
        for output in engine.state.output:
            rows = self._case_rows(output["pred"], output["label"])
            every = [] if len(rows) == 1 else [{**_names(rows[0]), "class": ALL, **_mean(rows)}]
            self.rows[str(output["label"].meta["filename_or_obj"])] = [*rows, *every]

    def _case_rows(self, pred: MetaTensor, label: MetaTensor) -> list[Row]:
        case = case_of(label.meta)
        names = {"case": case} | ({"phase": self._phase(case)} if self.phases else {})
        spacing = None if lacks_spacing(label.meta) else affine_to_spacing(label.affine, label.ndim - 1).tolist()
        rows = []
        for index, name in enumerate(self.class_names, start=1):
            found, true = pred.as_tensor()[index].cpu(), label.as_tensor()[index].cpu()
            row = {**names, "class": name, **case_metrics(found, true, spacing)}
            rows.append({**row, "empty_prediction": int(not found.any())})
        return rows

    def _phase(self, case: str) -> str:
        return next((name for name, pattern in self.phases.items() if re.search(pattern, case)), "")

    def _finish(self, engine: Engine) -> None:
        by_file = dict(gather_in_turn(self.rows.items()))
        if is_first():
            rows = [row for rows in by_file.values() for row in rows]
            rows += self._means(rows)
            write_csv(self.path, rows)
            write_json(self.path.with_suffix(".json"), self.scored)
            print("\n" + format_table(rows) + f"\n\nMetrics: {self.path}")

    def _means(self, scored: Sequence[Row]) -> list[Row]:
        means = []
        found = [phase for phase in self.phases if any(row["phase"] == phase for row in scored)]
        for phase in [*found, None]:
            for name in dict.fromkeys(row["class"] for row in scored):
                rows = [row for row in scored if row["class"] == name and phase in (None, row.get("phase"))]
                names = {"case": MEAN} | ({"phase": phase or ""} if self.phases else {})
                means.append({**names, "class": name, **_mean(rows), **_counts(rows)})
        return means


class VolumeTable:
    """Measure what was segmented: volumes per frame, and the ejection fraction of a series.

    Args:
        folder: where ``volumes.csv`` and, if there is a series, ``ejection_fraction.csv`` are written after each scan,
            after some where there are thousands.
        class_names: foreground classes, in the order of their labels.
        densities: g/ml by class whose mass is wanted too.
        ventricles: classes whose ejection fraction is wanted: (EDV - ESV) / EDV, where EDV is the largest and ESV the
            smallest volume of that class over the frames.
        record: keeps what is measured; the tables are of all scans in it, also those of earlier runs and of other
            processes. None for a table of the scans of this run.
    """

    def __init__(
        self,
        folder: str,
        class_names: Sequence[str],
        densities: Mapping[str, float] | None = None,
        ventricles: Sequence[str] = (),
        record: InferenceRecord | None = None,
    ) -> None:
        unknown = {*(densities or {}), *ventricles} - set(class_names)
        if unknown:
            raise UserError(f"densities and ventricles must name classes of {list(class_names)}, got {unknown}.")
        self.folder = Path(folder)
        self.class_names = tuple(class_names)
        self.densities = dict(densities or {})
        self.ventricles = tuple(ventricles)
        self.record = record
        self.found: dict[str, Any] = {}
        self.written, self.seconds = 0.0, 0.0  #: when the tables were written last, and how long it took

    def attach(self, engine: Engine) -> None:
        """Measure at each iteration of an evaluator whose ``pred`` holds class indices, TH[WD] for T frames."""
        engine.add_event_handler(Events.STARTED, lambda _: self.found.clear())
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _begin(self, engine: Engine) -> None:
        scan = engine.state.batch
        if self.record is not None and not isinstance(scan, Unreadable):
            self.record.begin(ensure_tuple(scan["image"].meta["case"])[0])

    def _collect(self, engine: Engine) -> None:
        for output in engine.state.output:
            pred = output["pred"]
            case = case_of(pred.meta)
            frames = [self._frame_row(number, labels) for number, labels in enumerate(pred, start=1)]
            lost_spacing = pred.ndim > 3 and lacks_spacing(pred.meta)
            found = {"frames": frames, "lost_spacing": lost_spacing, "review": output.get("review")}
            self.found[case] = {"case": case, **found}
            if self.record is not None:
                self.record.add(case, output["written"], found)
        started = time.monotonic()
        if started - self.written > SELDOM * self.seconds:
            self._write()  # now, since the program may be killed
            self.written = time.monotonic()
            self.seconds = self.written - started

    def _frame_row(self, number: int, labels: MetaTensor) -> Row:
        row: Row = {"frame": number}
        for name, (column, volume) in zip(
            self.class_names, structure_volumes(labels, self.class_names).items(), strict=True
        ):
            row[column] = volume
            if name in self.densities and column.endswith("_ml"):
                row[f"{name}_g"] = volume * self.densities[name]
        return row

    def _write(self) -> list[Row]:
        """Write the tables, one process at a time, and give the ejection fractions."""
        with one_at_a_time(self.folder / LOCK):
            if self.record is not None:
                self.found = self.record.found_in_folder()
            if not self.found:
                return []  # and what is there stays
            cases = [[{"case": scan["case"], **row} for row in scan["frames"]] for scan in self.found.values()]
            functions = [
                ejection_fraction(frames, name) for frames in cases if len(frames) > 1 for name in self.ventricles
            ]
            write_csv(self.folder / "volumes.csv", [row for frames in cases for row in frames])
            if functions:
                write_csv(self.folder / "ejection_fraction.csv", functions)
        return functions

    def finish(self) -> None:
        """Write the tables when all processes are done, and say where they are; call it in all of them."""
        any_rank(False)  # waits for the others
        functions = self._write()
        if not self.found:
            return
        if functions:
            print("\n" + format_table(functions) + f"\n\nEjection fractions: {self.folder / 'ejection_fraction.csv'}")
        print(f"\nVolumes: {self.folder / 'volumes.csv'}")
        lost = [scan["case"] for scan in self.found.values() if scan["lost_spacing"]]
        if lost:
            logger.warning(
                "%d scan(s) have no spacing in their headers; their volumes are counts of voxels, in thousands: %s",
                *(len(lost), first_names(lost)),
            )


def ejection_fraction(frames: Sequence[Row], name: str) -> Row:
    """Find the largest and the smallest volume of a ventricle over the frames of a case.

    Args:
        frames: rows of one case with ``case``, ``frame`` and the volume ``NAME_ml``.
        name: the ventricle.

    Returns:
        Volumes in ml and their frames; the ejection fraction in percent, ``nan`` for a ventricle of no volume.
    """
    column = f"{name}_ml"
    diastole, systole = (extreme(frames, key=lambda row: row[column]) for extreme in (max, min))
    stroke = diastole[column] - systole[column]
    return {
        "case": frames[0]["case"],
        "ventricle": name,
        "end_diastolic_frame": diastole["frame"],
        "end_diastolic_ml": diastole[column],
        "end_systolic_frame": systole["frame"],
        "end_systolic_ml": systole[column],
        "stroke_ml": stroke,
        "ejection_fraction_percent": 100 * stroke / diastole[column] if diastole[column] else float("nan"),
    }


def _names(row: Row) -> Row:
    return {name: row[name] for name in ("case", "phase") if name in row}


def _counts(rows: Sequence[Row]) -> Row:
    """Over how many cases a mean is; those in mm over fewer, where headers have no spacing."""
    measured = sum("hd95_mm" in row for row in rows)
    return {"cases": len(rows)} | ({"cases_mm": measured} if 0 < measured < len(rows) else {})


def _mean(rows: Sequence[Row]) -> dict[str, float]:
    means = {}
    for column in _columns(rows):
        values = [row[column] for row in rows if not isinstance(row.get(column, ""), str)]
        if values:
            # Empty predictions are counted, everything else is averaged.
            means[column] = sum(values) if column == "empty_prediction" else sum(values) / len(values)
    return means
