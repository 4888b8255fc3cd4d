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


Attention = Callable[[jax.Array, jax.Array, Sequence[KeyBlock]], jax.Array]
