"""The jitted pieces of painting. Shapes are static, so that each is compiled once.

Every piece works on a batch of rows taken from a pool of KV caches that stays on the device. The
host keeps the integers (who sees what) and hands them in; the pieces write keys and values and
return what the walk over the grammar needs.
"""

from __future__ import annotations

import dataclasses
import functools

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
from process_gen.kernels.interval_attention import reads_pools
from process_gen.models import image_codecs
from process_gen.models.functional import ModelFns
from process_gen.models.transformer import Cache
from process_gen.models.unified import Streams
from process_gen.sampling import cache as caches
from process_gen.sampling.cache import FOREVER, OUTSIDE, Newest, Pool, Weights, empty_part, keys
from process_gen.sampling.calls import Begun, Course, Rows, Written
from process_gen.sampling.painting import DECISIONS
from process_gen.sampling.text_decode import next_token


@dataclasses.dataclass(frozen=True, eq=False)
class Programs:
    """The pieces, bound to a model and to settings that are fixed for a run.

    Equal to itself alone: jit caches a compiled piece per object.

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

    def _look(self, pool: Pool, rows: Rows, queries: int) -> list[Cache]:
        """The caches of a call with so many queries a row, which writes them afterwards or not."""
        seen = rows.visible_to_BxC.shape[1]
        as_it_lies = reads_pools(self.config.model.attention, queries, pool.k[0], seen)
        look = caches.look if as_it_lies else caches.read
        return look(pool, rows.index_B, rows.visible_from_BxC, rows.visible_to_BxC)

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
        streams = self._text_streams(token_BxT, place)
        context = self._look(pool, rows, token_BxT.shape[1])
        out = self.fns.forward(weights.model, streams, context)
        slot_BxT = jnp.where(used_BxT, rows.length_B[:, None] + step_T, OUTSIDE)
        pool = caches.write_read(pool, rows.index_B, slot_BxT, out, context)
        last_B = jnp.maximum(count_B - 1, 0)
        hidden_BxD = jnp.take_along_axis(out.hidden_BxTxD, last_B[:, None, None], 1)[:, 0]
        return pool, self._decisions(self.fns.logits(weights.model, hidden_BxD))

    @functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
    def write_text(
        self, weights: Weights, pool: Pool, rows: Rows, begun: Begun
    ) -> tuple[Pool, Written]:
        """Writes texts, one a row, token by token on the device.

        A row that has closed its text waits idly for its mates, so a call may end before all have:
        the others go on in a later call, where they stood. Written tokens stay beside the cache
        until then, so that no step moves the cache.

        Args:
          weights: see `Weights`.
          pool: donated.
          rows: of the call; lengths, orders and positions are those of the next token.
          begun: see `Begun`.
        """
        ids, sampler = self.ids, self.sampler
        batch, longest = rows.index_B.shape[0], sampler.max_text
        forbidden_W = np.zeros(self.config.model.vocab_size, bool)
        forbidden_W[list(ids.specials - {ids.eos})] = True
        # Rows of the table beyond the vocabulary are untrained.
        forbidden_W[self.vocab_size :] = True
        keys_B = keys(rows.seed_Bx4)
        context = self._look(pool, rows, 1)

        def body(carry: tuple) -> tuple:
            i, notes, newest, running_B, written = carry
            notes = caches.note(notes, i - 1, newest)
            token_B = written.token_B
            order_B = jnp.where(running_B, rows.order_B + i, PAD_ORDER)
            place = Place(
                order=order_B[:, None],
                visible_from=jnp.where(running_B, order_B, NEVER)[:, None],
                visible_to=jnp.where(running_B, FOREVER, PAD_ORDER)[:, None],
                position=(rows.position_B + i)[:, None],
            )
            streams = self._text_streams(token_B[:, None], place)
            out = self.fns.forward(weights.model, streams, [*context, notes])
            newest = Newest(out.k_LxBxSxKxDh, out.v_LxBxSxKxDh, order_B)
            logits_BxW = self.fns.logits(weights.model, out.hidden_BxTxD[:, 0])
            closing_B = running_B & (token_B == ids.eos)
            legal_BxW = jnp.where(forbidden_W, -jnp.inf, logits_BxW)
            place_B = begun.count_B + i  # in the text
            step_keys_B = jax.vmap(jax.random.fold_in)(keys_B, place_B)
            sampled_B = next_token(legal_BxW, step_keys_B, sampler.temperature, sampler.top_p)
            # The last place is kept for the closing token, which a text that is too long gets too.
            must_close_B = place_B == longest - 2
            decisions_Bx3 = self._decisions(logits_BxW)
            written = Written(
                tokens_BxM=written.tokens_BxM.at[:, i].set(jnp.where(running_B, token_B, 0)),
                count_B=written.count_B + running_B,
                token_B=jnp.where(must_close_B, ids.eos, sampled_B),
                closed_B=written.closed_B | closing_B,
                cut_B=written.cut_B
                | (running_B & ~closing_B & must_close_B & (sampled_B != ids.eos)),
                decisions_Bx3=jnp.where(closing_B[:, None], decisions_Bx3, written.decisions_Bx3),
                turns=i + 1,
            )
            return i + 1, notes, newest, running_B & ~closing_B, written

        def unfinished(carry: tuple) -> jax.Array:
            i, *_, running_B, written = carry
            patient = jnp.sum(written.closed_B) < begun.patience
            return (i < longest) & patient & jnp.any(running_B)

        nothing = Written(
            tokens_BxM=jnp.zeros((batch, longest), jnp.int32),
            count_B=jnp.zeros(batch, jnp.int32),
            token_B=jnp.asarray(begun.token_B, jnp.int32),
            closed_B=jnp.zeros(batch, bool),
            cut_B=jnp.zeros(batch, bool),
            decisions_Bx3=jnp.zeros((batch, len(DECISIONS)), jnp.float32),
            turns=jnp.int32(0),
        )
        room = caches.whole_strips(longest)
        notes = caches.make_notes(self.config.model, batch, room)
        newest = caches.nothing_new(self.config.model, batch)
        start = (jnp.int32(0), notes, newest, jnp.asarray(rows.active_B), nothing)
        turns, notes, newest, _, written = jax.lax.while_loop(unfinished, body, start)
        notes = caches.note(notes, turns - 1, newest)
        turn_1xM = jnp.arange(room)[None]
        slot_BxM = rows.length_B[:, None] + turn_1xM
        slot_BxM = jnp.where(turn_1xM < written.count_B[:, None], slot_BxM, OUTSIDE)
        return caches.keep(pool, rows.index_B, slot_BxM, notes), written

    @functools.partial(jax.jit, static_argnums=(0, 4), static_argnames="image_guided")
    def denoise(
        self,
        weights: Weights,
        pool: Pool,
        rows: Rows,
        guided: bool,
        course: Course,
        image_BxHxWx3: jax.Array | None = None,
        image_guided: bool = False,
    ) -> jax.Array:
        """Paints one picture a row over caches that are not written.

        Guidance branches are queries of the same call: an order and a position of their own are all
        that the text-dropped branch needs to see everything before the current plan and no more.
        Where no row wants that branch, outside the guidance interval and between the evaluations
        that `guidance_every` names, it does not run.

        Args:
          weights: see `Weights`.
          pool: caches.
          rows: of the call.
          guided: whether the text-dropped branch runs at all.
          course: times, steps and text guidance.
          image_BxHxWx3: uint8 pictures that rows which begin below t = 1 begin at.
          image_guided: whether `image_guidance` acts too. Its branch sees the texts only, and is
            the conditional one itself where there are no pictures.

        Returns:
          ``uint8[B, H, W, 3]``.
        """
        model, sampler, ids = self.config.model, self.sampler, self.ids
        batch, n = rows.index_B.shape[0], self._count(self.size, self.codec.side)
        und, patch, patch_id = empty_part(batch, model.und_features)
        context = self._look(pool, rows, n + 2)
        every = sampler.guidance_every
        always = tuple(sampler.guidance_interval) == (0.0, 1.0) and every == 1

        def velocities(x_BxNxP: jax.Array, t_B: jax.Array, branches: int) -> jax.Array:
            """``[B, branches * N, P]``, the conditional ones first."""

            def place(tokens: int) -> Place:
                orders = jnp.stack([rows.order_B, rows.slot_order_B][:branches], 1)
                positions = jnp.stack([rows.position_B, rows.slot_position_B][:branches], 1)
                order = jnp.repeat(orders, tokens, 1)
                return Place(order, order, order, jnp.repeat(positions, tokens, 1))

            pair = jnp.tile(jnp.array([ids.image_start, ids.image_end], jnp.int32), branches)
            latent_id = jnp.tile(jnp.asarray(self._latent_ids()), branches)
            x = jnp.tile(x_BxNxP, (1, branches, 1))
            streams = Streams(
                text=place(2),
                und=und,
                gen=place(n),
                token_BxT=jnp.broadcast_to(pair, (batch, 2 * branches)),
                patch_BxVxQ=patch,
                patch_id_BxV=patch_id,
                latent_BxGxP=x,
                latent_id_BxG=jnp.broadcast_to(latent_id, (batch, n * branches)),
                t_BxG=t_B[:, None],
                patch_image_BxV=patch_id,
            )
            output = self.fns.forward(weights.model, streams, context).output_BxGxP
            t = t_B[:, None, None]
            return flow.to_velocity(output, x, t, model.prediction, self.config.loss.min_t)

        def velocity(x: jax.Array, t_B: jax.Array, memory: tuple) -> tuple[jax.Array, tuple]:
            def both(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                conditional, dropped = jnp.split(velocities(x, t_B, 2), 2, 1)
                return conditional, dropped

            def alone(x: jax.Array) -> tuple[jax.Array, jax.Array]:
                conditional = velocities(x, t_B, 1)
                return conditional, conditional

            acts_B = flow.guided_at(t_B, sampler.guidance_interval)
            if not guided:
                conditional, dropped = alone(x)
            elif always:
                conditional, dropped = both(x)
            else:
                count_B, difference = memory  # guided evaluations so far
                # A row's guidance is its own, whoever else makes the branch run.
                fresh_B = acts_B & (count_B % every == 0)
                conditional, dropped = jax.lax.cond(jnp.any(fresh_B), both, alone, x)
                fresh = fresh_B[:, None, None]
                dropped = jnp.where(fresh, dropped, conditional - difference)
                difference = jnp.where(fresh, conditional - dropped, difference)
                memory = (count_B + acts_B, difference)
            acts = acts_B[:, None, None]
            v = flow.guide(
                conditional,
                dropped if guided else None,
                conditional if image_guided else None,
                text_scale=jnp.where(acts, course.scale, 1.0),
                image_scale=jnp.where(acts, sampler.image_guidance, 1.0),
                renorm=sampler.renorm,
                renorm_min=sampler.renorm_min,
            )
            return v, memory

        shape = (n, model.latent_features)
        start = caches.noise(rows.seed_Bx4, shape)
        grid = jnp.asarray(course.grid_BxN)
        if image_BxHxWx3 is not None:
            earlier = self.codec.encode_pictures(weights.vae, image_BxHxWx3, None)
            start = flow.interpolate(earlier, start, grid[:, :1, None])
        remembers = guided and not always
        memory = (jnp.zeros(batch, jnp.int32), jnp.zeros_like(start)) if remembers else ()
        latents = flow.integrate(
            velocity, start, grid, sampler.solver, steps=course.steps, memory=memory
        )
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
        offsets = self._copy_slots(kinds)
        context = self._look(pool, rows, len(offsets))
        out = self.fns.forward(weights.model, streams, context)
        # The model returns text, patches, latents; a copy's tokens take neighbouring slots.
        slot_BxS = rows.length_B[:, None] + jnp.asarray(offsets)[None]
        slot_BxS = jnp.where(active_Bx1, slot_BxS, OUTSIDE)
        pool = caches.write_read(pool, rows.index_B, slot_BxS, out, context)
        logits = self._decisions(self.fns.logits(weights.model, out.hidden_BxTxD[:, -1]))
        return pool, logits

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
