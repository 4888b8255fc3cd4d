"""Rows in flight: two queues, full batches, finished rows replaced."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.configs import SamplerConfig
from process_gen.core.grammar import Next, Part, context_kinds, hidden_kinds
from process_gen.core.trajectory import Image, Trajectory
from process_gen.data.tokenizer import Tokenizer
from process_gen.sampling.cache import FOREVER, Weights
from process_gen.sampling.painting import Painting, Request, hide, prompt_tokens
from process_gen.sampling.programs import Programs, Rows

_SHORTEST_PREFILL = 16
_PROMPTS = (Part.PROMPT, Part.BARE_PROMPT)


class Studio:
    """Rows in flight. Twice a batch of them, so that one queue always holds a full batch."""

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
        self.rows = self.batch if self.one_shot else 2 * self.batch
        self.pool = programs.make_pool(self.rows)
        capacity = self.sampler.max_context
        self.visible_from = np.full((self.rows + 1, capacity), NEVER, np.int32)
        self.visible_to = np.full((self.rows + 1, capacity), PAD_ORDER, np.int32)
        self.free = list(range(self.rows))
        self.texts: list[tuple[int, Painting, str, list[int]]] = []
        self.pictures: list[tuple[int, Painting, Image]] = []
        self.queues: dict[Next, collections.deque[tuple[int, Painting]]] = {
            Next.TEXT: collections.deque(),
            Next.IMAGE: collections.deque(),
        }
        self.done: list[Painting] = []
        self.unfinished = unfinished
        self.changed: list[Painting] = []

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
            if self.texts:
                self._read_texts()
            elif self.pictures:
                self._read_pictures()
            else:
                queue = max(self.queues, key=lambda kind: len(self.queues[kind]))
                if self.queues[queue]:
                    work = self.queues[queue]
                    rows = [work.popleft() for _ in range(min(self.batch, len(work)))]
                    (self._write_texts if queue is Next.TEXT else self._paint)(rows)
            for painting in (*self.changed, *self.done):
                yield painting.trajectory(time.monotonic())
            self.changed.clear()
            self.done.clear()
            waiting = self.texts or self.pictures or any(self.queues.values())
            if exhausted and not waiting:
                return

    # ---- admission and dismissal -----------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        painting = Painting.of(request, self.mode, self.seed, self.sampler.max_images)
        tokens = prompt_tokens(painting, self.tokenizer, self.sampler.max_prompt)
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
            return self.sampler.max_text
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
            painting.close("stopped")
            self._queue(row, painting)

    # ---- calls -----------------------------------------------------------------------------------

    def _rows(self, batch: Sequence[tuple[int, Painting]]) -> Rows:
        spare = self.batch - len(batch)
        index = np.array([row for row, _ in batch] + [self.rows] * spare, np.int32)

        def column(*values: int) -> np.ndarray:
            return np.array([*values, *[0] * spare], np.int32)

        paintings = [painting for _, painting in batch]
        seeds = [(self.seed, p.index, p.sample, p.segments) for p in paintings]
        return Rows(
            index_B=index,
            active_B=np.arange(self.batch) < len(batch),
            length_B=column(*(p.length for p in paintings)),
            order_B=column(*(p.order for p in paintings)),
            position_B=column(*(p.position for p in paintings)),
            slot_order_B=column(*(p.slot[0] for p in paintings)),
            slot_position_B=column(*(p.slot[1] for p in paintings)),
            visible_from_BxC=self.visible_from[index],
            visible_to_BxC=self.visible_to[index],
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
        taken, self.texts = self.texts[: self.batch], self.texts[self.batch :]
        longest = max(len(tokens) for *_, tokens in taken)
        bucket = _SHORTEST_PREFILL
        while bucket < longest:
            bucket *= 2
        batch = [(row, painting) for row, painting, *_ in taken]
        token_BxT = np.zeros((self.batch, bucket), np.int32)
        count_B = np.zeros(self.batch, np.int32)
        for i, (_, painting, _, tokens) in enumerate(taken):
            if painting.part in _PROMPTS:
                painting.reserve_slot()
            token_BxT[i, : len(tokens)] = tokens
            count_B[i] = len(tokens)
        rows = self._rows(batch)
        self.pool, logits = self.programs.prefill(self.weights, self.pool, rows, token_BxT, count_B)
        logits = np.asarray(logits)
        for i, (row, painting, text, tokens) in enumerate(taken):
            if painting.part in _PROMPTS:
                self._occupy_text(row, painting, len(tokens))
                painting.segments += 1
                painting.prompted(logits[i])
                self._queue(row, painting)
            else:
                self._end_text(row, painting, len(tokens), text, logits[i])

    def _write_texts(self, batch: list[tuple[int, Painting]]) -> None:
        self.pool, written = self.programs.write_text(self.weights, self.pool, self._rows(batch))
        written = jax.device_get(written)
        for i, (row, painting) in enumerate(batch):
            count = int(written.count_B[i])
            text = self.tokenizer.decode(written.tokens_BxM[i, 1 : count - 1])
            logits, cut = written.decisions_Bx3[i], bool(written.cut_B[i])
            self._end_text(row, painting, count, text, logits, cut)

    def _end_text(
        self,
        row: int,
        painting: Painting,
        count: int,
        text: str,
        logits: Any,
        cut: bool = False,
    ) -> None:
        """Notes a text of `count` tokens that lies in the cache now."""
        last_order = painting.order + count - 1
        inspecting = painting.part is Part.INSPECTION
        self._occupy_text(row, painting, count)
        painting.segments += 1
        painting.wrote(text, logits, cut)
        if inspecting and painting.part in (Part.REFINED_PLAN, Part.REFINED):
            spans = [painting.spans[k] for k in self.hidden if k in painting.spans]
            hide(self.visible_to[row], spans, last_order)
        self._queue(row, painting)

    def _read_pictures(self) -> None:
        """Reads given pictures."""
        taken, self.pictures = self.pictures[: self.batch], self.pictures[self.batch :]
        batch = [(row, painting) for row, painting, _ in taken]
        picture = np.zeros((self.batch, *self.programs.size, 3), np.uint8)
        for i, (*_, image) in enumerate(taken):
            picture[i] = image
        self._end_pictures(batch, self._rows(batch), jax.device_put(picture), 0)

    def _paint(self, batch: list[tuple[int, Painting]]) -> None:
        sampler, rows = self.sampler, self._rows(batch)
        steps = sampler.one_shot_steps if self.one_shot else sampler.denoise_steps
        scale = sampler.one_shot_guidance if self.one_shot else sampler.guidance
        picture = self.programs.denoise(
            self.weights,
            self.pool,
            rows,
            scale != 1.0,
            steps,
            scale,
            image_guided=self.one_shot and scale > 1.0 and sampler.image_guidance > 1.0,
        )
        self._end_pictures(batch, rows, picture, flow.evaluations(steps, sampler.solver))

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
