"""Rows in flight: queues of what they wait for, full batches, finished rows replaced."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.configs import SamplerConfig
from process_gen.core.grammar import Next, Part, context_kinds, hidden_kinds
from process_gen.core.trajectory import Image, Trajectory
from process_gen.data.tokenizer import Tokenizer
from process_gen.sampling.cache import FOREVER, Weights
from process_gen.sampling.calls import Begun, Rows, course
from process_gen.sampling.painting import Moment, Painting, Request, hide, prompt_tokens
from process_gen.sampling.programs import Programs

_SHORTEST_PREFILL, _SMALLEST_CACHE, _UNBOUNDED = 16, 128, 1 << 30
_PATIENCE = 8  # a call for texts ends once an eighth of its rows are closed
_PROMPTS = (Part.PROMPT, Part.BARE_PROMPT)
_COMPLETE = ("finished", "max_images")

T = TypeVar("T")
Reading = tuple[int, Painting, str, list[int]]  # row, painting, its text and the text's tokens
Shown = tuple[int, Painting, Image]


def bucket(count: int, most: int, smallest: int = _SMALLEST_CACHE) -> int:
    """The size that `count` items are padded to: 0, `smallest`, twice that, ..., `most`."""
    if not count:
        return 0
    while smallest < count:
        smallest *= 2
    return min(smallest, most)


@dataclasses.dataclass
class Usage:
    """How full the calls to the device were.

    Attributes:
      rows: by the kind of call, rows that were worked on, times the passes of the call.
      slots: the same for the places that there were.
      calls, passes: number of calls, and of forward passes in them.
    """

    rows: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    slots: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    calls: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    passes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, kind: str, rows: int, slots: int, passes: int = 1) -> None:
        """Counts a call."""
        self.rows[kind] += rows
        self.slots[kind] += slots
        self.calls[kind] += 1
        self.passes[kind] += passes

    def summary(self) -> dict[str, Any]:
        """Occupancy of all calls together and by kind, calls and passes; fit for JSON."""
        share = {kind: round(self.rows[kind] / n, 4) for kind, n in self.slots.items() if n}
        whole = self.rows.total() / max(self.slots.total(), 1)
        return {
            "occupancy": round(whole, 4),
            "occupancy_by_call": share,
            "calls": dict(self.calls),
            "passes": dict(self.passes),
        }


class Studio:
    """Rows in flight, so many that one of the queues always holds a full batch.

    A row waits to have its prompt read, for a text, or for a picture; once it is closed, perhaps to
    have its last picture painted again.
    """

    def __init__(
        self,
        programs: Programs,
        sampler: SamplerConfig,
        weights: Weights,
        tokenizer: Tokenizer,
        mode: str,
        seed: int,
        requests: Iterator[Request],
        stop: Callable[[], bool],
        unfinished: bool = False,
        usage: Usage | None = None,
    ):
        """Takes requests as rows become free.

        Args: see `Painter.stream`; `sampler` may differ from that of `programs` in what the host
        alone reads.
        """
        self.programs, self.weights, self.tokenizer = programs, weights, tokenizer
        self.sampler = sampler
        self.mode, self.seed, self.requests, self.stop = mode, seed, requests, stop
        self.one_shot = mode == "one_shot"
        self.kinds = context_kinds(programs.config.data.grammar)
        self.hidden = hidden_kinds(programs.config.data.grammar)
        self.batch = self.sampler.batch
        # With fewer, each of the three queues could lack a row.
        self.rows = self.batch if self.one_shot else 3 * (self.batch - 1) + 1
        self.pool = programs.make_pool(self.rows)
        capacity = self.sampler.max_context
        self.visible_from = np.full((self.rows + 1, capacity), NEVER, np.int32)
        self.visible_to = np.full((self.rows + 1, capacity), PAD_ORDER, np.int32)
        self.free = list(range(self.rows))
        self.texts: collections.deque[Reading] = collections.deque()
        self.pictures: collections.deque[Shown] = collections.deque()
        self.queues: dict[Next, collections.deque[tuple[int, Painting]]] = {
            Next.TEXT: collections.deque(),
            Next.IMAGE: collections.deque(),
            Next.END: collections.deque(),
        }
        self.done: list[Painting] = []
        self.unfinished = unfinished
        self.changed: list[Painting] = []
        self.usage = Usage() if usage is None else usage

    def run(self) -> Iterator[Trajectory]:
        """Yields paintings as they are finished."""
        exhausted = False
        while True:
            if self.stop():
                self._stop_all()
                exhausted = True
            while self.free and not exhausted:
                request = next(self.requests, None)
                if request is None:
                    exhausted = True
                else:
                    self._admit(request)
            calls: list[tuple[int, Callable[[], None]]] = [
                (len(self.texts), self._read_texts),
                (len(self.pictures), self._read_pictures),
                (len(self.queues[Next.TEXT]), self._write_texts),
                (len(self.queues[Next.IMAGE]), self._paint),
                (len(self.queues[Next.END]), self._paint_again),
            ]
            waiting, call = max(calls, key=lambda pair: min(pair[0], self.batch))
            if waiting:
                call()
            for painting in (*self.changed, *self.done):
                yield painting.trajectory(time.monotonic())
            self.changed.clear()
            self.done.clear()
            if exhausted and not self._waiting():
                return

    def _waiting(self) -> int:
        """Rows that wait for anything."""
        return len(self.texts) + len(self.pictures) + sum(map(len, self.queues.values()))

    def _take(self, queue: collections.deque[T]) -> list[T]:
        """A batch of those that wait longest."""
        return [queue.popleft() for _ in range(min(self.batch, len(queue)))]

    # ---- admission and dismissal -----------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        painting = Painting.of(request, self.mode, self.seed, self.sampler.max_images)
        tokens = prompt_tokens(painting, self.tokenizer, self.sampler.longest_prompt)
        if tokens is None:
            self.done.append(painting)
        else:
            self.texts.append((self.free.pop(), painting, request.prompt, self._closed(tokens)))

    def _closed(self, tokens: list[int]) -> list[int]:
        return [self.programs.ids.bos, *tokens, self.programs.ids.eos]

    def _queue(self, row: int, painting: Painting) -> None:
        """Puts a row where it waits next, or dismisses it."""
        if painting.part in (Part.PLAN, Part.REFINED_PLAN):
            painting.reserve_slot()
        if painting.wants is not Next.END and painting.length + self._need(painting) > (
            self.sampler.max_context
        ):
            painting.close("max_text")
        if painting.wants is Next.END:
            again = self.sampler.final_steps and painting.finish_reason in _COMPLETE
            if again and painting.moment is not None:
                self.queues[Next.END].append((row, painting))
                return
            self.visible_from[row] = NEVER
            self.visible_to[row] = PAD_ORDER
            self.free.append(row)
            self.done.append(painting)
            return
        if self.unfinished:
            self.changed.append(painting)
        if painting.given:
            self._hand(row, painting, painting.given.popleft())
        else:
            self.queues[painting.wants].append((row, painting))

    def _hand(self, row: int, painting: Painting, content: str | Image) -> None:
        """Lets a row read what it would otherwise write or paint."""
        if not isinstance(content, str):
            self.pictures.append((row, painting, content))
            return
        tokens = self._closed(self.tokenizer.encode(content))
        if len(tokens) > self.sampler.max_text:
            painting.close("refused", f"a given text has {len(tokens)} tokens: {content[:60]!r}")
            self._queue(row, painting)
        else:
            self.texts.append((row, painting, content, tokens))

    def _need(self, painting: Painting) -> int:
        """Cache slots that the next call may take."""
        if painting.wants is Next.TEXT:
            return self.sampler.max_text - len(painting.written)
        if painting.part is Part.ONE_SHOT:
            return 0
        return sum(self.programs.picture_tokens[kind] for kind in self.kinds)

    def _stop_all(self) -> None:
        waiting = [(row, p) for row, p, *_ in (*self.texts, *self.pictures)]
        for queue in self.queues.values():
            waiting.extend(queue)
            queue.clear()
        self.texts.clear()
        self.pictures.clear()
        for row, painting in waiting:
            # One that waits for its last picture to be painted again is not what it would be.
            painting.close("stopped")
            self._queue(row, painting)

    # ---- calls -----------------------------------------------------------------------------------

    def _rows(
        self, batch: Sequence[tuple[int, Painting]], moments: Sequence[Moment] | None = None
    ) -> Rows:
        spare = self.batch - len(batch)
        index = np.array([row for row, _ in batch] + [self.rows] * spare, np.int32)

        def column(*values: int) -> np.ndarray:
            return np.array([*values, *[0] * spare], np.int32)

        paintings = [painting for _, painting in batch]
        moments = moments or [painting.now for painting in paintings]
        pairs = list(zip(paintings, moments, strict=True))
        seeds = [(self.seed, p.index, p.sample, at.segment) for p, at in pairs]
        slots = bucket(max(p.length for p in paintings), self.sampler.max_context)
        return Rows(
            index_B=index,
            active_B=np.arange(self.batch) < len(batch),
            length_B=column(*(p.length for p in paintings)),
            order_B=column(*(at.order for at in moments)),
            position_B=column(*(at.position for at in moments)),
            slot_order_B=column(*(at.slot[0] for at in moments)),
            slot_position_B=column(*(at.slot[1] for at in moments)),
            visible_from_BxC=self.visible_from[index, :slots],
            visible_to_BxC=self.visible_to[index, :slots],
            seed_Bx4=np.array(seeds + [(0, 0, 0, 0)] * spare, np.uint32),
        )

    def _occupy(self, row: int, painting: Painting, count: int, orders: np.ndarray) -> None:
        """Notes on the host what a call wrote into a row's next `count` slots."""
        span = slice(painting.length, painting.length + count)
        self.visible_from[row, span] = orders
        self.visible_to[row, span] = FOREVER
        painting.length += count

    def _occupy_text(self, row: int, painting: Painting, count: int) -> None:
        self._occupy(row, painting, count, painting.order + np.arange(count))
        painting.order += count
        painting.position += count

    def _read_texts(self) -> None:
        """Reads prompts and given texts."""
        taken = self._take(self.texts)
        longest = max(len(tokens) for *_, tokens in taken)
        room = bucket(longest, _UNBOUNDED, _SHORTEST_PREFILL)
        batch = [(row, painting) for row, painting, *_ in taken]
        token_BxT = np.zeros((self.batch, room), np.int32)
        count_B = np.zeros(self.batch, np.int32)
        for i, (_, painting, _, tokens) in enumerate(taken):
            if painting.part in _PROMPTS:
                painting.reserve_slot()
            token_BxT[i, : len(tokens)] = tokens
            count_B[i] = len(tokens)
        rows = self._rows(batch)
        self.pool, logits = self.programs.prefill(self.weights, self.pool, rows, token_BxT, count_B)
        self.usage.add("read text", len(batch), self.batch)
        logits = np.asarray(logits)
        for i, (row, painting, text, tokens) in enumerate(taken):
            if painting.part in _PROMPTS:
                self._occupy_text(row, painting, len(tokens))
                painting.segments += 1
                painting.prompted(logits[i])
                self._queue(row, painting)
            else:
                self._occupy_text(row, painting, len(tokens))
                self._end_text(row, painting, text, logits[i])

    def _write_texts(self) -> None:
        """Writes on; rows that are closed leave, the others go on with the next call."""
        batch = self._take(self.queues[Next.TEXT])
        ids = self.programs.ids
        token_B, count_B = np.full(self.batch, ids.bos, np.int32), np.zeros(self.batch, np.int32)
        for i, (_, painting) in enumerate(batch):
            count_B[i] = len(painting.written)
            if painting.following is not None:
                token_B[i] = painting.following
        # While others wait, places that have become free are soon filled again.
        patience = max(1, len(batch) // _PATIENCE) if self._waiting() else len(batch)
        begun = Begun(token_B, count_B, np.int32(patience))
        rows = self._rows(batch)
        self.pool, written = self.programs.write_text(self.weights, self.pool, rows, begun)
        written = jax.device_get(written)
        turns, counts = int(written.turns), written.count_B
        self.usage.add("write text", int(counts[: len(batch)].sum()), self.batch * turns, turns)
        unfinished = []
        for i, (row, painting) in enumerate(batch):
            count = int(counts[i])
            painting.written += written.tokens_BxM[i, :count].tolist()
            painting.following = int(written.token_B[i])
            self._occupy_text(row, painting, count)
            if not written.closed_B[i]:
                unfinished.append((row, painting))
                continue
            text = self.tokenizer.decode(painting.written[1:-1])
            painting.written, painting.following = [], None
            self._end_text(row, painting, text, written.decisions_Bx3[i], bool(written.cut_B[i]))
        self.queues[Next.TEXT].extendleft(reversed(unfinished))

    def _end_text(
        self,
        row: int,
        painting: Painting,
        text: str,
        logits: Any,
        cut: bool = False,
    ) -> None:
        """Notes a text that lies in the cache now."""
        last_order = painting.order - 1
        inspecting = painting.part is Part.INSPECTION
        painting.segments += 1
        painting.wrote(text, logits, cut)
        if inspecting and painting.part in (Part.REFINED_PLAN, Part.REFINED):
            spans = [painting.spans[k] for k in self.hidden if k in painting.spans]
            hide(self.visible_to[row], spans, last_order)
        self._queue(row, painting)

    def _read_pictures(self) -> None:
        """Reads given pictures."""
        taken = self._take(self.pictures)
        batch = [(row, painting) for row, painting, _ in taken]
        given = self._canvas([image for *_, image in taken])
        self._end_pictures(batch, self._rows(batch), jax.device_put(given), 0)

    def _canvas(self, images: Sequence[Image | None]) -> np.ndarray:
        """Pictures of a call, black where there is none."""
        canvas = np.zeros((self.batch, *self.programs.size, 3), np.uint8)
        for place, image in zip(canvas, images, strict=False):
            if image is not None:
                place[:] = image
        return canvas

    def _denoise(
        self,
        batch: Sequence[tuple[int, Painting]],
        rows: Rows,
        earlier: Sequence[Image | None],
        steps: int,
        name: str,
    ) -> tuple[jax.Array, int]:
        """Pictures, and how often their velocity was evaluated.

        `earlier` are the pictures that come before them, which `sampler.later_start` begins with.
        """
        sampler = self.sampler
        shift, scale = sampler.timestep_shift, sampler.guidance
        if self.one_shot:
            scale = sampler.one_shot_guidance
        elif sampler.process_shift is not None:
            shift = sampler.process_shift
        starts = [1.0 if image is None else sampler.later_start for image in earlier]
        grids = [flow.time_grid(steps, shift, start) for start in starts]
        picture = self.programs.denoise(
            self.weights,
            self.pool,
            rows,
            scale != 1.0,
            course(grids, self.batch, scale),
            None if sampler.later_start == 1.0 or self.one_shot else self._canvas(earlier),
            image_guided=self.one_shot and scale > 1.0 and sampler.image_guidance > 1.0,
        )
        nfe = flow.evaluations(steps, sampler.solver)
        self.usage.add(name, nfe * len(batch), nfe * self.batch, nfe)
        return picture, nfe

    def _paint(self) -> None:
        batch, sampler = self._take(self.queues[Next.IMAGE]), self.sampler
        rows = self._rows(batch)
        for _, painting in batch:
            painting.moment = None if self.one_shot else painting.now
        steps = sampler.one_shot_steps if self.one_shot else sampler.denoise_steps
        earlier = [painting.picture for _, painting in batch]
        picture, nfe = self._denoise(batch, rows, earlier, steps, "denoise")
        self._end_pictures(batch, rows, picture, nfe)

    def _paint_again(self) -> None:
        """Paints last pictures once more, from where they were painted."""
        batch = self._take(self.queues[Next.END])
        moments = [painting.moment for _, painting in batch if painting.moment is not None]
        rows = self._rows(batch, moments)
        noise = [None] * len(batch)
        picture, nfe = self._denoise(batch, rows, noise, self.sampler.final_steps, "denoise again")
        pictures = np.asarray(picture)
        for i, (row, painting) in enumerate(batch):
            painting.repainted(pictures[i].copy(), nfe)
            self._queue(row, painting)

    def _end_pictures(
        self,
        batch: Sequence[tuple[int, Painting]],
        rows: Rows,
        picture: jax.Array,
        nfe: int,
    ) -> None:
        """Reads pictures, painted or given, into the caches where somebody will look at them."""
        logits = np.zeros((self.batch, 3), np.float32)
        if not self.one_shot:
            # The noised picture took an order of its own; its copies come after it.
            after = rows._replace(order_B=rows.order_B + 1)
            und = self.programs.und_copies(picture)
            self.pool, found = self.programs.read_picture(
                self.weights, self.pool, after, picture, und
            )
            self.usage.add("read picture", len(batch), self.batch)
            logits = np.asarray(found)
        pictures = np.asarray(picture)
        for i, (row, painting) in enumerate(batch):
            painting.order += 1
            painting.segments += 1
            if not self.one_shot:
                self._occupy_copies(row, painting)
            painting.painted(pictures[i].copy(), logits[i], nfe)
            self._queue(row, painting)

    def _occupy_copies(self, row: int, painting: Painting) -> None:
        painting.spans = {}
        for kind in self.kinds:
            count = self.programs.picture_tokens[kind]
            painting.spans[kind] = (painting.length, painting.length + count)
            self._occupy(row, painting, count, np.full(count, painting.order))
            painting.order += 1
            painting.position += 1
