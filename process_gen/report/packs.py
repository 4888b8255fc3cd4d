"""Packs as pictures: who sees whom in a row of a batch, by the kind of what is seen."""

from __future__ import annotations

import numpy as np

from process_gen.core.attention_mask import PAD_ORDER, dense_mask, draw
from process_gen.core.batch import NO_COPY, PackedBatch
from process_gen.core.trajectory import Image, Stage

LARGEST = 448  # tokens a side; of longer packs every n-th is drawn

KINDS = ("prompt", "plan", "inspection", "other words", "noised", "clean", "understanding")
_COLORS = np.array(
    [
        (120, 128, 138), (9, 88, 179), (26, 112, 55), (166, 51, 204),
        (214, 104, 22), (240, 178, 60), (70, 170, 190),
    ],
    np.uint8,
)  # fmt: skip
_LETTERS = "PpiwNcu"
_STAGES = {Stage.PROMPT: 0, Stage.PLAN: 1, Stage.INSPECT: 2}


def _tokens(row: PackedBatch) -> tuple[np.ndarray, np.ndarray]:
    """Places ``int[3, S]`` and kinds ``int[S]`` of the tokens that are no padding, by order."""
    text = np.full(len(row.text.order), 3)
    for stage, kind in _STAGES.items():
        text[row.label_stage_BxT == int(stage)] = kind
    gen = np.where(row.copy_BxG == NO_COPY, 5, 4)
    kind_S = np.concatenate([text, np.full(len(row.und.order), 6), gen])
    parts = (row.text, row.und, row.gen)
    place_3xS = np.concatenate([np.stack(part[:3]) for part in parts], axis=1)
    # Boundary tokens of a picture lie in the und stream, but share the picture's order.
    pictures = np.concatenate([row.und.order, row.gen.order])
    of_picture = dict(zip(pictures.tolist(), kind_S[len(text) :].tolist(), strict=True))
    for i, order in enumerate(row.text.order.tolist()):
        kind_S[i] = of_picture.get(order, kind_S[i])
    used = np.flatnonzero(place_3xS[0] != PAD_ORDER)
    used = used[np.argsort(place_3xS[0, used], kind="stable")]
    return place_3xS[:, used], kind_S[used]


def mask_picture(row: PackedBatch, largest: int = LARGEST) -> Image:
    """The mask of one row: a line a query, a column a key, coloured by the kind of the key.

    Args:
      row: without the batch axis, as `data.rows.Rows` gives it.
      largest: side that the picture may have in tokens.

    Returns:
      ``uint8[n, n, 3]``, at least one pixel; padding is not drawn.
    """
    place_3xS, kind_S = _tokens(row)
    step = max(1, -(-len(kind_S) // largest))
    place_3xS, kind_S = place_3xS[:, ::step], kind_S[::step]
    mask_SxS = dense_mask(place_3xS[0], place_3xS[1], place_3xS[2])
    picture = np.full((max(len(kind_S), 1), max(len(kind_S), 1), 3), 250, np.uint8)
    color_SxSx3 = np.broadcast_to(_COLORS[kind_S][None], (*mask_SxS.shape, 3))
    picture[: len(kind_S), : len(kind_S)][mask_SxS] = color_SxSx3[mask_SxS]
    return picture


def mask_drawing(row: PackedBatch, most: int = 64) -> str:
    """The mask of a short row in letters (`attention_mask.draw`); empty for a longer one."""
    place_3xS, kind_S = _tokens(row)
    if len(kind_S) > most:
        return ""
    names = "".join(_LETTERS[kind] for kind in kind_S)
    return draw(place_3xS[0], place_3xS[1], place_3xS[2], names)


def legend() -> str:
    """What the letters of a drawing stand for."""
    return ", ".join(f"{letter} {kind}" for letter, kind in zip(_LETTERS, KINDS, strict=True))
