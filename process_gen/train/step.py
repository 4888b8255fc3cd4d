"""One training step: draw times and noise, run the model once, reduce the losses, update.

A new option is another function or value handed in; the step itself has no switches.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.core import axes, trees
from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import PAD_ORDER
from process_gen.core.batch import PackedBatch
from process_gen.core.configs import Config, LossConfig
from process_gen.core.trajectory import Stage
from process_gen.losses import stages
from process_gen.losses.flow import velocity_error
from process_gen.losses.text import cross_entropy, head_cross_entropy, item_weights
from process_gen.models.functional import ModelFns
from process_gen.models.image_codecs import normalise
from process_gen.models.unified import Streams
from process_gen.sharding import rules
from process_gen.train import metrics as metrics_lib
from process_gen.train.latents import Latents, Pixels
from process_gen.train.optimizer import Schedule, UpdateRule
from process_gen.train.state import TrainState, advance

Metrics = Mapping[str, tuple[jax.Array, jax.Array]]

_PIXELS = Pixels()


class Draws(NamedTuple):
    """The randomness of a step.

    Attributes:
      normal_BxG: float32 standard normal, one a noised copy (column = `copy_BxG`).
      eps_BxGxP: float32 standard normal noise.
      latent_BxGxP: float32, what the codec draws for x0; None where it draws nothing.
    """

    normal_BxG: jax.Array
    eps_BxGxP: jax.Array
    latent_BxGxP: jax.Array | None = None


def draw(key: jax.Array, batch: PackedBatch, latents: Latents = _PIXELS) -> Draws:
    """Draws for a whole global batch, so that micro-batches and meshes see the same numbers."""
    key_time, key_noise = jax.random.split(key)
    *tokens, stored = batch.latent_BxGxP.shape
    shape = (*tokens, latents.features(stored))
    return Draws(
        jax.random.normal(key_time, batch.copy_BxG.shape),
        jax.random.normal(key_noise, shape),
        # `split` has made children 0 and 1.
        latents.draw(jax.random.fold_in(key, 2), shape),
    )


def times(draws: Draws, batch: PackedBatch, loss: LossConfig) -> jax.Array:
    """``t[B, G]``: one t a noised copy, 0 for clean latents and padding."""
    t_BxG = flow.logit_normal_time(draws.normal_BxG, loss.t_mean, loss.t_std, loss.timestep_shift)
    own_BxG = jnp.take_along_axis(t_BxG, jnp.maximum(batch.copy_BxG, 0), 1)
    return jnp.where(batch.copy_BxG >= 0, own_BxG, 0.0)


def elementwise_losses(
    fns: ModelFns,
    params: Any,
    batch: PackedBatch,
    draws: Draws,
    config: Config,
    latents: Latents = _PIXELS,
) -> stages.Elements:
    """One forward pass over packs, and the loss of every token."""
    x0_BxGxP = latents.x0(batch.latent_BxGxP, draws.latent_BxGxP)
    t_BxGx1 = times(draws, batch, config.loss)[..., None]
    x_t_BxGxP = flow.interpolate(x0_BxGxP, draws.eps_BxGxP, t_BxGx1)
    outputs = fns.forward(
        params,
        Streams(
            text=batch.text,
            und=batch.und,
            gen=batch.gen,
            token_BxT=batch.token_BxT,
            patch_BxVxQ=normalise(batch.patch_BxVxQ),
            patch_id_BxV=batch.patch_id_BxV,
            latent_BxGxP=x_t_BxGxP,
            latent_id_BxG=batch.latent_id_BxG,
            t_BxG=t_BxGx1[..., 0],
            patch_image_BxV=batch.patch_image_BxV,
        ),
    )
    velocity_BxGxP = flow.to_velocity(
        outputs.output_BxGxP, x_t_BxGxP, t_BxGx1, config.model.prediction, config.loss.min_t
    )
    target_BxGxP = flow.velocity_target(x0_BxGxP, draws.eps_BxGxP)
    return stages.Elements(
        ce_BxT=_text_loss(fns, params, outputs.hidden_BxTxD, batch.label_BxT, config),
        ce_stage_BxT=jnp.where(batch.label_BxT >= 0, batch.label_stage_BxT, -1),
        mse_BxG=velocity_error(velocity_BxGxP, target_BxGxP),
        mse_stage_BxG=batch.target_stage_BxG,
    )


def _text_loss(
    fns: ModelFns, params: Any, hidden_BxTxD: jax.Array, label_BxT: jax.Array, config: Config
) -> jax.Array:
    if not config.loss.vocab_chunk:
        return cross_entropy(fns.logits(params, hidden_BxTxD), label_BxT)
    kernel = params["lm_head"]["kernel"].astype(hidden_BxTxD.dtype)
    return head_cross_entropy(hidden_BxTxD, kernel, label_BxT, config.loss.vocab_chunk)


def _text_weights(batch: PackedBatch, config: Config) -> jax.Array | None:
    if not config.loss.ce_reweighting:
        return None
    return item_weights(batch.label_BxT, batch.label_stage_BxT == int(Stage.CONTROL))


def _counts(batch: PackedBatch, config: Config) -> stages.Counts:
    ce_stage_BxT = jnp.where(batch.label_BxT >= 0, batch.label_stage_BxT, -1)
    return stages.count(ce_stage_BxT, batch.target_stage_BxG, _text_weights(batch, config))


def _loss(
    trained: Any,
    params: Any,
    batch: PackedBatch,
    draws: Draws,
    counts: stages.Counts,
    ce_weight: jax.Array | float,
    *,
    fns: ModelFns,
    config: Config,
    latents: Latents,
) -> tuple[jax.Array, Metrics]:
    """The loss share of (a part of) a batch; `counts` are the whole batch's.

    `trained` are those of the weights `params` that gradients are taken by: none are computed for
    the others.
    """
    params = trees.overlay(params, trained)
    return stages.reduce(
        elementwise_losses(fns, params, batch, draws, config, latents),
        counts,
        ce_weight=ce_weight,
        mse_weight=config.loss.mse_weight,
        scales=stages.scale_table(config.loss.stage_scales),
        ce_token_BxT=_text_weights(batch, config),
    )


def ce_weight_at(step: jax.Array, total_steps: jax.Array, loss: LossConfig) -> jax.Array | float:
    """The cross-entropy's weight, which may change once on the way (`LossConfig`)."""
    if loss.ce_weight_late is None:
        return loss.ce_weight
    late = step.astype(jnp.float32) >= loss.late_from * total_steps.astype(jnp.float32)
    return jnp.where(late, loss.ce_weight_late, loss.ce_weight)


def make_train_step(
    fns: ModelFns,
    rule: UpdateRule,
    schedule: Schedule,
    config: Config,
    latents: Latents = _PIXELS,
) -> Callable[[TrainState, PackedBatch, jax.Array], tuple[TrainState, Metrics]]:
    """Builds ``(state, batch, key) -> (state, metrics)``, a pure function to be jitted.

    `latents` says what a (prepared) batch holds of pictures, see `latents.make_prepare`.

    `key` is the run's; the step's own is folded in from `state.step`, so that a resumed run draws
    what an uninterrupted one would have drawn. Metrics are (numerator, denominator) pairs; a step
    whose loss or gradient is not finite changes nothing, counts in none of them, and says so in
    `finite` (`state.advance`).
    """
    loss = functools.partial(_loss, fns=fns, config=config, latents=latents)
    loss_and_grad = jax.value_and_grad(loss, has_aux=True)
    parts = config.optimizer.accumulate

    def train_step(
        state: TrainState, batch: PackedBatch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(key, state.step)
        draws = draw(key, batch, latents)
        counts = _counts(batch, config)
        ce_weight = ce_weight_at(state.step, state.total_steps, config.loss)

        trained = trees.take(state.params, rule.trained)

        def share(part: tuple[PackedBatch, Draws]) -> tuple[tuple[jax.Array, Metrics], Any]:
            return loss_and_grad(trained, state.params, *part, counts, ce_weight)

        if parts == 1:
            (loss, metrics), grads = share((batch, draws))
        else:
            (loss, metrics), grads = _accumulate(share, (batch, draws), parts)
        # `draw` has made children 0 to 2.
        key = jax.random.fold_in(key, 3)
        state, update_metrics = advance(state, grads, rule, schedule, key, loss)
        seen = load(batch, metrics)
        metrics = {"loss": (loss, jnp.float32(1.0)), **metrics, **update_metrics, **seen}
        return state, metrics_lib.only_if(metrics.pop("finite"), metrics)

    return train_step


def load(batch: PackedBatch, metrics: Metrics) -> dict[str, tuple[jax.Array, jax.Array]]:
    """What a batch gives the model to do.

    Args:
      batch: of the whole step.
      metrics: of the whole step, with the means of `stages.STAGE_METRICS`.

    Returns:
      `fill/text`, `fill/und`, `fill/gen`: shares of the places in the packs that hold a token; and
      `tokens/NAME`: tokens a step that the mean NAME is over.
    """
    places = {"text": batch.text, "und": batch.und, "gen": batch.gen}
    fill = {
        f"fill/{name}": (
            jnp.sum(place.order != PAD_ORDER).astype(jnp.float32),
            jnp.float32(place.order.size),
        )
        for name, place in places.items()
    }
    one = jnp.float32(1.0)
    return fill | {f"tokens/{name}": (metrics[name][1], one) for name in stages.STAGE_METRICS}


def _accumulate(share: Callable[[Any], Any], whole: Any, parts: int) -> Any:
    """Sums `share` over equal parts of the rows in float32; one part's activations at a time.

    A part takes every `parts`-th row, so that it lies on all devices that the rows are dealt to.
    """

    def cut(x: Any) -> jax.Array:
        x = jnp.reshape(x, (x.shape[0] // parts, parts, *x.shape[1:]))
        names = (axes.BATCH, None, axes.SEQUENCE, *(None,) * (x.ndim - 3))
        return jnp.moveaxis(rules.constrain(x, names), 1, 0)

    cut_up = jax.tree.map(cut, whole)
    first = jax.tree.map(lambda x: x[0], cut_up)
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), jax.eval_shape(share, first))

    def add(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, share(part)), None

    return jax.lax.scan(add, zero, cut_up)[0]


def make_eval_step(
    fns: ModelFns, config: Config, latents: Latents = _PIXELS
) -> Callable[[Any, PackedBatch, jax.Array], Metrics]:
    """Builds ``(params, batch, key) -> metrics``; the same key gives the same times and noise.

    Each half of the loss is a pair of its own: added up over batches, the two are what one batch of
    all their packs would have, however full the last one is (`metrics.compute`).
    """
    final = config.loss.ce_weight_late
    ce_weight = config.loss.ce_weight if final is None else final
    scales = stages.scale_table(config.loss.stage_scales)
    whole = stages.Counts(jnp.float32(1.0), jnp.float32(1.0))

    def eval_step(params: Any, batch: PackedBatch, key: jax.Array) -> Metrics:
        draws, counts = draw(key, batch, latents), _counts(batch, config)
        elements = elementwise_losses(fns, params, batch, draws, config, latents)

        def summed(ce: float, mse: float) -> tuple[jax.Array, Metrics]:
            return stages.reduce(
                elements,
                whole,
                ce_weight=ce,
                mse_weight=mse,
                scales=scales,
                ce_token_BxT=_text_weights(batch, config),
            )

        ce, metrics = summed(ce_weight, 0.0)
        mse, _ = summed(0.0, config.loss.mse_weight)
        return {"loss+ce": (ce, counts.ce), "loss+mse": (mse, counts.mse), **metrics}

    return eval_step


def check_batch(batch: PackedBatch, config: Config) -> None:
    """Refuses what a gather would silently clip.

    Raises:
      ValueError: a token or a table id outside the model's tables, rows that do not divide.
    """
    model = config.model
    for name, ids, size in (
        ("token", batch.token_BxT, model.vocab_size),
        ("label", batch.label_BxT, model.vocab_size),
        ("patch id", batch.patch_id_BxV, model.und_grid**2),
        ("latent id", batch.latent_id_BxG, model.latent_grid**2),
    ):
        if ids.size and int(np.max(ids)) >= size:
            raise ValueError(f"a {name} is {int(np.max(ids))}; the model's table has {size} rows")
    if len(batch.token_BxT) % config.optimizer.accumulate:
        raise ValueError(
            f"{len(batch.token_BxT)} rows do not divide into optimizer.accumulate="
            f"{config.optimizer.accumulate} parts"
        )
