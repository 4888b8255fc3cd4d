"""Runs that are killed twenty times at random moments, and are the run that nobody killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import socket
import time

import numpy as np
import pytest

from tests.train import killed_run

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.train.killed_run", "process_gen.train.loop"])
KILLS, STEPS = 20, 150


class Processes:
    """The processes of a run, started again and again."""

    def __init__(self, workdir, devices, count):
        self.workdir, self._devices, self._count = workdir, devices, count
        workdir.mkdir()

    def start(self):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            place = f"localhost:{free.getsockname()[1]}"
        made = [
            CONTEXT.Process(
                target=killed_run.train,
                args=(str(self.workdir), self._devices, place, n, self._count, STEPS),
                daemon=True,
            )
            for n in range(self._count)
        ]
        for process in made:
            process.start()
        return made

    def lines(self):
        file = self.workdir / "metrics.jsonl"
        found = []
        for line in file.read_text().split("\n") if file.exists() else []:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            found.append((entry["step"], entry["loss"], entry["grad_norm"]))
        return found

    def saving(self):
        return any((self.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))


def wait(ready, processes, seconds=300):
    limit = time.monotonic() + seconds
    while not ready() and all(p.is_alive() for p in processes):
        assert time.monotonic() < limit
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("devices", "count"), [(1, 1), (4, 1), (1, 2)])
def test_twenty_kills_leave_no_trace(tmp_path, devices, count):
    """Every third kill comes inside a save; of two processes one is killed, or both are."""
    draw = random.Random(f"{devices} {count}")
    run = Processes(tmp_path / "run", devices, count)
    in_a_save = kills = 0
    while kills < KILLS:
        before = len(run.lines())
        processes = run.start()
        # The last steps are kept for a process that nobody kills.
        goal = min(before + draw.randrange(1, 8), STEPS - 20)
        wait(lambda goal=goal: len(run.lines()) >= goal, processes)
        if kills % 3 == 0:
            wait(run.saving, processes)
            in_a_save += run.saving()
        else:
            time.sleep(draw.random() / 10)
        for process in processes[: draw.randrange(1, count + 1)]:
            os.kill(process.pid, signal.SIGKILL)
        kills += 1
        for process in processes:
            process.join(60)
            if process.is_alive():
                process.kill()
                process.join()
        assert processes[0].exitcode == -signal.SIGKILL
    for process in (processes := run.start()):
        process.join(600)
    assert [p.exitcode for p in processes] == [0] * count
    quiet = Processes(tmp_path / "quiet", devices, count)
    for process in (processes := quiet.start()):
        process.join(600)
    assert [p.exitcode for p in processes] == [0] * count
    assert [step for step, *_ in run.lines()] == list(range(1, STEPS + 1))
    assert run.lines() == quiet.lines()
    ends = [np.load(r.workdir / "end.npz") for r in (run, quiet)]
    for name in ends[0].files:
        assert ends[0][name].tobytes() == ends[1][name].tobytes()
    print(f"{kills} kills, {in_a_save} of them inside a save; {devices} devices, {count} processes")
    # Partner: another batch would show.
    assert len({loss for _, loss, _ in run.lines()}) > STEPS // 2
