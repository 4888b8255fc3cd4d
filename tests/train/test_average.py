"""Tests of the running average: its decay, its type, where it lies, how often it is renewed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.configs import OptimizerConfig
from process_gen.train import average

ZEROS, ONES = {"w": jnp.zeros(3)}, {"w": jnp.ones(3)}


def update(ema, weights, step, key=0, **settings):
    config = OptimizerConfig(**settings)
    return average.update(ema, weights, jnp.int32(step), config, jax.random.key(key))


def test_average_follows_the_weights():
    first = update(ZEROS, ONES, 0)
    np.testing.assert_allclose(first["w"], 0.9, rtol=1e-6)  # the ramp: 1 - 1/10
    late = update(ZEROS, ONES, 10**6)
    np.testing.assert_allclose(late["w"], 0.001, rtol=1e-3)


def test_the_average_of_trained_weights_keeps_its_decay_from_the_start():
    first = update(ZEROS, ONES, 0, ema_decay=0.99, ema_warmup=False)
    np.testing.assert_allclose(first["w"], 0.01, rtol=1e-4)
    assert update(ZEROS, ONES, 0, ema_decay=0.99)["w"][0] > 0.5


def test_every_few_steps_the_decay_of_that_many_is_applied():
    """Over weights that stand still both give the same average whenever the rare one is renewed."""
    often, rarely = ZEROS, ZEROS
    for step in range(6):
        often = update(often, ONES, step, ema_decay=0.9, ema_warmup=False)
        before = rarely
        rarely = update(rarely, ONES, step, ema_decay=0.9, ema_warmup=False, ema_every=3)
        if (step + 1) % 3:
            np.testing.assert_array_equal(rarely["w"], before["w"])
            assert not np.allclose(rarely["w"], often["w"], rtol=1e-3)
        else:
            np.testing.assert_allclose(rarely["w"], often["w"], rtol=1e-5)


def test_a_small_average_of_16_bits_still_moves():
    """1e-3 of the way a step: to the nearest, bfloat16 would never leave its first value."""
    count = 4096
    ema = {"w": jnp.ones(count, jnp.bfloat16)}
    target = {"w": jnp.full(count, 1.5)}
    settings = OptimizerConfig(ema_decay=0.999, ema_warmup=False, ema_dtype="bfloat16")

    @jax.jit
    def renew(ema, step):
        return average.update(ema, target, step, settings, jax.random.key(step))

    wide = 1.0
    for step in range(200):
        ema = renew(ema, jnp.int32(step))
        wide += 0.001 * (1.5 - wide)
    assert ema["w"].dtype == jnp.bfloat16
    assert np.mean(np.asarray(ema["w"], np.float32)) == pytest.approx(wide, abs=1e-3)
    # Partner: rounding to the nearest.
    assert jnp.bfloat16(1.0 + 0.001 * 0.5) == 1.0 and wide > 1.09


def test_an_average_in_the_hosts_memory_is_the_same():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    host = device.with_memory_kind(average.HOST_MEMORY)
    assert host.memory_kind != device.memory_kind
    settings = OptimizerConfig(ema_decay=0.9, ema_memory="host", ema_every=2)
    away = jax.device_put(ZEROS, host)
    step = jax.jit(
        lambda e, w, n: average.update(e, w, n, settings, jax.random.key(0)),
        out_shardings={"w": host},
        donate_argnums=0,
    )
    near = ZEROS
    for number in range(4):
        away = step(away, ONES, jnp.int32(number))
        near = update(near, ONES, number, ema_decay=0.9, ema_every=2)
        np.testing.assert_array_equal(away["w"], near["w"])
        assert away["w"].sharding.memory_kind == average.HOST_MEMORY
