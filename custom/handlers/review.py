"""Handler that puts the predictions into the order in which to look at them."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..data.checks import read_image
from ..data.record import LOCK, InferenceRecord
from ..report.planes import plane_picture
from ..report.ranking import review_order
from ..report.reviewing import review_page
from ..utils.distributed import is_first
from ..utils.files import atomic_write
from ..utils.lock import one_at_a_time
from ..utils.names import case_of, prediction_of
from ..utils.tables import write_csv

logger = logging.getLogger(__name__)


class ReviewPage:
    """Write ``review.csv`` and ``review.html``, the worst predictions first, and a picture of each in ``review/``.

    Args:
        folder: where they are written: pictures as soon as a scan is segmented, the others at the end.
        record: the scans that are segmented, by this and other processes, with what :class:`VolumeTable` noted of each.
        class_names: foreground classes, in the order of their labels.
    """

    def __init__(self, folder: str, record: InferenceRecord, class_names: Sequence[str]) -> None:
        self.folder = Path(folder)
        self.record = record
        self.class_names = tuple(class_names)

    def attach(self, engine: Engine) -> None:
        """Draw at each iteration of an evaluator whose output has ``pred``, class indices TH[WD]."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _collect(self, engine: Engine) -> None:
        for output in engine.state.output:
            self._draw(output["pred"])

    def _draw(self, pred: Any) -> None:
        """Draw the first frame on the scan's own grid; the prediction is worth more than its picture.

        What writing raises ends the run, as elsewhere: the scan is not done then, and the next run draws it.
        """
        path = self._picture(prediction_of(pred.meta))
        path.unlink(missing_ok=True)  # of an earlier prediction
        try:
            image, problems = read_image(pred.meta["filename_or_obj"], in_channels=3)
            if image is None:
                raise ValueError("; ".join(problems))
            picture = plane_picture(image, pred[:1])
        except Exception as error:  # whatever it is, it must not end the run
            logger.warning("%s: there is no picture for the review (%s).", case_of(pred.meta), error)
            return
        with atomic_write(path) as part:
            picture.save(part)

    def finish(self) -> None:
        """Write the list and the page, when the record knows of what all processes left out; call it in all of them."""
        if not is_first():
            return
        with one_at_a_time(self.folder / LOCK):
            found = self.record.found_in_folder()
            if not found:
                return
            places = {scan["case"]: place for place, scan in found.items()}
            rows = review_order([{**scan["review"], "case": scan["case"]} for scan in found.values()])
            rows = [{**row, "prediction": places[row["case"]] + self.record.endings[0]} for row in rows]
            write_csv(self.folder / "review.csv", rows)
            pictures = {case: self._picture(place) for case, place in places.items()}
            page = review_page(self.folder, rows, pictures, self.class_names, self.record.left_out())
        print(f"Review: {page}")

    def _picture(self, place: str) -> Path:
        return self.folder / "review" / f"{place}.png"
