"""Compares an implementation of attention with `dense` over packs, its gradients too."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, dense_mask
from process_gen.core.batch import Place
from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.key_block import KeyBlock
from tests.kernels.packs import random_places, real_places


def packs(real: int, wild: int) -> Place:
    """Packs of the grammar and wild ones below each other, all as long as the real ones."""
    drawn = real_places("strokes_tiny", real, text_len=224, und_len=64, gen_len=128)
    others = random_places(wild, drawn.order.shape[1])
    return Place(*(np.concatenate(x) for x in zip(drawn, others, strict=True)))


def tensors(place: Place, heads: int, kv_heads: int, width: int = 8, seed: int = 0):
    """Random float32 q, k, v, and weights of a scalar of the output."""
    rng = np.random.default_rng(seed)
    shape = place.order.shape
    return tuple(
        jnp.asarray(rng.normal(size=(*shape, n, width)), jnp.float32)
        for n in (heads, kv_heads, kv_heads, heads)
    )


@functools.partial(jax.jit, static_argnums=(0, 7))
def results(attention, q, k, v, weight, order, intervals, cuts=()):
    """Output and the three gradients of a function of it.

    Keys are cut into several blocks at `cuts`.
    """

    def scalar(q, k, v):
        parts = (jnp.split(x, list(cuts), 1) for x in (k, v, *intervals))
        out = attention(q, order, [KeyBlock(*x) for x in zip(*parts, strict=True)])
        return jnp.sum(jnp.sin(out) * weight), out

    gradients, out = jax.grad(scalar, argnums=(0, 1, 2), has_aux=True)(q, k, v)
    return out, *gradients


def on(attention, place, arrays, cuts=()):
    intervals = (jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    return results(attention, *arrays, jnp.asarray(place.order), intervals, cuts)


def differences(a, b):
    """The largest one of each array."""
    return [float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True)]


def check(attention, place, heads, kv_heads, cuts=(), *, relative=False):
    """Output and gradients are those of `dense`; without a term of the mask they are not.

    With `relative`, errors are measured by each array's largest value where that is above 1: sums
    over several heads of another device are rounded in another order.
    """
    arrays = tensors(place, heads, kv_heads)
    expected = on(dense, place, arrays)
    got = on(attention, place, arrays, cuts)
    errors = differences(got, expected)
    if relative:
        largest = (max(1.0, float(np.abs(np.asarray(x)).max())) for x in expected)
        errors = [error / value for error, value in zip(errors, largest, strict=True)]
    assert max(errors) < 1e-5, errors
    for dropped in (
        place._replace(visible_to=np.full_like(place.visible_to, NEVER)),
        place._replace(visible_from=np.zeros_like(place.visible_from)),
    ):
        assert min(differences(on(attention, dropped, arrays, cuts), expected)) > 0.1
    return got, expected


def check_bfloat16(attention, place):
    arrays = tensors(place, 2, 1)
    expected = on(dense, place, arrays)
    got = on(attention, place, tuple(x.astype(jnp.bfloat16) for x in arrays))
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert all(1e-5 < x < 0.1 for x in differences([x.astype(jnp.float32) for x in got], expected))


def one_query(place):
    """``q, order, [block]`` with a single query, as while text is decoded."""
    q, k, v, _ = tensors(place, 2, 1)
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    return q[:, :1], jnp.asarray(place.order[:, 100:101]), [block]


def check_few_queries(flash, place):
    q, order, blocks = one_query(place)
    assert "pallas" not in str(jax.make_jaxpr(flash)(q, order, blocks))
    many = jnp.tile(q, (1, MIN_QUERIES, 1, 1)), jnp.tile(order, MIN_QUERIES)
    assert "pallas" in str(jax.make_jaxpr(flash)(*many, blocks))
    assert differences([flash(q, order, blocks)], [dense(q, order, blocks)]) == [0.0]


def check_platforms(flash, place, target, call, other):
    """Compiled kernels for one platform, interpreted ones here, and an error for others."""
    q, k, v, _ = tensors(place, 2, 1)
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    program = jax.jit(flash).trace(q, jnp.asarray(place.order), (block,))
    with pytest.raises(Exception, match=other):
        program.lower(lowering_platforms=(other,))
    assert call not in program.lower().as_text()
    assert call in program.lower(lowering_platforms=(target,)).as_text()


def check_zeros(place, results):
    """What sees nothing, or is seen by nobody, has exact zeros; `place` has rows of both kinds."""
    out, dq, dk, dv = (np.asarray(x) for x in results)
    mask = np.asarray(dense_mask(place.order, place.visible_from, place.visible_to))
    blind, unseen = ~mask.any(2), ~mask.any(1)
    assert blind[2].all() and blind[3].all() and not blind[:2].all(1).any()
    for array, nothing in ((out, blind), (dq, blind), (dk, unseen), (dv, unseen)):
        assert np.all(array[nothing] == 0)
        assert np.abs(array[~nothing]).max() > 0.1
