from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.aot.hlo_shapes import has_dims
from process_gen.losses.text import cross_entropy, head_cross_entropy, item_weights

LOGITS = jnp.asarray([[[1.0, 2.0, 3.0], [0.0, 0.0, 0.0], [5.0, -5.0, 0.0]]])


def test_by_hand():
    loss = cross_entropy(LOGITS, jnp.asarray([[2, 0, -1]]))
    expected = [-np.log(np.exp(3) / (np.exp(1) + np.exp(2) + np.exp(3))), np.log(3), 0.0]
    np.testing.assert_allclose(loss, [expected], rtol=1e-6)
    other = cross_entropy(LOGITS, jnp.asarray([[1, 0, 0]]))
    assert abs(float(other[0, 0]) - expected[0]) > 0.5 and float(other[0, 2]) > 0


def test_no_gradient_where_there_is_no_label():
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.asarray([[2, -1, 0]])).sum())(LOGITS)
    assert not np.asarray(gradient[0, 1]).any()
    probability = jax.nn.softmax(LOGITS[0, 0]) - jnp.asarray([0.0, 0.0, 1.0])
    np.testing.assert_allclose(gradient[0, 0], probability, atol=1e-6)


def test_float32_whatever_the_logits_are():
    logits = (LOGITS * 100).astype(jnp.bfloat16)
    loss = cross_entropy(logits, jnp.asarray([[0, 0, 1]]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [[200.0, np.log(3), 1000.0]], rtol=1e-2)


def test_weights_of_texts_by_hand():
    # Two texts of 4 and 1 labels, the first with a special label at its end; a special one alone.
    label = jnp.asarray([[7, 7, 7, 7, 1, -1, 7, -1, -1, 1], [-1, 7, 7, -1, 7, 7, 7, 1, 7, -1]])
    special = label == 1
    half, one = 0.5, 1.0
    first = [half, half, half, half, one, 0, one, 0, 0, one]
    second = [0, 2**-0.5, 2**-0.5, 0, 3**-0.5, 3**-0.5, 3**-0.5, one, one, 0]
    np.testing.assert_allclose(item_weights(label, special), [first, second], rtol=1e-6)
    # Partner: a label at a closing token that is not known as special joins its text.
    joined = item_weights(label, jnp.zeros_like(special))
    np.testing.assert_allclose(joined[0, :5], [5**-0.5] * 5, rtol=1e-6)


# Odd sizes, so that no other array has them by accident. D is smaller than T.
B, T, D, W = 2, 37, 8, 1031


def head_inputs(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (B, T, D), dtype)
    kernel = jax.random.normal(keys[1], (D, W), dtype)
    label = jax.random.randint(keys[2], (B, T), -W // 4, W)  # a fifth without one
    weight = jax.random.normal(keys[3], (B, T))
    return hidden, kernel, label, weight


def whole(hidden, kernel, label, weight):
    return (cross_entropy(hidden @ kernel, label) * weight).sum()


def in_blocks(chunk):
    def loss(hidden, kernel, label, weight):
        return (head_cross_entropy(hidden, kernel, label, chunk) * weight).sum()

    return loss


def both(loss):
    return jax.jit(jax.value_and_grad(loss, (0, 1)))


def exact_grads(hidden, kernel, label, weight):
    """The gradients of `whole` in float64."""
    hidden, kernel, weight = (np.asarray(x, np.float64) for x in (hidden, kernel, weight))
    label = np.asarray(label)
    logits = hidden @ kernel
    error = np.exp(logits - logits.max(-1, keepdims=True))
    error /= error.sum(-1, keepdims=True)
    error -= np.arange(W) == label[..., None]
    error *= np.where(label >= 0, weight, 0.0)[..., None]
    return error @ kernel.T, np.einsum("btd,btw->dw", hidden, error)


@pytest.mark.parametrize("chunk", [100, 1000, 5000])
def test_in_blocks_of_the_vocabulary_nothing_changes(chunk):
    inputs = head_inputs()
    want, want_grads = both(whole)(*inputs)
    found, grads = both(in_blocks(chunk))(*inputs)
    assert float(found) == pytest.approx(float(want), rel=1e-6)
    # As near to the truth as the whole head comes, whose sums a machine takes in its own order.
    for truth, a, b in zip(exact_grads(*inputs), grads, want_grads, strict=True):
        rounding = max(np.abs(b - truth).max(), np.finfo(np.float32).eps * np.abs(truth).max())
        assert np.abs(a - truth).max() < 3 * rounding
    each = head_cross_entropy(*inputs[:3], chunk)
    np.testing.assert_allclose(each, cross_entropy(inputs[0] @ inputs[1], inputs[2]), rtol=1e-6)
    assert not np.any(each[inputs[2] < 0]) and np.any(inputs[2] < 0)
    # Partner: another label somewhere is another loss.
    label = inputs[2].at[0, 0].set(5)
    assert abs(float(both(in_blocks(chunk))(*inputs[:2], label, inputs[3])[0] - want)) > 1e-2


def test_no_array_of_tokens_and_vocabulary():
    inputs = head_inputs()
    text = both(in_blocks(100)).lower(*inputs).compile().as_text()
    assert not has_dims(text, T, W)
    assert has_dims(both(whole).lower(*inputs).compile().as_text(), T, W)
    one_block = both(in_blocks(W)).lower(*inputs).compile().as_text()
    assert has_dims(one_block, T, W)


def test_blocks_in_16_bits_are_closer_to_the_truth():
    """Logits stay in float32: the plain head rounds them before the softmax."""
    inputs = head_inputs(jnp.bfloat16)
    exact = whole(*(x.astype(jnp.float32) for x in inputs[:2]), *inputs[2:])
    found, grads = both(in_blocks(100))(*inputs)
    assert [g.dtype for g in grads] == [jnp.bfloat16] * 2
    assert abs(found - exact) < 1e-3 * abs(exact)
    assert abs(whole(*inputs) - exact) > abs(found - exact)


SPREAD = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from process_gen.core import axes
from process_gen.core.configs import MeshConfig
from process_gen.losses.text import cross_entropy, head_cross_entropy
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh
from process_gen.aot.hlo_shapes import has_dims

B, T, D, W = 4, 37, 8, 2 * 1031
keys = jax.random.split(jax.random.key(0), 4)
hidden, kernel = jax.random.normal(keys[0], (B, T, D)), jax.random.normal(keys[1], (D, W))
label = jax.random.randint(keys[2], (B, T), -W // 4, W)
weight = jax.random.normal(keys[3], (B, T))

def loss(hidden, kernel, label, weight, chunk):
    each = head_cross_entropy(hidden, kernel, label, chunk) if chunk else cross_entropy(
        rules.constrain(hidden @ kernel, (axes.BATCH, axes.SEQUENCE, axes.VOCAB)), label)
    return (each * weight).sum()

both = jax.jit(jax.value_and_grad(loss, (0, 1)), static_argnums=4)
want, want_grads = both(hidden, kernel, label, weight, 0)
mesh = make_mesh(MeshConfig(data=1, fsdp=2, tensor=2), jax.devices())
with jax.set_mesh(mesh):
    rows = rules.batch_sharding(mesh)
    at = NamedSharding(mesh, rules.partition_spec((axes.EMBED, axes.VOCAB)))
    arguments = jax.device_put((hidden, kernel, label, weight), (rows, at, rows, rows))
    compiled = both.lower(*arguments, 200).compile()
    found, grads = jax.device_get(compiled(*arguments))
    plain = both.lower(*arguments, 0).compile().as_text()
np.testing.assert_allclose(found, want, rtol=1e-6)
for a, b in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
text = compiled.as_text()
assert not has_dims(text, T, 1031) and has_dims(plain, T, 1031)
# Nobody holds a gathered head or its whole gradient: [D, W / 2] a device would be that.
assert not has_dims(text, D, 1031)
assert compiled.input_shardings[0][1].spec == at.spec
print("done")
"""


@pytest.mark.multidevice
def test_a_head_that_is_cut_over_devices():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SPREAD],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == "done\n"
