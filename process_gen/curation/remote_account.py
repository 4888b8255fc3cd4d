"""What was asked of remote models, what became of it, and what it cost."""

from __future__ import annotations

import collections
import dataclasses
import threading
from typing import Any


@dataclasses.dataclass(frozen=True)
class Prices:
    """What a server charges, in any one currency; 0 for what it does not charge.

    Attributes:
      input_per_million, output_per_million: tokens, as the server counts them.
      per_picture: of each picture that it draws.
    """

    input_per_million: float = 0.0
    output_per_million: float = 0.0
    per_picture: float = 0.0


@dataclasses.dataclass(frozen=True)
class Usage:
    """What the server says that one answer took.

    Attributes:
      input_tokens, output_tokens: 0 where the server does not say.
      pictures: drawn.
      metered: whether it says anything.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    pictures: int = 0
    metered: bool = False


class Account:
    """Counts, by kind of question ("judge", "draw"). Safe to use from many threads.

    Every question that is not a repetition ends as exactly one of `cached`, `answered` and
    `failed`; every request to the server as `answered`, or as one of `faults`.
    """

    def __init__(self, prices: Prices):
        """Starts at zero."""
        self._prices = prices
        self._lock = threading.Lock()
        self._counts: dict[str, collections.Counter[str]] = {}
        self._reasons: dict[tuple[str, str], collections.Counter[str]] = {}
        self._drained: collections.Counter[str] = collections.Counter()

    def count(self, kind: str, event: str, reason: str = "") -> None:
        """Counts an event; with a reason ("timeout") also by that."""
        with self._lock:
            if reason:
                reasons = self._reasons.setdefault((kind, event), collections.Counter())
                reasons[reason] += 1
            else:
                self._counts.setdefault(kind, collections.Counter())[event] += 1

    def charge(self, kind: str, usage: Usage) -> None:
        """Adds what an answer took; answers that are rejected afterwards were paid as well."""
        with self._lock:
            counts = self._counts.setdefault(kind, collections.Counter())
            counts["input_tokens"] += usage.input_tokens
            counts["output_tokens"] += usage.output_tokens
            counts["pictures"] += usage.pictures
            counts["unmetered"] += not usage.metered

    def answered(self) -> int:
        """Answers that the server gave and that were good."""
        with self._lock:
            return sum(counts["answered"] for counts in self._counts.values())

    def drain(self) -> collections.Counter[str]:
        """The counts since the last call, flat ("judge answered", "judge faults: timeout").

        For tallies that are summed over shards and machines; `report` is not changed by it. Whole
        numbers only, so that sums are exact: the cost is in millionths of the prices' currency.
        """
        with self._lock:
            now: collections.Counter[str] = collections.Counter()
            for kind, counts in self._counts.items():
                now.update({f"{kind} {name}": n for name, n in counts.items()})
                now["cost in millionths"] += round(self._cost(counts) * 1e6)
            for (kind, event), reasons in self._reasons.items():
                now.update({f"{kind} {event}: {reason}": n for reason, n in reasons.items()})
            fresh = now - self._drained
            self._drained = now
            return fresh

    def report(self) -> dict[str, Any]:
        """Plain JSON: {kind: {"asked", "cached", "answered", "faults", "failed", ...}, "cost"}."""
        with self._lock:
            kinds = {}
            cost = 0.0
            for kind, counts in sorted(self._counts.items()):
                kinds[kind] = dict(sorted((name, n) for name, n in counts.items() if n))
                for event in ("faults", "failed"):
                    reasons = self._reasons.get((kind, event), {})
                    kinds[kind][event] = dict(sorted(reasons.items()))
                cost += self._cost(counts)
            return {"kinds": kinds, "cost": round(cost, 6)}

    def _cost(self, counts: collections.Counter[str]) -> float:
        tokens = counts["input_tokens"] * self._prices.input_per_million
        tokens += counts["output_tokens"] * self._prices.output_per_million
        return tokens / 1e6 + counts["pictures"] * self._prices.per_picture
