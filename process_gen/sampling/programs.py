"""The jitted pieces of painting. Shapes are static, so that each is compiled once.

Every piece works on a batch of rows taken from a pool of KV caches that stays on the device. The
host keeps the integers (who sees what) and hands them in; the pieces write keys and values and
return what the walk over the grammar needs.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Place, TokenIds, table_ids
from process_gen.core.configs import Config, SamplerConfig
from process_gen.core.grammar import Kind, context_kinds
from process_gen.core.patches import patchify
from process_gen.data import images
from process_gen.models import image_codecs
from process_gen.models.functional import ModelFns
from process_gen.models.transformer import Cache
from process_gen.models.unified import Streams
from process_gen.sampling import cache as caches
from process_gen.sampling.cache import FOREVER, Pool, Weights, empty_part, keys, write
from process_gen.sampling.painting import DECISIONS
from process_gen.sampling.text_decode import next_token


class Rows(NamedTuple):
    """The rows of one call.

    Attributes:
      index_B: int32 rows of the pool; unused ones point to the scratch row.
      active_B: bool, false for unused ones.
      length_B: int32 cache slots in use.
      order_B, position_B: int32, those of the first new token.
      slot_order_B, slot_position_B: int32, those of the text-dropped branch.
      visible_from_BxC, visible_to_BxC: int32 intervals of the cache slots.
      seed_Bx4: uint32: the request's seed, prompt index, sample and segment number.
    """

    index_B: Any
    active_B: Any
    length_B: Any
    order_B: Any
    position_B: Any
    slot_order_B: Any
    slot_position_B: Any
    visible_from_BxC: Any
    visible_to_BxC: Any
    seed_Bx4: Any


class Written(NamedTuple):
    """Texts written by one call.

    Attributes:
      tokens_BxM: int32, first ``<|im_start|>``, last ``<|im_end|>``, then 0.
      count_B: int32 tokens written, both included.
      cut_B: bool, the text was too long and was closed by force.
      decisions_Bx3: float32 logits of `painting.DECISIONS` at the closing token.
    """

    tokens_BxM: jax.Array
    count_B: jax.Array
    cut_B: jax.Array
    decisions_Bx3: jax.Array


def _cache(pool: Pool, rows: Rows) -> Cache:
    return Cache(
        pool.k[:, rows.index_B],
        pool.v[:, rows.index_B],
        rows.visible_from_BxC,
        rows.visible_to_BxC,
    )


def _put_back(pool: Pool, rows: Rows, cache: Cache) -> Pool:
    return Pool(
        pool.k.at[:, rows.index_B].set(cache.k_LxBxCxKxDh),
        pool.v.at[:, rows.index_B].set(cache.v_LxBxCxKxDh),
    )


@dataclasses.dataclass(frozen=True)
class Programs:
    """The pieces, bound to a model and to settings that are fixed for a run.

    Attributes:
      fns: the model.
      config: the run's settings.
      ids: special tokens.
      vocab_size: ids that the tokenizer knows; the model's table may be longer.
      sampler: settings of painting.
      size: height and width of a picture in pixels.
    """

    fns: ModelFns
    config: Config
    ids: TokenIds
    vocab_size: int
    sampler: SamplerConfig
    size: tuple[int, int]

    def __hash__(self) -> int:
        """Identity: jit caches a compiled piece per object."""
        return id(self)

    def __eq__(self, other: object) -> bool:
        """Identity, as for the hash."""
        return self is other

    def make_pool(self, rows: int) -> Pool:
        """Empty caches for `rows` rows and a scratch row."""
        return caches.make_pool(self.config.model, rows + 1, self.sampler.max_context)

    @property
    def picture_tokens(self) -> dict[Kind, int]:
        """Cache slots that each copy of a picture takes, boundary tokens included."""
        model = self.config.model
        return {
            Kind.CLEAN: self._count(self.size, self.codec.side) + 2,
            Kind.UND: self._count(self.und_size, model.und_patch) + 2,
        }

    @functools.cached_property
    def codec(self) -> image_codecs.Codec:
        """Pictures to latent tokens and back."""
        return image_codecs.build(self.config.model)

    @functools.cached_property
    def und_size(self) -> tuple[int, int]:
        """Height and width of a painted picture's understanding copy in pixels."""
        rule = images.painted_copy(self.config.model)
        if rule is None:
            return self.size
        width, height = rule.size(self.size[1], self.size[0])
        return height, width

    def und_copies(self, image_BxHxWx3: jax.Array) -> np.ndarray | None:
        """Understanding copies of painted pictures; None where they are the pictures themselves.

        On the host, for Pillow alone resizes as the model has learned it.
        """
        rule = images.painted_copy(self.config.model)
        if rule is None or Kind.UND not in context_kinds(self.config.data.grammar):
            return None
        return np.stack([rule.resized(image) for image in np.asarray(image_BxHxWx3)])

    @staticmethod
    def _count(size: tuple[int, int], side: int) -> int:
        return (size[0] // side) * (size[1] // side)

    def _text_streams(self, token_BxT: jax.Array, place: Place) -> Streams:
        model, batch = self.config.model, token_BxT.shape[0]
        und, patch, patch_id = empty_part(batch, model.und_features)
        gen, latent, latent_id = empty_part(batch, model.latent_features)
        return Streams(
            text=place,
            und=und,
            gen=gen,
            token_BxT=token_BxT,
            patch_BxVxQ=patch,
            patch_id_BxV=patch_id,
            latent_BxGxP=latent,
            latent_id_BxG=latent_id,
            t_BxG=latent_id.astype(jnp.float32),
            patch_image_BxV=patch_id,
        )

    def _decisions(self, logits_BxW: jax.Array) -> jax.Array:
        """``[B, 3]`` logits of `painting.DECISIONS`."""
        tokens = np.array([self.ids.control(following) for following in DECISIONS])
        return logits_BxW[:, tokens]

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def prefill(
        self, weights: Weights, pool: Pool, rows: Rows, token_BxT: jax.Array, count_B: jax.Array
    ) -> tuple[Pool, jax.Array]:
        """Reads a text (boundary tokens included) into the caches.

        Args:
          weights: see `Weights`.
          pool: donated.
          rows: of the call.
          token_BxT: int32, padded.
          count_B: int32 tokens that count.

        Returns:
          The pool, and the decisions' logits at each text's last token ``[B, 3]``.
        """
        step_T = jnp.arange(token_BxT.shape[1])[None]
        used_BxT = step_T < count_B[:, None]
        order_BxT = jnp.where(used_BxT, rows.order_B[:, None] + step_T, PAD_ORDER)
        place = Place(
            order=order_BxT,
            visible_from=jnp.where(used_BxT, order_BxT, NEVER),
            visible_to=jnp.where(used_BxT, FOREVER, PAD_ORDER),
            position=rows.position_B[:, None] + step_T,
        )
        cache = _cache(pool, rows)
        out = self.fns.forward(weights.model, self._text_streams(token_BxT, place), cache)
        capacity = cache.visible_to_BxC.shape[1]
        slot_BxT = jnp.where(used_BxT, rows.length_B[:, None] + step_T, capacity)
        cache = write(cache, out.k_LxBxSxKxDh, out.v_LxBxSxKxDh, place, slot_BxT)
        last_B = jnp.maximum(count_B - 1, 0)
        hidden_BxD = jnp.take_along_axis(out.hidden_BxTxD, last_B[:, None, None], 1)[:, 0]
        logits = self._decisions(self.fns.logits(weights.model, hidden_BxD))
        return _put_back(pool, rows, cache), logits

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def write_text(self, weights: Weights, pool: Pool, rows: Rows) -> tuple[Pool, Written]:
        """Writes one text segment a row, on the device from its first token to its last."""
        ids, sampler = self.ids, self.sampler
        batch, longest = rows.index_B.shape[0], sampler.max_text
        special = np.array([ids.bos, ids.image_start, ids.image_end, ids.end_of_text])
        forbidden_W = np.zeros(self.config.model.vocab_size, bool)
        forbidden_W[special] = True
        # Rows of the table beyond the vocabulary are untrained.
        forbidden_W[self.vocab_size :] = True
        keys_B = keys(rows.seed_Bx4)
        capacity = rows.visible_to_BxC.shape[1]

        def body(carry: tuple) -> tuple:
            i, cache, token_B, done_B, written = carry
            running_B = ~done_B
            order_B = rows.order_B + i
            place = Place(
                order=order_B[:, None],
                visible_from=order_B[:, None],
                visible_to=jnp.full((batch, 1), FOREVER, jnp.int32),
                position=(rows.position_B + i)[:, None],
            )
            out = self.fns.forward(
                weights.model, self._text_streams(token_B[:, None], place), cache
            )
            slot_B = jnp.where(running_B, rows.length_B + i, capacity)
            k, v = out.k_LxBxSxKxDh, out.v_LxBxSxKxDh
            cache = write(cache, k, v, place, slot_B[:, None])
            logits_BxW = self.fns.logits(weights.model, out.hidden_BxTxD[:, 0])
            closing_B = running_B & (token_B == ids.eos)
            legal_BxW = jnp.where(forbidden_W, -jnp.inf, logits_BxW)
            step_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
            sampled_B = next_token(legal_BxW, step_keys_B, sampler.temperature, sampler.top_p)
            # The last place is kept for the closing token, which a text that is too long gets too.
            must_close = i == longest - 2
            decisions_Bx3 = self._decisions(logits_BxW)
            written = Written(
                tokens_BxM=written.tokens_BxM.at[:, i].set(jnp.where(running_B, token_B, 0)),
                count_B=written.count_B + running_B,
                cut_B=written.cut_B
                | (running_B & ~closing_B & must_close & (sampled_B != ids.eos)),
                decisions_Bx3=jnp.where(closing_B[:, None], decisions_Bx3, written.decisions_Bx3),
            )
            token_B = jnp.where(must_close, ids.eos, sampled_B)
            return i + 1, cache, token_B, done_B | closing_B, written

        def unfinished(carry: tuple) -> jax.Array:
            return (carry[0] < longest) & ~jnp.all(carry[3])

        start = (
            jnp.int32(0),
            _cache(pool, rows),
            jnp.full(batch, ids.bos, jnp.int32),
            ~rows.active_B,
            Written(
                jnp.zeros((batch, longest), jnp.int32),
                jnp.zeros(batch, jnp.int32),
                jnp.zeros(batch, bool),
                jnp.zeros((batch, len(DECISIONS)), jnp.float32),
            ),
        )
        _, cache, _, _, written = jax.lax.while_loop(unfinished, body, start)
        return _put_back(pool, rows, cache), written

    @functools.partial(jax.jit, static_argnums=(0, 4, 5), static_argnames="image_guided")
    def denoise(
        self,
        weights: Weights,
        pool: Pool,
        rows: Rows,
        guided: bool,
        steps: int,
        scale: jax.Array | float,
        image_guided: bool = False,
    ) -> jax.Array:
        """Paints one picture a row over caches that are not written.

        Guidance branches are queries of the same call: an order and a position of their own are all
        that the text-dropped branch needs to see everything before the current plan and no more.

        Args:
          weights: see `Weights`.
          pool: caches.
          rows: of the call.
          guided: whether the text-dropped branch runs.
          steps: velocity evaluations.
          scale: text guidance.
          image_guided: whether `image_guidance` acts too. Its branch sees the texts only, and is
            the conditional one itself where there are no pictures.

        Returns:
          ``uint8[B, H, W, 3]``.
        """
        model, sampler, ids = self.config.model, self.sampler, self.ids
        batch, n = rows.index_B.shape[0], self._count(self.size, self.codec.side)
        orders = [rows.order_B, rows.slot_order_B][: 1 + guided]
        positions = [rows.position_B, rows.slot_position_B][: 1 + guided]
        branches = len(orders)

        def place(tokens: int) -> Place:
            order = jnp.repeat(jnp.stack(orders, 1), tokens, 1)
            position = jnp.repeat(jnp.stack(positions, 1), tokens, 1)
            return Place(order, order, order, position)

        und, patch, patch_id = empty_part(batch, model.und_features)
        pair = jnp.tile(jnp.array([ids.image_start, ids.image_end], jnp.int32), branches)
        latent_id = jnp.tile(jnp.asarray(self._latent_ids()), branches)
        cache = _cache(pool, rows)

        def velocity(x_BxNxP: jax.Array, t: jax.Array) -> jax.Array:
            streams = Streams(
                text=place(2),
                und=und,
                gen=place(n),
                token_BxT=jnp.broadcast_to(pair, (batch, 2 * branches)),
                patch_BxVxQ=patch,
                patch_id_BxV=patch_id,
                latent_BxGxP=jnp.tile(x_BxNxP, (1, branches, 1)),
                latent_id_BxG=jnp.broadcast_to(latent_id, (batch, n * branches)),
                t_BxG=jnp.full((batch, n * branches), t),
                patch_image_BxV=patch_id,
            )
            output = self.fns.forward(weights.model, streams, cache).output_BxGxP
            x = streams.latent_BxGxP
            v = flow.to_velocity(output, x, t, model.prediction, self.config.loss.min_t)
            parts = jnp.split(v, branches, 1)
            low, high = sampler.guidance_interval
            acts = (low < t) & (t <= high)
            return flow.guide(
                parts[0],
                parts[1] if guided else None,
                parts[0] if image_guided else None,
                text_scale=jnp.where(acts, scale, 1.0),
                image_scale=jnp.where(acts, sampler.image_guidance, 1.0),
                renorm=sampler.renorm,
                renorm_min=sampler.renorm_min,
            )

        shape = (n, model.latent_features)
        eps = caches.noise(rows.seed_Bx4, shape)
        grid = jnp.asarray(flow.time_grid(steps, sampler.timestep_shift))
        latents = flow.integrate(velocity, eps, grid, sampler.solver)
        rows_columns = (side // self.codec.side for side in self.size)
        return self.codec.decode(weights.vae, latents, *rows_columns)

    def _latent_ids(self) -> np.ndarray:
        model = self.config.model
        return table_ids(*self.size, self.codec.side, model.latent_grid)

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def read_picture(
        self,
        weights: Weights,
        pool: Pool,
        rows: Rows,
        image_BxHxWx3: jax.Array,
        und_image_BxHxWx3: jax.Array | None = None,
    ) -> tuple[Pool, jax.Array]:
        """Reads pictures back into the caches, as the copies that later tokens see.

        The pictures are uint8, so that a stored trajectory gives the same context as the sampled
        one. Slots, orders and positions follow `core.batch`: each copy takes one order and one
        position, boundary tokens first.

        Args:
          weights: see `Weights`.
          pool: donated.
          rows: of the call.
          image_BxHxWx3: uint8 pictures.
          und_image_BxHxWx3: what `und_copies` made of them; None where it made nothing.

        Returns:
          The pool, and the decisions' logits at the last copy's closing token ``[B, 3]``.
        """
        model, ids = self.config.model, self.ids
        batch = rows.index_B.shape[0]
        kinds = context_kinds(self.config.data.grammar)
        active_Bx1 = rows.active_B[:, None]

        def place(kind: Kind, tokens: int) -> Place:
            ahead = kinds.index(kind)
            order = jnp.broadcast_to(rows.order_B[:, None] + ahead, (batch, tokens))
            position = jnp.broadcast_to(rows.position_B[:, None] + ahead, (batch, tokens))
            to = jnp.full((batch, tokens), FOREVER, jnp.int32)
            return Place(order, order, to, position)

        def joined(parts: list[Place]) -> Place:
            return Place(*(jnp.concatenate(p, 1) for p in zip(*parts, strict=True)))

        und, patch, patch_id = empty_part(batch, model.und_features)
        gen, latent, latent_id = empty_part(batch, model.latent_features)
        if Kind.UND in kinds:
            und_image = image_BxHxWx3 if und_image_BxHxWx3 is None else und_image_BxHxWx3
            patch = image_codecs.normalise(patchify(und_image, model.und_patch))
            table = jnp.asarray(table_ids(*self.und_size, model.und_patch, model.und_grid))
            patch_id = jnp.broadcast_to(table, (batch, len(table)))
            und = place(Kind.UND, len(table))
        if Kind.CLEAN in kinds:
            table = jnp.asarray(self._latent_ids())
            eps = None
            if self.codec.draws and self.sampler.sample_latents:
                shape = (len(table), model.latent_features)
                eps = caches.noise(rows.seed_Bx4, shape, caches.READING)
            latent = self.codec.encode_pictures(weights.vae, image_BxHxWx3, eps)
            latent_id = jnp.broadcast_to(table, (batch, len(table)))
            gen = place(Kind.CLEAN, len(table))
        text = joined([place(kind, 2) for kind in kinds])
        pairs = np.tile([ids.image_start, ids.image_end], len(kinds)).astype(np.int32)
        streams = Streams(
            text=text,
            und=und,
            gen=gen,
            token_BxT=jnp.broadcast_to(jnp.asarray(pairs), (batch, len(pairs))),
            patch_BxVxQ=patch,
            patch_id_BxV=patch_id,
            latent_BxGxP=latent,
            latent_id_BxG=latent_id,
            t_BxG=jnp.zeros(latent_id.shape),
            patch_image_BxV=jnp.zeros_like(patch_id),
        )
        cache = _cache(pool, rows)
        out = self.fns.forward(weights.model, streams, cache)
        # The model returns text, patches, latents; a copy's tokens take neighbouring slots.
        offsets = self._copy_slots(kinds)
        slot_BxS = rows.length_B[:, None] + jnp.asarray(offsets)[None]
        slot_BxS = jnp.where(active_Bx1, slot_BxS, rows.visible_to_BxC.shape[1])
        everything = joined([text, und, gen])
        k, v = out.k_LxBxSxKxDh, out.v_LxBxSxKxDh
        cache = write(cache, k, v, everything, slot_BxS)
        logits = self._decisions(self.fns.logits(weights.model, out.hidden_BxTxD[:, -1]))
        return _put_back(pool, rows, cache), logits

    def _copy_slots(self, kinds: tuple[Kind, ...]) -> np.ndarray:
        """Offsets of the new tokens, in the model's order, so that each copy is one span."""
        start, starts = 0, {}
        for kind in kinds:
            starts[kind] = start
            start += self.picture_tokens[kind]
        pairs = [starts[kind] + i for kind in kinds for i in (0, 1)]
        bodies = [
            np.arange(self.picture_tokens[kind] - 2) + starts[kind] + 2
            for kind in (Kind.UND, Kind.CLEAN)
            if kind in kinds
        ]
        return np.concatenate([np.array(pairs), *bodies]).astype(np.int32)
