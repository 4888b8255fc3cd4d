"""Orders and intervals of packs: of Strokes trajectories, as a training run sees them, and wild."""

from __future__ import annotations

import importlib

import numpy as np

from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Dropout, Place
from process_gen.core.configs import from_mapping
from process_gen.data.pipeline import Rows


def real_places(config_name: str, rows: int, size: int = 60, **data: int) -> Place:
    """The first packs of ``configs/<config_name>.py``, ``int32[rows, S]`` each, parts T, V, G.

    Args:
      config_name: a config that reads Strokes by default.
      rows: how many packs.
      size: trajectories to draw from, enough for the packs.
      **data: settings of the section `data` to replace, such as ``text_len=96``.
    """
    mapping = importlib.import_module(f"configs.{config_name}").get_config().to_dict()
    mapping["data"] |= {"sources": ({"kind": "strokes", "weight": 1.0, "size": size},), **data}
    config = from_mapping(mapping)
    grammar = config.data.grammar
    dropout = Dropout(
        grammar.text_dropout, grammar.prompt_dropout, grammar.vae_dropout, grammar.vit_dropout
    )
    packs = Rows(config, config.data.sources, "train", dropout)
    taken = [packs[number] for number in range(rows)]
    whole = [zip(pack.text, pack.und, pack.gen, strict=True) for pack in taken]
    rows_of_places = [Place(*(np.concatenate(parts) for parts in place)) for place in whole]
    return Place(*(np.stack(arrays) for arrays in zip(*rows_of_places, strict=True)))


def random_places(rows: int, length: int, seed: int = 0) -> Place:
    """Any orders and intervals, ``int32[rows, length]``; roughly sorted, and much sees nothing.

    Of the rows, the first one is all padding, and the second has queries but no visible key.
    """
    rng = np.random.default_rng(seed)
    order = np.sort(rng.integers(2, 40, (rows, length)), 1) + rng.integers(-2, 3, (rows, length))
    order[rng.random((rows, length)) < 0.1] = PAD_ORDER
    start = np.sort(rng.integers(2, 40, (rows, length)), 1) - rng.integers(0, 3, (rows, length))
    end = start + rng.integers(0, 12, (rows, length))
    hidden = rng.random((rows, length)) < 0.15
    hidden[:2] = True
    order[:1] = PAD_ORDER
    start[hidden], end[hidden] = NEVER, PAD_ORDER
    zero = np.zeros_like(order)
    return Place(*(x.astype(np.int32) for x in (order, start, end, zero)))
