"""A painter in two small files: what comes with the package, and what can be handed to others.

    folder/
      weights.safetensors   bfloat16 weights, a tensor a leaf, such as "layers/und/mlp/up/kernel"
      card.json             format, settings, tokenizer, hash of the weights, how they were made

Inference weights alone, so a million parameters take 2 MB. They are computed with in the type of
the settings; only their storage is bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save

from process_gen.checkpoint import safetensors_io
from process_gen.core.configs import Config, from_mapping, to_mapping
from process_gen.core.errors import CheckpointError, ConfigError

FORMAT = 1
WEIGHTS, CARD = "weights.safetensors", "card.json"
# The painter that comes with the package.
DEFAULT = Path(__file__).parent / "painter"


def write(
    folder: str | Path, config: Config, params: Any, about: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a painter.

    Args:
      folder: made if need be; its two files are replaced.
      config: of the run.
      params: nested dict of weights.
      about: what else the card says, such as the tokenizer's fingerprint and scores; plain values.

    Returns:
      The card.

    Raises:
      CheckpointError: the model needs a picture autoencoder, which this format does not hold.
    """
    if config.model.codec != "pixel":
        raise CheckpointError(
            f"a model with codec {config.model.codec!r} is handed on with launch.export_bagel"
        )
    tensors = {
        name: np.asarray(leaf).astype(ml_dtypes.bfloat16) for name, leaf in _named(params).items()
    }
    data = save(tensors)
    card = {
        "format": FORMAT,
        "weights_sha256": hashlib.sha256(data).hexdigest(),
        "parameters": sum(t.size for t in tensors.values()),
        **about,
        "config": to_mapping(config),
    }
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / WEIGHTS).write_bytes(data)
    (target / CARD).write_text(json.dumps(card, indent=1) + "\n")
    return card


def is_painter(folder: str | Path) -> bool:
    """Whether a folder holds a painter in this format."""
    return (Path(folder) / CARD).is_file()


def read(folder: str | Path) -> tuple[Config, Any, dict[str, Any]]:
    """Reads a painter.

    Returns:
      `(config, params, card)`; `params` is a nested dict of NumPy arrays in `model.param_dtype`.

    Raises:
      CheckpointError: a file is missing, damaged, of another format, or the weights are not those
        that the card was written for.
    """
    root = Path(folder)
    try:
        card = json.loads((root / CARD).read_text())
        data = (root / WEIGHTS).read_bytes()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{root} holds no painter that can be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError(f"{root / CARD} is not of format {FORMAT}, which this version reads")
    if hashlib.sha256(data).hexdigest() != card.get("weights_sha256"):
        raise CheckpointError(f"{root / WEIGHTS} is damaged: its hash is not the card's")
    try:
        config = from_mapping(card.pop("config"))
    except (ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(f"{root} cannot be used by this version: {error}") from error
    dtype = np.dtype(getattr(ml_dtypes, config.model.param_dtype, config.model.param_dtype))
    params: dict[str, Any] = {}
    with safetensors_io.Reader([root / WEIGHTS]) as reader:
        for name in reader.infos:
            *path, last = name.split("/")
            node = params
            for part in path:
                node = node.setdefault(part, {})
            node[last] = reader.read(name).astype(dtype)
    return config, params, card


def _named(params: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
    }
