"""Runs a build in this process or in several; which of them makes a shard changes no byte."""

from __future__ import annotations

import ctypes
import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing import connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from process_gen.core.errors import DataError, ProcessGenError
from process_gen.curation.engine import Job, make_shard
from process_gen.curation.site import finish, open_site

_POLL = 0.2  # seconds between looks at the workers

Stop = Callable[[], BaseException | None]


@dataclasses.dataclass(frozen=True)
class Pace:
    """How far a build has come.

    Attributes:
      done: items that are through, those of an earlier run included.
      items: of the whole build.
      seconds: since this run began.
      fresh: items of this run.
      shards_done, shards: finished ones, and all.
    """

    done: int
    items: int
    seconds: float
    fresh: int
    shards_done: int
    shards: int


def build(
    job: Job,
    folder: str,
    *,
    workers: int = 1,
    report: Callable[[Pace], None] = lambda pace: None,
    stop: Stop = lambda: None,
) -> dict[str, Any]:
    """Builds a folder, or goes on where an earlier call with the same job was ended.

    Args:
      job: what to build.
      folder: new, empty, or begun by the same job; may be remote.
      workers: processes; 1 works in this one.
      report: called every now and then.
      stop: asked often; what it answers is raised once work has ended in good order.

    Returns:
      The manifest.

    Raises:
      DataError: see `site.open_site`; a worker died; a strict job skipped something.
    """
    with open_site(job, folder) as site:
        started, before = time.monotonic(), job.shards - len(site.todo)

        def pace(fresh: int, shards: int) -> Pace:
            seconds = time.monotonic() - started
            done = before + shards
            return Pace(site.done + fresh, job.items, seconds, fresh, done, job.shards)

        if workers <= 1 or len(site.todo) <= 1:
            _alone(job, folder, site.todo, lambda *counts: report(pace(*counts)), stop)
        else:
            count = min(workers, len(site.todo))
            _together(job, folder, site.todo, count, lambda *n: report(pace(*n)), stop)
        return finish(job, site)


def _alone(
    job: Job, folder: str, todo: list[int], report: Callable[[int, int], None], stop: Stop
) -> None:
    if not todo:
        return
    recipe, measure = job.make_recipe(), job.measure()
    fresh = 0
    for number, shard in enumerate(todo):

        def tick(items: int, number: int = number) -> None:
            nonlocal fresh
            fresh += items
            if (why := stop()) is not None:
                raise why
            report(fresh, number)

        make_shard(job, recipe, measure, folder, shard, tick)
        report(fresh, number + 1)


# ---- several processes ---------------------------------------------------------------------------


def _together(
    job: Job,
    folder: str,
    todo: list[int],
    count: int,
    report: Callable[[int, int], None],
    stop: Stop,
) -> None:
    # Forked children of a process with threads (JAX has them) may hang; spawned ones do not.
    context = multiprocessing.get_context("spawn")
    taken = context.Value(ctypes.c_int64, 0)
    ticks = context.Value(ctypes.c_int64, 0)
    finished = context.Value(ctypes.c_int64, 0)
    ends = [context.Pipe(duplex=False) for _ in range(count)]
    workers = [
        context.Process(
            target=_work, args=(job, folder, todo, taken, ticks, finished, send), daemon=True
        )
        for _, send in ends
    ]
    try:
        for worker in workers:
            worker.start()
        for _, send in ends:
            send.close()
        waiting: dict[Any, Any] = {
            receive: worker for (receive, _), worker in zip(ends, workers, strict=True)
        }
        while waiting:
            if (why := stop()) is not None:
                raise why
            for receive in connection.wait(list(waiting), timeout=_POLL):
                _hear(receive, waiting.pop(receive))
            report(ticks.value, finished.value)
    finally:
        for worker in workers:
            if worker.is_alive():
                worker.terminate()
        for worker in workers:
            if worker.pid is not None:
                worker.join()


def _hear(receive: Any, worker: Any) -> None:
    """The last word of a worker: None, or why it failed."""
    try:
        error = receive.recv()
    except EOFError:
        worker.join()
        raise DataError(
            f"a worker ended with status {worker.exitcode}, perhaps for want of memory; what is "
            "finished is kept: run the same command again, with fewer --workers"
        ) from None
    if isinstance(error, ProcessGenError):
        raise error
    if error is not None:
        raise RuntimeError(f"in a worker:\n{error}")


def _work(
    job: Job,
    folder: str,
    todo: list[int],
    taken: Synchronized[int],
    ticks: Synchronized[int],
    finished: Synchronized[int],
    send: Any,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    error: ProcessGenError | str | None = None
    try:
        recipe, measure = job.make_recipe(), job.measure()

        def tick(items: int) -> None:
            with ticks.get_lock():
                ticks.value += items

        while True:
            with taken.get_lock():
                number = taken.value
                taken.value += 1
            if number >= len(todo):
                break
            make_shard(job, recipe, measure, folder, todo[number], tick)
            with finished.get_lock():
                finished.value += 1
    except ProcessGenError as raised:
        error = type(raised)(str(raised))
    except Exception:
        error = traceback.format_exc()
    send.send(error)


def _die_with_parent() -> None:
    """Ends this process when the one that started it is gone: another may take its place."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
