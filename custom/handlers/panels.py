"""Pictures of a training step in TensorBoard, and of scored cases: what the network saw, was taught, and said."""

import logging
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.data.utils import affine_to_spacing
from monai.engines.utils import IterationEvents
from monai.utils import optional_import

from ..data.checks import read_image
from ..data.photos import is_photo
from ..losses import IGNORE_INDEX
from ..report.drawing import Panel, case_panels, draw_panels, largest_slice
from ..report.pages import beside
from ..utils.files import atomic_write
from ..utils.names import case_of

logger = logging.getLogger(__name__)


class ViewPanels:
    """Draw the first labeled and the first unlabeled patch of a step, in one figure.

    Above: the labeled image with its label and with the prediction. Below: the weak view with its pseudo-label and with
    the prediction, and both strong views after CutMix. Of volumes the slice along the last axis with the largest
    structure, and of their channels the first.

    Args:
        writer: ``torch.utils.tensorboard.SummaryWriter``.
        interval: iterations between two figures; the first is drawn too.
        photographs: whether patches are cut out of photographs, which are drawn as viewers show them, also grey ones.
    """

    def __init__(self, writer: Any, interval: int, photographs: bool = False) -> None:
        self.writer = writer
        self.interval = interval
        self.photographs = photographs

    def attach(self, engine: Engine) -> None:
        """Draw while the step's views are at hand; where matplotlib is not installed, say so and draw nothing."""
        if not _can_draw("figures of the views in TensorBoard"):
            return
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        iteration = engine.state.iteration
        if iteration != 1 and iteration % self.interval != 0:
            return
        views = {name: _first(value) for name, value in engine.state.views.items()}
        predicted = views["labeled_logits"].argmax(0)
        label = views["label"][0]
        z = largest_slice(label.numpy())
        rows = [
            [_panel("labeled: label", views["labeled"], label, z), _panel("prediction", views["labeled"], predicted, z)]
        ]
        if "weak" in views:
            pseudo = views["pseudo_label"][0]
            taught = pseudo.where(pseudo != IGNORE_INDEX, 0)
            z = largest_slice(taught.numpy())
            rows.append(
                [
                    _panel("weak: pseudo-label", views["weak"], taught, z, ignored=pseudo == IGNORE_INDEX),
                    _panel("prediction", views["weak"], views["weak_logits"].argmax(0), z),
                    _panel("strong_1", views["strong_1"], None, z),
                    _panel("strong_2", views["strong_2"], None, z),
                ]
            )
        if not self.photographs:
            rows = [[panel._replace(image=panel.image[:1]) for panel in row] for row in rows]
        rows = [[panel._replace(is_photo=self.photographs) for panel in row] for row in rows]
        self.writer.add_figure("views", draw_panels(rows), iteration)


class TensorBoardSession:
    """Tell TensorBoard where a training begins or goes on, so that it forgets what came after; write all at the end.

    Args:
        writer: ``torch.utils.tensorboard.SummaryWriter``.
    """

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def attach(self, engine: Engine) -> None:
        """Act at the start, after each epoch and at the end."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.EPOCH_COMPLETED | Events.COMPLETED, lambda _: self.writer.flush())

    def _start(self, engine: Engine) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        first = engine.state.iteration + 1
        event = Event(step=first, session_log=SessionLog(status=SessionLog.START))
        self.writer.file_writer.add_event(event, first)


class CasePanels:
    """Draw image, truth and prediction of every case that is scored, ``CASE.png``, see :func:`case_panels`.

    Of several channels that are no photograph's the first is drawn.

    Args:
        folder: of the evaluation; the pictures go to ``panels`` in it.
        table: file of the metrics; with ``metrics_ema.csv`` the pictures go to ``panels_ema``.
    """

    def __init__(self, folder: str, table: str = "metrics.csv") -> None:
        self.folder = Path(folder) / beside(Path(table), "panels")

    def attach(self, engine: Engine) -> None:
        """Draw at each iteration of an evaluator whose ``pred`` and ``label`` are one-hot, NH[WD]."""
        if _can_draw("pictures of the cases"):
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._draw)

    def _draw(self, engine: Engine) -> None:
        for output in engine.state.output:
            meta = output["image"].meta
            # On the grid of the label, not on that of the network; grey photographs too are drawn as photographs.
            image, _ = read_image(meta["filename_or_obj"], in_channels=3)
            if image is None:
                continue
            shown = image.numpy() if is_photo(meta["filename_or_obj"]) else image.numpy()[:1]
            label, pred = (output[name].argmax(0).cpu().numpy() for name in ("label", "pred"))
            row = case_panels(shown, label, pred, affine_to_spacing(output["label"].affine)[:2].tolist())
            with atomic_write(self.folder / f"{case_of(meta)}.png") as part:
                draw_panels([row]).savefig(part, dpi=100)


def _can_draw(what: str) -> bool:
    found = optional_import("matplotlib.backends.backend_agg")[1]
    if not found:
        logger.info("matplotlib is not installed: there will be no %s.", what)
    return found


def _first(batch: torch.Tensor) -> torch.Tensor:
    return batch[0].detach().float().cpu()


def _panel(
    title: str, image: torch.Tensor, label: torch.Tensor | None, z: int | None, ignored: torch.Tensor | None = None
) -> Panel:
    def cut(array: torch.Tensor | None) -> Any:
        return None if array is None else (array if z is None else array[..., z]).numpy()

    return Panel(title, cut(image), cut(label), cut(ignored))
