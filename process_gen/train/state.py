"""What a step changes: weights, their average, the optimiser's state, and two counters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from process_gen.sharding import rules
from process_gen.train import optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a training step reads and writes, as a pytree.

    Attributes:
      step: int32 scalar, updates made so far.
      total_steps: int32 scalar, updates of the whole run. An array, because schedules follow it and
        a run with a time budget learns it only after its first steps, without compiling anew.
      params: nested dict of weights.
      ema: nested dict like `params` in float32, or None where no average is kept.
      opt_state: state of the transformation that `optimizer.make_optimizer` gives.
    """

    step: jax.Array
    total_steps: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def make_state(
    params: Any, tx: optax.GradientTransformation, total_steps: int, ema_decay: float
) -> TrainState:
    """The state before the first step. The average starts at the weights."""
    return TrainState(
        step=jnp.int32(0),
        total_steps=jnp.int32(total_steps),
        params=params,
        ema=jax.tree.map(lambda p: p.astype(jnp.float32), params) if ema_decay else None,
        opt_state=tx.init(params),
    )


def abstract_state(
    fns: Any, tx: optax.GradientTransformation, total_steps: int, ema_decay: float, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, as `jax.ShapeDtypeStruct`s; makes no array.

    Args:
      fns: `models.functional.ModelFns`; its `init` and `logical_axes` are used.
      tx: from `optimizer.make_optimizer`.
      total_steps: any number, for the shape only.
      ema_decay: whether there is an average (0: none).
      mesh: from `sharding.mesh.make_mesh`.
    """
    # No key is made either: under a mesh of devices that are only described there is no place for it.
    shapes = jax.eval_shape(
        lambda: make_state(fns.init(jax.random.key(0)), tx, total_steps, ema_decay)
    )
    whole = rules.replicated(mesh)
    weights = rules.logical_to_sharding(fns.logical_axes, mesh, shapes.params)
    shardings = TrainState(
        step=whole,
        total_steps=whole,
        params=weights,
        ema=weights if ema_decay else None,
        opt_state=optimizer.map_param_like(weights, shapes.opt_state, whole),
    )
    return jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings
    )


def init_state(
    fns: Any,
    tx: optax.GradientTransformation,
    key: jax.Array,
    total_steps: int,
    ema_decay: float,
    mesh: Mesh,
) -> TrainState:
    """Makes the first state straight in its shards: no device or host ever holds it whole."""
    abstract = abstract_state(fns, tx, total_steps, ema_decay, mesh)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)

    def init(key: jax.Array) -> TrainState:
        return make_state(fns.init(key), tx, total_steps, ema_decay)

    return jax.jit(init, out_shardings=shardings)(key)


def to_parts(state: TrainState) -> dict[str, Any]:
    """The state as the parts of a checkpoint, so that weights can be read without the rest."""
    counters = {"step": state.step, "total_steps": state.total_steps}
    optimizer_part = {"opt_state": state.opt_state, **counters}
    return {"params": state.params, "ema": state.ema, "optimizer": optimizer_part}


def from_parts(parts: Mapping[str, Any]) -> TrainState:
    """The inverse of `to_parts`; a missing `ema` is None."""
    rest = parts["optimizer"]
    return TrainState(
        step=rest["step"],
        total_steps=rest["total_steps"],
        params=parts["params"],
        ema=parts.get("ema"),
        opt_state=rest["opt_state"],
    )


def with_weights(state: TrainState, params: Any) -> TrainState:
    """The state starting from other weights; the average, if there is one, starts there too."""
    # Copies: a step gives up the buffers of both trees, so they must not be the same ones.
    ema = state.ema and jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)
    return dataclasses.replace(state, params=params, ema=ema)


def with_total(state: TrainState, total_steps: int) -> TrainState:
    """The state with another number of steps in all."""
    total = jax.device_put(np.int32(total_steps), state.total_steps.sharding)
    return dataclasses.replace(state, total_steps=total)


def advance(
    state: TrainState,
    grads: Any,
    tx: optax.GradientTransformation,
    schedule: optimizer.Schedule,
    ema_decay: float,
    ema_warmup: bool = True,
) -> tuple[TrainState, dict[str, tuple[jax.Array, jax.Array]]]:
    """Applies one update.

    Args:
      state: before the step.
      grads: gradients of the loss, like `state.params`.
      tx: transformation at learning rate one.
      schedule: `(step, total_steps) -> learning rate`.
      ema_decay: of the average; ignored where the state keeps none.
      ema_warmup: whether the decay rises to it, see `optimizer.update_ema`.

    Returns:
      The state after the step, and the metrics `learning_rate` and `grad_norm` (before clipping),
      each as (value, 1).
    """
    rate = schedule(state.step, state.total_steps)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), state.params, updates)
    ema = state.ema
    if ema is not None:
        ema = optimizer.update_ema(ema, params, state.step, ema_decay, ema_warmup)
    one = jnp.float32(1.0)
    metrics = {"learning_rate": (rate, one), "grad_norm": (optax.tree.norm(grads), one)}
    new = TrainState(state.step + 1, state.total_steps, params, ema, opt_state)
    return new, metrics
