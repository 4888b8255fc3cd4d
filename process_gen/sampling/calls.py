"""What goes into a call of the sampler's programs, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


class Rows(NamedTuple):
    """The rows of one call.

    Attributes:
      index_B: int32 rows of the pool; unused ones point to the scratch row.
      active_B: bool, false for unused ones.
      length_B: int32 cache slots in use.
      order_B, position_B: int32, those of the first new token.
      slot_order_B, slot_position_B: int32, those of the text-dropped branch.
      visible_from_BxC, visible_to_BxC: int32 intervals of the first cache slots. Only these are
        read, and the rows of a call use no others; without any, nothing is.
      seed_Bx4: uint32: the request's seed, prompt index, sample and segment number.
    """

    index_B: Any
    active_B: Any
    length_B: Any
    order_B: Any
    position_B: Any
    slot_order_B: Any
    slot_position_B: Any
    visible_from_BxC: Any
    visible_to_BxC: Any
    seed_Bx4: Any


class Begun(NamedTuple):
    """Where the texts of a call stand.

    Attributes:
      token_B: int32, the token to be read next; ``<|im_start|>`` at the beginning of a text.
      count_B: int32 tokens of the text read so far.
      patience: int32, the call ends once so many of its rows have closed their text.
    """

    token_B: Any
    count_B: Any
    patience: Any


class Written(NamedTuple):
    """Texts written by one call.

    Attributes:
      tokens_BxM: int32 tokens read in this call, the last one ``<|im_end|>`` where the text is
        closed, then 0.
      count_B: int32 of them.
      token_B: int32, the token to be read next where it is not.
      closed_B: bool.
      cut_B: bool, the text was too long and was closed by force.
      decisions_Bx3: float32 logits of `painting.DECISIONS` at the closing token.
      turns: int32 tokens that the call had time for.
    """

    tokens_BxM: jax.Array
    count_B: jax.Array
    token_B: jax.Array
    closed_B: jax.Array
    cut_B: jax.Array
    decisions_Bx3: jax.Array
    turns: jax.Array


class Course(NamedTuple):
    """How the pictures of a call come down from noise.

    Attributes:
      grid_BxN: float32 falling times of each row, 0 from its end on. A row that begins below 1
        begins at its earlier picture, noised that far.
      steps: int32 steps to take.
      scale: float32 text guidance.
    """

    grid_BxN: Any
    steps: Any
    scale: Any


_GRID = 64  # a grid is padded to a multiple of so many steps


def course(grids: Sequence[np.ndarray], rows: int, scale: float) -> Course:
    """The course of rows with a grid each; the remaining ones stay where they are."""
    steps = max(len(grid) for grid in grids) - 1
    grid_BxN = np.zeros((rows, -(-steps // _GRID) * _GRID + 1), np.float32)
    for row, grid in zip(grid_BxN, grids, strict=False):
        row[: len(grid)] = grid
    return Course(grid_BxN, np.int32(steps), np.float32(scale))
