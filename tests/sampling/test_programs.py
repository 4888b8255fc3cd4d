"""The cached path against one full forward pass over the same painting."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Dropout, Lengths, PatchSizes, lay_out, pack, stack
from process_gen.core.configs import Config, from_mapping
from process_gen.core.grammar import Kind, Part, prompt_text, to_segments
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models import functional
from process_gen.models.image_codecs import PixelCodec, normalise
from process_gen.models.unified import Streams
from process_gen.sampling.cache import FOREVER, Weights
from process_gen.sampling.calls import Begun, Rows, course
from process_gen.sampling.painting import DECISIONS
from process_gen.sampling.programs import Programs
from process_gen.strokes.plans import StrokesOptions, trajectory_at
from tests.lively import SMALLEST, lively

TOKENIZER = load_tokenizer()
IDS = token_ids(TOKENIZER)
SIZES = PatchSizes(latent=8, und=8, latent_grid=4, und_grid=4)
LENGTHS = Lengths(256, 96, 256)
PAINTING = trajectory_at(0, 1, StrokesOptions(misalignment=1.0, conflict=0.0, max_steps=3))


def make_config(context_images: str) -> Config:
    return from_mapping(
        {
            "model": SMALLEST,
            "data": {"grammar": {"context_images": context_images, "noise_copies": 1}},
            "sampler": {"batch": 2, "max_text": 48, "max_context": 448, "temperature": 0.0},
        }
    )


class Walk:
    """Feeds a known painting through the sampler's pieces, as row 1 of a batch of 2."""

    def __init__(self, config: Config):
        self.config = config
        fns = functional.build(config.model)
        self.fns = fns
        self.params = lively(jax.jit(fns.init)(jax.random.key(0)))
        self.programs = Programs(
            fns, config, IDS, TOKENIZER.vocab_size, config.sampler, size=(32, 32)
        )
        self.pool = self.programs.make_pool(3)
        capacity = config.sampler.max_context
        self.visible_from = np.full(capacity, NEVER, np.int32)
        self.visible_to = np.full(capacity, PAD_ORDER, np.int32)
        self.order = self.position = self.length = 0
        self.slot = (0, 0)

    def rows(self, segment: int = 0) -> Rows:
        def column(value):
            return np.array([0, value], np.int32)

        capacity = self.config.sampler.max_context
        return Rows(
            index_B=np.array([3, 1], np.int32),  # row 0 of the batch is idle
            active_B=np.array([False, True]),
            length_B=column(self.length),
            order_B=column(self.order),
            position_B=column(self.position),
            slot_order_B=column(self.slot[0]),
            slot_position_B=column(self.slot[1]),
            visible_from_BxC=np.stack([np.full(capacity, NEVER, np.int32), self.visible_from]),
            visible_to_BxC=np.stack([np.full(capacity, PAD_ORDER, np.int32), self.visible_to]),
            seed_Bx4=np.array([[0, 0, 0, 0], [5, 0, 0, segment]], np.uint32),
        )

    def reserve(self):
        self.slot = (self.order, self.position)
        self.order += 1

    def occupy(self, orders):
        span = slice(self.length, self.length + len(orders))
        self.visible_from[span], self.visible_to[span] = orders, FOREVER
        self.length += len(orders)

    def text(self, words: str) -> np.ndarray:
        tokens = [IDS.bos, *TOKENIZER.encode(words), IDS.eos]
        padded = np.zeros((2, 64), np.int32)
        padded[1, : len(tokens)] = tokens
        count = np.array([0, len(tokens)], np.int32)
        self.pool, logits = self.programs.prefill(
            Weights(self.params, None), self.pool, self.rows(), padded, count
        )
        self.occupy(self.order + np.arange(len(tokens)))
        self.order += len(tokens)
        self.position += len(tokens)
        return np.asarray(logits)[1]

    def denoise(self, guided: bool) -> np.ndarray:
        at = course([flow.time_grid(1, 1.0)] * 2, 2, 2.0)
        picture = self.programs.denoise(
            Weights(self.params, None), self.pool, self.rows(9), guided, at
        )
        return np.asarray(picture)[1]

    def read(self, image: np.ndarray) -> np.ndarray:
        self.order += 1  # that of the noised copy
        both = np.stack([np.zeros_like(image), image])
        self.pool, logits = self.programs.read_picture(
            Weights(self.params, None), self.pool, self.rows(), both
        )
        kinds = [Kind.CLEAN] if "vae" in self.config.data.grammar.context_images else []
        kinds += [Kind.UND] if "vit" in self.config.data.grammar.context_images else []
        for kind in kinds:
            self.occupy(np.full(self.programs.picture_tokens[kind], self.order))
            self.order += 1
            self.position += 1
        return np.asarray(logits)[1]


def full_forward(walk: Walk, dropout: Dropout):
    """All tokens at once, as in training; every noised copy is the noise that `denoise` has."""
    config = walk.config
    segments = to_segments(PAINTING, config.data.grammar)
    run = lay_out(segments, IDS, SIZES, dropout=dropout, rng=np.random.default_rng(0))
    batch = stack([pack([run], LENGTHS, SIZES)])
    key = jax.random.key(5)
    for number in (0, 0, 9):
        key = jax.random.fold_in(key, number)
    eps = np.asarray(jax.random.normal(key, (16, 192)))
    noised = batch.copy_BxG >= 0
    x = np.asarray(PixelCodec(8).encode(jnp.asarray(batch.latent_BxGxP)))
    x = np.where(noised[..., None], np.tile(eps, (LENGTHS.gen // 16, 1))[None], x)
    streams = Streams(
        *batch[:3],
        token_BxT=batch.token_BxT,
        patch_BxVxQ=normalise(batch.patch_BxVxQ),
        patch_id_BxV=batch.patch_id_BxV,
        latent_BxGxP=x,
        latent_id_BxG=batch.latent_id_BxG,
        t_BxG=noised.astype(np.float32),
    )
    out = walk.fns.forward(walk.params, streams)
    velocity = flow.to_velocity(out.output_BxGxP, x, 1.0, "x0", 0.05)
    logits = walk.fns.logits(walk.params, out.hidden_BxTxD)[0]
    decisions = np.asarray(logits)[:, [IDS.control(d) for d in DECISIONS]]
    closing = [
        i for i in range(run.lengths.text) if batch.token_BxT[0, i] in (IDS.eos, IDS.image_end)
    ]
    velocities = [np.asarray(velocity[0][batch.copy_BxG[0] == c]) for c in range(run.copies)]
    return segments, {i: decisions[c] for i, c in enumerate(closing)}, velocities, eps


@pytest.mark.parametrize("context_images", ["vae+vit", "vit", "vae"])
def test_cached_pieces_equal_one_forward_pass(context_images):
    walk = Walk(make_config(context_images))
    segments, decisions, velocities, eps = full_forward(walk, Dropout())
    _, _, dropped, _ = full_forward(walk, Dropout(text=1.0))
    assert not np.allclose(velocities[0], dropped[0], atol=1e-3)
    compared = targets = 0
    read = None
    for index, segment in enumerate(segments):
        if segment.kind is Kind.TEXT:
            if segment.part in (Part.PROMPT, Part.PLAN, Part.REFINED_PLAN):
                walk.reserve()
            found = walk.text(segment.text)
            np.testing.assert_allclose(found, decisions[index], rtol=0, atol=1e-5)
            compared += 1
        elif segment.kind is Kind.NOISED:
            c, u = velocities[targets], dropped[targets]
            for guided, v in ((False, c), (True, u + 2.0 * (c - u))):
                wanted = PixelCodec(8).decode(None, jnp.asarray(eps - v)[None], 4, 4)[0]
                difference = walk.denoise(guided).astype(int) - np.asarray(wanted).astype(int)
                assert np.abs(difference).max() <= 1
            targets += 1
        elif segment.image is not read:
            found = walk.read(segment.image)
            last = max(
                i for i, s in enumerate(segments) if s.part is segment.part and i <= index + 1
            )
            np.testing.assert_allclose(found, decisions[last], rtol=0, atol=1e-5)
            compared += 1
            read = segment.image
    assert compared >= 6 and targets >= 1
    assert {s.part for s in segments} >= {Part.PROMPT, Part.PLAN, Part.FAULT, Part.REFINED}


def test_another_word_in_the_cache_is_noticed():
    walks = [Walk(make_config("vit")) for _ in range(2)]
    logits = []
    for walk, word in zip(walks, ("red", "blue"), strict=True):
        walk.reserve()
        walk.text(prompt_text(f"a {word} circle", "process"))
        logits.append(walk.text("the same plan"))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_when_a_row_is_guided_is_its_own_affair():
    """Guidance begins late, and a mate that paints a later picture reaches that time sooner."""
    config = make_config("vit")
    rare = dataclasses.replace(
        config.sampler, guidance_interval=(0.2, 0.75), guidance_every=2, batch=2
    )
    walk = Walk(dataclasses.replace(config, sampler=rare))
    walk.text("two blue stars")
    grey = np.full((2, 32, 32, 3), 128, np.uint8)

    def paint(mate_start, scale=4.0):
        grids = [flow.time_grid(10, 1.0, start) for start in (mate_start, 1.0)]
        weights, rows = Weights(walk.params, None), walk.rows(9)
        at = course(grids, 2, scale)
        made = walk.programs.denoise(weights, walk.pool, rows, True, at, grey)
        return np.asarray(made)[1].astype(int)

    alone = paint(0.1)  # a mate that is never guided
    assert np.abs(alone - paint(0.6)).max() <= 1
    assert np.abs(alone - paint(0.1, scale=1.0)).max() > 1


def test_greedy_text_is_what_a_full_pass_would_choose():
    walk = Walk(make_config("vit"))
    walk.reserve()
    walk.text(prompt_text("a red circle", "process"))
    before, order, position = walk.length, walk.order, walk.position
    begun = Begun(np.full(2, IDS.bos, np.int32), np.zeros(2, np.int32), np.int32(1))
    walk.pool, written = walk.programs.write_text(
        Weights(walk.params, None), walk.pool, walk.rows(), begun
    )
    count = int(written.count_B[1])
    tokens = np.asarray(written.tokens_BxM)[1, :count]
    assert tokens[0] == IDS.bos and tokens[-1] == IDS.eos
    assert int(written.count_B[0]) == 0  # the idle row wrote nothing
    prompt = [IDS.bos, *TOKENIZER.encode(prompt_text("a red circle", "process")), IDS.eos]
    text = np.array([*prompt, *tokens], np.int32)
    orders = np.concatenate([1 + np.arange(before), order + np.arange(count)])
    positions = np.concatenate([np.arange(before), position + np.arange(count)])
    segments = walk.programs._text_streams(
        jnp.asarray(text)[None],
        type(walk.programs._text_streams(jnp.zeros((1, 1), jnp.int32), None).und)(
            *(
                jnp.asarray(x, jnp.int32)[None]
                for x in (orders, orders, orders * 0 + FOREVER, positions)
            )
        ),
    )
    out = walk.fns.forward(walk.params, segments)
    logits = np.array(walk.fns.logits(walk.params, out.hidden_BxTxD)[0])
    logits[:, [IDS.bos, IDS.image_start, IDS.image_end, IDS.end_of_text]] = -np.inf
    logits[:, TOKENIZER.vocab_size :] = -np.inf
    free = count - 1 - int(written.cut_B[1])  # a closing token that was forced was not chosen
    np.testing.assert_array_equal(logits.argmax(1)[before : before + free], tokens[1 : free + 1])
    assert len(set(tokens[1:-1])) > 1
