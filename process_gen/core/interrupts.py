"""Ctrl-C as a flag, for work that ends in good order."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def finish_on_interrupt() -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C only sets a flag, which the yielded function reads.

    A second one interrupts as usual. Outside the main thread, which alone may handle signals, the
    flag is never set.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, _: Any) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
