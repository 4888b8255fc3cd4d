"""The desk of the live studio: takes wishes, refuses bad ones, and paints one at a time.

One thread has the device. A job is painted while somebody watches it; a browser that is closed
stops watching, and the painting ends after its next part. Nothing here knows of the page.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.trajectory import Trajectory
from process_gen.sampling.painter import Painter
from process_gen.sampling.painting import Painting, Request, prompt_tokens

STEPS = (5, 10, 20, 40)  # denoising steps to choose from
GUIDANCE = (1.0, 5.0)


class BusyError(DataError):
    """The session is being painted for already."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one page, and all of them together, may ask for.

    Attributes:
      prompt: characters of a prompt; its tokens are limited by the checkpoint.
      text: characters of a plan or an inspection.
      waiting: paintings that wait for the device.
      per_minute: paintings that one session may begin.
      silence: seconds after which a painting that nobody watches is stopped.
      sessions: of which is remembered when they painted.
    """

    prompt: int = 1000
    text: int = 2000
    waiting: int = 8
    per_minute: int = 20
    silence: float = 30.0
    sessions: int = 1000


@dataclasses.dataclass(frozen=True)
class Wish:
    """What is to be painted.

    Attributes:
      prompt: words, or a painting to go on with.
      beside: whether the same prompt is painted in one shot too.
      seed: the same seed gives the same picture.
      steps: denoising steps a picture of the process, one of `STEPS`.
      guidance: text guidance of the process.
    """

    prompt: str | Trajectory
    beside: bool = False
    seed: int = 0
    steps: int = 10
    guidance: float = 1.5


@dataclasses.dataclass(frozen=True)
class Update:
    """How far a job is.

    Attributes:
      painting: so far; None before its prompt was read.
      one_shot: the picture beside it.
      ahead: paintings before it in the queue.
      done: whether this is the last update.
      error: why there is nothing more.
    """

    painting: Trajectory | None = None
    one_shot: Trajectory | None = None
    ahead: int = 0
    done: bool = False
    error: str = ""


class Job:
    """A wish on its way."""

    def __init__(self, session: str, wish: Wish, desk: Desk):
        """Made by `Desk.ask`."""
        self.session, self.wish = session, wish
        self._desk = desk
        self._updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._seen = desk.clock()
        self._ended = False

    def watch(self, every: float = 0.5) -> Iterator[Update]:
        """Yields what changes, and each `every` seconds the place in the queue, up to the end."""
        ahead = -1
        try:
            while True:
                self._seen = self._desk.clock()
                try:
                    update = self._updates.get(timeout=every)
                except queue.Empty:
                    if self._ended and self._updates.empty():  # the desk was closed
                        return
                    now = self._desk.ahead(self)
                    if now == ahead or not now:
                        continue
                    ahead, update = now, Update(ahead=now)
                yield update
                if update.done:
                    return
        finally:
            self.stop()

    def stop(self) -> None:
        """Ends it after the part that is being painted."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether it is to end: it was stopped, or nobody has watched it for long."""
        quiet = self._desk.clock() - self._seen
        return self._stopped.is_set() or quiet > self._desk.limits.silence

    def tell(self, update: Update) -> None:
        """Called by the desk."""
        self._ended = self._ended or update.done
        self._updates.put(update)

    @property
    def ended(self) -> bool:
        """Whether its last update was sent."""
        return self._ended


class Desk:
    """Takes wishes of many sessions and paints one at a time."""

    def __init__(
        self,
        painter: Painter,
        limits: Limits = Limits(),  # noqa: B008  frozen
        clock: Callable[[], float] = time.monotonic,
    ):
        """Starts the thread that paints; `close` ends it."""
        self.painter, self.limits, self.clock = painter, limits, clock
        self._jobs: collections.deque[Job] = collections.deque()  # the first is being painted
        self._current: dict[str, Job] = {}
        self._begun: collections.OrderedDict[str, collections.deque[float]]
        self._begun = collections.OrderedDict()
        self._lock = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="painting", daemon=True)
        self._thread.start()

    def ask(self, session: str, wish: Wish) -> Job:
        """Queues a wish.

        Raises:
          BusyError: the session is being painted for.
          DataError: the wish is outside the limits or cannot be read, the session asks too often,
            or too many are waiting. The text is for the one who asked.
        """
        with self._lock:
            self._check_busy(session)  # whatever else is wrong with the wish
        check(wish, self.painter, self.limits)
        with self._lock:
            if self._closed:
                raise DataError("the studio is closing")
            self._check_busy(session)
            if sum(not job.stopped for job in self._jobs) > self.limits.waiting:
                raise DataError(
                    f"{self.limits.waiting} paintings are waiting already; try again in a minute"
                )
            self._check_rate(session)
            job = Job(session, wish, self)
            self._jobs.append(job)
            self._current[session] = job
            self._lock.notify()
        return job

    def stop(self, session: str) -> None:
        """Stops the painting of a session, if there is one."""
        with self._lock:
            job = self._current.get(session)
        if job is not None:
            job.stop()

    def ahead(self, job: Job) -> int:
        """Paintings before this one; 0 once it is being painted, or has been."""
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0

    def close(self) -> None:
        """Stops everything; waits for the thread."""
        with self._lock:
            self._closed = True
            for job in self._jobs:
                job.stop()
            self._lock.notify()
        self._thread.join(timeout=60)

    def _check_busy(self, session: str) -> None:
        before = self._current.get(session)
        if before is not None and not before.ended and not before.stopped:
            raise BusyError("your last painting is not finished; stop it first")

    def _check_rate(self, session: str) -> None:
        begun = self._begun.setdefault(session, collections.deque())
        self._begun.move_to_end(session)
        while len(self._begun) > self.limits.sessions:
            self._begun.popitem(last=False)
        now = self.clock()
        while begun and now - begun[0] >= 60:
            begun.popleft()
        if len(begun) >= self.limits.per_minute:
            wait = 60 - (now - begun[0])
            raise DataError(
                f"{self.limits.per_minute} paintings a minute are the limit; "
                f"try again in {wait:.0f} s"
            )
        begun.append(now)

    # ---- the thread that paints ------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self._jobs[0]
            try:
                update = self._paint(job)
            except ProcessGenError as error:
                update = Update(done=True, error=str(error))
            except Exception as error:  # the next one may well succeed
                traceback.print_exc()
                kind = type(error).__name__
                update = Update(done=True, error=f"painting failed ({kind}); the log says more")
            with self._lock:  # before whoever is told asks for the next one
                self._jobs.popleft()
                if self._current.get(job.session) is job:
                    del self._current[job.session]
            job.tell(update)

    def _paint(self, job: Job) -> Update:
        painting, one_shot = None, None
        for painting in self._stream(job, "process", job.wish.prompt):
            if painting.finish_reason is None:
                job.tell(Update(painting))
        if painting is not None and painting.finish_reason == "refused":
            raise DataError(painting.text or "the painting was refused")
        if job.wish.beside and painting is not None and not job.stopped:
            job.tell(Update(painting))
            shots = list(self._stream(job, "one_shot", painting.prompt))
            # Without a picture it was stopped.
            one_shot = next((shot for shot in shots if shot.final_image is not None), None)
        return Update(painting, one_shot, done=True)

    def _stream(self, job: Job, mode: str, prompt: str | Trajectory) -> Iterator[Trajectory]:
        wish = job.wish
        settings: dict[str, Any] = {"batch": 1}
        if mode == "process":
            settings |= {"denoise_steps": wish.steps, "guidance": wish.guidance}
        yield from self.painter.stream(
            [prompt],
            mode=mode,
            seed=wish.seed,
            stop=lambda: job.stopped,
            unfinished=mode == "process",
            **settings,
        )


def read_wish(prompt: Any, beside: Any, seed: Any, steps: Any, guidance: Any) -> Wish:
    """A wish out of what a form sent, whatever that is; `check` looks at the values.

    Raises:
      DataError: a value is of another kind than the form's.
    """
    try:
        if seed != int(seed) or steps != int(steps) or not isinstance(prompt, str | Trajectory):
            raise ValueError
        return Wish(prompt, bool(beside), int(seed), int(steps), float(guidance))
    except (TypeError, ValueError, OverflowError):
        raise DataError(
            "the prompt is text, the seed and the denoising steps are whole numbers, the guidance "
            "is a number"
        ) from None


def check(wish: Wish, painter: Painter, limits: Limits) -> None:
    """Checks a wish against the limits and the checkpoint.

    Raises:
      DataError: with what is wrong, in words for the one who asked.
    """
    given = wish.prompt if isinstance(wish.prompt, Trajectory) else None
    prompt = given.prompt if given is not None else str(wish.prompt)
    if len(prompt) > limits.prompt:
        raise DataError(
            f"the prompt has {len(prompt):,} characters; {limits.prompt:,} are the limit"
        )
    asked = Painting.of(Request(prompt, {}, 0, 0), "process", 0, 1)
    if prompt_tokens(asked, painter.tokenizer, painter.config.sampler.longest_prompt) is None:
        raise DataError(asked.text or "the prompt was refused")
    if given is not None and given.steps:
        last = given.steps[-1]
        for text in (last.plan, last.inspection or ""):
            _check_text(text, painter, limits)
    if type(wish.seed) is not int or not 0 <= wish.seed < 2**32:
        raise DataError(f"the seed is a whole number from 0 to {2**32 - 1:,}")
    if wish.steps not in choices(painter):
        raise DataError(f"denoising steps are one of {', '.join(map(str, choices(painter)))}")
    low, high = GUIDANCE
    if not low <= wish.guidance <= high:
        raise DataError(f"guidance lies between {low:g} and {high:g}")


def choices(painter: Painter) -> tuple[int, ...]:
    """Numbers of denoising steps to choose from; the checkpoint's own is one of them."""
    return tuple(sorted({*STEPS, painter.config.sampler.denoise_steps}))


def _check_text(text: str, painter: Painter, limits: Limits) -> None:
    if len(text) > limits.text:
        raise DataError(
            f"a plan or inspection has {len(text):,} characters; {limits.text:,} is the limit"
        )
    count, longest = len(painter.tokenizer.encode(text)), painter.config.sampler.max_text - 2
    if count > longest:
        raise DataError(f"a plan or inspection has {count} tokens; {longest} are the limit")
