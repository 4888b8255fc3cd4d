"""Says which source does not answer, instead of waiting for it forever.

A read that hangs, on a network disk or in a bucket, cannot be interrupted. So every read notes when
it began; whoever waits for a batch lets a thread of its own do the work, and looks at the notes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from process_gen.core.errors import StalledError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Trajectory
from process_gen.data.sources import Source

T = TypeVar("T")


class Watch:
    """Notes of reads that are under way.

    Args:
      seconds: the longest that one may take; 0 waits forever.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._reads: dict[int, tuple[float, str]] = {}  # of each thread

    @contextlib.contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """While inside, this thread waits for `what`."""
        own = threading.get_ident()
        self._reads[own] = (time.monotonic(), what)
        try:
            yield
        finally:
            del self._reads[own]

    def run(self, work: Callable[[], T]) -> T:
        """Does the work, in which reads of any thread may hang.

        Raises:
          StalledError: a read takes too long; the text names it. The work goes on waiting.
        """
        if not self._seconds:
            return work()
        results: list[T] = []
        errors: list[BaseException] = []
        done = threading.Event()

        def target() -> None:
            try:
                results.append(work())
            except BaseException as error:  # raised again where it is waited for
                errors.append(error)
            finally:
                done.set()

        threading.Thread(target=target, name="data", daemon=True).start()
        while not done.wait(min(1.0, self._seconds / 4)):
            self._look()
        if errors:
            raise errors[0]
        return results[0]

    def _look(self) -> None:
        now = time.monotonic()
        for began, what in list(self._reads.values()):
            if now - began > self._seconds:
                raise StalledError(
                    f"{what}: no answer for {now - began:.0f} s (data.timeout is "
                    f"{self._seconds:g}); look at where it is stored. Started again, the run goes "
                    "on from its last checkpoint"
                )


class Watched:
    """A source whose reads are noted."""

    def __init__(self, source: Source, name: str, watch: Watch):
        self._source, self._name, self._watch = source, name, watch
        self.fingerprint, self.fresh = source.fingerprint, source.fresh
        self.supervise: Supervise = source.supervise

    def __len__(self) -> int:
        """Trajectories an epoch."""
        return len(self._source)

    def __getitem__(self, index: int) -> Trajectory:
        """Reads one."""
        with self._watch.reading(f"{self._name}, record {index}"):
            return self._source[index]

    def outline(self, index: int) -> Trajectory:
        """Reads its texts and picture sizes."""
        with self._watch.reading(f"{self._name}, record {index}"):
            return self._source.outline(index)
