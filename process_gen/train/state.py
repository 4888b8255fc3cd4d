"""What a step changes: weights, their average, the optimiser's state, and two counters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from process_gen.core import trees
from process_gen.core.configs import OptimizerConfig
from process_gen.sharding import rules
from process_gen.train import average, optimizer
from process_gen.train.norms import norms
from process_gen.train.precision import store


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a training step reads and writes, as a pytree.

    Attributes:
      step: int32 scalar, updates made so far.
      total_steps: int32 scalar, updates of the whole run. An array, because schedules follow it and
        a run with a time budget learns it only after its first steps, without compiling anew.
      params: nested dict of weights.
      ema: nested dict of the averages of those that are trained, or None where none are kept; what
        is not trained is its own average. `averaged` gives all of them.
      opt_state: state of the rule that `optimizer.make_optimizer` gives.
    """

    step: jax.Array
    total_steps: jax.Array
    params: Any
    ema: Any
    opt_state: Any


def make_state(params: Any, rule: optimizer.UpdateRule, total_steps: int) -> TrainState:
    """The state before the first step. The average starts at the weights."""
    trained = trees.take(params, rule.trained)
    return TrainState(
        step=jnp.int32(0),
        total_steps=jnp.int32(total_steps),
        params=params,
        ema=average.start(trained, rule.settings) if rule.settings.ema_decay else None,
        opt_state=rule.init(params),
    )


def abstract_state(
    fns: Any, rule: optimizer.UpdateRule, total_steps: int, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the state, as `jax.ShapeDtypeStruct`s; makes no array.

    Args:
      fns: `models.functional.ModelFns`; its `init` and `logical_axes` are used.
      rule: from `optimizer.make_optimizer`.
      total_steps: any number, for the shape only.
      mesh: from `sharding.mesh.make_mesh`.
    """
    # No key is made either: a mesh of devices that are only described has no place for one.
    shapes = jax.eval_shape(lambda: make_state(fns.init(jax.random.key(0)), rule, total_steps))
    whole = rules.replicated(mesh)
    weights = rules.logical_to_sharding(fns.logical_axes, mesh, shapes.params)
    trained = trees.take(weights, rule.trained)

    kept = optimizer.map_param_like(trained, shapes.opt_state, whole)
    mirrored = optimizer.map_param_like(
        trees.take(shapes.params, rule.trained), shapes.opt_state, shapes.step
    )
    ema = None
    if shapes.ema is not None:
        ema = trained
        if rule.settings.ema_memory == "host":
            ema = jax.tree.map(lambda at: at.with_memory_kind(average.HOST_MEMORY), trained)
    shardings = TrainState(
        step=whole,
        total_steps=whole,
        params=weights,
        ema=ema,
        # A factored moment has lost a dimension of its weight, and is small.
        opt_state=jax.tree.map(
            lambda leaf, weight, at: at if leaf.shape == weight.shape else whole,
            shapes.opt_state,
            mirrored,
            kept,
        ),
    )
    return jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at), shapes, shardings
    )


def init_state(
    fns: Any, rule: optimizer.UpdateRule, key: jax.Array, total_steps: int, mesh: Mesh
) -> TrainState:
    """Makes the first state straight in its shards: no device or host ever holds it whole."""
    abstract = abstract_state(fns, rule, total_steps, mesh)
    shardings = jax.tree.map(lambda s: s.sharding, abstract)

    def init(key: jax.Array) -> TrainState:
        return make_state(fns.init(key), rule, total_steps)

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


def averaged(state: TrainState) -> Any:
    """The weights to measure and to paint with: averages where they are kept, on the devices."""
    if state.ema is None:
        return state.params
    near = jax.tree.map(
        lambda e, p: jax.device_put(e, p.sharding), state.ema, trees.take(state.params, state.ema)
    )
    return trees.overlay(state.params, near)


def with_weights(state: TrainState, params: Any, settings: OptimizerConfig) -> TrainState:
    """The state starting from other weights; the average, if there is one, starts there too.

    Args:
      state: any.
      params: all weights, or a part of them; the others stay as they are.
      settings: of the run.
    """
    params = trees.overlay(state.params, params)
    ema = state.ema
    if ema is not None:
        new = average.start(trees.take(params, ema), settings)
        ema = jax.tree.map(lambda e, old: jax.device_put(e, old.sharding), new, ema)
    return dataclasses.replace(state, params=params, ema=ema)


def with_total(state: TrainState, total_steps: int) -> TrainState:
    """The state with another number of steps in all."""
    total = jax.device_put(np.int32(total_steps), state.total_steps.sharding)
    return dataclasses.replace(state, total_steps=total)


def advance(
    state: TrainState,
    grads: Any,
    rule: optimizer.UpdateRule,
    schedule: optimizer.Schedule,
    key: jax.Array,
    loss: jax.Array | float = 0.0,
) -> tuple[TrainState, dict[str, tuple[jax.Array, jax.Array]]]:
    """Applies one update, unless the loss or a gradient is not finite.

    An update that is left out changes nothing but `step`, which counts batches. Both are judged by
    one number, the gradients' norm (which clipping and the log need as well) plus the loss: no
    array is read once more for it.

    Args:
      state: before the step.
      grads: gradients of the loss by the weights that are trained (or by all).
      rule: of `optimizer.make_optimizer`.
      schedule: `(step, total_steps) -> learning rate`.
      key: of this step, for the rounding of weights that are not float32.
      loss: float32 scalar, of this step.

    Returns:
      The state after the step, and the metrics `learning_rate`, `grad_norm` (before clipping, of
      what is trained), `update_norm` (of what is added to the weights), both also of each part, and
      `finite` (a bool: whether the update was made), each as (value, 1).
    """
    grads = trees.take(grads, rule.trained)
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    before = trees.take(state.params, rule.trained)
    rate = schedule(state.step, state.total_steps)
    grad_norms = norms("grad_norm", grads)
    finite = jnp.isfinite(grad_norms["grad_norm"][0] + loss)
    updates, opt_state = rule.update(grads, state.opt_state, before)
    updates = jax.tree.map(lambda u: rate * u, updates)
    after = jax.tree.map(lambda p, u: p.astype(jnp.float32) + u, before, updates)
    key_weights, key_average = jax.random.split(key)
    after = store(after, before, key_weights)
    after, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (after, opt_state), (before, state.opt_state)
    )
    ema = state.ema
    if ema is not None:
        ema = average.update(ema, after, state.step, rule.settings, key_average, finite)
    one = jnp.float32(1.0)
    metrics = {
        "learning_rate": (rate, one),
        "finite": (finite, one),
        **grad_norms,
        **norms("update_norm", updates),
    }
    params = trees.overlay(state.params, after)
    return TrainState(state.step + 1, state.total_steps, params, ema, opt_state), metrics
