"""Tests of joining other processes, of how commands end, and of the exit status after SIGTERM."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from launch import common, distributed
from process_gen.core.errors import ConfigError
from process_gen.core.interrupts import Preempted, finish_on_interrupt

# Joins as the flags say, then adds up the indices of all processes.
SCRIPT = """
import sys, types
from launch import common, distributed

def main(values):
    import jax
    from jax.experimental import multihost_utils
    total = multihost_utils.process_allgather(jax.numpy.int32(10 + jax.process_index())).sum()
    print(jax.distributed.is_initialized(), jax.process_index(), jax.process_count(), int(total))

common.run(main, distributed.define_flags, "", join=distributed.join)
"""
CLUSTERS = {
    "slurm": lambda i: {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(i),
        "SLURM_LOCALID": str(i),
    },
    "ompi": lambda i: {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": str(i),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(i),
    },
    # Two slices of one host, as GKE describes them to the pods of a JobSet; jax believes it when
    # it is told to take this machine for one with TPUs.
    "gke": lambda i: {
        "JAX_FORCE_TPU_INIT": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "MEGASCALE_COORDINATOR_ADDRESS": "localhost",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": str(i),
    },
}


def start(*flags, script=SCRIPT, **env):
    own = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "OMPI", "TPU_"))}
    return subprocess.Popen(
        [sys.executable, "-c", script, *flags],
        env={**own, "PYTHONPATH": os.getcwd(), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_laptop_is_alone_and_is_told_so_where_it_should_not_be():
    alone, refused = start(), start("--distributed=on")
    assert alone.communicate(timeout=100)[0] == "False 0 1 10\n"
    error = refused.communicate(timeout=100)[1]
    assert refused.returncode == 2 and error.startswith("error: jax cannot tell which processes")


@pytest.mark.multidevice
@pytest.mark.parametrize(
    "cluster",
    ["slurm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ompi", "gke"))],
)
def test_clusters_are_joined_without_arguments(cluster):
    """By what their launchers put into the environment; two real processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    processes = [
        start("--distributed=on", JAX_COORDINATOR_PORT=port, **CLUSTERS[cluster](i))
        for i in range(2)
    ]
    printed = [process.communicate(timeout=100) for process in processes]
    for i, (out, err) in enumerate(printed):
        assert out.splitlines()[-1:] == [f"True {i} 2 21"], err[-2000:]


@pytest.mark.parametrize(
    ("flags", "asked", "error"),
    [
        ([], {}, None),
        (["--distributed=off"], None, None),
        (
            ["--coordinator_address=h:1", "--num_processes=2", "--process_id=1"],
            {"coordinator_address": "h:1", "num_processes": 2, "process_id": 1},
            None,
        ),
        (["--num_processes=2"], None, "go together"),
        (
            [
                "--coordinator_address=h:1",
                "--num_processes=2",
                "--process_id=1",
                "--distributed=off",
            ],
            None,
            "not with --distributed=off",
        ),
    ],
)
def test_what_jax_is_asked(flags, asked, error, monkeypatch):
    calls = []
    monkeypatch.setattr(distributed.jax.distributed, "initialize", lambda **k: calls.append(k))
    values = common.parse(distributed.define_flags, ["x", *flags])
    if error:
        with pytest.raises(ConfigError, match=error):
            distributed.join(values)
    else:
        distributed.join(values)
    assert calls == ([] if asked is None else [{**asked, "heartbeat_timeout_seconds": 130}])


def test_a_cluster_that_describes_itself_badly_is_no_laptop(monkeypatch):
    def initialize(**_):
        raise ValueError("invalid literal for int() with base 10: 'None'")

    monkeypatch.setattr(distributed.jax.distributed, "initialize", initialize)
    with pytest.raises(ConfigError, match="invalid literal"):
        distributed.join(common.parse(distributed.define_flags, ["x"]))


class Service:
    """What `Peers` asks of jax's client, for processes of this test."""

    def __init__(self):
        self.beats, self.down = {}, False

    def key_value_set(self, key, value, allow_overwrite):
        if self.down:
            raise RuntimeError("UNAVAILABLE")
        self.beats[key] = value

    def key_value_dir_get(self, prefix):
        return [(k, v) for k, v in self.beats.items() if k.startswith(prefix)]


def test_a_silent_process_is_given_up_by_name():
    service, now, ended = Service(), [0.0], []
    own, other = (
        distributed.Peers(service, n, 2, 30.0, ended.append, lambda: now[0]) for n in (0, 1)
    )
    for now[0] in range(0, 100, 10):
        other.beat()
        own.beat()
        own.judge()
    assert not ended
    for now[0] in range(100, 140, 10):  # its last beat came at 90
        own.beat()
        own.judge()
    assert len(ended) == 1
    assert ended[0].startswith("process 1 has not been heard of for 40 s: it was killed, stopped")
    service.down = True
    for now[0] in range(140, 180, 10):
        other.beat()
        other.judge()
    assert len(ended) > 1 and "process 0, where all meet, has not answered for" in ended[1]


LOST = """
import sys, time
from launch import common, distributed

def main(values):
    print("joined", flush=True)
    time.sleep(200)

common.run(main, distributed.define_flags, "", join=distributed.join)
"""


@pytest.mark.multidevice
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_or_stopped_process_ends_the_job(number, victim):
    """Two real processes that exchange nothing: only the heartbeats tell."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    flags = [f"--coordinator_address={place}", "--num_processes=2", "--heartbeat_seconds=15"]
    processes = [start(*flags, f"--process_id={i}", script=LOST) for i in range(2)]
    try:
        for process in processes:
            assert process.stdout.readline() == "joined\n"
        processes[victim].send_signal(number)
        survivor = processes[1 - victim]
        out, error = survivor.communicate(timeout=15 + 30 + 60)
        assert survivor.returncode not in (0, common.PREEMPTED)
        if number == signal.SIGKILL and victim == 0:  # jax's client of a closed socket is faster
            assert survivor.returncode == -signal.SIGABRT or "process 0, where all" in error
        else:
            words = "process 1 has not" if victim else "process 0, where all meet, has not"
            assert f"process {1 - victim}: error: {words}" in error, (out, error)
    finally:
        for process in processes:
            process.kill()


def test_sigterm_is_a_status_of_its_own(capsys):
    before = signal.getsignal(signal.SIGTERM)
    order = []

    def main(values):
        order.append("main")
        os.kill(os.getpid(), signal.SIGTERM)
        order.append("too late")

    with pytest.raises(SystemExit) as stopped:
        common.run(main, lambda _: None, "", ["x"], join=lambda _: order.append("join"))
    assert stopped.value.code == common.PREEMPTED == 75 and order == ["join", "main"]
    assert signal.getsignal(signal.SIGTERM) is before and capsys.readouterr().err == "preempted\n"

    def interrupted(values):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stopped:
        common.run(interrupted, lambda _: None, "", ["x"])
    assert stopped.value.code == 130


def test_work_that_ends_in_good_order():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for number, kind in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted)):
        with finish_on_interrupt() as interrupted:
            assert interrupted() is None
            os.kill(os.getpid(), number)
            assert type(interrupted()) is kind
            # The next one is not held back.
            assert signal.getsignal(signal.SIGINT) is before[0]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
