from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.losses.text import cross_entropy, item_weights

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
