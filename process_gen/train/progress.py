"""How fast a run goes, when it will be over, and how many steps fit into a time budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

# In the order of a terminal line; any other metric follows by name. Details, with a slash, do not.
LOSSES = (
    "loss",
    "ce",
    "mse",
    "plan_ce",
    "inspect_ce",
    "control_ce",
    "refine_ce",
    "answer_ce",
    "sketch_mse",
    "refine_mse",
    "one_shot_mse",
)
_SHOWN_OTHERWISE = ("steps_per_second", "eta_seconds", "total_steps")


class Progress:
    """Rate and remaining time, measured between the calls of `mark`.

    Args:
      step: step at which this process starts.
      clock: seconds from any origin.
    """

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = (step, clock())

    def restart(self, step: int) -> None:
        """Measures from now, so that compilation does not count."""
        self._last = (step, self._clock())

    def mark(self, step: int, total_steps: int) -> dict[str, float]:
        """Scalars to log: rate since the last mark, seconds left at that rate, total steps."""
        before, then = self._last
        now = self._clock()
        self._last = (step, now)
        rate = (step - before) / max(now - then, 1e-9)
        left = (total_steps - step) / rate if rate > 0 else 0.0
        return {
            "steps_per_second": rate,
            "eta_seconds": left,
            "total_steps": float(total_steps),
        }


class TimeBudget:
    """Turns minutes into a number of steps.

    Steps are timed once compilation is over, and the estimate is renewed until half of the run is
    over: by then pauses for validation and a busy machine are in it, and what is still to come is
    too short to be far off. Schedules are flat or nearly so in that half.

    Args:
      minutes: wall time of the run, compilation included, from `started`; 0 is no budget.
      started: clock at the start of the run.
      settled: whether the total is known already, as in a resumed run.
      clock: seconds from any origin.

    Attributes:
      settled: whether the total will not change any more.
      estimated: whether it comes from timing at all.
    """

    interval = 20  # steps between estimates

    def __init__(
        self,
        minutes: float,
        started: float,
        settled: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settled = settled or minutes == 0
        self.estimated = settled
        self._end = started + 60.0 * minutes
        self._clock = clock
        self._calls = 0
        self._origin = (0, 0.0)

    def update(self, step: int, total_steps: int) -> int:
        """The number of steps of the whole run; to be called after each step with the last one."""
        if self.settled:
            return total_steps
        self._calls += 1
        if self._calls == 2:  # the first call came while compilation was just over
            self._origin = (step, self._clock())
        if self._calls <= 2 or (self._calls - 2) % self.interval:
            return total_steps
        first, then = self._origin
        now = self._clock()
        rate = (step - first) / max(now - then, 1e-9)
        total_steps = step + max(1, round(rate * (self._end - now)))
        self.estimated = True
        self.settled = 2 * step >= total_steps
        return total_steps


def line(step: int, split: str, values: Mapping[str, float]) -> str:
    """One line of a log: where the run is, its rate, then the losses.

    Args:
      step: of the run.
      split: "train", "eval" or the name of a hook.
      values: scalars by name, as written to every log.
    """
    total = values.get("total_steps")
    head = f"{split:<5} {step}" + (f"/{total:.0f}" if total else "")
    parts = [head]
    if "steps_per_second" in values:
        parts.append(f"{values['steps_per_second']:.2f} steps/s")
        parts.append(f"ETA {duration(values['eta_seconds'])}")
    names = [n for n in LOSSES if n in values]
    shown = (*LOSSES, *_SHOWN_OTHERWISE)
    names += sorted(name for name in values if name not in shown and "/" not in name)
    parts += [f"{name} {values[name]:.4g}" for name in names]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as "1h02m", "3m05s" or "42s"."""
    whole = max(0, round(seconds))
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    if whole >= 60:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole}s"
