"""RMSNorm and the rotation of heads in C++, compiled here (`kernels.native_norm`)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from process_gen.kernels import native_library
from process_gen.kernels.native_norm import norm
from process_gen.models import layers
from process_gen.models.layers import RMSNorm, rotary, rotate

pytestmark = pytest.mark.skipif(native_library.compiler() is None, reason="needs a C++ compiler")
nnx.use_eager_sharding(False)

EPS = 1e-3


def plain(x, scale, turn=None):
    y = scale[None, None] * x / jnp.sqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + EPS)
    return y if turn is None else rotate(y[None], *(part[None] for part in turn))[0]


def given(tokens, heads, width, rotated):
    x, scale, dy = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(tokens, heads, width), (width,), (tokens, heads, width)])
    )
    turn = rotary(7 * jnp.arange(tokens), width, 100.0) if rotated else None
    return x, scale, dy, turn


def with_gradients(function, x, scale, dy, turn):
    y, back = jax.vjp(lambda x, scale: function(x, scale, turn), x, scale)
    return [np.asarray(part) for part in (y, *back(dy))]


def native(x, scale, turn):
    return norm(x, scale, EPS, turn)


@pytest.mark.parametrize(
    ("tokens", "heads", "width", "rotated"),
    [(1, 1, 8, False), (70, 1, 256, False), (33, 3, 12, False),
     (70, 4, 32, True), (33, 3, 24, True), (200, 1, 6, True)],
)  # fmt: skip
def test_equals_the_formula_with_both_gradients(tokens, heads, width, rotated):
    """Widths, and halves of them, that whole vectors fill and that they do not."""
    x, scale, dy, turn = given(tokens, heads, width, rotated)
    expected = with_gradients(plain, x, scale, dy, turn)
    for own, other in zip(with_gradients(native, x, scale, dy, turn), expected, strict=True):
        np.testing.assert_allclose(own, other, atol=1e-5 * max(1.0, np.abs(other).max()))
    changed = with_gradients(native, 1.5 * dy - x, -scale, -dy, turn)
    for own, other in zip(changed, expected, strict=True):
        assert np.abs(own - other).max() > 0.1 * np.abs(other).max()


def test_angles_matter_and_belong_to_their_tokens():
    x, scale, _, turn = given(40, 2, 16, True)
    found = native(x, scale, turn)
    assert float(jnp.abs(found - native(x, scale, None)).max()) > 0.1
    backwards = tuple(part[::-1] for part in turn)
    assert float(jnp.abs(found - native(x[::-1], scale, backwards)[::-1]).max()) == 0.0
    assert float(jnp.abs(found - native(x, scale, backwards)).max()) > 0.1


def test_the_same_bytes_every_time():
    """Whichever thread takes which tokens."""
    x, scale, dy, turn = given(3000, 4, 32, True)
    first = with_gradients(native, x, scale, dy, turn)
    for _ in range(5):
        for own, other in zip(with_gradients(native, x, scale, dy, turn), first, strict=True):
            assert own.tobytes() == other.tobytes()


@pytest.mark.parametrize(("tokens", "dtype", "cpp"), [(8, "float32", 1), (7, "float32", 0),
                                                      (8, "bfloat16", 0)])  # fmt: skip
def test_layers_take_it_for_lines_enough_of_float32(tokens, dtype, cpp):
    module = RMSNorm(16, name="head_dim", eps=EPS)
    x = jax.random.normal(jax.random.key(0), (2, tokens, 2, 16)).astype(dtype)
    turn = rotary(jnp.arange(tokens)[None].repeat(2, 0), 16, 100.0)

    def both(x):
        return module.turned(x, turn), module(x)

    assert str(jax.make_jaxpr(both)(x)).count("ffi_call[") == 2 * cpp
    found = both(x)
    expected = (
        [plain(row, module.scale[...], (turn[0][0], turn[1][0])) for row in x],
        [plain(row, module.scale[...]) for row in x],
    )
    close = 1e-5 if dtype == "float32" else 0.1
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == dtype
        np.testing.assert_allclose(own.astype(jnp.float32), jnp.stack(other), atol=close)
    assert layers._NORMED == 2 * 8 * 2
