"""Tests of the watchdog, by a clock that is turned by hand, and of a real process that hangs."""

from __future__ import annotations

import subprocess
import sys
import time

from process_gen.train.watchdog import Watchdog

HANGING = """
import time
from process_gen.train.watchdog import Watchdog

def wait_for_a_disk():
    time.sleep(600)

with Watchdog(0.01) as watchdog:
    watchdog.at("the batch of step 7")
    wait_for_a_disk()
"""


def test_a_pause_is_measured_from_what_was_begun_last():
    now, ended = [0.0], []
    watchdog = Watchdog(1.0, ended.append, lambda: now[0])
    for now[0] in (50.0, 100.0, 150.0):
        watchdog.at("step 3")
        assert not watchdog.look()
    now[0] = 211.0
    assert watchdog.look()
    assert "for 1.0 minutes: this process waits for step 3." in ended[0]
    assert not Watchdog(0.0, ended.append, lambda: now[0]).look()


def test_a_process_that_hangs_ends_and_says_where():
    done = subprocess.run(
        [sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: nothing has moved for")
    assert "waits for the batch of step 7" in done.stderr and "in wait_for_a_disk" in done.stderr


def test_one_that_ends_in_time_is_left_alone():
    ended = []
    with Watchdog(0.01, ended.append) as watchdog:
        watchdog.at("nothing")
    time.sleep(1.0)  # more than the 0.6 s that it would have waited
    assert not ended
