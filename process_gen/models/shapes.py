"""Shapes of every weight, without making one: what `checkpoint.bagel` compares files with."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx

from process_gen.checkpoint.bagel import Shapes
from process_gen.core.configs import ModelConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.models.functional import build
from process_gen.models.layers import sincos_table
from process_gen.models.vae import FluxVae


def model_shapes(cfg: ModelConfig) -> dict[str, Any]:
    """The model's weights as `jax.ShapeDtypeStruct`s."""
    return jax.eval_shape(build(cfg).init, jax.random.key(0))


def vae_shapes(sizes: VaeSizes) -> dict[str, Any]:
    """The autoencoder's weights, each with a `shape`."""
    return nnx.to_pure_dict(nnx.split(nnx.eval_shape(lambda: FluxVae(sizes, rngs=nnx.Rngs(0))))[1])


BAGEL = Shapes(model_shapes, vae_shapes, sincos_table)
