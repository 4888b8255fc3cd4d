"""BAGEL's own ways to answer a prompt and pictures: think, edit, understand (its `inferencer.py`).

The pictures come first, then the words. What a context sees:

    main          think prompt, pictures (both copies), words, the thought
    text-dropped  think prompt, pictures
    image-dropped think prompt, words

One painting is made at a time. What does not depend on the words is read once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image as PILImage

from process_gen.core import flow_matching as flow
from process_gen.core.batch import table_ids
from process_gen.core.configs import SamplerConfig
from process_gen.core.patches import patchify
from process_gen.core.settings import build
from process_gen.core.trajectory import Image, Trajectory
from process_gen.data.images import context_pictures, latent_rule, normalise, und_rule
from process_gen.data.tokenizer import Tokenizer
from process_gen.sampling import cache as caches
from process_gen.sampling.cache import Weights
from process_gen.sampling.contexts import (
    IMAGE_DROPPED,
    MAIN,
    TEXT_DROPPED,
    Branches,
    ContextPrograms,
    Contexts,
)
from process_gen.sampling.painting import Painting, Request, prompt_tokens

MODES = ("think", "edit", "understand")

# The release's own string, to the byte: a blank stands before the line break.
THINK_PROMPT = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process "
    "here </think> image here"
)

# Those of the release's notebook, instead of the run's own. Its 1000 tokens of a text count the
# opening boundary token, `max_text` counts both.
_TEXT = {"temperature": 0.0, "max_text": 1001}
_PAINT = {
    "one_shot_guidance": 4.0,
    "image_guidance": 1.0,
    "guidance_interval": (0.4, 1.0),
    "renorm": "global",
    "renorm_min": 0.0,
}
_EDIT = {
    **_PAINT,
    "image_guidance": 2.0,
    "guidance_interval": (0.0, 1.0),
    "renorm": "text_channel",
}


def sampler_settings(
    own: SamplerConfig, mode: str, pictures: bool, changes: Mapping[str, Any]
) -> SamplerConfig:
    """The settings of a request: the run's own, then the mode's, then the request's.

    Args:
      own: of the run.
      mode: of `core.trajectory.MODES`.
      pictures: whether the request has some; thinking before an edit takes the edit's guidance.
      changes: keys of `SamplerConfig`.

    Raises:
      ConfigError: an unknown key or a value out of range.
    """
    of_mode: dict[str, Any] = {}
    if mode in ("think", "edit"):
        of_mode |= _EDIT if pictures else _PAINT
    if mode in ("think", "understand"):
        of_mode |= _TEXT
    return build(SamplerConfig, {**dataclasses.asdict(own), **of_mode, **changes}, "sampler")


class Interleaver:
    """Answers requests that share their pictures."""

    def __init__(
        self,
        programs: ContextPrograms,
        weights: Weights,
        tokenizer: Tokenizer,
        sampler: SamplerConfig,
        mode: str,
        seed: int,
        requests: Iterator[Request],
        stop: Callable[[], bool],
        pictures: Sequence[Image],
        size: tuple[int, int] | None,
    ):
        """Args: see `Painter.stream`.

        Args:
          size: of the picture that is painted; by default that of the last given one, as it is
            resized for the autoencoder, or else the largest square.

        Raises:
          DataError: a given picture does not fit the model's position tables.
        """
        self.programs, self.weights, self.tokenizer = programs, weights, tokenizer
        self.sampler, self.mode, self.seed = sampler, mode, seed
        self.requests, self.stop, self.pictures = requests, stop, tuple(pictures)
        model, self.ids = programs.config.model, programs.ids
        self.paints = mode != "understand"
        rules = latent_rule(model), und_rule(model)
        self.copies = [
            context_pictures(PILImage.fromarray(picture), latent=self.paints, rules=rules)
            for picture in self.pictures
        ]
        self.size = size or (model.latent_grid * programs.codec.side,) * 2
        if size is None and self.copies and self.copies[-1][0] is not None:
            height, width, _ = self.copies[-1][0].shape
            self.size = height, width
        height, width = self.size
        self.table = table_ids(height, width, programs.codec.side, model.latent_grid)
        text = self.paints and sampler.one_shot_guidance > 1.0
        self.branches = Branches(text, text and sampler.image_guidance > 1.0)
        rows = [MAIN, *np.flatnonzero(self.branches) + 1]
        self.row = {name: i for i, name in enumerate(rows)}  # of a branch in the contexts

    def run(self) -> Iterator[Trajectory]:
        """Yields paintings in the order of the requests."""
        common: Contexts | None = None
        for request in self.requests:
            if self.stop():
                return
            painting = Painting.of(request, self.mode, self.seed, 1, self.pictures)
            tokens = prompt_tokens(painting, self.tokenizer, self.sampler.max_prompt)
            if tokens is not None:
                common = common or self._read_common()
                self._answer(painting, common.fork(), tokens)
            yield painting.trajectory(time.monotonic())

    def _rows(self, *names: int) -> list[int]:
        return [self.row[name] for name in names if name in self.row]

    def _bounded(self, tokens: Sequence[int]) -> list[int]:
        return [self.ids.bos, *tokens, self.ids.eos]

    def _read_common(self) -> Contexts:
        """What comes before the words."""
        model, codec = self.programs.config.model, self.programs.codec
        thinking = self._bounded(self.tokenizer.encode(THINK_PROMPT)) if self.thinks else []
        shown: list[tuple[Any, np.ndarray, bool]] = []
        for number, (first, second) in enumerate(self.copies):
            if first is not None:
                ids = _table_ids(first, codec.side, model.latent_grid)
                eps = None
                if codec.draws and self.sampler.sample_latents:
                    # All paintings of a request share what is read before the words.
                    seed_1x4 = jnp.array([[self.seed, number, 0, 0]], jnp.uint32)
                    eps = caches.noise(seed_1x4, (len(ids), model.latent_features), caches.READING)
                    eps = eps[0]
                latents = self.programs.encode(self.weights, jnp.asarray(first), eps)
                shown.append((latents, ids, True))
            patches = patchify(normalise(second), model.und_patch)
            ids = _table_ids(second, model.und_patch, model.und_grid)
            shown.append((patches, ids, False))
        slots = len(thinking) + sum(len(ids) + 2 for _, ids, _ in shown) + self.sampler.max_prompt
        slots += self.sampler.max_text if self.thinks or not self.paints else 0
        contexts = Contexts(self.programs, self.weights, len(self.row), slots)
        if thinking:
            contexts.add_text(list(self.row.values()), thinking)
        for tokens, ids, latent in shown:
            contexts.add_picture(self._rows(MAIN, TEXT_DROPPED), tokens, ids, latent)
        return contexts

    @property
    def thinks(self) -> bool:
        """Whether a thought is written before the picture."""
        return self.mode == "think"

    def _answer(self, painting: Painting, contexts: Contexts, tokens: list[int]) -> None:
        contexts.add_text(self._rows(MAIN, IMAGE_DROPPED), self._bounded(tokens))
        reason = "finished"
        if self.thinks or not self.paints:
            painting.text, cut = self._write(painting, contexts)
            reason = "max_text" if cut else reason
            if not self.paints and not painting.text.strip():
                reason = "malformed"
        if self.thinks:
            # Later tokens see the text as a reader would encode it, with both boundary tokens.
            thought = self._bounded(self.tokenizer.encode(painting.text or ""))
            contexts.add_text([MAIN], thought)
        if self.paints and self.stop():
            reason = "stopped"
        elif self.paints:
            painting.picture = self._paint(painting, contexts)
            painting.nfe = flow.evaluations(self.sampler.one_shot_steps, self.sampler.solver)
        painting.close(reason)

    def _seeds(self, painting: Painting) -> np.ndarray:
        painting.segments += 1
        numbers = (self.seed, painting.index, painting.sample, painting.segments)
        return np.array(numbers, np.uint32)

    def _write(self, painting: Painting, contexts: Contexts) -> tuple[str, bool]:
        """A text after the main context, and whether it was cut off."""
        sampler = self.sampler
        longest = sampler.max_text - 1  # the closing token is not fed
        tokens, count, cut = self.programs.write_text(
            self.weights,
            contexts.pool,
            contexts.at([MAIN]),
            self._seeds(painting),
            sampler.temperature,
            sampler.top_p,
            longest,
        )
        return self.tokenizer.decode(np.asarray(tokens)[: int(count)].tolist()), bool(cut)

    def _paint(self, painting: Painting, contexts: Contexts) -> Image:
        sampler, codec = self.sampler, self.programs.codec
        features = self.programs.config.model.latent_features
        eps = caches.noise(jnp.asarray(self._seeds(painting))[None], (len(self.table), features))
        latents = self.programs.denoise(
            self.weights,
            contexts.pool,
            contexts.at(list(self.row.values())),
            eps[0],
            self.table,
            flow.time_grid(sampler.one_shot_steps, sampler.timestep_shift),
            self.branches,
            sampler,
        )
        rows, columns = (side // codec.side for side in self.size)
        return np.asarray(self.programs.decode(self.weights, latents, rows, columns))


def _table_ids(image: Image, side: int, grid: int) -> np.ndarray:
    height, width, _ = image.shape
    return table_ids(height, width, side, grid)
