"""One progress bar for a whole training."""

from collections.abc import Sequence

from ignite.engine import Engine, Events
from tqdm import tqdm

#: Iterations between two readings of the scalars, each of which waits for the device.
EVERY = 10


class ProgressBar:
    """One bar for the whole run of an engine, with scalars of its output.

    Unlike Ignite's ``ProgressBar``, which counts within an epoch, it starts at the iteration that a training resumes
    from, and reads scalars from the device only as often as it draws.

    Args:
        title: what the engine does.
        names: entries of ``engine.state.output`` to show.
        total: number of iterations of the run; None takes it from the engine's epochs.
    """

    def __init__(self, title: str, names: Sequence[str] = (), total: int | None = None) -> None:
        self.title = title
        self.names = tuple(names)
        self.total = total

    def attach(self, engine: Engine) -> None:
        """Open the bar at the start of the run, close it at its end."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED | Events.TERMINATE | Events.EXCEPTION_RAISED, self._close)

    def _open(self, engine: Engine) -> None:
        planned = engine.state.max_epochs * engine.state.epoch_length
        total = planned if self.total is None else min(self.total, planned)
        done = engine.state.iteration
        self.bar = tqdm(total=total, initial=done, desc=self.title, unit="it", dynamic_ncols=True)

    def _advance(self, engine: Engine) -> None:
        self.bar.update()
        if self.names and (engine.state.iteration % EVERY == 0 or engine.state.iteration == 1):
            output = engine.state.output
            self.bar.set_postfix({name: f"{output[name].item():.3f}" for name in self.names if name in output})

    def _close(self, engine: Engine, error: BaseException | None = None) -> None:
        if hasattr(self, "bar"):  # not where a handler has failed before
            self.bar.close()
        if error is not None:
            raise error  # Ignite hands an exception to its handlers instead of raising it
