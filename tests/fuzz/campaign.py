"""Runs cases of a target and counts what came of them.

    python -m tests.fuzz.campaign --cases=200000 --target=trajectory
    python -m tests.fuzz.campaign --cases=1000 --json

--target=NAME  of `targets.TARGETS`; by default all, one after the other
--cases=N      of each (1000)
--first=N      number of the first one (0); a case is known by target, seed and number
--seed=N       (0)
--json         print one JSON object a target

A case is refused with an error of the project's own, or accepted. Anything else is a finding, and
so is a case that takes more than `SLOW` seconds of CPU time: it is printed with its number, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import logging
import random
import sys
import time
import traceback
from collections.abc import Callable

from process_gen.core.errors import ProcessGenError

SLOW = 5.0
_KEPT = 5


@dataclasses.dataclass
class Ledger:
    """What came of the cases of a target.

    Attributes:
      cases, accepted: how many, and how many were taken as valid.
      refused: by the name of the project's error.
      findings: foreign exceptions by number of the case, and slow cases.
      cpu_seconds: of all of them.
    """

    cases: int = 0
    accepted: int = 0
    refused: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    findings: dict[int, str] = dataclasses.field(default_factory=dict)
    cpu_seconds: float = 0.0


def run(
    call: Callable[[random.Random], None], cases: int, *, first: int = 0, seed: int = 0
) -> Ledger:
    """Runs the cases ``first..first + cases`` of a target.

    Args:
      call: makes a case and gives it to the parser; raises what that raises.
      cases, first, seed: which ones.
    """
    ledger = Ledger()
    began = time.process_time()
    for number in range(first, first + cases):
        rng = random.Random((seed << 40) + number)
        started = time.process_time()
        try:
            call(rng)
        except ProcessGenError as error:
            ledger.refused[type(error).__name__] += 1
        except BaseException as error:  # a panic of a Rust library is no Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            if len(ledger.findings) < _KEPT:
                ledger.findings[number] = traceback.format_exc()
        else:
            ledger.accepted += 1
        ledger.cases += 1
        if (used := time.process_time() - started) > SLOW and len(ledger.findings) < _KEPT:
            ledger.findings[number] = f"took {used:.1f} s of CPU time"
    ledger.cpu_seconds = round(time.process_time() - began, 1)
    return ledger


def main() -> None:
    """Reads the flags, runs, prints."""
    from tests.fuzz.targets import TARGETS, open_target

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", choices=list(TARGETS), action="append")
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    flags = parser.parse_args()
    found = False
    for name in flags.target or TARGETS:
        with open_target(name) as call:
            ledger = run(call, flags.cases, first=flags.first, seed=flags.seed)
        if flags.json:
            print(json.dumps({"target": name, **vars(ledger)}), flush=True)
        else:
            refused = ", ".join(f"{n} {kind}" for kind, n in ledger.refused.most_common())
            print(
                f"{name}: {ledger.cases} cases, {ledger.accepted} accepted, refused: "
                f"{refused or 'none'}; {len(ledger.findings)} findings, {ledger.cpu_seconds} s",
                flush=True,
            )
        for number, what in ledger.findings.items():
            print(f"{name}, case {number}: {what}", file=sys.stderr, flush=True)
        found = found or bool(ledger.findings)
    sys.exit(int(found))


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # what is left out is counted here
    main()
