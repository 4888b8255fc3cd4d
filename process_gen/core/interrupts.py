"""Ctrl-C and SIGTERM as a flag, for work that ends in good order.

SIGTERM is how a scheduler says that the machine is about to be taken away. Work that ends for it
raises `Preempted`, which commands turn into an exit status of its own: started again, they go on.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Preempted(KeyboardInterrupt):
    """SIGTERM came; what was worth saving is saved."""


@contextlib.contextmanager
def finish_on_interrupt(
    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM),
) -> Iterator[Callable[[], KeyboardInterrupt | None]]:
    """While inside, the first of these signals does nothing but leave a note.

    The yielded function reads it: None, or what to raise when the work has ended in good order. A
    second signal acts as it would have outside. Outside the main thread, which alone may handle
    signals, there is never a note.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}

    def note() -> KeyboardInterrupt | None:
        if not seen:
            return None
        return Preempted() if seen[0] == signal.SIGTERM else KeyboardInterrupt()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def handle(number: int, _: Any) -> None:
        seen.append(number)
        restore()

    for number in numbers:
        signal.signal(number, handle)
    try:
        yield note
    finally:
        restore()


@contextlib.contextmanager
def preempted_on_sigterm() -> Iterator[None]:
    """While inside, SIGTERM raises `Preempted` in the main thread instead of ending the process.

    `finish_on_interrupt` takes precedence where it is in force.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: Any) -> None:
        raise Preempted

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
