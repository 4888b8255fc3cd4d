"""The oracle as a judge: inspections of real sketches in the words of the Strokes world.

What it writes is what `strokes.plans` writes for the same fault: what is seen, two verdicts, and
for a fault the command that repairs it. A sketch with several faults gets one sentence and one
command for each, joined by "and". What these words cannot say is a `Failed` with its reason.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from process_gen.core.trajectory import parse_plan
from process_gen.curation.protocols import CheckRequest, Failed, Verdict
from process_gen.curation.strokes_conflicts import (
    Entry,
    as_story,
    change_between,
    find_conflict,
    read_state,
)
from process_gen.strokes import faults, phrases
from process_gen.strokes.layout import Wanted, wanted
from process_gen.strokes.oracle import Reading, read
from process_gen.strokes.plans import approve
from process_gen.strokes.prompts import parse
from process_gen.strokes.scene import PLACES, SceneObject


class OracleJudge:
    """Judges by `strokes.oracle`, without a neural network.

    Args:
      max_faults: a sketch with more faults than this is not put into words.
    """

    def __init__(self, max_faults: int = 2):
        self.max_faults = max_faults

    def check(self, requests: Sequence[CheckRequest]) -> list[Verdict | Failed]:
        """The verdict on each request."""
        return [self._check(request) for request in requests]

    def _check(self, request: CheckRequest) -> Verdict | Failed:
        requirement = parse(request.prompt)
        if requirement is None:
            return Failed("a prompt that is not of the Strokes world", request.prompt)
        before: list[Entry] | None = []
        if request.earlier:
            before = _planned(request.earlier[-1].refined_plan or request.earlier[-1].plan)
        after = _planned(request.plan)
        if before is None or after is None:
            return Failed("a plan that cannot be read", request.plan)
        change = change_between(before, after)
        parsed = parse_plan(request.plan)
        if parsed is None or parsed[0] not in change.texts:
            return Failed("an instruction that its description does not follow", request.plan)
        groups = wanted(requirement)
        rng = np.random.default_rng(request.seed)
        conflict = find_conflict(groups, before, after, change, rng)
        if isinstance(conflict, Failed):
            return dataclasses.replace(conflict, detail=request.plan)
        reading = None if request.picture is None else read(request.picture)
        if conflict is not None:
            if reading is not None and _differs(reading, after):
                return Failed(
                    "a plan that contradicts the prompt, and a sketch of something else",
                    fault="conflict",
                )
            said = f"{phrases.NO_FIT_PROMPT} {conflict.why}."
            return Verdict(
                _seen(reading) + said, "conflict", conflict.command, conflict.plan, conflict.kind
            )
        if reading is None:
            return Verdict(phrases.FITS_PROMPT)
        if not _differs(reading, after):
            return _approve(groups, after)
        return self._misalignment(reading, before, after)

    def _misalignment(
        self, reading: Reading, before: Sequence[Entry], after: Sequence[Entry]
    ) -> Verdict | Failed:
        seen = objects_of(reading)
        if any(count > 1 for count in Counter((o.color, o.shape, o.cell) for o in seen).values()):
            return Failed("two alike in one cell", fault="misalignment")
        found = differences([item for item, _ in after], seen)
        if not found:
            return Failed("marks that are no object", fault="misalignment")
        if len(found) > self.max_faults:
            return Failed("too many faults in one sketch", fault="misalignment")
        older = {item.cell for item, holds in after if (item, holds) in before}
        kinds = [("old " if cell in older else "") + kind for kind, cell, _ in found]
        why = " and ".join(said[0] for _, _, said in found)
        command = " and ".join(said[1] for _, _, said in found)
        said = f"{phrases.FITS_PROMPT} {phrases.NO_FIT_INSTRUCTION} {why}."
        return Verdict(_seen(reading) + said, "misalignment", command, kind=" + ".join(kinds))


def _planned(plan: str) -> list[Entry] | None:
    parsed = parse_plan(plan)
    return read_state(parsed[1]) if parsed else None


def objects_of(reading: Reading) -> list[SceneObject]:
    """What was read, each object in the middle of its cell, in reading order."""
    cells = [divmod(PLACES.index(o.place), 3) for o in reading.objects]
    return [
        SceneObject(o.shape, o.color, row, col)
        for o, (row, col) in zip(reading.objects, cells, strict=True)
    ]


def _seen(reading: Reading | None) -> str:
    return "" if reading is None else phrases.seen(objects_of(reading)) + " "


def _differs(reading: Reading, state: Sequence[Entry]) -> bool:
    placed = tuple(sorted((item.color, item.shape, item.place) for item, _ in state))
    return bool(reading.stray) or reading.placed != placed


def _approve(groups: list[Wanted], state: Sequence[Entry]) -> Verdict | Failed:
    story, canvas = as_story(groups, state)
    if story is None:
        return Failed("an earlier plan contradicts the prompt")
    return Verdict(approve(story, canvas))


Difference = tuple[str, int, faults.Saying]  # kind, cell of the planned or left-over object, words


def differences(planned: Sequence[SceneObject], seen: Sequence[SceneObject]) -> list[Difference]:
    """What is wrong with a picture, as few faults as possible, in reading order.

    Args:
      planned, seen: in the middle of their cells, no two alike in one cell.
    """
    lost = [item for item in planned if item not in seen]
    extra = [item for item in seen if item not in planned]
    found: list[Difference] = []
    for a in list(lost):
        for b in [item for item in lost if item.cell > a.cell]:
            drawn = [_find(extra, a, b.cell), _find(extra, b, a.cell)]
            if a in lost and None not in drawn and (a.color, a.shape) != (b.color, b.shape):
                first, second = sorted(filter(None, drawn), key=lambda item: item.cell)
                found.append(("swap", a.cell, faults.exchanged(first, second)))
                lost = [item for item in lost if item not in (a, b)]
                extra = [item for item in extra if item not in drawn]
    for item in list(lost):
        wrong = next((other for other in extra if other.cell == item.cell), None)
        if wrong is not None:
            if wrong.shape == item.shape:
                said = ("color", item.cell, faults.wrong_color(wrong, item.color))
            else:
                said = ("shape", item.cell, faults.wrong_shape(wrong, item.color, item.shape))
            found.append(said)
            lost.remove(item)
            extra.remove(wrong)
    for item in list(lost):
        wrong = _find(extra, item, None)
        if wrong is not None:
            found.append(("place", item.cell, faults.wrong_place(wrong, item.cell)))
            lost.remove(item)
            extra.remove(wrong)
    found += [("missing", item.cell, faults.missing(item)) for item in lost]
    found += [("extra", item.cell, faults.left_over(item)) for item in extra]
    return sorted(found, key=lambda difference: difference[1])


def _find(items: Sequence[SceneObject], like: SceneObject, cell: int | None) -> SceneObject | None:
    """The first item of the same kind, in a cell if one is given."""
    return next(
        (
            item
            for item in items
            if (item.color, item.shape) == (like.color, like.shape)
            and (cell is None or item.cell == cell)
        ),
        None,
    )
