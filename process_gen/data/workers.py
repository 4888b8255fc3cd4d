"""Processes that build batches ahead, in the order in which they are wanted.

What is built is decided here and sent to them; they keep opened sources and nothing else. So the
batches cannot depend on how many there are.
"""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from process_gen.core.errors import DataError

_make: Callable[[Any], Any] | None = None  # in a worker


def _begin(opener: Callable[..., Callable[[Any], Any]], arguments: Sequence[Any]) -> None:
    global _make
    # Whoever stops the run stops its main process, which ends the workers when it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    _make = opener(*arguments)


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed, it could not tell


def _work(order: Any) -> Any:
    assert _make is not None
    return _make(order)


class Workers:
    """An iterator over what worker processes make of a sequence of orders."""

    def __init__(
        self,
        count: int,
        opener: Callable[..., Callable[[Any], Any]],
        arguments: Sequence[Any],
        orders: Iterator[Any],
        ahead: int,
    ):
        """Starts the processes, which import the module that `opener` is in.

        Args:
          count: of processes.
          opener: called once in each; gives the function that makes a thing of an order.
          arguments: of `opener`; all of these are pickled.
          orders: taken from as many as are in work.
          ahead: things that may be in work or ready.
        """
        context = multiprocessing.get_context("spawn")
        self._pool = concurrent.futures.ProcessPoolExecutor(
            count, context, initializer=_begin, initargs=(opener, tuple(arguments))
        )
        self._orders, self._ahead = orders, max(ahead, count)
        self._begun: collections.deque[concurrent.futures.Future[Any]] = collections.deque()

    def __iter__(self) -> Workers:
        """Itself."""
        return self

    def __next__(self) -> Any:
        """The next thing.

        Raises:
          DataError: a worker died, or what making the thing raised.
        """
        while len(self._begun) < self._ahead:
            self._begun.append(self._pool.submit(_work, next(self._orders)))
        try:
            return self._begun.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                "a data worker died, perhaps for want of memory; lower data.workers or "
                "data.prefetch, and start again: the run goes on from its last checkpoint"
            ) from error

    def close(self) -> None:
        """Ends the processes."""
        self._pool.shutdown(wait=True, cancel_futures=True)
