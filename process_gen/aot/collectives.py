"""What the devices of a compiled program exchange, read from its text.

The text is HLO as the TPU compiler and XLA's others write it. Loops count as often as they turn:
that is written beside them, read from the constant that their condition compares with, or, where
it compares with an argument of the program, told by the caller.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from process_gen.aot.hlo_shapes import arrays_of

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


class Exchange(NamedTuple):
    """All collectives of one kind in one run of a program, on one device.

    Attributes:
      count: how often one runs.
      bytes: sent by a device, at least. Of an array of n bytes that a group of g shares, gathering
        and scattering send n (g - 1) / g, and a sum of all that every one gets is both. Where the
        program takes one of several branches, such as a step of painting with guidance or without,
        it is the one that sends least.
    """

    count: int
    bytes: int


class _Collective(NamedTuple):
    kind: str
    bytes: int
    # TPUs spread a collective over several fusions, each of which repeats it.
    same: tuple[str, str] | None


class _Computation(NamedTuple):
    lines: list[str]
    collectives: list[_Collective]


_OPENED = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_KIND = re.compile(rf" = (.*?) ({'|'.join(KINDS)})(-start)?\((.*)")
_CALLED = re.compile(r"\b(?:calls|to_apply)=(\{[^}]*\}|%?[\w.-]+)")
_BRANCH = re.compile(r"\b(?:branch|true|false)_computations?=(\{[^}]*\}|%?[\w.-]+)")
_LOOP = re.compile(r"\bcondition=%?([\w.-]+), body=%?([\w.-]+)")
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CONSTANT = re.compile(r"= [su]32\[\]\S* constant\((\d+)\)")


def exchanges(text: str, turns: int = 1) -> dict[str, Exchange]:
    """Collectives by kind.

    Args:
      text: of ``compiled.as_text()``.
      turns: of a loop whose condition holds no constant.
    """
    computations, entry = _computations(text)
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    for collective, times in _walk(computations, entry, turns):
        if collective.same is not None:
            if collective.same in seen:
                continue
            seen.add(collective.same)
        counts[collective.kind] += times
        sizes[collective.kind] += times * collective.bytes
    return {kind: Exchange(counts[kind], sizes[kind]) for kind in KINDS if counts[kind]}


def _walk(
    computations: dict[str, _Computation], entry: str, turns: int
) -> Iterator[tuple[_Collective, int]]:
    """Every collective and how often it runs, from the entry down."""

    def sent(name: str) -> int:
        return sum(one.bytes * times for one, times in _walk(computations, name, turns))

    waiting = [(entry, 1)]
    while waiting:
        name, times = waiting.pop()
        here = computations[name]
        for collective in here.collectives:
            yield collective, times
        for line in here.lines:
            if loop := _LOOP.search(line):
                stated = _TURNS.search(line)
                count = int(stated[1]) if stated else _turns(computations, loop[1], turns)
                waiting.append((loop[2], times * count))
            waiting += [(called, times) for called in _names(_CALLED, line)]
            if branches := _names(_BRANCH, line):
                waiting.append((min(branches, key=sent), times))


def _turns(computations: dict[str, _Computation], condition: str, turns: int) -> int:
    """The largest constant of a condition, for loops here count up from 0; `turns` without one."""
    waiting, found = [condition], 0
    while waiting:
        for line in computations[waiting.pop()].lines:
            found = max([found, *map(int, _CONSTANT.findall(line))])
            waiting += _names(_CALLED, line)
    return found or turns


def _names(pattern: re.Pattern[str], line: str) -> list[str]:
    """The computations that a line refers to."""
    return [name for group in pattern.findall(line) for name in re.findall(r"[\w.-]+", group)]


def _computations(text: str) -> tuple[dict[str, _Computation], str]:
    """What every computation holds of interest, and the name of the first one to run."""
    found: dict[str, _Computation] = {}
    entry = name = ""
    for line in text.splitlines():
        if opened := _OPENED.match(line):
            name = opened[2]
            found[name] = _Computation([], [])
            entry = name if opened[1] else entry
        elif collective := _KIND.search(line):
            # TPUs scatter sums by a fusion of a whole sum and the cutting out of the own share.
            cut = name.startswith("all-reduce-scatter")
            result, kind, start, rest = collective.groups()
            found[name].collectives.append(_read(result, kind, start, rest, cut))
        elif any(kept.search(line) for kept in (_LOOP, _CALLED, _BRANCH, _CONSTANT)):
            found[name].lines.append(line)
    return found, entry


def _read(result: str, kind: str, start: str | None, rest: str, cut: bool) -> _Collective:
    arrays = arrays_of(result)
    if start and kind == "collective-permute":
        arrays = arrays[1:2]
    elif start and kind in ("all-gather", "reduce-scatter"):
        # The result of an asynchronous one holds its operands, and for some its counters.
        arrays = arrays[len(arrays) // 2 :]
    size, group = sum(array.bytes for array in arrays), _group(rest)
    if kind == "reduce-scatter":
        size *= max(group - 1, 0)  # the result is one share
    elif kind != "collective-permute" and group:
        twice = kind == "all-reduce" and not cut
        size = int(size * (2 if twice else 1) * (group - 1) / group)
    channel, chain = (re.search(rf'{n}=?"?(\d+)', rest) for n in ("channel_id", "chain_id"))
    kind = "reduce-scatter" if cut else kind
    return _Collective(kind, size, (channel[1], chain[1]) if channel and chain else None)


def _group(rest: str) -> int:
    """How many devices take part; 0 where that is not said."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", rest):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest):
        return int(iota[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\].*? ?\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    return 0
