"""Settings of a run as small frozen dataclasses, read from a plain nested mapping.

`launch` turns an ml_collections ConfigDict into a dict and hands it to `from_mapping`; nothing
below `launch` ever sees a ConfigDict. An unknown key, a wrong type or a value out of range raises
one `ConfigError` that names the key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from process_gen.core.encoder_sizes import VaeSizes, VitSizes
from process_gen.core.errors import ConfigError
from process_gen.core.settings import build


def _check(condition: bool, what: str) -> None:
    if not condition:
        raise ConfigError(what)


def _positive(section: str, **values: float) -> None:
    for name, value in values.items():
        _check(value > 0, f"{section}.{name} must be positive, got {value}")


def _fraction(section: str, **values: float) -> None:
    for name, value in values.items():
        _check(0.0 <= value <= 1.0, f"{section}.{name} must lie in [0, 1], got {value}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of the transformer and of what enters it; the defaults are `strokes_tiny`.

    Attributes:
      vocab_size: rows of the token embedding; at least the tokenizer's length.
      width, mlp_width, num_layers, num_heads, num_kv_heads, head_dim: as in any GQA transformer.
      rope_theta: base of the rotary frequencies.
      norm_eps: epsilon of every RMSNorm.
      qkv_bias: biases on the q, k, v projections (Qwen2 has them).
      codec: how pictures become latent tokens. "pixel" patches raw pixels, "flux" the latents of
        the frozen autoencoder.
      patch: side of a latent token's square in codec cells (pixels for "pixel").
      codec_channels: channels of a codec cell (3 for "pixel").
      latent_grid: side of the latent position table, the largest picture in latent tokens a side.
      und_encoder: how a picture is read back. "patch" embeds pixel patches, "siglip" runs the
        vision transformer and its connector; "none" leaves it out.
      und_patch: side of an understanding patch in pixels.
      und_grid: side of its position table.
      time_features: width of the sinusoidal timestep features.
      prediction: what the flow head's output means, "velocity" (BAGEL) or "x0".
      dtype: compute type. Norm statistics, softmax and losses are float32 always.
      param_dtype: type of the stored weights.
      layers: "scan" runs one compiled layer in a loop, "unroll" inlines all of them.
      remat: what the backward pass recomputes, "none", "dots" (all but matmuls) or "full".
      attention: implementation in `kernels`.
      freeze_und: stops the gradients of und tokens in every layer, so that the understanding expert
        and all that comes before it stay as they are; the head on top still learns.
      vit, vae: sizes of "siglip" and "flux".
    """

    vocab_size: int = 640
    width: int = 96
    mlp_width: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 24
    rope_theta: float = 1e4
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    codec: Literal["pixel", "flux"] = "pixel"
    patch: int = 8
    codec_channels: int = 3
    latent_grid: int = 4
    und_encoder: Literal["none", "patch", "siglip"] = "patch"
    und_patch: int = 8
    und_grid: int = 4
    time_features: int = 64
    prediction: Literal["velocity", "x0"] = "x0"
    dtype: Literal["float32", "bfloat16"] = "float32"
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    layers: Literal["scan", "unroll"] = "unroll"
    remat: Literal["none", "dots", "full"] = "none"
    attention: Literal["dense", "chunked"] = "dense"
    freeze_und: bool = False
    vit: VitSizes = VitSizes()
    vae: VaeSizes = VaeSizes()

    def __post_init__(self) -> None:
        """Checks sizes."""
        for field in dataclasses.fields(self):
            if field.type in ("int", "float"):
                _positive("model", **{field.name: getattr(self, field.name)})
        _check(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
            f"({self.num_kv_heads})",
        )
        _check(self.head_dim % 2 == 0, f"model.head_dim must be even, got {self.head_dim}")
        _check(
            self.width % 4 == 0,
            f"model.width must be a multiple of 4, got {self.width}",
        )
        _check(self.time_features % 2 == 0, "model.time_features must be even")
        _check(
            self.codec != "flux" or self.codec_channels == self.vae.latent_channels,
            f"model.codec_channels ({self.codec_channels}) must be model.vae.latent_channels "
            f"({self.vae.latent_channels}) with codec='flux'",
        )

    @property
    def latent_side(self) -> int:
        """Pixels a side of one latent token's square."""
        return self.patch * (self.vae.downsample if self.codec == "flux" else 1)

    @property
    def latent_features(self) -> int:
        """Features of one latent token."""
        return self.patch * self.patch * self.codec_channels

    @property
    def und_features(self) -> int:
        """Features of one understanding patch."""
        return self.und_patch * self.und_patch * 3


@dataclasses.dataclass(frozen=True)
class GrammarConfig:
    """What a trajectory shows the model, and what it is trained on (docs/grammar.md).

    Attributes:
      context_images: copies of a painted picture that later tokens see.
      rejected_context: what remains of a sketch whose inspection found a fault, once the inspection
        is over: "keep" every copy, the understanding copy only, or "drop" it.
      supervise_rejected: whether a rejected sketch is a flow target too.
      noise_copies: noised copies of each target picture in one pack, each with its own t.
      text_dropout: probability that a noised copy is trained without its plan (it takes the order
        slot before the plan), for text guidance.
      prompt_dropout: probability that it is trained without any context.
      vae_dropout, vit_dropout: probability that a clean latent copy, or an understanding copy, of a
        painted picture is seen by its own inspection at most, and by nothing that comes later.
    """

    context_images: Literal["vae+vit", "vit", "vae"] = "vae+vit"
    rejected_context: Literal["keep", "vit_only", "drop"] = "keep"
    supervise_rejected: bool = False
    noise_copies: int = 1
    text_dropout: float = 0.1
    prompt_dropout: float = 0.0
    vae_dropout: float = 0.0
    vit_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Checks ranges."""
        _positive("data.grammar", noise_copies=self.noise_copies)
        _fraction(
            "data.grammar",
            text_dropout=self.text_dropout,
            prompt_dropout=self.prompt_dropout,
            vae_dropout=self.vae_dropout,
            vit_dropout=self.vit_dropout,
        )
        _check(
            self.text_dropout + self.prompt_dropout <= 1.0,
            "data.grammar: text_dropout + prompt_dropout exceed 1",
        )
        _check(
            self.rejected_context != "vit_only" or "vit" in self.context_images,
            "data.grammar.rejected_context='vit_only' needs 'vit' in data.grammar.context_images",
        )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of a mixture.

    Attributes:
      kind: name of a function in `data.sources`.
      weight: relative share of trajectories.
      size: trajectories an epoch, for sources that are generated.
      path: folder, for sources that are read.
      options: settings of the source itself.
    """

    kind: str
    weight: float = 1.0
    size: int = 10_000
    path: str = ""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks ranges."""
        _positive("data.sources", weight=self.weight, size=self.size)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The mixture, the pack shape, and what a trajectory shows.

    Attributes:
      tokenizer: path of a `tokenizer.json`; empty for the committed Strokes one.
      sources, eval_sources: mixtures for training and for the fixed held-out split.
      image_size: side in pixels that all pictures are resized to; 0 leaves them as they are, which
        only model.codec="pixel" can take.
      text_len, und_len, gen_len: T, V and G of a pack.
      rows: packs in a global batch.
      eval_rows: packs of the held-out split, all evaluated each time.
      seed: of the mixture, the order and the per-copy dropout.
      window: trajectories planned together; a longer window packs tighter.
      prefetch: batches prepared ahead.
    """

    tokenizer: str = ""
    sources: tuple[SourceConfig, ...] = (SourceConfig("strokes"),)
    eval_sources: tuple[SourceConfig, ...] = ()
    grammar: GrammarConfig = GrammarConfig()
    image_size: int = 0
    text_len: int = 448
    und_len: int = 112
    gen_len: int = 224
    rows: int = 8
    eval_rows: int = 8
    seed: int = 0
    window: int = 2048
    prefetch: int = 4

    def __post_init__(self) -> None:
        """Checks sizes."""
        _positive("data", text_len=self.text_len, rows=self.rows, window=self.window)
        _check(
            self.und_len >= 0 and self.gen_len >= 0,
            "data.und_len and data.gen_len must be >= 0",
        )
        for name in ("image_size", "eval_rows", "prefetch"):
            value = getattr(self, name)
            _check(value >= 0, f"data.{name} must be >= 0, got {value}")
        _check(len(self.sources) > 0, "data.sources is empty")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the two kinds of loss, and the distribution of t.

    Attributes:
      ce_weight, mse_weight: multiply the token means of cross-entropy and flow loss.
      ce_weight_late: the cross-entropy's weight from the fraction `late_from` of training on; None
        keeps `ce_weight` throughout.
      stage_scales: factor of a stage's tokens, by stage name in lower case; 1 where not named.
      t_mean, t_std: t = sigmoid(normal(t_mean, t_std)), t = 1 being noise.
      timestep_shift: s in t <- s t / (1 + (s - 1) t).
      min_t: floor of the divisor when an x0 head's output is turned into a velocity.
    """

    ce_weight: float = 1.0
    mse_weight: float = 1.0
    ce_weight_late: float | None = None
    late_from: float = 0.4
    stage_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    t_mean: float = 0.0
    t_std: float = 1.0
    timestep_shift: float = 1.0
    min_t: float = 0.05

    def __post_init__(self) -> None:
        """Checks ranges."""
        _check(self.ce_weight >= 0 and self.mse_weight >= 0, "loss weights must be >= 0")
        _positive(
            "loss",
            t_std=self.t_std,
            timestep_shift=self.timestep_shift,
            min_t=self.min_t,
        )
        _fraction("loss", late_from=self.late_from)
        known = ("plan", "sketch", "inspect", "refine", "one_shot", "answer", "control")
        for name, scale in self.stage_scales.items():
            _check(
                name in known,
                f"loss.stage_scales: unknown stage {name!r}; one of {known}",
            )
            _check(scale >= 0, f"loss.stage_scales.{name} must be >= 0, got {scale}")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule.

    Attributes:
      name: "adamw", or "muon" for matrices inside the layers with AdamW for the rest.
      learning_rate: peak, for AdamW's leaves (and for Muon's, times `muon_scale`).
      schedule: shape after warm-up: "constant", "cosine" over all steps, or "linear" decay to
        `final_scale` over the last `decay_fraction`.
      weight_decay: decoupled, on matrices only.
      clip_norm: largest global gradient norm.
      ema_decay: of the averaged weights; 0 keeps none.
      ema_warmup: whether the decay rises to `ema_decay` from a low value, which forgets random
        initial weights; False uses it from the first step on, for weights that were trained.
      frozen: top-level names of weights that stay as they are, such as "und_encoder" or "embed".
      accumulate: micro-batches a step.
    """

    name: Literal["adamw", "muon"] = "adamw"
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
    ema_decay: float = 0.999
    ema_warmup: bool = True
    frozen: tuple[str, ...] = ()
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Checks ranges."""
        _positive(
            "optimizer",
            learning_rate=self.learning_rate,
            clip_norm=self.clip_norm,
            eps=self.eps,
            muon_scale=self.muon_scale,
            accumulate=self.accumulate,
            muon_steps=self.muon_steps,
        )
        _fraction(
            "optimizer",
            decay_fraction=self.decay_fraction,
            final_scale=self.final_scale,
            b1=self.b1,
            b2=self.b2,
            ema_decay=self.ema_decay,
        )
        _check(self.warmup_steps >= 0, "optimizer.warmup_steps must be >= 0")
        _check(self.weight_decay >= 0, "optimizer.weight_decay must be >= 0")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Attributes:
      steps: optimiser steps.
      minutes: if positive, the first steps are timed and `steps` is set so that training takes
        about this long; the schedule then follows the new number.
      seed: of the initial weights, noise and t.
      log_every, eval_every, save_every: in steps; 0 never.
      keep: newest checkpoints kept, besides the best.
      best_metric: name in the evaluation metrics; lower is better unless it ends in "exact".
      init_from: a checkpoint whose weights the run starts from. With model.codec="flux" the frozen
        autoencoder comes from there too.
      init_model: whether `init_from` also decides the sizes of the model and, where
        `data.tokenizer` is empty, the tokenizer.
    """

    steps: int = 1000
    minutes: float = 0.0
    seed: int = 0
    log_every: int = 20
    eval_every: int = 200
    save_every: int = 500
    keep: int = 2
    best_metric: str = "loss"
    init_from: str = ""
    init_model: bool = False

    def __post_init__(self) -> None:
        """Checks ranges."""
        _positive("train", steps=self.steps, log_every=self.log_every, keep=self.keep)
        _check(
            self.eval_every >= 0 and self.save_every >= 0 and self.minutes >= 0,
            "train.eval_every, train.save_every and train.minutes must be >= 0",
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
            _check(
                size == -1 or size > 0,
                f"mesh.{name} must be positive or -1, got {size}",
            )
        _check(list(sizes.values()).count(-1) <= 1, "only one mesh axis may be -1")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to paint.

    Attributes:
      batch: rows painted side by side.
      denoise_steps: velocity evaluations a picture (Heun uses two each but the last).
      one_shot_steps: the same in every other mode.
      solver: "euler" or "heun".
      timestep_shift: shift of the sampling grid.
      guidance: text guidance scale in process mode; 1 is none.
      one_shot_guidance: the same in every other mode.
      image_guidance: scale of the branch that sees the texts only, in every mode but process; 1 is
        none, and without text guidance there is none either.
      guidance_interval: guidance acts while low < t <= high.
      sample_latents: whether a picture that a context reads enters as a draw from the autoencoder's
        distribution, as in BAGEL, or as its mean; only model.codec="flux" has one.
      renorm: how a guided velocity is scaled back, see `core.flow_matching`.
      renorm_min: smallest factor of that scaling; 1 turns it off.
      temperature: of text sampling; 0 is greedy.
      top_p: smallest set of tokens whose probability reaches this is sampled from.
      max_text: tokens of one text segment, both boundary tokens included.
      max_images: pictures of one trajectory.
      max_prompt: tokens of a prompt; a longer one is refused.
      max_context: tokens that a painting may hold in its cache; one that needs more is closed.
    """

    batch: int = 16
    denoise_steps: int = 10
    one_shot_steps: int = 16
    solver: Literal["euler", "heun"] = "euler"
    timestep_shift: float = 1.0
    guidance: float = 1.5
    one_shot_guidance: float = 3.0
    image_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sample_latents: bool = True
    renorm: Literal["none", "global", "channel", "text_channel"] = "none"
    renorm_min: float = 0.0
    temperature: float = 0.3
    top_p: float = 1.0
    max_text: int = 128
    max_images: int = 8
    max_prompt: int = 128
    max_context: int = 512

    def __post_init__(self) -> None:
        """Checks ranges."""
        _positive(
            "sampler",
            batch=self.batch,
            denoise_steps=self.denoise_steps,
            one_shot_steps=self.one_shot_steps,
            timestep_shift=self.timestep_shift,
            max_text=self.max_text,
            max_images=self.max_images,
            max_prompt=self.max_prompt,
            max_context=self.max_context,
            top_p=self.top_p,
        )
        _check(self.temperature >= 0, "sampler.temperature must be >= 0")
        _fraction("sampler", top_p=self.top_p, renorm_min=self.renorm_min)
        _check(self.max_text >= 3, "sampler.max_text must be at least 3")
        low, high = self.guidance_interval
        _check(
            0.0 <= low <= high <= 1.0,
            f"sampler.guidance_interval must be low, high in [0, 1], got {low}, {high}",
        )


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    train: TrainConfig = TrainConfig()
    mesh: MeshConfig = MeshConfig()
    sampler: SamplerConfig = SamplerConfig()


def from_mapping(mapping: Mapping[str, Any]) -> Config:
    """Reads a whole config; sections and keys that are absent keep their defaults.

    Raises:
      ConfigError: an unknown key, a wrong type, a value out of range; the text names the key.
    """
    return build(Config, mapping)


def to_mapping(config: Any) -> dict[str, Any]:
    """The nested plain dict of any settings dataclass, ready for JSON; `from_mapping` reads it."""
    return dataclasses.asdict(config)
