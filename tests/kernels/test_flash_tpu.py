"""The TPU kernels in Pallas' interpret mode; `test_hlo_memory.py` compiles them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, dense_mask
from process_gen.core.batch import Place
from process_gen.kernels import flash_calls, flash_tpu
from process_gen.kernels.dense import dense
from process_gen.kernels.flash_tpu import flash
from process_gen.kernels.key_block import KeyBlock
from tests.kernels.packs import random_places, real_places

# Small ones, so that a row has several; on a TPU they are multiples of 128.
BLOCKS = {"block_q": 64, "block_k": 32}


def small(q, order, blocks):
    """Two rows at a time: interpret mode copies whole arrays at every step."""
    if len(q) <= 2:
        return flash(q, order, blocks, **BLOCKS)
    pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), (q, order, tuple(blocks)))
    out = jax.lax.map(lambda pair: flash(*pair, **BLOCKS), pairs)
    return out.reshape(q.shape)


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


def check(place, heads, kv_heads, cuts=()):
    arrays = tensors(place, heads, kv_heads)
    expected = on(dense, place, arrays)
    got = on(small, place, arrays, cuts)
    assert max(differences(got, expected)) < 1e-5
    # Without either term of the mask, outputs and gradients are others.
    for dropped in (
        place._replace(visible_to=np.full_like(place.visible_to, NEVER)),
        place._replace(visible_from=np.zeros_like(place.visible_from)),
    ):
        assert min(differences(on(small, dropped, arrays, cuts), expected)) > 0.1
    return got, expected


def test_equals_dense_with_three_gradients():
    """Six packs; all fifty are slow. Their length fills neither the last 64 nor the last 32."""
    place = packs(2, 4)
    assert place.order.shape[1] % 64 and not place.order.shape[1] % 32
    (out, dq, dk, dv), _ = check(place, 4, 2)
    mask = np.asarray(dense_mask(place.order, place.visible_from, place.visible_to))
    blind, unseen = ~mask.any(2), ~mask.any(1)
    assert blind[2].all() and blind[3].all() and not blind[:2].all(1).any()
    for array, nothing in ((out, blind), (dq, blind), (dk, unseen), (dv, unseen)):
        assert np.all(np.asarray(array)[nothing] == 0)
        assert np.abs(np.asarray(array)[~nothing]).max() > 0.1


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (7, 1), (3, 3)])
def test_equals_dense_on_fifty_packs(heads, kv_heads):
    check(packs(25, 25), heads, kv_heads)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_several_blocks_of_keys():
    """A cache, one token, and the new ones: joined by their log-sum-exp."""
    check(packs(4, 4), 4, 2, cuts=(170, 171))


def test_a_forgotten_visit_is_noticed(monkeypatch):
    place = packs(2, 0)
    arrays = tensors(place, 2, 1)

    def output():
        block = KeyBlock(arrays[1], arrays[2], *map(jnp.asarray, place[1:3]))
        return jax.jit(lambda: small(arrays[0], jnp.asarray(place.order), [block]))()

    expected = on(dense, place, arrays)[0]
    assert max(differences([output()], [expected])) < 1e-5
    every = flash_calls.visited_blocks
    monkeypatch.setattr(
        flash_calls, "visited_blocks", lambda *args: every(*args).at[:, :, 3].set(False)
    )
    assert max(differences([output()], [expected])) > 0.1


def test_bfloat16_stays_close():
    place = packs(2, 0)
    arrays = tensors(place, 2, 1)
    expected = on(dense, place, arrays)
    got = on(small, place, tuple(x.astype(jnp.bfloat16) for x in arrays))
    assert {x.dtype for x in got} == {jnp.dtype(jnp.bfloat16)}
    assert all(1e-5 < x < 0.1 for x in differences([x.astype(jnp.float32) for x in got], expected))


def test_few_queries_are_left_to_dense():
    """While text is decoded there is one."""
    place = packs(1, 1)
    q, k, v, _ = (x[:, :1] if i == 0 else x for i, x in enumerate(tensors(place, 2, 1)))
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    order = jnp.asarray(place.order[:, 100:101])
    assert "pallas" not in str(jax.make_jaxpr(flash)(q, order, [block]))
    many = jnp.tile(q, (1, flash_tpu.MIN_QUERIES, 1, 1)), jnp.tile(order, flash_tpu.MIN_QUERIES)
    assert "pallas" in str(jax.make_jaxpr(flash)(*many, [block]))
    assert differences([flash(q, order, [block])], [dense(q, order, [block])]) == [0.0]


def test_another_platform_is_refused_while_lowering():
    place = packs(1, 0)
    q, k, v, _ = tensors(place, 2, 1)
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    program = jax.jit(flash).trace(q, jnp.asarray(place.order), (block,))
    with pytest.raises(Exception, match="cuda"):
        program.lower(lowering_platforms=("cuda",))
    assert "tpu_custom_call" not in program.lower().as_text()
    assert "tpu_custom_call" in program.lower(lowering_platforms=("tpu",)).as_text()
