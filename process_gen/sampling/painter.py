"""Painting many prompts: two queues of rows, full batches, finished rows replaced.

A painting depends on the weights, the settings, the seed, the prompt's index and the sample's
number only, never on its batch mates.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from process_gen.checkpoint import bagel, manager
from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.configs import Config, SamplerConfig
from process_gen.core.errors import CheckpointError, ConfigError, DataError
from process_gen.core.grammar import Kind, Next, Part, context_kinds, hidden_kinds, prompt_text
from process_gen.core.settings import build
from process_gen.core.trajectory import Trajectory
from process_gen.data.images import painted_copy
from process_gen.data.tokenizer import Tokenizer, load_tokenizer, token_ids
from process_gen.models import functional, image_codecs
from process_gen.models.shapes import BAGEL
from process_gen.sampling.cache import FOREVER, Weights
from process_gen.sampling.painting import Painting, hide
from process_gen.sampling.programs import Programs, Rows

MODES = ("process", "one_shot")
_SHORTEST_PREFILL = 16


@dataclasses.dataclass(frozen=True)
class Request:
    """One painting to be made.

    Attributes:
      prompt: the user's words.
      metadata: what came with them, handed through.
      index: place of the prompt in the request.
      sample: number among the paintings of this prompt.
    """

    prompt: str
    metadata: Mapping[str, Any]
    index: int
    sample: int


class Painter:
    """Weights and settings, ready to paint.

    Attributes:
      config: of the run that made the weights.
      weights: of the model and of its codec.
      meta: what the checkpoint says of itself.
    """

    def __init__(
        self,
        config: Config,
        params: Any,
        *,
        vae: Any = None,
        tokenizer: Tokenizer | None = None,
        meta: Mapping[str, Any] | None = None,
    ):
        """Takes weights as `models.functional` gives them, and as `models.vae` does for its codec.

        Raises:
          CheckpointError: the codec's weights are missing.
        """
        if config.model.codec == "flux" and vae is None:
            raise CheckpointError("model.codec='flux' needs the autoencoder's weights")
        self.config = config
        self.meta = dict(meta or {})
        self.weights = Weights(params, vae)
        self._fns = functional.build(config.model)
        self._codec = image_codecs.build(config.model)
        self._tokenizer = tokenizer or load_tokenizer(config.data.tokenizer)
        self._programs: dict[tuple, Programs] = {}

    def paint(
        self,
        prompts: Sequence[str | Mapping[str, Any]],
        *,
        mode: str = "process",
        seed: int = 0,
        num: int = 1,
        size: tuple[int, int] | None = None,
        **settings: Any,
    ) -> list[Trajectory]:
        """Paints every prompt `num` times.

        Args:
          prompts: words, or mappings with a "prompt" (the rest is handed through as metadata).
          mode: "process", or "one_shot" for the bare prompt and one picture.
          seed: the same seed gives the same pictures.
          num: paintings a prompt.
          size: height and width in pixels; by default the largest square that the model knows.
          **settings: of `SamplerConfig`, instead of the run's own.

        Returns:
          ``len(prompts) * num`` trajectories, prompt-major. Malformed output closes a painting with
          its `finish_reason`; a prompt that cannot be read is "refused".

        Raises:
          ConfigError: an unknown mode or setting, a size that does not divide into patches.
          DataError: a mapping without a prompt.
        """
        done = self.stream(prompts, mode=mode, seed=seed, num=num, size=size, **settings)
        return sorted(done, key=lambda t: (t.sampled.index, t.sampled.sample))  # type: ignore

    def stream(
        self,
        prompts: Iterable[str | Mapping[str, Any]],
        *,
        mode: str = "process",
        seed: int = 0,
        num: int = 1,
        size: tuple[int, int] | None = None,
        stop: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> Iterator[Trajectory]:
        """Yields paintings as they are finished, in no particular order; see `paint`.

        `stop` is asked between calls to the device; once it answers True, what is under way is
        closed as "stopped" and nothing new is begun.
        """
        if mode not in MODES:
            raise ConfigError(f"mode {mode!r} is not one of {', '.join(MODES)}")
        if num < 1:
            raise ConfigError(f"num must be at least 1, got {num}")
        if not 0 <= seed < 2**32:
            raise ConfigError(f"seed must lie in [0, 2**32), got {seed}")
        sampler = build(
            SamplerConfig, {**dataclasses.asdict(self.config.sampler), **settings}, "sampler"
        )
        programs = self._bound(sampler, size or self._largest())
        requests = (
            Request(*read_prompt(prompt), index, sample)
            for index, prompt in enumerate(prompts)
            for sample in range(num)
        )
        return _Studio(self, programs, mode, seed, requests, stop or (lambda: False)).run()

    def _largest(self) -> tuple[int, int]:
        side = self.config.model.latent_grid * self._codec.side
        return side, side

    def _bound(self, sampler: SamplerConfig, size: tuple[int, int]) -> Programs:
        model = self.config.model
        cuts = [(self._codec.side, model.latent_grid)]
        if Kind.UND in context_kinds(self.config.data.grammar) and painted_copy(model) is None:
            cuts.append((model.und_patch, model.und_grid))
        for side, grid in cuts:
            for pixels in size:
                if pixels % side or not 0 < pixels // side <= grid:
                    raise ConfigError(
                        f"a picture of {size[0]}x{size[1]} px does not divide into 1 to {grid} "
                        f"patches of {side} px a side"
                    )
        key = (sampler, size)
        if key not in self._programs:
            self._programs[key] = Programs(
                fns=self._fns,
                config=self.config,
                ids=token_ids(self._tokenizer),
                vocab_size=self._tokenizer.vocab_size,
                sampler=sampler,
                size=size,
            )
        return self._programs[key]

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""
        return self._tokenizer


def load(path: str, *, weights: str = "ema", step: int | str = "latest") -> Painter:
    """Loads a painter from a run's working directory or from one checkpoint.

    Args:
      path: of the directory.
      weights: "ema" or "params".
      step: "latest", "best" or a number, for a working directory.

    Raises:
      CheckpointError: nothing usable is there, the autoencoder of the import that the run started
        from is gone, or the weights were trained with another tokenizer than `data.tokenizer` of
        their settings is now.
      ConfigError: unknown `weights`.
      DataError: that tokenizer cannot be read.
    """
    if weights not in ("ema", "params"):
        raise ConfigError(f"weights must be 'ema' or 'params', got {weights!r}")
    config, params, meta = manager.load_for_sampling(path, weights, step)  # type: ignore[arg-type]
    tokenizer = load_tokenizer(config.data.tokenizer)
    # Weights of other origin, imported ones for one, do not say.
    if meta.get("tokenizer") not in (None, tokenizer.fingerprint):
        where = config.data.tokenizer or "the one that comes with this version"
        raise CheckpointError(
            f"{meta['path']} was trained with tokenizer {meta['tokenizer']}; its data.tokenizer "
            f"({where}) is now {tokenizer.fingerprint}: put the file it was trained with back, or "
            "use the version of this project that trained it"
        )
    vae = None
    if config.model.codec == "flux":
        official = bagel.find_official(Path(path), Path(meta["path"]), config)
        vae = jax.device_put(bagel.load_vae(official, config.model.vae, BAGEL))
    return Painter(config, params, vae=vae, tokenizer=tokenizer, meta=meta)


def read_prompt(item: str | Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """``(prompt, metadata)`` of a string or a metadata object.

    Raises:
      DataError: neither, or an object without a "prompt".
    """
    if isinstance(item, str):
        return item, {}
    if isinstance(item, Mapping) and isinstance(item.get("prompt"), str):
        return item["prompt"], dict(item)
    raise DataError(f"a prompt is a string or an object with a 'prompt', got {str(item)[:80]!r}")


class _Studio:
    """Rows in flight. Twice a batch of them, so that one queue always holds a full batch."""

    def __init__(
        self,
        painter: Painter,
        programs: Programs,
        mode: str,
        seed: int,
        requests: Iterator[Request],
        stop: Callable[[], bool],
    ):
        self.programs = programs
        self.sampler = programs.sampler
        self.weights = painter.weights
        self.tokenizer = painter.tokenizer
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
        self.prompts: list[tuple[int, Painting, list[int]]] = []
        self.queues: dict[Next, collections.deque[tuple[int, Painting]]] = {
            Next.TEXT: collections.deque(),
            Next.IMAGE: collections.deque(),
        }
        self.done: list[Painting] = []

    def run(self) -> Iterator[Trajectory]:
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
            if self.prompts:
                self._read_prompts()
            else:
                queue = max(self.queues, key=lambda kind: len(self.queues[kind]))
                if self.queues[queue]:
                    work = self.queues[queue]
                    rows = [work.popleft() for _ in range(min(self.batch, len(work)))]
                    (self._write_texts if queue is Next.TEXT else self._paint)(rows)
            for painting in self.done:
                yield painting.trajectory(time.monotonic())
            self.done.clear()
            if exhausted and not self.prompts and not any(self.queues.values()):
                return

    # ---- admission and dismissal -----------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        painting = Painting(
            prompt=request.prompt,
            mode=self.mode,
            metadata=request.metadata,
            index=request.index,
            sample=request.sample,
            seed=self.seed,
            max_images=self.sampler.max_images,
            started=time.monotonic(),
        )
        try:
            tokens = self.tokenizer.encode(prompt_text(request.prompt, self.mode))
        except DataError as error:
            painting.close("refused", str(error))
        else:
            longest = self.sampler.max_prompt
            if not request.prompt.strip():
                painting.close("refused", "the prompt is empty")
            elif len(tokens) + 2 > longest:
                painting.close(
                    "refused", f"the prompt has {len(tokens)} tokens, more than {longest - 2}"
                )
            else:
                ids = self.programs.ids
                self.prompts.append((self.free.pop(), painting, [ids.bos, *tokens, ids.eos]))
                return
        self.done.append(painting)

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
        else:
            self.queues[painting.wants].append((row, painting))

    def _need(self, painting: Painting) -> int:
        """Cache slots that the next call may take."""
        if painting.wants is Next.TEXT:
            return self.sampler.max_text
        if painting.part is Part.ONE_SHOT:
            return 0
        return sum(self.programs.picture_tokens[kind] for kind in self.kinds)

    def _stop_all(self) -> None:
        waiting = [(row, p) for row, p, _ in self.prompts]
        for queue in self.queues.values():
            waiting.extend(queue)
            queue.clear()
        self.prompts.clear()
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

    def _read_prompts(self) -> None:
        taken = self.prompts[: self.batch]
        self.prompts = self.prompts[self.batch :]
        longest = max(len(tokens) for _, _, tokens in taken)
        bucket = _SHORTEST_PREFILL
        while bucket < longest:
            bucket *= 2
        batch = [(row, painting) for row, painting, _ in taken]
        token_BxT = np.zeros((self.batch, bucket), np.int32)
        count_B = np.zeros(self.batch, np.int32)
        for i, (_, painting, tokens) in enumerate(taken):
            painting.reserve_slot()
            token_BxT[i, : len(tokens)] = tokens
            count_B[i] = len(tokens)
        rows = self._rows(batch)
        self.pool, logits = self.programs.prefill(self.weights, self.pool, rows, token_BxT, count_B)
        logits = np.asarray(logits)
        for i, (row, painting) in enumerate(batch):
            self._occupy_text(row, painting, int(count_B[i]))
            painting.segments += 1
            painting.prompted(logits[i])
            self._queue(row, painting)

    def _write_texts(self, batch: list[tuple[int, Painting]]) -> None:
        self.pool, written = self.programs.write_text(self.weights, self.pool, self._rows(batch))
        written = jax.device_get(written)
        for i, (row, painting) in enumerate(batch):
            count = int(written.count_B[i])
            last_order = painting.order + count - 1
            inspecting = painting.part is Part.INSPECTION
            self._occupy_text(row, painting, count)
            painting.segments += 1
            text = self.tokenizer.decode(written.tokens_BxM[i, 1 : count - 1])
            painting.wrote(text, written.decisions_Bx3[i], bool(written.cut_B[i]))
            if inspecting and painting.part in (Part.REFINED_PLAN, Part.REFINED):
                spans = [painting.spans[k] for k in self.hidden if k in painting.spans]
                hide(self.visible_to[row], spans, last_order)
            self._queue(row, painting)

    def _paint(self, batch: list[tuple[int, Painting]]) -> None:
        sampler, rows = self.sampler, self._rows(batch)
        steps = sampler.one_shot_steps if self.one_shot else sampler.denoise_steps
        scale = sampler.one_shot_guidance if self.one_shot else sampler.guidance
        picture = self.programs.denoise(self.weights, self.pool, rows, scale != 1.0, steps, scale)
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
        nfe = flow.evaluations(steps, sampler.solver)
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
