"""Settings of the model: sizes, and how its layers are computed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal

from process_gen.core.checks import check, positive
from process_gen.core.encoder_sizes import VaeSizes, VitSizes


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters of linear maps inside the layers (arXiv 2106.09685).

    With them a map computes ``x (W + alpha / rank a b)``. W and all other weights stay as they are,
    `a` and `b` are trained, in float32 whatever `param_dtype` is, and b starts at 0.

    Attributes:
      rank: columns of a; 0 for a model without adapters.
      alpha: divided by the rank, the scale of what they add.
      targets: names of the maps.
      experts: of which experts.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = (
        "q", "k", "v", "o", "gate", "up", "down",
    )  # fmt: skip
    experts: tuple[Literal["und", "gen"], ...] = ("und", "gen")

    def __post_init__(self) -> None:
        """Checks ranges."""
        check(self.rank >= 0, f"model.lora.rank must be >= 0, got {self.rank}")
        positive("model.lora", alpha=self.alpha)
        check(
            bool(self.targets and self.experts) or not self.rank,
            "model.lora names no map: give targets and experts, or rank=0",
        )

    @property
    def scale(self) -> float:
        """The factor of ``a b``."""
        return self.alpha / max(self.rank, 1)

    def of(self, expert: str) -> Mapping[str, LoraConfig]:
        """The settings by map, for those maps of an expert that have an adapter."""
        used = self.rank and expert in self.experts
        return {name: self for name in self.targets} if used else {}


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
      remat: what the backward pass computes again: "none", "dots" (all but matmuls), "full" (each
        layer from its input), "attention" (that, but for the attention itself, whose output is
        kept, with any `attention` but dense), or "offload" (likewise, with inputs and outputs in
        the host's memory meanwhile).
      attention: implementation in `kernels`; "auto" is "pallas" on TPUs, "triton" on GPUs,
        and on CPUs "native", or "rows" where no C++ compiler is.
      freeze_und: stops the gradients of und tokens in every layer, so that the understanding expert
        and all that comes before it stay as they are; the head on top still learns.
      lora: adapters; with any, nothing else is trained.
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
    remat: Literal["none", "dots", "full", "attention", "offload"] = "none"
    attention: Literal["dense", "rows", "native", "chunked", "pallas", "triton", "auto"] = "dense"
    freeze_und: bool = False
    lora: LoraConfig = LoraConfig()
    vit: VitSizes = VitSizes()
    vae: VaeSizes = VaeSizes()

    def __post_init__(self) -> None:
        """Checks sizes."""
        for field in dataclasses.fields(self):
            if field.type in ("int", "float"):
                positive("model", **{field.name: getattr(self, field.name)})
        check(
            self.num_heads % self.num_kv_heads == 0,
            f"model.num_heads ({self.num_heads}) must be a multiple of model.num_kv_heads "
            f"({self.num_kv_heads})",
        )
        check(self.head_dim % 2 == 0, f"model.head_dim must be even, got {self.head_dim}")
        check(
            self.width % 4 == 0,
            f"model.width must be a multiple of 4, got {self.width}",
        )
        check(self.time_features % 2 == 0, "model.time_features must be even")
        check(
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
