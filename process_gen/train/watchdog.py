"""Ends a run that hangs, with a word about what it waits for.

A process may be alive and yet get nowhere: a file system that does not answer, a device that is
lost, another process that waits for something else. A scheduler sees none of it, and the machines
stay taken. The loop tells the watchdog what it begins; when nothing new is begun for too long, the
process ends, and the command can be started again.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

STATUS = 1  # of a process that was ended; launch scripts start it again


class Watchdog:
    """A thread that looks at a clock. Use it in a `with` block; threads are not started twice.

    Args:
      minutes: the longest pause; 0 waits for ever.
      end: what is done then, with the message; ends the process by default.
      clock: seconds from any origin.
    """

    def __init__(
        self,
        minutes: float,
        end: Callable[[str], Any] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = 60.0 * minutes
        self._end, self._clock = end or _end, clock
        self._now = ("the start of training", clock())
        self._over = threading.Event()

    def at(self, what: str) -> None:
        """Says what is begun."""
        self._now = (what, self._clock())

    def look(self) -> bool:
        """Ends the process if it has paused for too long; returns whether it did."""
        what, since = self._now
        paused = self._clock() - since
        if not self._seconds or paused <= self._seconds:
            return False
        self._end(
            f"nothing has moved for {paused / 60:.1f} minutes: this process waits for {what}. It "
            "ends here, so that the same command can go on from the last checkpoint; "
            "train.stall_minutes is how long it may wait"
        )
        return True

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(5.0, self._seconds / 10)):
            if self.look():
                return


def _end(message: str) -> NoReturn:
    """Says where every thread stands, then the message, and ends without waiting for anything."""
    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(STATUS)
