"""When the next request may start: rate limits of a server, and its wish to be left alone."""

from __future__ import annotations

import email.utils
import threading
import time
from collections.abc import Callable, Mapping


class Pace:
    """Spaces requests out evenly; never more than the limits in any minute. Thread-safe."""

    def __init__(
        self,
        requests_per_minute: float = 0.0,
        tokens_per_minute: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Takes limits, 0 for none, and a clock in seconds."""
        self._per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._next_request = self._next_token = self._resume = clock()

    def reserve(self, tokens: float) -> tuple[float, float]:
        """Books the next free moment for a request of so many tokens.

        Returns:
          That moment, and the one of asking, by the clock.
        """
        with self._lock:
            now = self._clock()
            start = max(now, self._next_request, self._next_token, self._resume)
            self._next_request = start + self._per_request
            self._next_token = start + tokens * self._per_token
            return start, now

    def pause(self, seconds: float) -> None:
        """Nothing may start for so long, what has been booked included."""
        with self._lock:
            self._resume = max(self._resume, self._clock() + seconds)

    def wait(self, tokens: float, stop: threading.Event) -> None:
        """Waits for one's turn, or until `stop` is set."""
        start, now = self.reserve(tokens)
        while start > now and not stop.wait(start - now):
            with self._lock:
                if start >= self._resume:
                    return
            # What was booked lies in a pause. All such would start at its end, so each books anew.
            start, now = self.reserve(tokens)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that a response asks to wait (RFC 9110, 10.2.3: a number or a date); None if not.

    Args:
      headers: of the response; the mapping must not mind upper and lower case.
      now: seconds since 1970, for dates.
    """
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * unit
        except ValueError:
            continue
        if 0.0 <= seconds < float("inf"):
            return seconds
    date = email.utils.parsedate_tz(headers.get("retry-after"))
    return max(0.0, email.utils.mktime_tz(date) - now) if date else None
