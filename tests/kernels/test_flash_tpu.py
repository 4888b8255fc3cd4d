"""The TPU kernels in Pallas' interpret mode; `test_hlo_memory.py` compiles them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from process_gen.kernels import flash_calls
from process_gen.kernels.dense import dense
from process_gen.kernels.flash_tpu import flash
from process_gen.kernels.key_block import KeyBlock
from tests.kernels.against_dense import (
    check,
    check_bfloat16,
    check_few_queries,
    check_platforms,
    check_zeros,
    differences,
    on,
    packs,
    tensors,
)

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
    check_zeros(place, check(small, place, 4, 2)[0])


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
    check_bfloat16(small, packs(2, 0))


def test_few_queries_are_left_to_dense():
    """While text is decoded there is one."""
    check_few_queries(flash, packs(1, 1))


def test_another_platform_is_refused_while_lowering():
    check_platforms(flash, packs(1, 0), "tpu", "tpu_custom_call", "cuda")
