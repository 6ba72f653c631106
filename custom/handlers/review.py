"""Handler that puts the predictions into the order in which to look at them."""

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..data.checks import read_image
from ..data.record import InferenceRecord
from ..report.planes import plane_picture
from ..report.ranking import review_order
from ..report.reviewing import review_page
from ..utils.distributed import is_first
from ..utils.files import atomic_write
from ..utils.names import case_of
from ..utils.tables import write_csv

logger = logging.getLogger(__name__)


class ReviewPage:
    """Write ``review.csv`` and ``review.html``, the worst predictions first, and ``review/CASE.png`` of each.

    Args:
        folder: where they are written: pictures as soon as a scan is segmented, the others at the end.
        record: the scans that are segmented, by this and other processes, with what :class:`VolumeTable` noted of each.
    """

    def __init__(self, folder: str, record: InferenceRecord) -> None:
        self.folder = Path(folder)
        self.record = record

    def attach(self, engine: Engine) -> None:
        """Draw at each iteration of an evaluator whose output has ``pred``, class indices TH[WD]."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)

    def _collect(self, engine: Engine) -> None:
        for output in engine.state.output:
            self._draw(case_of(output["pred"].meta), output["pred"])

    def _draw(self, case: str, pred: Any) -> None:
        """Draw the first frame on the scan's own grid; the prediction is worth more than its picture."""
        path = self.folder / "review" / f"{case}.png"
        path.unlink(missing_ok=True)  # of an earlier prediction
        try:
            image, problems = read_image(pred.meta["filename_or_obj"], in_channels=3)
            if image is None:
                raise ValueError("; ".join(problems))
            with atomic_write(path) as part:
                plane_picture(image, pred[:1]).save(part)
        except Exception as error:  # whatever it is, it must not end the run
            logger.warning("%s: there is no picture for the review (%s).", case, error)

    def finish(self) -> None:
        """Write the list and the page, when the record knows of what all processes left out; call it in all of them."""
        found = self.record.found_in_folder()
        if found and is_first():
            files = {scan["review"]["case"]: place + self.record.endings[0] for place, scan in found.items()}
            rows = review_order([scan["review"] for scan in found.values()])
            rows = [{**row, "prediction": files[row["case"]]} for row in rows]
            write_csv(self.folder / "review.csv", rows)
            print(f"Review: {review_page(self.folder, rows, self.record.left_out())}")
