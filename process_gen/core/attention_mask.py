"""Who may attend to whom: one interval test over three integers a token.

    may_attend(q, k) = visible_from[k] <= order[q] <= visible_to[k]

* a text token has an order of its own and is seen from it to the end of its trajectory (causal);
* the tokens of an image, boundary tokens included, share one order (they see each other); a clean
  copy is seen to the end of its trajectory, a **noised** one in its own order only;
* the next trajectory of a pack continues the orders, and no interval crosses the border;
* padding has order -1 and the empty interval [`NEVER`, -1].

The dense mask, the chunked and the cached attention (`kernels`) and the drawing all call
`may_attend`; the rule is written nowhere else. It equals BAGEL's three predicates (same document;
earlier or same bidirectional split; noised splits hidden from others), which a test checks on
random packs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEVER = np.iinfo(np.int32).max
PAD_ORDER = -1


def may_attend(order_q: Any, visible_from_k: Any, visible_to_k: Any) -> Any:
    """The rule, elementwise over broadcast integer arrays (NumPy or JAX); bool."""
    return (visible_from_k <= order_q) & (order_q <= visible_to_k)


def dense_mask(order_BxSq: Any, visible_from_BxSk: Any, visible_to_BxSk: Any) -> Any:
    """The whole mask, ``bool[B, Sq, Sk]``."""
    return may_attend(
        order_BxSq[..., :, None],
        visible_from_BxSk[..., None, :],
        visible_to_BxSk[..., None, :],
    )


def draw(order_S: Any, visible_from_S: Any, visible_to_S: Any, names: str | None = None) -> str:
    """The mask of one short row as text, a line a query: ``#`` where it sees the key.

    Args:
      order_S, visible_from_S, visible_to_S: int[S].
      names: one character a token, put before each line and above the columns.
    """
    mask_SxS = dense_mask(np.asarray(order_S), np.asarray(visible_from_S), np.asarray(visible_to_S))
    names = names or "." * len(mask_SxS)
    lines = ["  " + " ".join(names)]
    for name, row in zip(names, mask_SxS, strict=True):
        lines.append(f"{name} " + " ".join("#" if seen else "." for seen in row))
    return "\n".join(lines)
