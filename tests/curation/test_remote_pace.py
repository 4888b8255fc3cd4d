import threading

import pytest

from process_gen.curation.remote_pace import Pace, retry_after


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def delay(pace, tokens):
    start, now = pace.reserve(tokens)
    return start - now


def test_requests_and_tokens_are_spaced():
    clock = Clock()
    pace = Pace(requests_per_minute=60, tokens_per_minute=6000, clock=clock)
    assert [delay(pace, tokens) for tokens in (10, 500, 10, 10)] == [0, 1, 6, 7]
    clock.now += 60
    assert delay(pace, 10) == 0


def test_without_limits_nobody_waits():
    pace = Pace(clock=Clock())
    assert [delay(pace, 1e9) for _ in range(3)] == [0, 0, 0]


def test_a_pause_holds_for_what_was_booked_before():
    clock = Clock()
    pace = Pace(requests_per_minute=600, clock=clock)
    pace.reserve(0)
    pace.pause(5)
    pace.pause(1)  # a shorter wish does not end a longer one
    assert delay(pace, 0) == 5

    class Stop(threading.Event):
        def wait(self, timeout=None):
            clock.now += timeout
            if timeout < 0.2:
                pace.pause(3)
            return False

    waiting = Pace(requests_per_minute=600, clock=clock)
    waiting.reserve(0)
    pace = waiting
    begin = clock.now
    waiting.wait(0, Stop())
    assert clock.now - begin == pytest.approx(3.1)


class Sleepers:
    """Threads that wait for a clock which goes on when all of them do."""

    def __init__(self, clock):
        self.clock, self.changed, self.until = clock, threading.Condition(), []

    def wait(self, timeout):
        with self.changed:
            until = self.clock.now + timeout
            self.until.append(until)
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.clock.now >= until)
            return False

    def run(self, works):
        awake = len(works)

        def call(work):
            nonlocal awake
            work()
            with self.changed:
                awake -= 1
                self.changed.notify_all()

        threads = [threading.Thread(target=call, args=(work,), daemon=True) for work in works]
        for thread in threads:
            thread.start()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: len(self.until) == awake)
                if not awake:
                    return
                self.clock.now = min(self.until)
                self.until = [until for until in self.until if until > self.clock.now]
                self.changed.notify_all()


@pytest.mark.parametrize("pause", [0.0, 2.5, 30.0])
def test_what_was_booked_in_a_pause_does_not_start_all_at_once(pause):
    clock = Clock()
    pace = Pace(requests_per_minute=60, clock=clock)
    sleepers, started, left = Sleepers(clock), [], []

    def ask():
        pace.wait(0, sleepers)
        started.append(clock.now - 100.0)

    def refuse():
        sleepers.wait(0.5)
        pace.pause(pause)
        left.append(clock.now + pause - 100.0)

    sleepers.run([refuse, *[ask] * 6])
    started.sort()
    assert all(b - a >= 1.0 for a, b in zip(started, started[1:], strict=False))
    assert not any(0.5 < start < left[0] for start in started)
    assert len(started) == 6 and started[0] == 0.0
    if not pause:  # partner: nothing is booked anew that need not be
        assert started == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:01:40 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:10 GMT"}, 0.0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "inf"}, None),
    ],
)
def test_retry_after(headers, seconds):
    assert retry_after(headers, now=70.0) == seconds
