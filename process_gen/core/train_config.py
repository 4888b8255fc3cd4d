"""Settings of training: losses, the update rule, the loop and the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from process_gen.core.checks import check, fraction, positive


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the two kinds of loss, and the distribution of t.

    Attributes:
      ce_weight, mse_weight: multiply the token means of cross-entropy and flow loss.
      ce_weight_late: the cross-entropy's weight from the fraction `late_from` of training on; None
        keeps `ce_weight` throughout.
      ce_reweighting: whether a text of n tokens counts as sqrt(n) tokens and not as n
        (`losses.text.item_weights`).
      stage_scales: factor of a stage's tokens, by stage name in lower case; 1 where not named.
      t_mean, t_std: t = sigmoid(normal(t_mean, t_std)), t = 1 being noise.
      timestep_shift: s in t <- s t / (1 + (s - 1) t).
      min_t: floor of the divisor when an x0 head's output is turned into a velocity.
      vocab_chunk: columns of the vocabulary that are worked on at a time, so that no array of
        tokens x vocabulary exists; 0 takes all at once, which is faster while that array is small.
    """

    ce_weight: float = 1.0
    mse_weight: float = 1.0
    ce_weight_late: float | None = None
    late_from: float = 0.4
    ce_reweighting: bool = False
    stage_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    t_mean: float = 0.0
    t_std: float = 1.0
    timestep_shift: float = 1.0
    min_t: float = 0.05
    vocab_chunk: int = 0

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self.vocab_chunk >= 0, "loss.vocab_chunk must be >= 0")
        weights = (self.ce_weight, self.mse_weight, self.ce_weight_late or 0.0)
        check(min(weights) >= 0, "loss weights must be >= 0")
        positive(
            "loss",
            t_std=self.t_std,
            timestep_shift=self.timestep_shift,
            min_t=self.min_t,
        )
        fraction("loss", late_from=self.late_from)
        known = ("plan", "sketch", "inspect", "refine", "one_shot", "answer", "control")
        for name, scale in self.stage_scales.items():
            check(
                name in known,
                f"loss.stage_scales: unknown stage {name!r}; one of {known}",
            )
            check(scale >= 0, f"loss.stage_scales.{name} must be >= 0, got {scale}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
      name: "adamw", "muon" for matrices inside the layers with AdamW for the rest, or "adafactor",
        which keeps the second moments of a large matrix as a row and a column.
      learning_rate: peak, for AdamW's leaves (and for Muon's, times `muon_scale`).
      schedule: shape after warm-up: "constant", "cosine" over all steps, or "linear" decay to
        `final_scale` over the last `decay_fraction`.
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global gradient norm.
      moment_dtype: of first moments; second ones are float32.
      ema_decay: of the averaged weights; 0 keeps none.
      ema_warmup: whether the decay rises to `ema_decay` from a low value, which forgets random
        initial weights; False uses it from the first step on, for weights that were trained.
      ema_dtype: of the average. "bfloat16" is rounded stochastically.
      ema_every: steps between its updates, each of which takes the decay to that power.
      ema_memory: where it lies between updates, "device" or the memory of the "host".
      frozen: top-level names of weights that stay as they are, such as "und_encoder" or "embed".
      accumulate: micro-batches a step, each a share of the rows.
    """

    name: Literal["adamw", "muon", "adafactor"] = "adamw"
    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: int = 100
    decay_fraction: float = 0.35
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    muon_scale: float = 1.0
    muon_beta: float = 0.95
    muon_steps: int = 5
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float = 0.999
    ema_warmup: bool = True
    ema_dtype: Literal["float32", "bfloat16"] = "float32"
    ema_every: int = 1
    ema_memory: Literal["device", "host"] = "device"
    frozen: tuple[str, ...] = ()
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive(
            "optimizer",
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            eps=self.eps,
            muon_scale=self.muon_scale,
            accumulate=self.accumulate,
            muon_steps=self.muon_steps,
            ema_every=self.ema_every,
        )
        fraction(
            "optimizer",
            decay_fraction=self.decay_fraction,
            final_scale=self.final_scale,
            b1=self.b1,
            b2=self.b2,
            ema_decay=self.ema_decay,
        )
        check(self.warmup_steps >= 0, "optimizer.warmup_steps must be >= 0")
        check(self.weight_decay >= 0, "optimizer.weight_decay must be >= 0")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: optimiser steps.
      minutes: if positive, the first steps are timed and `steps` is set so that training takes
        about this long; the schedule then follows the new number.
      flops: if positive, `steps` is set so that training costs about so many operations, as
        `models.flops` counts them; for comparing runs at equal compute.
      seed: of the initial weights, noise and t.
      log_every: in steps.
      eval_every, save_every: in steps; 0 never.
      paint_every: in steps, how often `paint_prompts` are painted for the log; 0 never, otherwise
        also after the last step. One process only.
      paint_prompts: a few prompts.
      keep: newest checkpoints kept, besides the best.
      keep_every: checkpoints of steps that this divides are kept for good; 0 keeps none so.
      max_skipped: updates in a row that may be left out because the loss or a gradient is not
        finite; with one more of them the run stops.
      spike_factor: a loss above this many times the median of the last ones is a spike, which is
        counted; 0 does not look.
      max_rollbacks: how often the run may go back to its last checkpoint after a spike and leave
        out the batch that it came with; 0 only counts spikes.
      stall_minutes: a run that finishes no step, validation, hook or checkpoint for so long ends
        with an error that says what it waits for; 0 waits for ever.
      best_metric: name in the evaluation metrics; lower is better unless it ends in "exact".
      init_from: a checkpoint, or a painter as launch.ship_painter writes it, whose weights the run
        starts from. With model.codec="flux" the frozen autoencoder comes from there too.
      init_model: whether `init_from` also decides the sizes of the model and, where
        `data.tokenizer` is empty, the tokenizer.
    """

    steps: int = 1000
    minutes: float = 0.0
    flops: float = 0.0
    seed: int = 0
    log_every: int = 20
    eval_every: int = 200
    save_every: int = 500
    paint_every: int = 0
    paint_prompts: tuple[str, ...] = ()
    keep: int = 2
    keep_every: int = 0
    max_skipped: int = 10
    spike_factor: float = 0.0
    max_rollbacks: int = 0
    stall_minutes: float = 60.0
    best_metric: str = "loss"
    init_from: str = ""
    init_model: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive("train", steps=self.steps, log_every=self.log_every, keep=self.keep)
        check(
            self.eval_every >= 0 and self.save_every >= 0 and self.minutes >= 0,
            "train.eval_every, train.save_every and train.minutes must be >= 0",
        )
        check(
            self.flops >= 0 and not (self.flops and self.minutes),
            "train.flops must be >= 0, and is no budget beside train.minutes: set one of them to 0",
        )
        check(
            self.keep_every >= 0 and self.max_skipped >= 0 and self.max_rollbacks >= 0,
            "train.keep_every, train.max_skipped and train.max_rollbacks must be >= 0",
        )
        check(
            self.spike_factor == 0 or self.spike_factor > 1,
            f"train.spike_factor must be 0 or more than 1, got {self.spike_factor}",
        )
        check(self.stall_minutes >= 0, "train.stall_minutes must be >= 0")
        check(
            self.max_rollbacks == 0 or self.spike_factor > 0,
            "train.max_rollbacks goes with train.spike_factor",
        )
        check(
            self.paint_every == 0 or (self.paint_every > 0 and len(self.paint_prompts) > 0),
            f"train.paint_every must be 0, or a number of steps with train.paint_prompts to paint; "
            f"got {self.paint_every} and {self.paint_prompts}",
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; -1 takes what is left. `sharding` explains the words."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    context: int = 1

    def __post_init__(self) -> None:
        """Checks sizes."""
        sizes = dataclasses.asdict(self)
        for name, size in sizes.items():
            check(
                size == -1 or size > 0,
                f"mesh.{name} must be positive or -1, got {size}",
            )
        check(list(sizes.values()).count(-1) <= 1, "only one mesh axis may be -1")
