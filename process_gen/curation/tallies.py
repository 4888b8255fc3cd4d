"""How often a judge is right, counted shard by shard: counters can be summed, rates cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from process_gen.curation.protocols import Failed, Verdict

_PREFIX = "verdicts"


def fault_of(answer: Verdict | Failed) -> str | None:
    """ "conflict", "misalignment" or "none"; None where it is not known."""
    if isinstance(answer, Failed):
        return answer.fault
    return answer.fault or "none"


def compare(name: str, said: Verdict | Failed, true: Verdict | Failed) -> Counter[str]:
    """Counts one verdict of the judge `name` against that of one who knows."""
    key = f"{_PREFIX}/{name}"
    said_fault, true_fault = fault_of(said), fault_of(true)
    if said_fault is None or true_fault is None:
        return Counter({f"{key}/not compared": 1})
    said_bad, true_bad = said_fault != "none", true_fault != "none"
    cell = {
        (True, True): "true alarms",
        (True, False): "false alarms",
        (False, True): "misses",
        (False, False): "true approvals",
    }[said_bad, true_bad]
    counts = Counter({f"{key}/{cell}": 1})
    if said_bad and said_fault == true_fault:
        counts[f"{key}/of the right kind"] += 1
    return counts


def verdict_report(tally: Mapping[str, int]) -> dict[str, Any]:
    """The field "verdicts" of a manifest: for each judge its counts, precision and recall.

    A fault is what is to be found. Precision is the share of its alarms that are right, recall the
    share of the faults that it finds; None where there are none. Empty without any comparison.
    """
    judges: dict[str, Counter[str]] = {}
    for key, count in tally.items():
        prefix, _, rest = key.partition("/")
        name, _, cell = rest.rpartition("/")
        if prefix == _PREFIX:
            judges.setdefault(name, Counter())[cell] += count
    report = {}
    for name, cells in sorted(judges.items()):
        found, false, missed = cells["true alarms"], cells["false alarms"], cells["misses"]
        report[name] = {
            "precision": round(found / (found + false), 4) if found + false else None,
            "recall": round(found / (found + missed), 4) if found + missed else None,
            **dict(sorted(cells.items())),
        }
    return {"verdicts": report} if report else {}
