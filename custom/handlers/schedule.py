"""Numbers that change over a training."""

import math
from collections.abc import Mapping

from ignite.engine import Engine, Events

from ..utils.errors import UserError


class SigmoidRampUp:
    """Write a scheduled number into ``engine.state`` before each iteration.

    Unlike Ignite's ``LambdaStateScheduler``, which acts when an iteration is completed, its first value is there at the
    first one.

    ``start + (end - start) * exp(-5 (1 - t / rampup_iterations)^2)``, the sigmoid ramp of Laine & Aila, ICLR 2017
    (arXiv:1610.02242), where t counts iterations after a delay; ``start`` during the delay, ``end`` after the ramp.

    Args:
        name: attribute of ``engine.state``.
        value: a number, held for the whole run; or a mapping with ``start``, ``end``, ``rampup_iterations`` and
            optionally ``delay``.

    Raises:
        UserError: when the mapping has other keys, or a duration is negative.
    """

    def __init__(self, name: str, value: float | Mapping[str, float]) -> None:
        self.name = name
        ramp = dict(value) if isinstance(value, Mapping) else {"start": value, "end": value, "rampup_iterations": 0}
        self.delay = ramp.pop("delay", 0)
        if sorted(ramp) != ["end", "rampup_iterations", "start"]:
            raise UserError(f"{name} must be a number or give start, end, rampup_iterations, got {value}.")
        if self.delay < 0 or ramp["rampup_iterations"] < 0:
            raise UserError(f"{name}: delay and rampup_iterations must not be negative, got {value}.")
        self.start, self.end, self.iterations = ramp["start"], ramp["end"], ramp["rampup_iterations"]

    def attach(self, engine: Engine) -> None:
        """Register on ``ITERATION_STARTED``."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Set the value of the iteration that starts; the first one is t = 0."""
        setattr(engine.state, self.name, self.value_at(engine.state.iteration - 1))

    def value_at(self, iteration: int) -> float:
        """Value after ``iteration`` completed iterations."""
        t = iteration - self.delay
        if t < 0:
            return float(self.start)
        if t >= self.iterations:
            return float(self.end)
        return self.start + (self.end - self.start) * math.exp(-5 * (1 - t / self.iterations) ** 2)
