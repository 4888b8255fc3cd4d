from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.aot.hlo_shapes import Buffer, has_dims, largest_buffers

A, B, W = 131, 67, 24


def product(x, y):
    """Stores A x B: its exponential is multiplied again."""
    return jnp.exp(x @ y) @ jnp.ones((B, 1))


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments)


def texts(function, *shapes):
    lowered = compiled(function, *shapes)
    return lowered.compile().as_text(), lowered.as_text()


def test_an_array_is_found_in_both_kinds_of_text():
    for text in texts(product, (A, W), (W, B)):
        assert has_dims(text, A, B) and has_dims(text, B, A)
        assert largest_buffers(text)[0][::2] == ((A, B), A * B * 4)
        assert not has_dims(text, A, A) and not has_dims(text, A, B + 1)


def test_what_a_loop_holds_is_found():
    def looped(x, y):
        def add(total, row):
            return total + product(row, y).sum(), None

        rows = jnp.broadcast_to(x, (3, A, W))
        return jax.lax.scan(add, 0.0, rows)[0]

    for text in texts(looped, (A, W), (W, B)):
        assert has_dims(text, A, B)


def test_what_lies_inside_a_fusion_is_not_stored():
    """A sum over an outer difference: A x B values, none of which is kept."""

    def fused(x, y):
        return jnp.sum(jnp.abs(x[:, None] - y[None, :]), axis=1)

    after, before = texts(fused, (A,), (B,))
    assert has_dims(before, A, B) and not has_dims(after, A, B)


def test_folded_dimensions_do_not_hide_it():
    line = "ENTRY %main {\n  %x = {} add(%a, %b)\n}}"
    for shape in ("f32[2,393,67]{2,1,0:T(8,128)}", "(s32[], bf16[8777,3]{1,0})", "f32[4,67,262]"):
        assert has_dims(line.replace("{}", shape), A, B), shape
    assert not has_dims(line.replace("{}", "f32[2,392,67]"), A, B)


def test_bytes_follow_the_type():
    for dtype, size in (("pred", 12), ("bf16", 24), ("f32", 48), ("f8e4m3fn", 12), ("u4", 6)):
        text = f"ENTRY %main {{\n  ROOT %x = {dtype}[3,4]{{1,0}} add(%a, %b)\n}}"
        assert largest_buffers(text) == [Buffer((3, 4), dtype, size)]
    mlir = "stablehlo.add : tensor<3x4xi1>, tensor<f32>, tensor<5xbf16, #encoding>"
    expected = [Buffer((3, 4), "i1", 12), Buffer((5,), "bf16", 10), Buffer((), "f32", 4)]
    assert largest_buffers(mlir) == expected


def test_the_shapes_of_a_partitioned_program_are_one_devices():
    text = "ENTRY %main {\n  %p = f32[64,8]{1,0} parameter(0)\n  %c = f32[] constant(0)\n}"
    assert [buffer.shape for buffer in largest_buffers(text)] == [(64, 8), ()]


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no array"):
        largest_buffers("hello")


def test_a_constant_counts():
    table = np.random.default_rng(0).normal(size=(A, B)).astype(np.float32)
    text = compiled(lambda i: jnp.asarray(table)[i.astype(int), 0], ()).compile().as_text()
    assert has_dims(text, A, B)
