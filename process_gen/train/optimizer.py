"""The update rule: AdamW, or Muon for the matrices of the layers with AdamW for everything else.

The transformation works at learning rate one. The rate multiplies its result in `state.advance`, so
that a schedule can follow a number of steps that is known only once a few of them were timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers

from process_gen.core import axes, trees
from process_gen.core.configs import OptimizerConfig
from process_gen.core.errors import ConfigError

Schedule = Callable[[jax.Array, jax.Array], jax.Array]

# Root mean square of a Muon update, which is about AdamW's: arXiv 2502.16982, section 2.2.
_MUON_RMS = 0.2

# Adafactor's own numbers: arXiv 1804.04235, sections 6 and 7.
_FACTORED_DECAY = 0.8
_FACTORED_CLIP = 1.0


class UpdateRule(NamedTuple):
    """How weights are updated, and which.

    Attributes:
      init: weights to the state of the rule.
      update: `(grads, state, weights) -> (updates, state)` at learning rate one, sign included.
      trained: nested dict of the weights that are trained, a tuple of logical names a leaf. `grads`
        and `updates` are like it; `init` and `update` take all weights or those.
      settings: of the run; the `ema_...` values among them are the state's affair.
    """

    init: Callable[[Any], Any]
    update: Callable[[Any, Any, Any], tuple[Any, Any]]
    trained: dict[str, Any]
    settings: OptimizerConfig


def make_optimizer(config: OptimizerConfig, logical_axes: Any) -> tuple[UpdateRule, Schedule]:
    """Builds the rule that turns gradients into updates, and the schedule of its learning rate.

    Clipping by the global norm comes first, then the direction, then decoupled weight decay on
    matrices (`is_matrix`). A leaf whose gradient is zero throughout is left alone, see
    `skip_untouched`. What is not `trainable` has neither updates nor moments. Everything is
    computed in float32, whatever the type of weights and gradients.

    Args:
      config: the settings.
      logical_axes: nested dict with a tuple of logical names per weight.

    Returns:
      `(rule, schedule)`; `schedule(step, total_steps)` gives the rate of the update that makes step
      `step + 1`.

    Raises:
      ConfigError: a frozen part that the model does not have, or nothing is left to train.
    """
    trained = trainable(config, logical_axes)
    tx = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        _direction(config, trained),
        # The direction is a descent already, so the decay carries the minus sign.
        optax.add_decayed_weights(
            -config.weight_decay, mask=jax.tree.map(is_matrix, trained, is_leaf=_is_names)
        ),
    )
    tx = skip_untouched(tx)

    def wide(tree: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.float32), trees.take(tree, trained))

    rule = UpdateRule(
        init=lambda params: tx.init(wide(params)),
        update=lambda grads, state, params: tx.update(wide(grads), state, wide(params)),
        trained=trained,
        settings=config,
    )
    return rule, make_schedule(config)


def trainable(config: OptimizerConfig, logical_axes: Any) -> dict[str, Any]:
    """The weights that are trained: all but the frozen parts, or the adapters where there are any.

    Args:
      config: the settings.
      logical_axes: nested dict with a tuple of logical names per weight.

    Returns:
      The part of `logical_axes` that belongs to them.

    Raises:
      ConfigError: a frozen part that the model does not have, or nothing is left to train.
    """
    unknown = sorted(set(config.frozen) - set(logical_axes))
    if unknown:
        raise ConfigError(
            f"optimizer.frozen names {', '.join(map(repr, unknown))}; the model has "
            f"{', '.join(sorted(logical_axes))}"
        )
    parts = {name: part for name, part in logical_axes.items() if name not in config.frozen}
    names = jax.tree.leaves(logical_axes, is_leaf=_is_names)
    if any(axes.RANK in leaf for leaf in names):
        parts = trees.select(parts, lambda path, leaf: axes.RANK in leaf)
    if not parts:
        raise ConfigError("optimizer.frozen names every part of the model")
    return parts


def _direction(config: OptimizerConfig, logical_axes: Any) -> optax.GradientTransformation:
    if config.name == "muon":
        # optax runs Nesterov momentum in both groups.
        return optax.contrib.muon(
            learning_rate=config.muon_scale,
            ns_steps=config.muon_steps,
            beta=config.muon_beta,
            eps=config.eps,
            adam_b1=config.b1,
            adam_b2=config.b2,
            adam_learning_rate=1.0,
            muon_weight_dimension_numbers=muon_dimensions(logical_axes),
            consistent_rms=_MUON_RMS,
            mu_dtype=config.moment_dtype,
        )
    if config.name == "adafactor":
        momentum = optax.ema(config.b1, accumulator_dtype=config.moment_dtype)
        # The decay of second moments rises as in the paper, up to b2 (arXiv 2106.04560, 3.2).
        return optax.chain(
            optax.scale_by_factored_rms(
                decay_rate=_FACTORED_DECAY,
                decay_rate_fn=lambda step, rate: jnp.minimum(
                    1.0 - (step + 1.0) ** -rate, config.b2
                ),
            ),
            optax.clip_by_block_rms(_FACTORED_CLIP),
            momentum if config.b1 else optax.identity(),
            optax.scale(-1.0),
        )
    return optax.adam(1.0, b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=config.moment_dtype)


def make_schedule(config: OptimizerConfig) -> Schedule:
    """The learning rate: linear warm-up from one step's share, then `config.schedule`.

    Its arguments may be traced int32 scalars; the shape follows whatever total it is given.
    """

    def schedule(step: jax.Array, total_steps: jax.Array) -> jax.Array:
        step, total = jnp.float32(step), jnp.float32(total_steps)
        warmup = float(config.warmup_steps)
        if config.schedule == "cosine":
            done = jnp.clip((step - warmup) / jnp.maximum(total - warmup, 1.0), 0.0, 1.0)
            shape = 0.5 * (1.0 + jnp.cos(jnp.pi * done))
        elif config.schedule == "linear":
            length = jnp.maximum(config.decay_fraction * total, 1.0)
            shape = jnp.clip((total - step) / length, 0.0, 1.0)
        else:
            shape = jnp.float32(1.0)
        warm = jnp.minimum((step + 1.0) / max(warmup, 1.0), 1.0)
        scale = config.final_scale + (1.0 - config.final_scale) * shape
        return config.learning_rate * warm * scale

    return schedule


def is_matrix(names: tuple[str, ...]) -> bool:
    """Whether a weight multiplies the residual stream: two or more dimensions, `embed` among them.

    The layer axis does not count. A bias kept as [L, heads, head_dim] is thus not a matrix. Nor is
    a half of an adapter, which stands for a matrix only together with the other.
    """
    own = [name for name in names if name != axes.LAYERS]
    return len(own) >= 2 and axes.EMBED in own and axes.RANK not in own


def muon_dimensions(logical_axes: Any) -> Any:
    """Which dimensions of a weight Muon takes as the rows and columns of a matrix.

    Muon is for the matrices of the transformer's own layers (the top-level entry "layers"); their
    layer axis is a batch of matrices. Embeddings, heads, norms, biases, and everything that leads
    into or out of the layers get None, which is AdamW.

    Raises:
      ConfigError: a matrix of more than two dimensions with `embed` neither first nor last.
    """

    def dimensions(path: Any, names: tuple[str, ...]) -> MuonDimensionNumbers | None:
        if not is_matrix(names) or path[0] != jax.tree_util.DictKey("layers"):
            return None
        own = [i for i, name in enumerate(names) if name != axes.LAYERS]
        if names[own[0]] == axes.EMBED or len(own) == 2:
            return MuonDimensionNumbers((own[0],), tuple(own[1:]))
        if names[own[-1]] == axes.EMBED:
            return MuonDimensionNumbers(tuple(own[:-1]), (own[-1],))
        where = jax.tree_util.keystr(path, simple=True, separator="/")
        raise ConfigError(f"Muon cannot read {where} with axes {names} as a matrix")

    return jax.tree.map_with_path(dimensions, logical_axes, is_leaf=_is_names)


def map_param_like(tree: Any, opt_state: Any, default: Any) -> Any:
    """Spreads a tree over the optimiser's state.

    Args:
      tree: nested dict with one value per weight.
      opt_state: state of the transformation for those weights.
      default: value for leaves of the state that belong to no weight, such as counters.

    Returns:
      A tree like `opt_state`: at each leaf that mirrors a weight (a moment), the value of that
      weight. A leaf mirrors a weight when its path ends in the weight's own. (`optax` has
      `tree_map_params` for this; it cannot look into the partition that Muon needs.)
    """
    values = dict(jax.tree.leaves_with_path(tree))

    def find(path: Any, _: Any) -> Any:
        suffixes = (tuple(path[i:]) for i in range(len(path)))
        return next((values[s] for s in suffixes if s in values), default)

    return jax.tree.map_with_path(find, opt_state)


def skip_untouched(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Leaves a weight alone in a step that gave it no gradient at all.

    A batch without images sends the gen expert a gradient of exact zeros, and without text the und
    expert. Momentum, weight decay and decaying moments would still move the expert or its state;
    here its weights and moments keep their values, bit for bit. Counters run on, so that a bias
    correction after a pause is a little too weak.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        touched = jax.tree.map(lambda g: jnp.any(g != 0), grads)
        updates, new_state = inner.update(grads, state, params)
        updates = jax.tree.map(lambda t, u: jnp.where(t, u, jnp.zeros_like(u)), touched, updates)
        flags = map_param_like(touched, state, True)
        return updates, jax.tree.map(lambda t, n, o: jnp.where(t, n, o), flags, new_state, state)

    return optax.GradientTransformation(inner.init, update)


def _is_names(x: Any) -> bool:
    return isinstance(x, tuple)
