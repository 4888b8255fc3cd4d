"""Contexts read segment by segment, and the guidance branches that stand on them.

After `modeling/bagel/bagel.py` of BAGEL's repository.

BAGEL steers a picture with up to three contexts: all that was said and shown, the same without the
last text, and the texts alone. Each is a row of one batch with a cache, a length and positions of
its own. Segments are read into some rows at once; the branches of a velocity are one forward call.

Shapes are static: texts, pictures and caches are padded to a few sizes, so that little is compiled
anew for the next request.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Place, TokenIds
from process_gen.core.configs import Config, SamplerConfig
from process_gen.models import image_codecs
from process_gen.models.functional import ModelFns
from process_gen.models.transformer import Cache
from process_gen.models.unified import Streams
from process_gen.sampling import cache as caches
from process_gen.sampling.cache import FOREVER, OUTSIDE, Newest, Pool, Weights
from process_gen.sampling.text_decode import next_token

MAIN, TEXT_DROPPED, IMAGE_DROPPED = range(3)

_SHORTEST_TEXT, _SHORTEST_PICTURE, _SMALLEST_CACHE, _SHORTEST_READ = 16, 64, 1024, 64


def padded(count: int, smallest: int) -> int:
    """The size that `count` items are padded to: at most a quarter more, but whole `smallest`s."""
    unit = max(smallest, (1 << max(count - 1, 0).bit_length()) // 8)
    return -(-count // unit) * unit


def readable(used: int) -> int:
    """Slots of a cache that a call is handed when so many are used: 0, 64, 128, ... 1024, more.

    A short context does not pay for the room that a longer one may need.
    """
    if used > _SMALLEST_CACHE:
        return padded(used, _SMALLEST_CACHE)
    return max(_SHORTEST_READ, 1 << (used - 1).bit_length()) if used else 0


class Segment(NamedTuple):
    """A run of tokens, without a batch axis; S = T + V + G, in this order.

    Attributes:
      token_T: int32.
      step_S: int32 order and position of a token after those of the segment's first one.
      slot_S: int32 slot of a token after the segment's first one; `OUTSIDE` where padded.
      patch_VxQ, patch_id_V: pixels in [-1, 1] of understanding patches, rows of their table.
      latent_GxP, latent_id_G: clean latents, rows of their table.
    """

    token_T: Any
    step_S: Any
    slot_S: Any
    patch_VxQ: Any
    patch_id_V: Any
    latent_GxP: Any
    latent_id_G: Any


class At(NamedTuple):
    """Where chosen rows of a pool stand: all ``int32[R]``, intervals ``int32[R, C]``.

    The C slots are the first ones of the pool, as many as `readable` says.
    """

    index_R: Any
    length_R: Any
    order_R: Any
    position_R: Any
    visible_from_RxC: Any
    visible_to_RxC: Any


class Branches(NamedTuple):
    """Which rows of an `At` guide: after the conditional one come those that are true here."""

    text_dropped: bool
    image_dropped: bool


@dataclasses.dataclass(frozen=True, eq=False)
class ContextPrograms:
    """The jitted pieces; compiled ones are kept for each object.

    Attributes:
      fns: the model.
      config: the run's settings.
      ids: special tokens.
      vocab_size: ids that the tokenizer knows; the model's table may be longer.
    """

    fns: ModelFns
    config: Config
    ids: TokenIds
    vocab_size: int

    @functools.cached_property
    def codec(self) -> image_codecs.Codec:
        """Pictures to latent tokens and back."""
        return image_codecs.build(self.config.model)

    # ---- segments --------------------------------------------------------------------------------

    def text(self, ids: Sequence[int]) -> Segment:
        """A causal run of tokens."""
        count, model = len(ids), self.config.model
        room = 1 if count == 1 else padded(count, _SHORTEST_TEXT)
        steps = np.arange(room, dtype=np.int32)
        return Segment(
            token_T=np.pad(np.asarray(ids, np.int32), (0, room - count)),
            step_S=steps,
            slot_S=np.where(steps < count, steps, OUTSIDE).astype(np.int32),
            patch_VxQ=np.zeros((0, model.und_features), np.float32),
            patch_id_V=np.zeros(0, np.int32),
            latent_GxP=np.zeros((0, model.latent_features), np.float32),
            latent_id_G=np.zeros(0, np.int32),
        )

    def picture(self, tokens: Any, table_ids: np.ndarray, *, latent: bool) -> Segment:
        """A clean picture between its boundary tokens.

        Args:
          tokens: ``[N, P]`` latents, or ``[N, Q]`` patches with pixels in [-1, 1].
          table_ids: int32 rows of the position table.
          latent: which of the two.
        """
        count = len(table_ids)
        room = padded(count, _SHORTEST_PICTURE)
        model = self.config.model
        body = jnp.pad(jnp.asarray(tokens, jnp.float32), ((0, room - count), (0, 0)))
        ids = np.pad(np.asarray(table_ids, np.int32), (0, room - count))
        slots = np.full(2 + room, OUTSIDE, np.int32)
        slots[0], slots[1], slots[2 : 2 + count] = 0, count + 1, 1 + np.arange(count)
        none = np.zeros(0, np.int32)
        return Segment(
            token_T=self._pair,
            step_S=np.zeros(2 + room, np.int32),
            slot_S=slots,
            patch_VxQ=np.zeros((0, model.und_features), np.float32) if latent else body,
            patch_id_V=none if latent else ids,
            latent_GxP=body if latent else np.zeros((0, model.latent_features), np.float32),
            latent_id_G=ids if latent else none,
        )

    @property
    def _pair(self) -> np.ndarray:
        return np.array([self.ids.image_start, self.ids.image_end], np.int32)

    # ---- pictures --------------------------------------------------------------------------------

    @functools.partial(jax.jit, static_argnums=0)
    def encode(
        self, weights: Weights, image_HxWx3: jax.Array, eps_NxP: jax.Array | None = None
    ) -> jax.Array:
        """Latent tokens ``[N, P]`` of a uint8 picture; without noise those of the mean."""
        eps_1xNxP = None if eps_NxP is None else eps_NxP[None]
        return self.codec.encode_pictures(weights.vae, image_HxWx3[None], eps_1xNxP)[0]

    @functools.partial(jax.jit, static_argnums=(0, 3, 4))
    def decode(self, weights: Weights, latent_NxP: jax.Array, rows: int, columns: int) -> jax.Array:
        """A uint8 picture of latent tokens."""
        return self.codec.decode(weights.vae, latent_NxP[None], rows, columns)[0]

    # ---- forward calls ---------------------------------------------------------------------------

    def _streams(
        self, order_R: jax.Array, position_R: jax.Array, segment: Segment, t: Any
    ) -> tuple[Streams, Place]:
        """A segment as it stands in each row, and the places of all its tokens."""
        rows = order_R.shape[0]
        used_1xS = jnp.asarray(segment.slot_S)[None] < OUTSIDE
        step_1xS = jnp.asarray(segment.step_S)[None]
        order = order_R[:, None] + step_1xS
        place = Place(
            order=jnp.where(used_1xS, order, PAD_ORDER),
            visible_from=jnp.where(used_1xS, order, NEVER),
            visible_to=jnp.broadcast_to(jnp.where(used_1xS, FOREVER, PAD_ORDER), order.shape),
            position=position_R[:, None] + step_1xS,
        )
        sizes = (len(segment.token_T), len(segment.patch_id_V), len(segment.latent_id_G))
        cuts = np.cumsum(sizes)[:2]
        parts = [jnp.split(whole, cuts, 1) for whole in place]
        text, und, gen = (Place(*part) for part in zip(*parts, strict=True))

        def repeated(one: Any) -> jax.Array:
            return jnp.broadcast_to(jnp.asarray(one)[None], (rows, *one.shape))

        used_V = used_1xS[0, sizes[0] : sizes[0] + sizes[1]]
        streams = Streams(
            text=text,
            und=und,
            gen=gen,
            token_BxT=repeated(segment.token_T),
            patch_BxVxQ=repeated(segment.patch_VxQ),
            patch_id_BxV=repeated(segment.patch_id_V),
            latent_BxGxP=repeated(segment.latent_GxP),
            latent_id_BxG=repeated(segment.latent_id_G),
            t_BxG=jnp.full((rows, sizes[2]), t, jnp.float32),
            patch_image_BxV=repeated(jnp.where(used_V, 0, PAD_ORDER)),
        )
        return streams, place

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def read(
        self, weights: Weights, pool: Pool, at: At, segment: Segment
    ) -> tuple[Pool, jax.Array]:
        """Reads a segment into the rows; returns the pool and normed text states ``[R, T, D]``."""
        streams, _ = self._streams(at.order_R, at.position_R, segment, 0.0)
        context = _read(pool, at)
        out = self.fns.forward(weights.model, streams, context)
        slot_RxS = at.length_R[:, None] + segment.slot_S[None]
        return caches.write_read(pool, at.index_R, slot_RxS, out, context), out.hidden_BxTxD

    def _velocity(
        self, weights: Weights, read: list[Cache], at: At, x_NxP: jax.Array, id_N: Any, t: Any
    ) -> jax.Array:
        count = x_NxP.shape[0]
        slots = np.arange(2 + count, dtype=np.int32)
        none = np.zeros(0, np.int32)
        patches = np.zeros((0, self.config.model.und_features), np.float32)
        query = Segment(self._pair, slots * 0, slots, patches, none, x_NxP, id_N)
        streams, _ = self._streams(at.order_R, at.position_R, query, t)
        output = self.fns.forward(weights.model, streams, read).output_BxGxP
        prediction, min_t = self.config.model.prediction, self.config.loss.min_t
        return flow.to_velocity(output, streams.latent_BxGxP, t, prediction, min_t)

    @functools.partial(jax.jit, static_argnums=0)
    def velocities(
        self, weights: Weights, pool: Pool, at: At, x_NxP: jax.Array, id_N: Any, t: Any
    ) -> jax.Array:
        """Each row's velocity ``[R, N, P]`` of a noised picture; nothing is written."""
        return self._velocity(weights, _read(pool, at), at, x_NxP, id_N, t)

    @functools.partial(jax.jit, static_argnums=(0, 7, 8))
    def denoise(
        self,
        weights: Weights,
        pool: Pool,
        at: At,
        eps_NxP: jax.Array,
        id_N: Any,
        grid: Any,
        branches: Branches,
        sampler: SamplerConfig,
    ) -> jax.Array:
        """Paints one picture from noise; returns its latents ``float32[N, P]``.

        Args:
          weights: of the model.
          pool: caches, not written.
          at: the conditional row, then those of `branches`.
          eps_NxP: the noise.
          id_N: int32 rows of the latents' position table.
          grid: falling times.
          branches: those that run while guidance acts; outside its interval none does.
          sampler: solver and guidance; the scales are those of the modes other than process.
        """
        everything = _read(pool, at)
        first = At(*(part[:1] for part in at))
        alone = _read(pool, first)

        def plain(x_NxP: jax.Array, t: jax.Array) -> jax.Array:
            return self._velocity(weights, alone, first, x_NxP, id_N, t)[0]

        def guided(x_NxP: jax.Array, t: jax.Array) -> jax.Array:
            v = self._velocity(weights, everything, at, x_NxP, id_N, t)
            return guide(v, branches, sampler)

        def velocity(x_NxP: jax.Array, t: jax.Array) -> jax.Array:
            if not any(branches):
                return plain(x_NxP, t)
            acts = flow.guided_at(t, sampler.guidance_interval)
            return jax.lax.cond(acts, guided, plain, x_NxP, t)

        return flow.integrate(velocity, eps_NxP, jnp.asarray(grid), sampler.solver)

    @functools.partial(jax.jit, static_argnums=(0, 7))
    def write_text(
        self,
        weights: Weights,
        pool: Pool,
        at: At,
        seed_4: Any,
        temperature: Any,
        top_p: Any,
        longest: int,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Writes one text after a context, which stays as it is.

        Generation stops at ``<|im_end|>``, and at ``<|im_start|>``, behind which the reference cuts
        its texts off. Other special tokens and rows beyond the vocabulary are never chosen.

        Args:
          weights: of the model.
          pool: caches.
          at: one row.
          seed_4: see `cache.keys`.
          temperature, top_p: see `text_decode.next_token`.
          longest: tokens fed at most, ``<|im_start|>`` included.

        Returns:
          ``int32[longest]`` tokens after ``<|im_start|>``, their number, and whether it was cut.
        """
        ids = self.ids
        forbidden_W = np.arange(self.config.model.vocab_size) >= self.vocab_size
        forbidden_W[[ids.end_of_text, *(ids.specials - {ids.bos, ids.eos})]] = True
        key_1 = caches.keys(jnp.asarray(seed_4)[None])

        context = _read(pool, at)

        def body(carry: tuple) -> tuple:
            i, notes, newest, token_1, tokens_M, _ = carry
            notes = caches.note(notes, i - 1, newest)
            here = At(*at[:2], at.order_R + i, at.position_R + i, *at[4:])
            one = Segment(token_1, *_ONE, *self.text([0])[3:])
            streams, place = self._streams(here.order_R, here.position_R, one, 0.0)
            out = self.fns.forward(weights.model, streams, [*context, notes])
            newest = Newest(out.k_LxBxSxKxDh, out.v_LxBxSxKxDh, place.order[:, 0])
            logits_1xW = self.fns.logits(weights.model, out.hidden_BxTxD[:, 0])
            legal_1xW = jnp.where(forbidden_W[None], -jnp.inf, logits_1xW)
            keys_1 = jax.vmap(jax.random.fold_in, (0, None))(key_1, i)
            following_1 = next_token(legal_1xW, keys_1, temperature, top_p)
            done = (following_1[0] == ids.eos) | (following_1[0] == ids.bos)
            tokens_M = tokens_M.at[i].set(following_1[0])
            return i + 1, notes, newest, following_1, tokens_M, done

        def unfinished(carry: tuple) -> jax.Array:
            return (carry[0] < longest) & ~carry[-1]

        start = (
            jnp.int32(0),
            caches.make_notes(self.config.model, 1, longest),
            caches.nothing_new(self.config.model, 1),
            jnp.full(1, ids.bos, jnp.int32),
            jnp.zeros(longest, jnp.int32),
            jnp.bool_(False),
        )
        i, *_, tokens_M, done = jax.lax.while_loop(unfinished, body, start)
        # What followed the last token that may be fed is thrown away, as is a closing token.
        return tokens_M, i - 1, ~done


_ONE = (np.zeros(1, np.int32), np.zeros(1, np.int32))  # step and slot of a single token


def guide(v_RxNxP: jax.Array, branches: Branches, sampler: SamplerConfig) -> jax.Array:
    """The guided velocity ``[N, P]`` of the branches' velocities."""
    rest = iter(v_RxNxP[1:])
    text_dropped = next(rest)[None] if branches.text_dropped else None
    image_dropped = next(rest)[None] if branches.image_dropped else None
    return flow.guide(
        v_RxNxP[:1],
        text_dropped,
        image_dropped,
        text_scale=sampler.one_shot_guidance,
        image_scale=sampler.image_guidance,
        renorm=sampler.renorm,
        renorm_min=sampler.renorm_min,
    )[0]


def _read(pool: Pool, at: At) -> list[Cache]:
    return caches.read(pool, at.index_R, at.visible_from_RxC, at.visible_to_RxC)


class Contexts:
    """Rows that segments are read into.

    Attributes:
      pool: keys and values.
      length, order, position: ``int32[R]``: slots in use, and those of the next token.
      visible_from: ``int32[R, C]``; a token stays visible to all that follows.
    """

    def __init__(self, programs: ContextPrograms, weights: Weights, rows: int, slots: int = 1):
        """Empty contexts with room for `slots` tokens; more is made where it is needed."""
        self._programs, self._weights = programs, weights
        slots = padded(slots, _SMALLEST_CACHE)
        self.pool = caches.make_pool(programs.config.model, rows, slots)
        self.length, self.order, self.position = np.zeros((3, rows), np.int32)
        self.visible_from = np.full((rows, slots), NEVER, np.int32)

    def add_text(self, rows: Sequence[int], ids: Sequence[int]) -> jax.Array:
        """Appends a text of n tokens, boundary tokens included.

        Returns:
          Normed states ``[R, m, D]``, the text's first: m is n or more, for cutting the rest off is
          a program for each n.
        """
        steps = np.arange(len(ids), dtype=np.int32)
        return self._read(rows, self._programs.text(ids), steps, len(ids), len(ids))

    def add_picture(self, rows: Sequence[int], tokens: Any, ids: np.ndarray, latent: bool) -> None:
        """Appends a clean picture; see `ContextPrograms.picture`."""
        segment = self._programs.picture(tokens, ids, latent=latent)
        self._read(rows, segment, np.zeros(len(ids) + 2, np.int32), 1, 1)

    def _read(
        self, rows: Sequence[int], segment: Segment, steps: np.ndarray, orders: int, positions: int
    ) -> jax.Array:
        self.reserve(rows, len(steps))
        at = self.at(rows)
        self.pool, hidden = self._programs.read(self._weights, self.pool, at, segment)
        for row in rows:
            start = self.length[row]
            self.visible_from[row, start : start + len(steps)] = self.order[row] + steps
            self.length[row] += len(steps)
            self.order[row] += orders
            self.position[row] += positions
        return hidden

    def at(self, rows: Sequence[int]) -> At:
        """Where rows stand."""
        index = np.asarray(rows, np.int32)
        slots = readable(int(self.length[index].max()))
        used = np.arange(slots) < self.length[index][:, None]
        return At(
            index,
            self.length[index],
            self.order[index],
            self.position[index],
            self.visible_from[index, :slots],
            np.where(used, FOREVER, PAD_ORDER).astype(np.int32),
        )

    def reserve(self, rows: Sequence[int], count: int) -> None:
        """Makes room for `count` more tokens in each of the rows."""
        have = self.visible_from.shape[1]
        needed = int(self.length[list(rows)].max()) + count
        if needed <= have:
            return
        extra = padded(needed, _SMALLEST_CACHE) - have
        self.pool = caches.grown(self.pool, extra)
        self.visible_from = np.pad(self.visible_from, ((0, 0), (0, extra)), constant_values=NEVER)

    def fork(self) -> Contexts:
        """A copy that grows by itself."""
        other = object.__new__(Contexts)
        other._programs, other._weights = self._programs, self._weights
        other.pool = jax.tree.map(jnp.copy, self.pool)
        other.length, other.order = self.length.copy(), self.order.copy()
        other.position, other.visible_from = self.position.copy(), self.visible_from.copy()
        return other
