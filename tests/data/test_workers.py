from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from process_gen.core.errors import DataError
from process_gen.data.workers import Workers


def squares(offset):
    """What workers open here: squares, an error at 7, their end at 9."""

    def make(order):
        if order == 7:
            raise DataError("seven is not served")
        if order == 9:
            os._exit(1)
        return order * order + offset, os.getpid()

    return make


@pytest.mark.parametrize("count", [1, 3])
def test_things_come_in_order_whatever_the_number_of_workers(count):
    workers = Workers(count, squares, (100,), itertools.count(), ahead=4)
    made = [next(workers) for _ in range(7)]
    assert [value for value, _ in made] == [100 + i * i for i in range(7)]
    assert os.getpid() not in {pid for _, pid in made}
    with pytest.raises(DataError, match="seven is not served"):
        next(workers)
    workers.close()


def test_a_dead_worker_is_an_error_that_says_what_to_do():
    workers = Workers(1, squares, (0,), iter([1, 9, 1, 1]), ahead=1)
    assert next(workers)[0] == 1
    with pytest.raises(DataError, match="a data worker died.*data.workers"):
        next(workers)
    workers.close()


PARENT = """
import itertools, sys, time
from process_gen.data.workers import Workers
from tests.data.test_workers import squares
if __name__ == "__main__":
    workers = Workers(2, squares, (0,), itertools.cycle([1]), ahead=4)
    print(*{next(workers)[1] for _ in range(20)}, flush=True)
    time.sleep(60)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="looks into /proc")
def test_workers_end_with_a_parent_that_was_killed(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert pids and all(map(alive, pids))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    for _ in range(200):
        if not any(map(alive, pids)):
            break
        time.sleep(0.05)
    assert not any(map(alive, pids))
    parent.stdout.close()
