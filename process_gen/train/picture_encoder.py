"""Encoding the pictures of a batch, whatever their sizes, with a frozen autoencoder.

Pictures are laid on canvases of a few sizes, and the autoencoder is told where each one ends, so
that it sees what it would see of the picture alone (`models.vae`). A program is compiled for each
size of canvas, at most `_SIDES` ** 2 of them, and not for each of the hundreds of sizes that
pictures of a real data set have.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from process_gen.core.attention_mask import PAD_ORDER
from process_gen.core.errors import DataError
from process_gen.core.patches import unpatchify
from process_gen.models.flux_codec import FluxCodec
from process_gen.sharding import local, rules

# Sides that a canvas may have are so many multiples of a fraction of the longest one.
_SIDES = 4


class Picture(NamedTuple):
    """A picture cut into tokens.

    Attributes:
      token_RxCxS: uint8 pixels of its tokens, R rows of C.
      start: where its first token stands in what the encoder returns.
    """

    token_RxCxS: np.ndarray
    start: int


class PictureEncoder:
    """Encodes pictures on the devices of this process; calls return before the work is done.

    Attributes:
      sizes: of the canvases met so far, in tokens; one program has been compiled for each.
    """

    def __init__(self, codec: FluxCodec, params: Any, longest: int, mesh: Mesh):
        """Places the autoencoder.

        Args:
          codec: of the model.
          params: of the autoencoder, host arrays; every device keeps a copy.
          longest: tokens along the longest side that a picture may have.
          mesh: the run's. Each device of this process encodes a picture at a time.
        """
        self.sizes: set[tuple[int, int]] = set()
        self._codec = codec
        self._unit = -(-longest // _SIDES)
        self._local = local.local_mesh(mesh)
        whole, self._dealt = rules.replicated(self._local), local.dealt(self._local)
        self._params = jax.device_put(params, whole)

        def empty(room: int) -> jax.Array:
            features = 2 * codec.patch**2 * codec.sizes.latent_channels
            return jnp.zeros((room, features), jnp.float32)

        self._empty = jax.jit(empty, static_argnums=0, out_shardings=whole)
        self._add = jax.jit(self._encode, donate_argnums=1, out_shardings=whole)

    def __call__(self, pictures: Sequence[Picture], room: int) -> jax.Array:
        """Moments of the tokens of all pictures.

        Args:
          pictures: any number, of any sizes.
          room: tokens of the result; one program is compiled for each value.

        Returns:
          ``float32[room, 2P]``, whole on every device of this process: `FluxCodec.moments`, each
          picture's from its `start` on, zero where no picture is.
        """
        groups: dict[tuple[int, int], list[Picture]] = collections.defaultdict(list)
        for picture in pictures:
            rows, columns, _ = picture.token_RxCxS.shape
            groups[self._canvas(rows), self._canvas(columns)].append(picture)
        self.sizes.update(groups)
        with jax.set_mesh(self._local):
            moments = self._empty(room)
            for (rows, columns), group in sorted(groups.items()):
                for first in range(0, len(group), self._local.size):
                    some = group[first : first + self._local.size]
                    laid = _lay(some, self._local.size, rows, columns, room)
                    moments = self._add(self._params, moments, *jax.device_put(laid, self._dealt))
        return moments

    def _canvas(self, side: int) -> int:
        return -(-side // self._unit) * self._unit

    def _encode(
        self,
        params: Any,
        moments_MxF: jax.Array,
        token_NxRxCxS: jax.Array,
        extent_Nx2: jax.Array,
        place_NxRxC: jax.Array,
    ) -> jax.Array:
        n, rows, columns, s = token_NxRxCxS.shape
        side = self._codec.side
        flat_NxMxS = token_NxRxCxS.reshape(n, rows * columns, s)
        image_NxHxWx3 = unpatchify(flat_NxMxS, side, rows, columns)
        height_N, width_N = side * extent_Nx2.T
        inside_NxHxW = (jnp.arange(side * rows)[None, :, None] < height_N[:, None, None]) & (
            jnp.arange(side * columns)[None, None] < width_N[:, None, None]
        )
        made_NxMxF = self._codec.moments(params, image_NxHxWx3, inside_NxHxW)
        made_NxMxF = jax.lax.with_sharding_constraint(made_NxMxF, rules.replicated(self._local))
        made_MxF = made_NxMxF.reshape(-1, made_NxMxF.shape[-1])
        return moments_MxF.at[place_NxRxC.reshape(-1)].set(made_MxF, mode="drop")


def _lay(
    pictures: Sequence[Picture], count: int, rows: int, columns: int, room: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`count` canvases, their pictures' sizes, and where their tokens go; `room` is nowhere."""
    features = pictures[0].token_RxCxS.shape[-1]
    token_NxRxCxS = np.zeros((count, rows, columns, features), np.uint8)
    extent_Nx2 = np.ones((count, 2), np.int32)  # an empty canvas would divide by 0
    place_NxRxC = np.full((count, rows, columns), room, np.int32)
    for k, (token_RxCxS, start) in enumerate(pictures):
        r, c, _ = token_RxCxS.shape
        token_NxRxCxS[k, :r, :c] = token_RxCxS
        extent_Nx2[k] = r, c
        place_NxRxC[k, :r, :c] = start + np.arange(r * c).reshape(r, c)
    return token_NxRxCxS, extent_Nx2, place_NxRxC


def find_pictures(
    latent_BxGxS: np.ndarray, latent_id_BxG: np.ndarray, order_BxG: np.ndarray, grid: int
) -> tuple[list[Picture], np.ndarray]:
    """The different pictures in the gen stream of some rows.

    The ids of a picture begin with 0 and tell its shape. Copies of a picture that lie one behind
    the other, as the noised and the clean one do, are one picture here.

    Args:
      latent_BxGxS: uint8 pixels of latent tokens.
      latent_id_BxG: their rows in the position table.
      order_BxG: their orders; `PAD_ORDER` is padding, which comes last.
      grid: side of the position table.

    Returns:
      The pictures, `start` counting tokens of all rows in turn; and ``int32[B, G]``, for each token
      the place of its moments, -1 for padding.

    Raises:
      DataError: ids that are no picture's.
    """
    b, g, features = latent_BxGxS.shape
    place_BxG = np.full((b, g), -1, np.int32)
    pictures: list[Picture] = []
    for row in range(b):
        used = int(np.count_nonzero(order_BxG[row] != PAD_ORDER))
        ids = latent_id_BxG[row, :used]
        starts = np.flatnonzero(ids == 0).tolist()
        if used and starts[:1] != [0]:
            raise DataError(f"row {row}: the latent tokens do not begin with a picture's first one")
        before: Picture | None = None
        for start, end in itertools.pairwise([*starts, used]):
            columns = int(np.count_nonzero(ids[start:end] < grid))
            if (end - start) % columns:
                raise DataError(f"row {row}: {end - start} tokens are no picture of {columns} wide")
            shape = ((end - start) // columns, columns, features)
            token_RxCxS = latent_BxGxS[row, start:end].reshape(shape)
            if before is None or not np.array_equal(before.token_RxCxS, token_RxCxS):
                before = Picture(token_RxCxS, row * g + start)
                pictures.append(before)
            place_BxG[row, start:end] = before.start + np.arange(end - start)
    return pictures, place_BxG
