"""From segments to the arrays of a pack: two dense streams with integers a token.

The und stream is text ``[B, T]`` (the boundary tokens of every image included) followed by
understanding patches ``[B, V]``; the gen stream is image-latent tokens ``[B, G]``, noised and
clean. Only attention sees both, and since the mask is computed from per-token integers the physical
order of tokens does not matter: nothing is gathered or scattered.

Positions (RoPE) and orders (mask) are different integers: a noised picture and its clean copy share
a position but not an order, as in BAGEL (`core.attention_mask` has the orders' rule).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, Next, Segment
from process_gen.core.patches import patchify
from process_gen.core.places import NO_DROPOUT, Dropout, Spot, stand
from process_gen.core.trajectory import Stage

# A NumPy array in data workers, a JAX array on a device.
Array = Any

NO_LABEL = -1
NO_COPY = -1


class Place(NamedTuple):
    """Where a token stands: mask integers and rotary position, each ``int32[B, N]``."""

    order: Array
    visible_from: Array
    visible_to: Array
    position: Array


class PackedBatch(NamedTuple):
    """A batch of packs. N is T, V or G in the three `Place`s.

    Attributes:
      text, und, gen: places of the three parts.
      token_BxT: int32 token ids; 0 where padded.
      label_BxT: int32 token to be predicted, `NO_LABEL` where there is no loss.
      label_stage_BxT: int32 `Stage` that the label is counted under.
      patch_BxVxQ: uint8 pixels of understanding patches.
      patch_id_BxV: int32 row of the 2-D position table.
      patch_image_BxV: int32 number of the image in the pack, `NO_COPY` where padded.
      latent_BxGxP: uint8 pixels (or float32, what an encoder made of them) of latent tokens, not
        noised.
      latent_id_BxG: int32 row of the 2-D position table.
      copy_BxG: int32 number of the noised copy in the pack, each with its own t; `NO_COPY` for
        clean tokens (t = 0) and padding.
      target_stage_BxG: int32 `Stage` of the flow loss, `NO_LABEL` where there is none.
    """

    text: Place
    und: Place
    gen: Place
    token_BxT: Array
    label_BxT: Array
    label_stage_BxT: Array
    patch_BxVxQ: Array
    patch_id_BxV: Array
    patch_image_BxV: Array
    latent_BxGxP: Array
    latent_id_BxG: Array
    copy_BxG: Array
    target_stage_BxG: Array


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Numbers of the special tokens, and how text is encoded.

    Attributes:
      encode: text to ids, never a special one.
      bos, eos: ``<|im_start|>``, ``<|im_end|>``.
      image_start, image_end: ``<|vision_start|>``, ``<|vision_end|>``.
      end_of_text: ``<|endoftext|>``.
      specials: these five and whatever other special tokens the tokenizer has, which no text holds.
    """

    encode: Callable[[str], Sequence[int]]
    bos: int
    eos: int
    image_start: int
    image_end: int
    end_of_text: int
    specials: frozenset[int]

    def control(self, following: Next) -> int:
        """The token that stands for a decision."""
        return {
            Next.TEXT: self.bos,
            Next.IMAGE: self.image_start,
            Next.END: self.end_of_text,
        }[following]


@dataclasses.dataclass(frozen=True)
class PatchSizes:
    """How pictures are cut.

    Attributes:
      latent, und: side of a patch in pixels.
      latent_grid, und_grid: side of the 2-D position tables in patches.
    """

    latent: int
    und: int
    latent_grid: int
    und_grid: int


class Lengths(NamedTuple):
    """Tokens in each part."""

    text: int
    und: int
    gen: int


def measure(segments: Sequence[Segment], ids: TokenIds, sizes: PatchSizes) -> Lengths:
    """Tokens that `lay_out` will write."""
    text = und = gen = 0
    for segment in segments:
        text += 2
        if segment.kind is Kind.TEXT:
            text += len(ids.encode(segment.text))
        else:
            height, width = _size(segment)
            side = sizes.und if segment.kind is Kind.UND else sizes.latent
            count = (height // side) * (width // side)
            und += count if segment.kind is Kind.UND else 0
            gen += count if segment.kind is not Kind.UND else 0
    return Lengths(text, und, gen)


def table_ids(height: int, width: int, side: int, grid: int) -> np.ndarray:
    """Rows of the 2-D position table for a picture's patches, ``int32[height/side * width/side]``.

    Raises:
      DataError: the picture has more patches a side than the table.
    """
    rows, columns = height // side, width // side
    if max(rows, columns) > grid or 0 in (rows, columns):
        raise DataError(
            f"a picture of {height}x{width} px has {rows}x{columns} patches of {side} px; the "
            f"position table holds 1 to {grid} a side"
        )
    return (np.arange(rows)[:, None] * grid + np.arange(columns)[None]).astype(np.int32).ravel()


def _size(segment: Segment) -> tuple[int, int]:
    if segment.image is None:
        raise DataError(f"a {segment.part.value} segment of kind {segment.kind.value} has no image")
    return segment.image.shape[0], segment.image.shape[1]


class Run(NamedTuple):
    """One trajectory laid out by itself: its orders, images and copies count from 0.

    Attributes:
      text: int32[7, n], rows order, visible_from, visible_to, position, token, label, label stage.
      und: int32[6, n], rows order, visible_from, visible_to, position, table id, image.
      gen: int32[7, n], rows order, visible_from, visible_to, position, table id, copy, stage.
      patches: uint8[n, Q] of the und part.
      latents: uint8[n, P] of the gen part, or float32.
      orders, images, copies: how many of each it uses.
    """

    text: np.ndarray
    und: np.ndarray
    gen: np.ndarray
    patches: np.ndarray
    latents: np.ndarray
    orders: int
    images: int
    copies: int

    @property
    def lengths(self) -> Lengths:
        """Tokens in each part."""
        return Lengths(self.text.shape[1], self.und.shape[1], self.gen.shape[1])


# Rows of a Run's arrays for padding tokens.
_PAD = (PAD_ORDER, NEVER, PAD_ORDER, 0)
_PAD_TEXT = (*_PAD, 0, NO_LABEL, int(Stage.PROMPT))
_PAD_UND = (*_PAD, 0, NO_COPY)
_PAD_GEN = (*_PAD, 0, NO_COPY, NO_LABEL)


def lay_out(
    segments: Sequence[Segment],
    ids: TokenIds,
    sizes: PatchSizes,
    *,
    dropout: Dropout = NO_DROPOUT,
    rng: np.random.Generator | None = None,
) -> Run:
    """Writes one trajectory's tokens.

    Args:
      segments: of one trajectory, as `grammar.to_segments` gives them.
      ids: special tokens and the encoder.
      sizes: how pictures are cut.
      dropout: chances of what is taken away.
      rng: draws the dropout; None drops nothing.

    Raises:
      DataError: a picture does not fit the patches or the position table.
    """
    encoded = [ids.encode(s.text) if s.kind is Kind.TEXT else () for s in segments]
    spots, orders = stand(segments, [len(tokens) + 2 for tokens in encoded], dropout, rng)
    text: list[np.ndarray] = []
    und: list[np.ndarray] = []
    gen: list[np.ndarray] = []
    patches: list[np.ndarray] = []
    latents: list[np.ndarray] = []
    copies = 0
    for segment, tokens, spot in zip(segments, encoded, spots, strict=True):
        if spot is None:
            continue
        if segment.kind is Kind.TEXT:
            text.append(_text_block(segment, tokens, spot, ids))
            continue
        text.append(_boundary_block(segment, spot, ids))
        height, width = _size(segment)
        is_und = segment.kind is Kind.UND
        side = sizes.und if is_und else sizes.latent
        grid = sizes.und_grid if is_und else sizes.latent_grid
        table = table_ids(height, width, side, grid)
        block = np.empty((6 if is_und else 7, len(table)), np.int32)
        block[:4] = np.array([spot.order, spot.order, spot.visible_to, spot.position])[:, None]
        block[4] = table
        if is_und:
            block[5] = len(und)
            und.append(block)
            patches.append(patchify(segment.image, side))
        else:
            noised = segment.kind is Kind.NOISED
            block[5] = copies if noised else NO_COPY
            block[6] = int(segment.stage) if segment.loss else NO_LABEL
            copies += noised
            gen.append(block)
            latents.append(_latents(segment, side, len(table)))
    return Run(
        text=_join(text, 7),
        und=_join(und, 6),
        gen=_join(gen, 7),
        patches=_join_features(patches, sizes.und),
        latents=_join_features(latents, sizes.latent),
        orders=orders,
        images=len(und),
        copies=copies,
    )


def _latents(segment: Segment, side: int, count: int) -> np.ndarray:
    if segment.encoded is None:
        return patchify(segment.image, side)
    rows, columns, features = segment.encoded.shape
    if rows * columns != count:
        height, width = _size(segment)
        raise DataError(f"{rows}x{columns} stored latents are not those of {height}x{width} px")
    return segment.encoded.reshape(count, features)


def _join(blocks: list[np.ndarray], rows: int) -> np.ndarray:
    return np.concatenate(blocks, 1) if blocks else np.empty((rows, 0), np.int32)


def _join_features(blocks: list[np.ndarray], side: int) -> np.ndarray:
    return np.concatenate(blocks, 0) if blocks else np.empty((0, side * side * 3), np.uint8)


def _text_block(segment: Segment, encoded: Sequence[int], spot: Spot, ids: TokenIds) -> np.ndarray:
    tokens = np.array([ids.bos, *encoded, ids.eos], np.int32)
    block = np.empty((7, len(tokens)), np.int32)
    block[0] = block[1] = spot.order + np.arange(len(tokens))
    block[2] = spot.visible_to
    block[3] = spot.position + np.arange(len(tokens))
    block[4] = tokens
    block[5] = NO_LABEL
    block[6] = int(segment.stage)
    if segment.loss:
        block[5, :-1] = tokens[1:]
    if segment.next is not None:
        block[5, -1] = ids.control(segment.next)
        block[6, -1] = int(Stage.CONTROL)
    return block


def _boundary_block(segment: Segment, spot: Spot, ids: TokenIds) -> np.ndarray:
    """The pair of boundary tokens: und stream, but the image's order and position."""
    block = np.empty((7, 2), np.int32)
    block[:4] = np.array([spot.order, spot.order, spot.visible_to, spot.position])[:, None]
    block[4] = (ids.image_start, ids.image_end)
    block[5] = NO_LABEL
    block[6] = int(segment.stage)
    if segment.next is not None:
        block[5, 1] = ids.control(segment.next)
        block[6, 1] = int(Stage.CONTROL)
    return block


def _fill(
    blocks: list[np.ndarray],
    shifts: list[np.ndarray],
    pad: tuple[int, ...],
    length: int,
    name: str,
) -> np.ndarray:
    out = np.empty((len(pad), length), np.int32)
    out[:] = np.array(pad, np.int32)[:, None]
    at = 0
    for block, shift in zip(blocks, shifts, strict=True):
        n = block.shape[1]
        if at + n > length:
            raise DataError(f"a pack holds {length} {name} tokens, but its trajectories need more")
        out[:, at : at + n] = block + shift[:, None]
        at += n
    return out


def pack(runs: Sequence[Run], lengths: Lengths, sizes: PatchSizes, encoded: int = 0) -> PackedBatch:
    """Puts trajectories side by side into one row; every array lacks the batch axis.

    Args:
      runs: laid-out trajectories.
      lengths: T, V and G of the row.
      sizes: give Q and P, also for a row without pictures.
      encoded: features of a latent token that an encoder made, which are float32; 0 where they are
        pixels.

    Raises:
      DataError: they do not fit.
    """
    order = images = copies = 0
    shifts_text, shifts_und, shifts_gen = [], [], []
    for run in runs:
        base = [order, order, order, 0, 0]
        shifts_text.append(np.array([*base, 0, 0], np.int32))
        shifts_und.append(np.array([*base, images], np.int32))
        shifts_gen.append(np.array([*base, copies, 0], np.int32))
        order, images, copies = (
            order + run.orders,
            images + run.images,
            copies + run.copies,
        )
    text = _fill([r.text for r in runs], shifts_text, _PAD_TEXT, lengths.text, "text")
    und = _fill([r.und for r in runs], shifts_und, _PAD_UND, lengths.und, "understanding")
    gen = _fill([r.gen for r in runs], shifts_gen, _PAD_GEN, lengths.gen, "latent")
    # A clean latent's copy number was shifted along with the noised ones'.
    clean = np.concatenate([r.gen[5] == NO_COPY for r in runs] or [np.empty(0, bool)])
    gen[5, : len(clean)][clean] = NO_COPY
    patches = np.zeros((lengths.und, sizes.und**2 * 3), np.uint8)
    latents = np.zeros((lengths.gen, sizes.latent**2 * 3), np.uint8)
    if encoded:
        latents = np.zeros((lengths.gen, encoded), np.float32)
    for target, pieces in (
        (patches, [r.patches for r in runs]),
        (latents, [r.latents for r in runs]),
    ):
        at = 0
        for piece in filter(len, pieces):
            target[at : at + len(piece)] = piece
            at += len(piece)
    return PackedBatch(
        text=Place(*text[:4]),
        und=Place(*und[:4]),
        gen=Place(*gen[:4]),
        token_BxT=text[4],
        label_BxT=text[5],
        label_stage_BxT=text[6],
        patch_BxVxQ=patches,
        patch_id_BxV=und[4],
        patch_image_BxV=und[5],
        latent_BxGxP=latents,
        latent_id_BxG=gen[4],
        copy_BxG=gen[5],
        target_stage_BxG=gen[6],
    )


def stack(rows: Sequence[PackedBatch]) -> PackedBatch:
    """Rows without a batch axis, one above the other."""
    places = [
        Place(*(np.stack(x) for x in zip(*p, strict=True)))
        for p in zip(*(r[:3] for r in rows), strict=True)
    ]
    return PackedBatch(*places, *(np.stack(x) for x in zip(*(r[3:] for r in rows), strict=True)))
