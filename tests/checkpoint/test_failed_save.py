"""A save that fails in one of two real processes: both say so, name the reason, and go on."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys

import pytest

# The second save of the process that is named fails: its files may not grow beyond a few thousand
# bytes, or its last act before the commit finds no room.
SCRIPT = """
import json, resource, sys
import jax
import numpy as np

place, own, victim, how, workdir = sys.argv[1], *map(int, sys.argv[2:4]), *sys.argv[4:]
jax.distributed.initialize(place, 2, own)
from jax.sharding import NamedSharding, PartitionSpec
from process_gen.checkpoint import integrity, manager, stored
from tests.checkpoint.test_manager import make_config

stored.SAVE_LIMIT = 5
record = integrity.record

def no_room(folder):
    raise OSError(28, "No space left on device")

def harm(on):
    if how == "commit":
        integrity.record = no_room if on else record
    else:
        most = resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if on else most, most))

def numbers(step):
    mesh = jax.make_mesh((2,), ("data",))
    draw = lambda at: np.random.default_rng(step).random((1, 4000), np.float32)
    return jax.make_array_from_callback(
        (2, 4000), NamedSharding(mesh, PartitionSpec("data")), draw
    )

seen = []
with manager.CheckpointManager(workdir, make_config(train={"keep": 9})) as checkpoints:
    for step in (1, 2, 3):
        if own == victim:
            harm(step == 2)
        checkpoints.save(step, {"params": {"w": numbers(step)}}, {"n": step}, {})
        checkpoints.wait()
        seen.append([checkpoints.latest_step, checkpoints.counters(), checkpoints._failure])
print(json.dumps(seen))
jax.distributed.shutdown()
"""


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("victim", "how", "why"),
    [
        (0, "commit", "process 0: .*No space left"),
        (0, "file", "process 0: .*File too large"),
        (1, "file", "process 1: .*(File too large|Failed writing)"),
    ],
)
def test_a_save_that_fails_in_one_process_fails_in_both(tmp_path, victim, how, why):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    arguments = [str(victim), how, str(tmp_path / "run")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, place, str(own), *arguments],
            env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in range(2)
    ]
    printed = [process.communicate(timeout=250) for process in processes]
    assert [p.returncode for p in processes] == [0, 0], printed
    first, second = (json.loads(out.strip().splitlines()[-1]) for out, _ in printed)
    assert first == second
    assert [latest for latest, *_ in first] == [1, 1, 3]
    assert [counters for _, counters, _ in first] == [{}] + 2 * [{"failed_saves": 1.0}]
    (before, failure, after) = (failure for *_, failure in first)
    assert before is None and after is None
    assert failure.startswith("the checkpoint of step 2 could not be written (")
    assert re.search(why, failure), failure
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == ["1", "3"]
