"""What every implementation of interval attention takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax

# What implementations with a backward pass of their own call their output and its log-sum-exp
# (`jax.ad_checkpoint.checkpoint_name`): a policy that keeps both does not attend a second time.
ATTENDED = "attended"


class KeyBlock(NamedTuple):
    """Keys and values that a query may see.

    Attributes:
      k_BxSxKxDh, v_BxSxKxDh: keys (normed and rotated) and values.
      visible_from_BxS, visible_to_BxS: int32 intervals of orders.
    """

    k_BxSxKxDh: jax.Array
    v_BxSxKxDh: jax.Array
    visible_from_BxS: jax.Array
    visible_to_BxS: jax.Array


class CachedKeys(NamedTuple):
    """Keys and values of a cache, laid out as matrix products read them, heads first.

    In the layout of `KeyBlock` a compiler copies all of them before each product.

    Attributes:
      k_BxKxDhxC, v_BxKxCxDh: keys (normed and rotated) and values.
      visible_from_BxC, visible_to_BxC: int32 intervals of orders.
    """

    k_BxKxDhxC: jax.Array
    v_BxKxCxDh: jax.Array
    visible_from_BxC: jax.Array
    visible_to_BxC: jax.Array

    def block(self) -> KeyBlock:
        """The same in the layout of new tokens."""
        k, v = self.k_BxKxDhxC.transpose(0, 3, 1, 2), self.v_BxKxCxDh.swapaxes(1, 2)
        return KeyBlock(k, v, self.visible_from_BxC, self.visible_to_BxC)


class PooledKeys(NamedTuple):
    """The first slots of some rows of a pool of caches, which are not copied.

    Attributes:
      k_RxKxDhxC, v_RxKxCxDh: all rows of the pool, laid out as in `CachedKeys`.
      row_B: int32, where each row's keys lie.
      visible_from_BxS, visible_to_BxS: int32 intervals of orders of the first S slots.
    """

    k_RxKxDhxC: jax.Array
    v_RxKxCxDh: jax.Array
    row_B: jax.Array
    visible_from_BxS: jax.Array
    visible_to_BxS: jax.Array

    def taken(self) -> CachedKeys:
        """A copy of what is seen."""
        slots = self.visible_to_BxS.shape[1]
        k = self.k_RxKxDhxC[self.row_B, :, :, :slots]
        v = self.v_RxKxCxDh[self.row_B, :, :slots]
        return CachedKeys(k, v, self.visible_from_BxS, self.visible_to_BxS)


Attention = Callable[[jax.Array, jax.Array, Sequence[KeyBlock]], jax.Array]
