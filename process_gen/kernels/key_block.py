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


Attention = Callable[[jax.Array, jax.Array, Sequence[KeyBlock]], jax.Array]
