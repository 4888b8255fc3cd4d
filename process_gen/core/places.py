"""Where the segments of a trajectory stand: orders, positions, visibility, and what dropout takes.

Two kinds of dropout. The one of process training takes nothing out of the sequence: a noised copy
may stand where it does not see its plan, or sees nothing, and a context copy may end to be seen.
The one of BAGEL's trainer deletes items, tokens and labels and all (`Dropout.delete`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from process_gen.core.grammar import Kind, Segment
from process_gen.core.trajectory import Stage


@dataclasses.dataclass(frozen=True)
class Dropout:
    """Chances of what is taken away while training.

    Attributes:
      text, prompt: that a noised copy is trained without its plan, and without any context.
      vae, vit: that a clean latent copy, or an understanding copy, of a picture is seen by
        its own inspection at most.
      delete: `text`, `vae` and `vit` are chances instead that a text, a clean latent copy or an
        understanding copy is deleted, whatever it is. What follows a deleted text moves up; a
        deleted picture leaves its position empty (`data/dataset_base.py` of BAGEL's repository).
    """

    text: float = 0.0
    prompt: float = 0.0
    vae: float = 0.0
    vit: float = 0.0
    delete: bool = False


NO_DROPOUT = Dropout()


class Spot(NamedTuple):
    """Where a segment stands in its trajectory.

    Attributes:
      order, position: of its first token; those of a text go on counting.
      visible_to: the last order that sees it.
    """

    order: int
    position: int
    visible_to: int


def stand(
    segments: Sequence[Segment],
    lengths: Sequence[int],
    dropout: Dropout = NO_DROPOUT,
    rng: np.random.Generator | None = None,
) -> tuple[list[Spot | None], int]:
    """Gives every segment its place.

    Args:
      segments: of one trajectory, as `grammar.to_segments` gives them.
      lengths: tokens of each text, boundaries included; not looked at for pictures.
      dropout: chances of what is taken away.
      rng: draws it; None takes nothing away.

    Returns:
      A spot for each segment, None where it is deleted, and the number of orders.
    """
    if rng is not None and dropout.delete:
        kept = _kept(segments, dropout, rng)
        dropout = Dropout(prompt=dropout.prompt)
    else:
        kept = [True] * len(segments)
    spots, last_orders, orders = _spots(segments, lengths, kept, dropout, rng)
    hidden_after = _hidden_after(segments, dropout, rng)
    found: list[Spot | None] = []
    for segment, spot, last, stays in zip(segments, spots, hidden_after, kept, strict=True):
        visible_to = orders - 1 if last is None else last_orders[last]
        if segment.kind is Kind.NOISED:
            visible_to = spot.order
        found.append(spot._replace(visible_to=visible_to) if stays else None)
    return found, orders


def _kept(segments: Sequence[Segment], dropout: Dropout, rng: np.random.Generator) -> list[bool]:
    """Which segments are not deleted; noised copies never are."""
    chance = {Kind.TEXT: dropout.text, Kind.CLEAN: dropout.vae, Kind.UND: dropout.vit}
    return [
        segment.kind is Kind.NOISED or segment.firm or rng.random() >= chance[segment.kind]
        for segment in segments
    ]


def _spots(
    segments: Sequence[Segment],
    lengths: Sequence[int],
    kept: Sequence[bool],
    dropout: Dropout,
    rng: np.random.Generator | None,
) -> tuple[list[Spot], list[int], int]:
    """Spots without visibility, the last order up to each segment, and the number of orders.

    Just before the first segment, and before the words that each picture was drawn for, lie as many
    order slots as noised copies could need, so that a dropped copy never shares a slot with another
    one (they would see each other).
    """
    needed = [0] * len(segments)
    for segment in segments:
        if segment.kind is Kind.NOISED:
            needed[0] += 1
            if segment.plan:
                needed[segment.plan] += 1
    order = position = 0
    slots: dict[int, tuple[int, int]] = {}
    spots: list[Spot] = []
    last_orders: list[int] = []
    for index, segment in enumerate(segments):
        if needed[index]:
            slots[index] = (order, position)
            order += needed[index]
        spot = Spot(order, position, order)
        if segment.kind is Kind.TEXT:
            count = lengths[index] if kept[index] else 0
            order += count
            position += count
        elif segment.kind is Kind.NOISED:
            slot = None
            if rng is not None:
                draw = rng.random()
                if draw < dropout.prompt:
                    slot = 0
                elif draw < dropout.prompt + dropout.text:
                    slot = segment.plan
            if slot is not None:
                free, before = slots[slot]
                slots[slot] = (free + 1, before)
                spot = Spot(free, before, free)
            order += 1
        else:
            order += kept[index]
            position += 1
        spots.append(spot)
        last_orders.append(order - 1)
    return spots, last_orders, order


def _hidden_after(
    segments: Sequence[Segment], dropout: Dropout, rng: np.random.Generator | None
) -> list[int | None]:
    """The last segment that sees each one, None for the trajectory's end.

    The inspection of a picture keeps every copy of it: what it says is to be seen, not guessed.
    """
    chance = {Kind.CLEAN: dropout.vae, Kind.UND: dropout.vit}
    out = [segment.hidden_after for segment in segments]
    inspection: int | None = None  # of the picture that the walk from the end is at
    for index in range(len(out) - 1, -1, -1):
        segment = segments[index]
        if segment.kind is Kind.TEXT:
            inspection = index if segment.stage is Stage.INSPECT else None
        elif rng is not None and segment.hidden_after is None and not segment.firm:
            p = chance.get(segment.kind, 0.0)
            if p and rng.random() < p:
                out[index] = index if inspection is None else inspection
    return out
