"""The GPU kernels in Pallas' interpret mode; those marked `gpu` run compiled ones on the device."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest

from process_gen.kernels import flash_gpu
from process_gen.kernels.dense import dense
from process_gen.kernels.flash_gpu import Tile, Tiles, flash
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

# Small and all different, so that a row has several blocks and none can be mistaken for another.
TILES = Tiles(Tile(64, 32, 4, 2), Tile(32, 64, 4, 2), Tile(32, 32, 4, 2))
small = functools.partial(flash, tiles=TILES)


def test_equals_dense_with_three_gradients():
    place = packs(2, 2)
    assert place.order.shape[1] % 64
    check_zeros(place, check(small, place, 4, 2)[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("heads", "kv_heads"), [(7, 1), (3, 3)])
def test_every_grouping_of_heads(heads, kv_heads):
    check(small, packs(4, 6), heads, kv_heads)


def test_several_blocks_of_keys():
    """A cache, one token, and the new ones: joined by their log-sum-exp."""
    check(small, packs(1, 1), 2, 1, cuts=(170, 171))


@pytest.mark.parametrize("name", ["visited_blocks", "whole_blocks"])
def test_a_wrong_visit_is_noticed(name, monkeypatch):
    """One that is forgotten, and one that is taken to be seen whole."""
    place = packs(1, 1)
    arrays = tensors(place, 2, 1)

    def output():
        block = KeyBlock(arrays[1], arrays[2], *map(jnp.asarray, place[1:3]))
        return jax.jit(lambda: small(arrays[0], jnp.asarray(place.order), [block]))()

    expected = on(dense, place, arrays)[0]
    assert max(differences([output()], [expected])) < 1e-5
    right = getattr(flash_gpu, name)
    wrong = name == "whole_blocks"
    monkeypatch.setattr(flash_gpu, name, lambda *args: right(*args).at[:, :, 3].set(wrong))
    assert max(differences([output()], [expected])) > 0.1


def test_bfloat16_stays_close():
    check_bfloat16(small, packs(1, 0))


def test_few_queries_are_left_to_dense():
    """While text is decoded there is one."""
    check_few_queries(flash, packs(1, 0))


def test_another_platform_is_refused_while_lowering():
    check_platforms(flash, packs(1, 0), "cuda", "xla.gpu.triton", "tpu")


# ---- on the device -------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (7, 1), (3, 3)])
def test_compiled_kernels_equal_dense(heads, kv_heads):
    """In float32, whose products are exact ones in both."""
    with jax.default_matmul_precision("highest"):
        check(flash, packs(8, 8), heads, kv_heads, relative=True)
        check(small, packs(8, 8), heads, kv_heads, cuts=(170, 171), relative=True)


@pytest.mark.gpu
def test_compiled_kernels_in_bfloat16():
    """Heads of 128, as BAGEL has them: as close to float32 as `dense` in bfloat16 is."""
    place = packs(8, 8)
    arrays = tensors(place, 28, 4, width=128)
    halved = tuple(x.astype(jnp.bfloat16) for x in arrays)
    with jax.default_matmul_precision("highest"):
        expected = on(dense, place, arrays)
    got, plain = (
        differences([x.astype(jnp.float32) for x in on(attention, place, halved)], expected)
        for attention in (flash, dense)
    )
    assert all(1e-5 < ours < 1.5 * theirs for ours, theirs in zip(got, plain, strict=True))
