import threading

import pytest

from process_gen.curation.remote_pace import Pace, retry_after


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_requests_and_tokens_are_spaced():
    clock = Clock()
    pace = Pace(requests_per_minute=60, tokens_per_minute=6000, clock=clock)
    assert [pace.reserve(tokens) for tokens in (10, 500, 10, 10)] == [0, 1, 6, 7]
    clock.now += 60
    assert pace.reserve(10) == 0


def test_without_limits_nobody_waits():
    pace = Pace(clock=Clock())
    assert [pace.reserve(1e9) for _ in range(3)] == [0, 0, 0]


def test_a_pause_holds_for_what_was_booked_before():
    clock = Clock()
    pace = Pace(requests_per_minute=600, clock=clock)
    pace.reserve(0)
    pace.pause(5)
    pace.pause(1)  # a shorter wish does not end a longer one
    assert pace.reserve(0) == 5

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
