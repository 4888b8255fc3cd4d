"""Tests of the norms by part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.train.norms import norms

TREE = {
    "embed": {"table": jnp.full((2, 2), 2.0)},
    "layers": {
        "und": {"mlp": {"up": jnp.array([3.0, 4.0])}},
        "gen": {"mlp": {"up": jnp.zeros(3)}},
    },
    "latent_out": {"kernel": jnp.array([1.0]), "bias": jnp.array([-1.0])},
}


def test_a_norm_for_each_part_and_for_the_whole():
    found = {name: float(value) for name, (value, _) in norms("grad_norm", TREE).items()}
    want = {"": 16 + 25 + 2, "/embed": 16, "/und": 25, "/gen": 0, "/latent_out": 2}
    assert found == {f"grad_norm{name}": np.float32(square**0.5) for name, square in want.items()}


def test_a_weight_moves_the_norm_of_its_own_part_only():
    other = jax.tree.map(lambda x: x, TREE)
    other["layers"]["gen"]["mlp"]["up"] = jnp.ones(3)
    before, after = norms("n", TREE), norms("n", other)
    assert {name for name in before if before[name][0] != after[name][0]} == {"n", "n/gen"}


def test_they_leave_the_device_with_the_step():
    """Inside one compiled program: no call to the host, and a result that is not waited for."""
    text = jax.jit(lambda tree: norms("n", tree)).lower(TREE).compile().as_text()
    assert "callback" not in text and "infeed" not in text and "outfeed" not in text
    asked = jax.jit(lambda tree: jax.debug.callback(print, tree["embed"]["table"]))
    assert "callback" in asked.lower(TREE).compile().as_text()
