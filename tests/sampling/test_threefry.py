"""Threefry with its rounds written out gives jax's own numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.sampling.threefry import UNROLLED

SEEDS = np.array([0, 1, 7, 2**31 - 1, 2**32 - 1], np.uint32)


def both(what):
    """What is made of a key of either kind, one for each seed."""

    def made(impl):
        return np.asarray(jax.jit(jax.vmap(lambda s: what(jax.random.key(s, impl=impl))))(SEEDS))

    return made(UNROLLED), made("threefry2x32")


@pytest.mark.parametrize(
    "what",
    [
        jax.random.key_data,
        lambda key: jax.random.key_data(jax.random.fold_in(key, 5)),
        lambda key: jax.random.key_data(jax.random.fold_in(key, np.uint32(2**32 - 1))),
        lambda key: jax.random.key_data(jax.random.split(key, (2, 3))),
        lambda key: jax.random.bits(key, (3, 5)),
        lambda key: jax.random.bits(key),
        lambda key: jax.random.normal(key, (16, 192)),
        lambda key: jax.random.categorical(key, jnp.linspace(0.0, 1.0, 64), shape=(9,)),
    ],
)
def test_numbers_are_those_of_jax(what):
    ours, theirs = both(what)
    np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(ours, axis=0)) == len(SEEDS)


def test_other_widths_are_refused():
    key = jax.random.key(0, impl=UNROLLED)
    with pytest.raises(ValueError, match="16 were asked for"):
        jax.random.bits(key, (4,), np.uint16)
