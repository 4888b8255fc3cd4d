"""The FLUX image autoencoder that BAGEL paints with (`modeling/autoencoder.py` of its repository,
github.com/ByteDance-Seed/Bagel).

Pictures are [N, Y, X, 3] in [-1, 1]; a latent is [N, Y / 8, X / 8, 16] in the released sizes,
channels last. Sides must be multiples of `VaeSizes.downsample`. The autoencoder is frozen
everywhere, runs in float32, and is asked for full float32 matmuls: its output is what a picture
*is* to the model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from process_gen.core.encoder_sizes import VaeSizes

NORM_GROUPS = 32
NORM_EPS = 1e-6
# Rows of the middle attention's score matrix made at once: 1024 x 1024 pixels have 16384 positions,
# whose whole matrix would take a gigabyte. Of 1024 rows and more the TPU compiler may make one
# program that asks a v6e core for more memory than it has (`CompileTimeScopedVmemOom`).
ATTENTION_ROWS = 512


# bool [N, Y, X], where a picture lies in a larger canvas; None where it fills it.
Inside = jax.Array | None


def _precision() -> jax.lax.Precision | None:
    """Of products of float32: what `jax.default_matmul_precision` says, which is none by default.

    TensorFloat-32 then on GPUs, and on TPUs three products of bfloat16. Both keep more than
    bfloat16, in which BAGEL's trainer and evaluation encode (`torch.autocast`), and exact ones took
    as long for a picture of 512 px as two steps of painting it (docs/performance.md).
    """
    return None if jax.config.jax_default_matmul_precision else jax.lax.Precision.HIGH


def _cut_out(x: jax.Array, inside: Inside) -> jax.Array:
    """[N, Y, X, D] with zeros outside of the picture, which is what convolutions see beyond it."""
    return x if inside is None else jnp.where(inside[..., None], x, 0.0)


def _replicated(array: jax.Array) -> nnx.Param:
    """A parameter of which every device holds a copy: the whole autoencoder has 335 MB."""
    return nnx.Param(array, out_sharding=(None,) * array.ndim)


class Conv(nnx.Module):
    """A convolution with `same` padding, kernel [side, side, in, out]."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs, side: int = 3):
        """Weights follow LeCun's normal initialisation."""
        init = nnx.initializers.lecun_normal()
        self.kernel = _replicated(init(rngs.params(), (side, side, features_in, features_out)))
        self.bias = _replicated(jnp.zeros((features_out,)))

    def __call__(self, x: jax.Array, *, stride: int = 1, padding: object = "SAME") -> jax.Array:
        """Maps [N, Y, X, in] to [N, Y', X', out]."""
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            (stride, stride),
            padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=_precision(),
        )
        return y + self.bias[...][None, None, None]


class Pointwise(nnx.Module):
    """A linear map of the channels, kernel [in, out]: what torch stores as a 1 x 1 convolution."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        """Weights follow LeCun's normal initialisation."""
        init = nnx.initializers.lecun_normal()
        self.kernel = _replicated(init(rngs.params(), (features_in, features_out)))
        self.bias = _replicated(jnp.zeros((features_out,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [..., in] to [..., out]."""
        flat = x.reshape(-1, x.shape[-1])
        y = jnp.dot(flat, self.kernel[...], precision=_precision())
        return (y + self.bias[...][None]).reshape(*x.shape[:-1], -1)


class GroupNorm(nnx.Module):
    """Normalisation of 32 channel groups over all positions of a picture."""

    def __init__(self, features: int):
        """Scale one, bias zero."""
        self.scale = _replicated(jnp.ones((features,)))
        self.bias = _replicated(jnp.zeros((features,)))

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, D] to the same shape; zero outside of the picture."""
        n, y, x_side, d = x.shape
        grouped = x.reshape(n, y * x_side, NORM_GROUPS, d // NORM_GROUPS)
        where = None if inside is None else inside.reshape(n, y * x_side, 1, 1)
        mean = jnp.mean(grouped, axis=(1, 3), keepdims=True, where=where)
        centred = grouped - mean
        variance = jnp.mean(jnp.square(centred), axis=(1, 3), keepdims=True, where=where)
        normed = (centred * jax.lax.rsqrt(variance + NORM_EPS)).reshape(x.shape)
        normed = normed * self.scale[...][None, None, None] + self.bias[...][None, None, None]
        return _cut_out(normed, inside)


class ResidualBlock(nnx.Module):
    """Two normed, swished 3 x 3 convolutions beside a shortcut."""

    def __init__(self, features_in: int, features_out: int, *, rngs: nnx.Rngs):
        """The shortcut has weights only where the width changes."""
        self.norm1 = GroupNorm(features_in)
        self.conv1 = Conv(features_in, features_out, rngs=rngs)
        self.norm2 = GroupNorm(features_out)
        self.conv2 = Conv(features_out, features_out, rngs=rngs)
        if features_in != features_out:
            self.nin_shortcut = Pointwise(features_in, features_out, rngs=rngs)

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, in] to [N, Y, X, out]."""
        h = self.conv1(jax.nn.swish(self.norm1(x, inside)))
        h = self.conv2(jax.nn.swish(self.norm2(h, inside)))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nnx.Module):
    """One head over all positions of the smallest level."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """All projections keep the width."""
        self.norm = GroupNorm(features)
        self.q = Pointwise(features, features, rngs=rngs)
        self.k = Pointwise(features, features, rngs=rngs)
        self.v = Pointwise(features, features, rngs=rngs)
        self.proj_out = Pointwise(features, features, rngs=rngs)

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, D] to the same shape."""
        n, height, width, d = x.shape
        normed = self.norm(x, inside).reshape(n, height * width, d)
        key_Nx1xK = None if inside is None else inside.reshape(n, 1, height * width)
        q, k, v = self.q(normed) * d**-0.5, self.k(normed), self.v(normed)
        precision = _precision()

        def rows(part):
            scores = jnp.einsum("nqd,nkd->nqk", part, k, precision=precision)
            weights = jax.nn.softmax(scores, axis=-1, where=key_Nx1xK)
            return jnp.einsum("nqk,nkd->nqd", weights, v, precision=precision)

        if height * width <= ATTENTION_ROWS:
            mixed = rows(q)
        else:
            padded = jnp.pad(q, ((0, 0), (0, -q.shape[1] % ATTENTION_ROWS), (0, 0)))
            parts = padded.reshape(n, -1, ATTENTION_ROWS, d).swapaxes(0, 1)
            mixed = jax.lax.map(rows, parts).swapaxes(0, 1).reshape(n, -1, d)[:, : q.shape[1]]
        return x + self.proj_out(mixed).reshape(x.shape)


class Middle(nnx.Module):
    """Residual block, attention, residual block."""

    def __init__(self, features: int, *, rngs: nnx.Rngs):
        """All parts keep the width."""
        self.block_1 = ResidualBlock(features, features, rngs=rngs)
        self.attn_1 = Attention(features, rngs=rngs)
        self.block_2 = ResidualBlock(features, features, rngs=rngs)

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, D] to the same shape."""
        return self.block_2(self.attn_1(self.block_1(x, inside), inside), inside)


class Level(nnx.Module):
    """The residual blocks of one resolution and the convolution at its end, if any."""

    def __init__(
        self, features_in: int, features_out: int, blocks: int, resample: str, *, rngs: nnx.Rngs
    ):
        """Args: resample is "down", "up" or "" for a level that keeps its sides."""
        self.blocks = blocks
        self.resample = resample
        for i in range(blocks):
            block = ResidualBlock(features_out if i else features_in, features_out, rngs=rngs)
            setattr(self, f"block_{i}", block)
        if resample:
            self.conv = Conv(features_out, features_out, rngs=rngs)

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, in] to [N, Y', X', out], sides halved, doubled or kept."""
        for i in range(self.blocks):
            x = getattr(self, f"block_{i}")(x, inside)
        if self.resample == "down":
            # The reference pads below and to the right only.
            x = self.conv(_cut_out(x, inside), stride=2, padding=((0, 1), (0, 1)))
        elif self.resample == "up":
            x = self.conv(x.repeat(2, axis=1).repeat(2, axis=2))
        return x


class Encoder(nnx.Module):
    """Picture to the mean and log-variance of z."""

    def __init__(self, cfg: VaeSizes, *, rngs: nnx.Rngs):
        """Levels are numbered from the largest picture down."""
        widths = [cfg.channels * m for m in cfg.multipliers]
        self.levels = len(widths)
        self.conv_in = Conv(cfg.picture_channels, cfg.channels, rngs=rngs)
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else cfg.channels
            resample = "down" if i < self.levels - 1 else ""
            setattr(self, f"down_{i}", Level(before, width, cfg.blocks, resample, rngs=rngs))
        self.mid = Middle(widths[-1], rngs=rngs)
        self.norm_out = GroupNorm(widths[-1])
        self.conv_out = Conv(widths[-1], 2 * cfg.latent_channels, rngs=rngs)

    def __call__(self, x: jax.Array, inside: Inside = None) -> jax.Array:
        """Maps [N, Y, X, 3] to [N, Y / f, X / f, 2 z], means first."""
        x = self.conv_in(_cut_out(x, inside))
        for i in range(self.levels):
            x = getattr(self, f"down_{i}")(x, inside)
            if inside is not None and i < self.levels - 1:
                inside = inside[:, ::2, ::2]
        return self.conv_out(jax.nn.swish(self.norm_out(self.mid(x, inside), inside)))


class Decoder(nnx.Module):
    """z to a picture."""

    def __init__(self, cfg: VaeSizes, *, rngs: nnx.Rngs):
        """Levels carry the encoder's numbers and run from the last to the first."""
        widths = [cfg.channels * m for m in cfg.multipliers]
        self.levels = len(widths)
        self.conv_in = Conv(cfg.latent_channels, widths[-1], rngs=rngs)
        self.mid = Middle(widths[-1], rngs=rngs)
        for i in reversed(range(self.levels)):
            before = widths[min(i + 1, self.levels - 1)]
            resample = "up" if i else ""
            setattr(self, f"up_{i}", Level(before, widths[i], cfg.blocks + 1, resample, rngs=rngs))
        self.norm_out = GroupNorm(widths[0])
        self.conv_out = Conv(widths[0], cfg.picture_channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [N, y, x, z] to [N, y f, x f, 3], not clipped."""
        x = self.mid(self.conv_in(x))
        for i in reversed(range(self.levels)):
            x = getattr(self, f"up_{i}")(x)
        return self.conv_out(jax.nn.swish(self.norm_out(x)))


class FluxVae(nnx.Module):
    """Both halves, with the scaling that latents carry."""

    def __init__(self, cfg: VaeSizes, *, rngs: nnx.Rngs):
        """Builds encoder and decoder."""
        self.cfg = cfg
        self.encoder = Encoder(cfg, rngs=rngs)
        self.decoder = Decoder(cfg, rngs=rngs)

    def moments(
        self, pictures: jax.Array, inside: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Mean and log-variance of z, each [N, Y / f, X / f, z], before scale and shift.

        A picture padded to a common size gives other values than the picture alone, for the norms
        and the attention see the padding, unless they are told where it begins.

        Args:
          pictures: [N, Y, X, 3] in [-1, 1].
          inside: bool [N, Y, X], true in a rectangle at the top left whose sides are multiples of
            `VaeSizes.downsample`. What lies outside of it has no influence, and its moments no
            meaning. None where pictures fill their canvas.
        """
        mean, log_variance = jnp.split(self.encoder(pictures, inside), 2, axis=-1)
        return mean, log_variance

    def encode(self, pictures: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Latents [N, Y / f, X / f, z] of pictures in [-1, 1].

        Args:
          pictures: [N, Y, X, 3].
          noise: standard normal draws of the latents' shape; None takes the mean (the reference
            always samples, which a caller that wants it does by passing noise).
        """
        return sample_latent(*self.moments(pictures), noise, self.cfg)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Pictures [N, Y, X, 3] of latents, in [-1, 1] but not clipped."""
        return self.decoder(latents / self.cfg.scale + self.cfg.shift)


def functions(sizes: VaeSizes) -> tuple[Callable, Callable, Callable]:
    """The autoencoder as jitted pure functions of a nested dict of weights.

    Returns:
      ``moments(params, pictures, inside=None)``, ``encode(params, pictures, noise=None)`` and
      ``decode(params, latents)``, see `FluxVae`.
    """
    graph, abstract = nnx.split(nnx.eval_shape(lambda: FluxVae(sizes, rngs=nnx.Rngs(0))))

    def method(name: str) -> Callable:
        def call(params: dict[str, Any], *args: jax.Array) -> Any:
            state = jax.tree.map(lambda leaf: leaf, abstract)
            nnx.replace_by_pure_dict(state, params)
            return getattr(nnx.merge(graph, state), name)(*args)

        return jax.jit(call)

    return method("moments"), method("encode"), method("decode")


def sample_latent(
    mean: jax.Array, log_variance: jax.Array, noise: jax.Array | None, cfg: VaeSizes
) -> jax.Array:
    """scale * (z - shift), z = mean + exp(log_variance / 2) * noise; the mean where noise is None.

    Apart from the encoder so that a step can sample from moments that were computed once.
    """
    z = mean if noise is None else mean + jnp.exp(0.5 * log_variance) * noise
    return cfg.scale * (z - cfg.shift)
