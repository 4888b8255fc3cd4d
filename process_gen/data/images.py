"""Bringing pictures of any size into the sizes that BAGEL was trained with (`data/transforms.py` of
its repository, github.com/ByteDance-Seed/Bagel).

Pillow resizes, for its bicubic filter is widened when a picture shrinks; `jax.image.resize`
gives other pixels. Arrays are [H, W, 3], uint8 or float32 in [-1, 1].
"""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from process_gen.core.configs import ModelConfig
from process_gen.core.errors import DataError

DEFAULT_MAX_PIXELS = 14 * 14 * 9 * 1024


@dataclasses.dataclass(frozen=True)
class Resize:
    """Rule for the size of a picture; its aspect is kept up to rounding.

    Attributes:
      longest: the long side is shrunk to this, where it exceeds it.
      shortest: the short side is enlarged to this, where it falls below it.
      stride: both sides become multiples of it.
      max_pixels: budget of one sample, shared by its pictures.
    """

    longest: int
    shortest: int
    stride: int
    max_pixels: int = DEFAULT_MAX_PIXELS

    def size(self, width: int, height: int, pictures: int = 1) -> tuple[int, int]:
        """The new (width, height) of a picture that shares its budget with others.

        Rounding is Python's, half to even. A picture over the budget is scaled by the ratio of the
        *areas*, which shrinks it more than needed: the reference does so, and sizes decide which
        tokens a model has seen.

        Raises:
          DataError: a side is not positive.
        """
        if min(width, height, pictures) < 1:
            raise DataError(f"no picture has {width}x{height} px ({pictures} sharing a sample)")
        scale = min(self.longest / max(width, height), 1.0)
        width, height = self._scaled(width, height, max(scale, self.shortest / min(width, height)))
        budget = self.max_pixels / pictures
        if width * height > budget:
            width, height = self._scaled(width, height, budget / (width * height))
        if max(width, height) > self.longest:
            width, height = self._scaled(width, height, self.longest / max(width, height))
        return width, height

    def _scaled(self, width: int, height: int, scale: float) -> tuple[int, int]:
        def side(value: int) -> int:
            return max(self.stride, round(round(value * scale) / self.stride) * self.stride)

        return side(width), side(height)

    def tokens(self, width: int, height: int, pictures: int = 1) -> int:
        """Squares of `stride` pixels that the resized picture has."""
        width, height = self.size(width, height, pictures)
        return (width // self.stride) * (height // self.stride)

    def __call__(self, image: Image.Image, pictures: int = 1) -> Image.Image:
        """Resizes an RGB picture."""
        return image.resize(self.size(*image.size, pictures), Image.Resampling.BICUBIC)

    def resized(self, image: np.ndarray, pictures: int = 1) -> np.ndarray:
        """Resizes uint8 [H, W, 3]."""
        return np.asarray(self(Image.fromarray(image), pictures))


VAE = Resize(1024, 512, 16)
VIT_EDIT = Resize(518, 224, 14)
VIT_QUESTIONS = Resize(980, 378, 14, 2_007_040)
VIT_INFERENCE = Resize(980, 224, 14)


def _of_grid(side: int, grid: int, longest: float, shortest: float) -> Resize:
    """A rule whose sides are the given fractions of a position table's."""
    return Resize(round(longest * grid) * side, round(shortest * grid) * side, side)


def latent_rule(model: ModelConfig) -> Resize:
    """The size that pictures given to a model are brought to first; `VAE` for BAGEL-7B."""
    return _of_grid(model.patch * model.vae.downsample, model.latent_grid, 1.0, 0.5)


def und_rule(model: ModelConfig) -> Resize:
    """How given pictures reach the understanding encoder; `VIT_INFERENCE` for BAGEL-7B."""
    return _of_grid(model.und_patch, model.und_grid, 1.0, 16 / 70)


def question_rule(model: ModelConfig) -> Resize:
    """How pictures of a question are shown in training; `VIT_QUESTIONS` for BAGEL-7B.

    They share a budget of pixels.
    """
    rule = _of_grid(model.und_patch, model.und_grid, 1.0, 27 / 70)
    return dataclasses.replace(rule, max_pixels=VIT_QUESTIONS.max_pixels)


def painted_copy(model: ModelConfig) -> Resize | None:
    """How a painted picture does while a painting goes on: as in training on edits.

    `VIT_EDIT` for BAGEL-7B. None where the copy is the picture itself, as with pixel patches.
    """
    if model.codec != "flux":
        return None
    return _of_grid(model.und_patch, model.und_grid, 37 / 70, 16 / 70)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow picture as RGB; what is transparent becomes white."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def normalise(pixels: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return (pixels.astype(np.float32) / 255.0 - 0.5) / 0.5


def to_uint8(pixels: np.ndarray) -> np.ndarray:
    """A decoder's output in about [-1, 1] to uint8, clipped and then *truncated*, as in BAGEL."""
    return (np.clip(pixels * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(np.uint8)


def context_pictures(
    image: Image.Image, *, latent: bool, rules: tuple[Resize, Resize] = (VAE, VIT_INFERENCE)
) -> tuple[np.ndarray | None, np.ndarray]:
    """The two copies of an input picture that a context takes at inference (`inferencer.py`).

    The understanding copy is made from the one that was already resized for the autoencoder, also
    where that copy itself is left out (understanding).

    Args:
      image: of any mode and size.
      latent: whether the autoencoder's copy is wanted.
      rules: of the two copies; those of a model are `latent_rule` and `und_rule`.

    Returns:
      uint8 [H, W, 3] for the autoencoder or None, and for the understanding encoder.
    """
    resized = rules[0](to_rgb(image))
    return (np.asarray(resized) if latent else None), np.asarray(rules[1](resized))
