"""Sizes of the two encoders that come with BAGEL; the defaults are those of the release."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class VitSizes:
    """SigLIP-so400m/14; patch, position grid and types are the model's.

    Attributes:
      width, mlp_width, num_heads: as in any transformer.
      num_layers: layers that are built. BAGEL's `vit_config.json` says one more: features are taken
        before the last layer, which the file does not hold.
      norm_eps: epsilon of every LayerNorm.
    """

    width: int = 1152
    mlp_width: int = 4304
    num_layers: int = 26
    num_heads: int = 16
    norm_eps: float = 1e-6


@dataclasses.dataclass(frozen=True)
class VaeSizes:
    """The autoencoder of FLUX.1.

    Attributes:
      channels: width of the first level.
      multipliers: width of each level over `channels`; every level but the last halves the sides.
      blocks: residual blocks of an encoder level; a decoder level has one more.
      latent_channels: channels of a latent.
      picture_channels: channels of a picture.
      scale, shift: latent = scale * (z - shift).
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    picture_channels: int = 3
    scale: float = 0.3611
    shift: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels a side of one latent cell."""
        return 2 ** (len(self.multipliers) - 1)
