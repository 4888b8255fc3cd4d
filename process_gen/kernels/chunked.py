"""Interval attention block by block, in plain JAX; the same on every platform.

Blocks of queries one after the other, each with a running softmax (Milakov & Gimelshein, arXiv
1805.02867) over those blocks of keys that it can see at all (`block_visits`). The backward pass
recomputes the weights from the log-sum-exp of every query (Dao et al., arXiv 2205.14135). Memory
beside the arguments and their gradients: the scores of one pair of blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask
from process_gen.kernels.block_visits import FLOOR, HIDDEN, visit_lists, visited_blocks
from process_gen.kernels.dense import dense, fold, unfold
from process_gen.kernels.key_block import ATTENDED, KeyBlock

BLOCK = 512


def chunked(
    q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock], chunk: int = BLOCK
) -> jax.Array:
    """Memory linear in Sq and Sk; see `interval_attention`. A `chunk` is a block's side."""
    sq = q_BxSxHxDh.shape[1]
    # One pair of blocks holds as many scores, and the compiler fuses the plain form better.
    if sq * sum(block.k_BxSxKxDh.shape[1] for block in blocks) <= chunk * chunk:
        return dense(q_BxSxHxDh, order_BxS, blocks)
    side = min(chunk, sq)
    fill = ((0, 0), (0, -sq % side))
    q = jnp.pad(q_BxSxHxDh * q_BxSxHxDh.shape[-1] ** -0.5, (*fill, (0, 0), (0, 0)))
    order = jnp.pad(order_BxS, fill, constant_values=PAD_ORDER)
    return _attend(q, order, tuple(blocks), (side, chunk))[:, :sq]


class _Keys(NamedTuple):
    """A block of keys cut out of a `KeyBlock`."""

    at: jax.Array
    k: jax.Array
    v: jax.Array
    mask_BxSqxSk: jax.Array


def _cut(block: KeyBlock, j: jax.Array, side: int, order: jax.Array) -> _Keys:
    """The j-th block of keys, and which queries of `order` see them.

    Instead of filling up the last block (which would copy a cache), it begins earlier; the keys
    that the block before has shown are hidden.
    """
    at = jnp.minimum(j * side, block.k_BxSxKxDh.shape[1] - side)
    k, v, start, end = (jax.lax.dynamic_slice_in_dim(x, at, side, 1) for x in block)
    new = at + jnp.arange(side) >= j * side
    return _Keys(at, k, v, dense_mask(order, jnp.where(new[None], start, NEVER), end))


def _visit(
    body: Callable[[KeyBlock, int, jax.Array, Any], Any],
    carry: Any,
    block: KeyBlock,
    visits: tuple[jax.Array, jax.Array],
    side: int,
) -> Any:
    """Folds `body` over the blocks of keys that one block of queries visits."""
    index_J, count = visits
    side = min(side, block.k_BxSxKxDh.shape[1])
    return jax.lax.fori_loop(0, count, lambda n, c: body(block, side, index_J[n], c), carry)


def _lists(
    order: jax.Array, blocks: Sequence[KeyBlock], sides: tuple[int, int]
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Visits of every block of queries, ``int32[I, J]`` and ``int32[I]`` for every `KeyBlock`.

    The rows of a batch walk together: a block is visited if any of them wants to.
    """
    lists = []
    for block in blocks:
        side = min(sides[1], block.k_BxSxKxDh.shape[1])
        visited = visited_blocks(
            order, block.visible_from_BxS, block.visible_to_BxS, sides[0], side
        )
        lists.append(visit_lists(visited.any(0)))
    return tuple(lists)


def _in_blocks(x_BxS: jax.Array, side: int) -> jax.Array:
    """``[B, S, ...]`` to ``[S / side, B, side, ...]``."""
    b, s, *rest = x_BxS.shape
    return jnp.moveaxis(x_BxS.reshape(b, s // side, side, *rest), 1, 0)


def _joined(x_IxBxS: jax.Array) -> jax.Array:
    """The inverse of `_in_blocks`."""
    i, b, side, *rest = x_IxBxS.shape
    return jnp.moveaxis(x_IxBxS, 0, 1).reshape(b, i * side, *rest)


def _product(equation: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(equation, a, b, preferred_element_type=jnp.float32)


def _scores(q_BxKxRxDh: jax.Array, keys: _Keys) -> jax.Array:
    """Float32 ``[B, K, R, Sk]``."""
    scores = _product("bkrd,bskd->bkrs", q_BxKxRxDh, keys.k)
    b, kv_heads, rows, side = scores.shape
    mask = keys.mask_BxSqxSk[:, None, None]
    grouped = scores.reshape(b, kv_heads, rows // mask.shape[3], *mask.shape[3:])
    return jnp.where(mask, grouped, HIDDEN).reshape(scores.shape)


def _output(
    q: jax.Array, order: jax.Array, blocks: tuple[KeyBlock, ...], sides: tuple[int, int]
) -> jax.Array:
    return _forward(q, order, blocks, sides)[0]


_attend = jax.custom_vjp(_output, nondiff_argnums=(3,))


def _forward(
    q: jax.Array, order: jax.Array, blocks: tuple[KeyBlock, ...], sides: tuple[int, int]
) -> tuple[jax.Array, tuple]:
    kv_heads = blocks[0].k_BxSxKxDh.shape[2]

    def queries(_: None, here: tuple) -> tuple[None, tuple[jax.Array, jax.Array]]:
        q_BxSxHxDh, order_BxS, visits = here
        rows = fold(q_BxSxHxDh, kv_heads)

        def visit(block: KeyBlock, side: int, j: jax.Array, carry: tuple) -> tuple:
            maximum, total, out = carry
            keys = _cut(block, j, side, order_BxS)
            scores = _scores(rows, keys)
            highest = jnp.maximum(maximum, scores.max(-1))
            rescale = jnp.exp(maximum - highest)
            weights = jnp.exp(scores - highest[..., None])
            added = _product("bkrs,bskd->bkrd", weights.astype(q.dtype), keys.v)
            total = total * rescale + weights.sum(-1)
            return highest, total, out * rescale[..., None] + added

        carry = (
            jnp.full(rows.shape[:3], FLOOR, jnp.float32),
            jnp.zeros(rows.shape[:3], jnp.float32),
            jnp.zeros(rows.shape, jnp.float32),
        )
        for block, visited in zip(blocks, visits, strict=True):
            carry = _visit(visit, carry, block, visited, sides[1])
        maximum, total, out = carry
        total = jnp.where(total == 0.0, 1.0, total)
        out = (out / total[..., None]).astype(q.dtype)
        return None, (unfold(out, sides[0]), maximum + jnp.log(total))

    walk = (_in_blocks(q, sides[0]), _in_blocks(order, sides[0]), _lists(order, blocks, sides))
    _, (out, lse_IxBxKxR) = jax.lax.scan(queries, None, walk)
    out = checkpoint_name(_joined(out), ATTENDED)
    return out, (q, order, blocks, out, checkpoint_name(lse_IxBxKxR, ATTENDED))


def _backward(sides: tuple[int, int], kept: tuple, d_out: jax.Array) -> tuple:
    q, order, blocks, out, lse_IxBxKxR = kept
    kv_heads = blocks[0].k_BxSxKxDh.shape[2]

    def queries(d_keys: tuple, here: tuple) -> tuple[tuple, jax.Array]:
        q_BxSxHxDh, order_BxS, out_BxSxHxDh, d_out_BxSxHxDh, lse, visits = here
        rows, d_rows = fold(q_BxSxHxDh, kv_heads), fold(d_out_BxSxHxDh, kv_heads)
        delta = (d_rows.astype(jnp.float32) * fold(out_BxSxHxDh, kv_heads)).sum(-1)

        def visit(block: KeyBlock, side: int, j: jax.Array, carry: tuple) -> tuple:
            dq, dk, dv = carry
            keys = _cut(block, j, side, order_BxS)
            weights = jnp.exp(_scores(rows, keys) - lse[..., None])
            d_weights = _product("bkrd,bskd->bkrs", d_rows, keys.v)
            d_scores = (weights * (d_weights - delta[..., None])).astype(q.dtype)
            dq = dq + _product("bkrs,bskd->bkrd", d_scores, keys.k)
            dk = _add_at(dk, keys.at, _product("bkrs,bkrd->bskd", d_scores, rows))
            added = _product("bkrs,bkrd->bskd", weights.astype(q.dtype), d_rows)
            return dq, dk, _add_at(dv, keys.at, added)

        dq, filled = jnp.zeros(rows.shape, jnp.float32), []
        for block, (dk, dv), visited in zip(blocks, d_keys, visits, strict=True):
            dq, dk, dv = _visit(visit, (dq, dk, dv), block, visited, sides[1])
            filled.append((dk, dv))
        return tuple(filled), unfold(dq.astype(q.dtype), sides[0])

    d_keys = tuple(
        tuple(jnp.zeros(x.shape, jnp.float32) for x in (block.k_BxSxKxDh, block.v_BxSxKxDh))
        for block in blocks
    )
    walk = (
        *(_in_blocks(x, sides[0]) for x in (q, order, out, d_out)),
        lse_IxBxKxR,
        _lists(order, blocks, sides),
    )
    d_keys, dq = jax.lax.scan(queries, d_keys, walk)
    d_blocks = [
        (dk.astype(block.k_BxSxKxDh.dtype), dv.astype(block.v_BxSxKxDh.dtype), None, None)
        for block, (dk, dv) in zip(blocks, d_keys, strict=True)
    ]
    # Integers have no gradient.
    return _joined(dq), None, tuple(KeyBlock._make(parts) for parts in d_blocks)


_attend.defvjp(_forward, _backward)


def _add_at(x_BxSxKxDh: jax.Array, at: jax.Array, added_BxNxKxDh: jax.Array) -> jax.Array:
    before = jax.lax.dynamic_slice_in_dim(x_BxSxKxDh, at, added_BxNxKxDh.shape[1], 1)
    return jax.lax.dynamic_update_slice_in_dim(x_BxSxKxDh, before + added_BxNxKxDh, at, 1)
