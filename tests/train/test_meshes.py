"""The train command gives the same losses on every mesh of four fake devices as on one device."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = [pytest.mark.multidevice, pytest.mark.timeout(900)]

MESHES = {
    "data": {"data": 4},
    "fsdp": {"fsdp": 4},
    "tensor": {"tensor": 4},
    "context": {"context": 4},
    "fsdp and tensor": {"fsdp": 2, "tensor": 2},
    "data and context": {"data": 2, "context": 2},
}
# The most that a loss may differ, as a fraction of it.
TOLERANCE = 1e-5


def call(runs, name, sizes, *more):
    return runs.arguments(name, *(f"--config.mesh.{a}={size}" for a, size in sizes.items()), *more)


def differences(runs, name):
    """How far the losses of a run lie from those on one device, a fraction for each step."""
    losses, wanted = np.array(runs.losses(name)), np.array(runs.losses("one"))
    return np.abs(losses / wanted - 1)


def check(runs, meshes):
    runs.alone([call(runs, name, sizes) for name, sizes in meshes.items()], devices=4)
    for name in meshes:
        assert differences(runs, name).max() < TOLERANCE, name
        assert runs.batches(name) == runs.batches("one")


@pytest.mark.slow
def test_a_mesh(runs):
    """Two axes at once. The quick tests have `test_multidevice.py` and `test_processes.py`."""
    check(runs, {"tensor and context": {"tensor": 2, "context": 2}})
    wanted = np.array(runs.losses("one"))
    assert len(wanted) == 10 and np.abs(np.diff(wanted) / wanted[1:]).min() > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", MESHES)
def test_every_mesh(runs, name):
    check(runs, {name: MESHES[name]})


@pytest.mark.slow
def test_what_would_be_noticed(runs):
    """A hundredth of the learning rate, another seed of the noise, other rows."""
    changes = {
        "rate": "--config.optimizer.learning_rate=0.00606",
        "noise": "--config.train.seed=1",
        "rows": "--config.data.seed=1",
    }
    runs.alone([call(runs, name, {}, change) for name, change in changes.items()], devices=1)
    assert differences(runs, "rate")[0] < TOLERANCE < differences(runs, "rate")[1:].min()
    assert differences(runs, "noise").min() > TOLERANCE
    assert differences(runs, "rows").min() > TOLERANCE
    assert runs.batches("noise") == runs.batches("one")
    shared = [a == b for a, b in zip(runs.batches("rows"), runs.batches("one"), strict=True)]
    assert not any(shared)
