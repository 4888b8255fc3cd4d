"""Tokens times weights on a CPU: in C++, or by XLA a row at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from process_gen.core.model_config import LoraConfig
from process_gen.kernels.native_library import available
from process_gen.models import products as lib
from process_gen.models.layers import SwiGLU
from process_gen.models.products import FEW_ROWS, FEWEST, WIDE, products
from process_gen.models.transformer import _REMAT_POLICIES

nnx.use_eager_sharding(False)


@pytest.fixture
def by_xla(monkeypatch):
    monkeypatch.setattr(lib, "available", lambda: False)


def _counts(rows: int, inputs: int, outputs: int, dtype: str = "float32") -> tuple[int, int]:
    """Products of XLA, and calls of C++."""
    x, kernel = jnp.ones((rows, inputs), dtype), jnp.ones((inputs, outputs), dtype)
    text = str(jax.make_jaxpr(lambda x, w: products(x, [w]))(x, kernel))
    return text.count("dot_general"), text.count("ffi_call")


@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1])
def test_the_product_and_its_gradients_are_those_of_one(rows, by_xla):
    x, kernel, towards = (
        jax.random.normal(jax.random.key(i), shape)
        for i, shape in enumerate([(rows, 8), (8, 8 * WIDE), (rows, 8 * WIDE)])
    )
    found, back = jax.vjp(lambda x, w: products(x, [w])[0], x, kernel)
    np.testing.assert_allclose(found, x @ kernel, atol=1e-5)
    for own, plain in zip(back(towards), (towards @ kernel.T, x.T @ towards), strict=True):
        np.testing.assert_allclose(own, plain, atol=1e-5)
    assert float(jnp.abs(found - x[::-1] @ kernel).max()) > 0.1 or rows == 1  # order matters


def test_few_rows_and_wide_weights_are_taken_apart_and_no_others(by_xla):
    assert _counts(FEW_ROWS, 8, 8 * WIDE) == (FEW_ROWS, 0)
    assert _counts(FEW_ROWS + 1, 8, 8 * WIDE) == (1, 0)
    assert _counts(FEW_ROWS, 8, 8 * WIDE - 1) == (1, 0)
    assert _counts(1, 8, 8 * WIDE) == (1, 0)


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_in_cpp_where_it_pays():
    for rows in (FEWEST, 1000):
        assert _counts(rows, 8, 32) == (0, 1)
    assert _counts(FEWEST - 1, 8, 32) == (1, 0)
    assert _counts(64, 8, 24) == (1, 0)  # no whole vectors
    assert _counts(64, 8, 32, "bfloat16") == (1, 0)


def _mlp(lora: dict[str, LoraConfig]) -> SwiGLU:
    return SwiGLU(16, 32, rngs=nnx.Rngs(0), out_scale=1.0, param_dtype="float32", lora=lora)


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_a_gated_mlp_is_one_call_where_nothing_is_added_to_its_maps():
    x = jax.random.normal(jax.random.key(1), (2, 4, 16))
    plain, adapted = _mlp({}), _mlp({"up": LoraConfig(rank=2)})
    counts = [str(jax.make_jaxpr(mlp)(x)).count("ffi_call") for mlp in (plain, adapted)]
    assert counts == [1, 2]  # gate with up, and down
    for mlp in (plain, adapted):  # what is added is 0 at first
        gate, up, down = (m.kernel[...] for m in (mlp.gate, mlp.up, mlp.down))
        expected = (jax.nn.silu(x @ gate) * (x @ up)) @ down
        np.testing.assert_allclose(mlp(x), expected, atol=1e-5)
        assert float(jnp.abs(mlp(x) - expected[:, ::-1]).max()) > 0.1
    before = adapted(x)
    adapted.up.lora.b[...] += 1.0
    assert float(jnp.abs(adapted(x) - before).max()) > 1e-2


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_rematerialisation_that_keeps_products_keeps_these(capsys):
    x, mlp = jnp.ones((4, 16)), _mlp({})

    def kept(name):
        jax.ad_checkpoint.print_saved_residuals(
            jax.checkpoint(mlp, policy=_REMAT_POLICIES[name]), x
        )
        return capsys.readouterr().out.count("f32[4,32] named")

    assert (kept("dots"), kept("full")) == (2, 0)  # what gating took
