"""Cutting pictures into square patches and putting them together again.

Works on NumPy and JAX arrays alike, so that data workers, encoders and the sampler share it.
"""

from __future__ import annotations

from typing import Any

from process_gen.core.errors import DataError


def patchify(image: Any, side: int) -> Any:
    """Cuts ``[..., H, W, C]`` into row-major patches ``[..., H/side * W/side, side*side*C]``.

    Inside a patch the order is row, column, channel, the channel running fastest (BAGEL's order).

    Raises:
      DataError: H or W is no multiple of `side`.
    """
    *lead, height, width, channels = image.shape
    if height % side or width % side:
        raise DataError(f"a picture of {height}x{width} does not divide into {side}x{side} patches")
    rows, columns = height // side, width // side
    cut = image.reshape(*lead, rows, side, columns, side, channels)
    cut = cut.swapaxes(-4, -3)
    return cut.reshape(*lead, rows * columns, side * side * channels)


def unpatchify(patches: Any, side: int, rows: int, columns: int) -> Any:
    """The inverse of `patchify`: ``[..., rows*columns, side*side*C]`` to ``[..., H, W, C]``."""
    *lead, _, features = patches.shape
    channels = features // (side * side)
    cut = patches.reshape(*lead, rows, columns, side, side, channels)
    cut = cut.swapaxes(-4, -3)
    return cut.reshape(*lead, rows * side, columns * side, channels)
