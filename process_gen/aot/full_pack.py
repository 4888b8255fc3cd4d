"""A pack without padding, made from a config alone: what a program is sized and counted for."""

from __future__ import annotations

import numpy as np

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import NO_COPY, NO_LABEL, PackedBatch, Place
from process_gen.core.configs import Config
from process_gen.core.grammar import Kind, context_kinds
from process_gen.core.trajectory import Stage

PICTURES = 3  # of a trajectory


def full_pack(config: Config, rows: int = 1) -> PackedBatch:
    """Host arrays of `rows` equal packs whose T, V and G tokens are all in use.

    Where the grammar has no understanding copies, V is padding, which batches of a run have too.
    Trajectories of three pictures, each with its share of text, a noised copy, and the copies that
    `data.grammar.context_images` lets later tokens see. Numbers are zeros but for the integers of
    the mask, and for labels (every text token) and targets (every noised one).

    Args:
      config: of a run; its pack lengths and `data.image_size` count.
      rows: of the batch.
    """
    data, model = config.data, config.model
    kinds = context_kinds(data.grammar)
    copies = 1 + (Kind.CLEAN in kinds)
    side = data.image_size // model.latent_side if data.image_size else model.latent_grid
    count = max(1, data.gen_len // (copies * side * side))
    text, und, gen = (_shares(n, count) for n in (data.text_len, data.und_len, data.gen_len))
    parts: dict[str, list[tuple[np.ndarray, ...]]] = {"text": [], "und": [], "gen": []}
    copy, stage, order = [], [], 0
    for picture in range(count):
        last = min(count, picture - picture % PICTURES + PICTURES)
        # A text token has an order of its own, a copy of a picture one for all its tokens.
        end = order + sum(text[picture:last]) + (last - picture) * (1 + len(kinds)) - 1
        causal = order + np.arange(text[picture])
        parts["text"].append((causal, causal, np.full_like(causal, end)))
        order += text[picture]
        noised = gen[picture] // copies
        own = np.full(noised, order)
        parts["gen"].append((own, own, own))
        for kind in kinds:
            order += 1
            clean = kind is Kind.CLEAN
            tokens = np.full(gen[picture] - noised if clean else und[picture], order)
            parts["gen" if clean else "und"].append((tokens, tokens, np.full_like(tokens, end)))
        order += 1
        copy.append(np.repeat([picture, NO_COPY], [noised, gen[picture] - noised]))
        stage.append(np.repeat([int(Stage.SKETCH), NO_LABEL], [noised, gen[picture] - noised]))

    def tiled(x: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        return np.ascontiguousarray(np.broadcast_to(x.astype(dtype), (rows, *x.shape)))

    def place(name: str) -> Place:
        order, first, last = (np.concatenate(x) for x in zip(*parts[name], strict=True))
        return Place(*(tiled(x) for x in (order, first, last, order)))

    def zeros(*shape: int, dtype: type = np.int32) -> np.ndarray:
        return np.zeros((rows, *shape), dtype)

    t, v, g = data.text_len, data.und_len, data.gen_len
    if Kind.UND in kinds:
        und_place, numbers = place("und"), np.repeat(np.arange(count), und)
    else:
        pad = (PAD_ORDER, NEVER, PAD_ORDER, 0)
        und_place, numbers = Place(*(tiled(np.full(v, x)) for x in pad)), np.full(v, NO_COPY)
    flux = model.codec == "flux"
    return PackedBatch(
        text=place("text"),
        und=und_place,
        gen=place("gen"),
        token_BxT=zeros(t),
        label_BxT=zeros(t),
        label_stage_BxT=np.full((rows, t), int(Stage.PLAN), np.int32),
        patch_BxVxQ=zeros(v, model.und_features, dtype=np.uint8),
        patch_id_BxV=zeros(v),
        patch_image_BxV=tiled(numbers),
        # Of "flux" a prepared batch holds the moments, see `train.latents`.
        latent_BxGxP=zeros(
            g,
            model.latent_features * (2 if flux else 1),
            dtype=np.float32 if flux else np.uint8,
        ),
        latent_id_BxG=zeros(g),
        copy_BxG=tiled(np.concatenate(copy)),
        target_stage_BxG=tiled(np.concatenate(stage)),
    )


def _shares(total: int, count: int) -> list[int]:
    """`total` in `count` parts; the last one takes what is left over."""
    share = total // count
    return [share] * (count - 1) + [total - share * (count - 1)]
