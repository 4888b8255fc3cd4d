"""The TPU kernels in Pallas' interpret mode; `test_hlo_memory.py` compiles them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import dense_mask
from process_gen.kernels import flash_calls
from process_gen.kernels.dense import MIN_QUERIES, dense
from process_gen.kernels.flash_tpu import flash
from process_gen.kernels.key_block import KeyBlock
from tests.kernels.against_dense import check, differences, on, packs, tensors

# Small ones, so that a row has several; on a TPU they are multiples of 128.
BLOCKS = {"block_q": 64, "block_k": 32}


def small(q, order, blocks):
    """Two rows at a time: interpret mode copies whole arrays at every step."""
    if len(q) <= 2:
        return flash(q, order, blocks, **BLOCKS)
    pairs = jax.tree.map(lambda x: x.reshape(-1, 2, *x.shape[1:]), (q, order, tuple(blocks)))
    out = jax.lax.map(lambda pair: flash(*pair, **BLOCKS), pairs)
    return out.reshape(q.shape)


def test_equals_dense_with_three_gradients():
    """Six packs; all fifty are slow. Their length fills neither the last 64 nor the last 32."""
    place = packs(2, 4)
    assert place.order.shape[1] % 64 and not place.order.shape[1] % 32
    (out, dq, dk, dv), _ = check(small, place, 4, 2)
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
    check(small, packs(25, 25), heads, kv_heads)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_several_blocks_of_keys():
    """A cache, one token, and the new ones: joined by their log-sum-exp."""
    check(small, packs(4, 4), 4, 2, cuts=(170, 171))


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
    many = jnp.tile(q, (1, MIN_QUERIES, 1, 1)), jnp.tile(order, MIN_QUERIES)
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
