"""Orders and intervals of real packs: Strokes trajectories, as a training run sees them."""

from __future__ import annotations

import importlib

import numpy as np

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
