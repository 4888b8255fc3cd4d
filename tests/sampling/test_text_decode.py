from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.sampling.text_decode import next_token

PROBABILITY = np.array([0.5, 0.3, 0.15, 0.05], np.float32)


def sample(n=4000, temperature=1.0, top_p=1.0):
    logits = jnp.tile(jnp.log(PROBABILITY), (n, 1))
    keys = jax.random.split(jax.random.key(0), n)
    tokens = np.asarray(next_token(logits, keys, temperature, top_p))
    return np.bincount(tokens, minlength=4) / n


def test_greedy_takes_the_likeliest():
    assert sample(20, temperature=0.0).tolist() == [1, 0, 0, 0]


def test_the_first_of_equals_is_taken_and_nothing_outside_the_table():
    nan, inf = np.nan, np.inf
    logits = jnp.array([[1.0, 3.0, 3.0], [-inf, 0.0, -inf], [-inf] * 3, [nan] * 3])
    keys = jax.random.split(jax.random.key(0), 4)
    np.testing.assert_array_equal(next_token(logits, keys, 0.0, 1.0), [1, 1, 0, 2])


def test_frequencies_follow_the_probabilities():
    np.testing.assert_allclose(sample(), PROBABILITY, atol=0.03)


def test_temperature_sharpens():
    wanted = PROBABILITY**2 / np.sum(PROBABILITY**2)
    np.testing.assert_allclose(sample(temperature=0.5), wanted, atol=0.03)


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.6, 2), (0.9, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    found = sample(top_p=top_p)
    assert np.all(found[:kept] > 0) and np.all(found[kept:] == 0)
    np.testing.assert_allclose(
        found[:kept], PROBABILITY[:kept] / PROBABILITY[:kept].sum(), atol=0.03
    )


def test_forbidden_tokens_never_come_and_rows_have_their_own_keys():
    logits = jnp.tile(jnp.array([-jnp.inf, 0.0, 0.0, -jnp.inf]), (200, 1))
    tokens = np.asarray(next_token(logits, jax.random.split(jax.random.key(1), 200), 1.0, 0.9))
    assert set(tokens) == {1, 2}
