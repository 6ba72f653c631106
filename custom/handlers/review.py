"""Handler that puts the predictions into the order in which to look at them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events

from ..data.checks import read_image
from ..report.planes import plane_picture
from ..report.ranking import review_order
from ..report.reviewing import review_page
from ..utils.files import atomic_write
from ..utils.names import case_of
from ..utils.tables import Row, write_csv

__all__ = ["ReviewPage"]

logger = logging.getLogger(__name__)


class ReviewPage:
    """Write ``review.csv`` and ``review.html``, the worst predictions first, and ``review/CASE.png`` of each.

    Args:
        folder: where they are written: pictures as soon as a scan is segmented, the others at the end.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.measures: dict[str, Row] = {}

    def attach(self, engine: Engine) -> None:
        """Collect at each iteration of an evaluator whose output has ``review`` and ``pred``, class indices TH[WD]."""
        engine.add_event_handler(Events.STARTED, lambda _: self.measures.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _collect(self, engine: Engine) -> None:
        for output in engine.state.output:
            case = case_of(output["pred"].meta)
            self.measures[case] = output["review"]
            self._draw(case, output["pred"])

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

    def _finish(self, engine: Engine) -> None:
        rows = review_order(list(self.measures.values()))
        write_csv(self.folder / "review.csv", rows)
        page = review_page(self.folder, rows)
        print(f"Review: {page}")
