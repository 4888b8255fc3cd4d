"""BAGEL's modes on the tiny checkpoint: pictures against the reference's, contexts, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import process_gen
from launch import import_bagel
from launch.bench_timing import compilations
from process_gen.checkpoint import bagel
from process_gen.core.configs import Config
from process_gen.core.errors import CheckpointError, ConfigError, TrajectoryError
from process_gen.core.trajectory import validate
from process_gen.data.tokenizer import load_tokenizer
from process_gen.models.shapes import BAGEL
from process_gen.sampling import cache, interleaved
from process_gen.sampling.contexts import ContextPrograms, padded, readable
from process_gen.sampling.painter import Painter, check_mode

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
QUICK = {
    "one_shot_steps": 2,
    "denoise_steps": 2,
    "max_text": 5,
    "max_context": 512,
    "max_prompt": 64,
}
PICTURE = np.random.default_rng(0).integers(0, 256, (30, 22, 3), np.uint8)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import") / "D"
    source = FIXTURES / "checkpoint"

    def tokenizer(settings, rows):
        return import_bagel.tokenizer_text(source, "bytes", settings, rows)

    bagel.import_folder(source, folder, BAGEL, tokenizer)
    return folder


@pytest.fixture(scope="module")
def painter(imported):
    return process_gen.load(str(imported))


class Says:
    """A tokenizer for which every prompt has the given ids: the fixture's are no text."""

    def __init__(self, real, ids):
        self._real, self.ids = real, ids

    def __getattr__(self, name):
        return getattr(self._real, name)

    def encode(self, text):
        return [*self.ids] if text == "fixture" else self._real.encode(text)


def paint_fixture(painter, monkeypatch, name, variant, mode, params=None):
    """The picture of a fixture's variant, through the painter."""
    x = np.load(FIXTURES / f"{name}.npz")
    monkeypatch.setattr(cache, "noise", lambda seeds, shape: jnp.asarray(x["in.init_noise"])[None])
    says = Says(load_tokenizer(painter.config.data.tokenizer), x["in.text_0"].tolist())
    weights = painter.weights
    own = Painter(painter.config, params or weights.model, vae=weights.vae, tokenizer=says)
    setting = {key: x[f"in.{variant}.cfg_{key}"].tolist() for key in ("interval", "renorm_min")}
    pictures = []
    if mode == "edit":
        pictures = [x["in.vae_image_0_uint8"]]
        copies = (x["in.vae_image_0_uint8"], x["in.vit_image_0_uint8"])
        monkeypatch.setattr(interleaved, "context_pictures", lambda *_, **__: copies)
    (trajectory,) = own.paint(
        ["fixture"],
        mode=mode,
        size=tuple(x["in.image_shape"].tolist()),
        images=pictures,
        one_shot_steps=int(x["in.num_timesteps"]) - 1,
        timestep_shift=float(x["in.timestep_shift"]),
        one_shot_guidance=float(x[f"in.{variant}.cfg_text_scale"]),
        image_guidance=float(x[f"in.{variant}.cfg_img_scale"]),
        guidance_interval=tuple(setting["interval"]),
        renorm=str(x[f"in.{variant}.cfg_renorm_type"]),
        renorm_min=setting["renorm_min"],
        max_context=256,
        max_prompt=64,
        sample_latents=False,  # the fixtures use the mean
    )
    return trajectory.final_image.astype(int), x[f"out.{variant}.image_uint8"].astype(int)


@pytest.mark.parametrize(
    ("name", "variant", "mode"),
    [
        ("f_t2i_infer", "cfg_global", "one_shot"),
        ("g_edit_infer", "cfg_text_channel", "edit"),
    ],
)
def test_pictures_are_the_reference_s(painter, monkeypatch, name, variant, mode):
    got, wanted = paint_fixture(painter, monkeypatch, name, variant, mode)
    assert got.shape == wanted.shape and np.abs(got - wanted).max() <= 1
    other = jax.tree.map(lambda leaf: leaf, painter.weights.model)
    kernel = other["layers"]["gen"]["mlp"]["gate"]["kernel"]
    other["layers"]["gen"]["mlp"]["gate"]["kernel"] = kernel * 1.05
    changed, _ = paint_fixture(painter, monkeypatch, name, variant, mode, other)
    assert np.abs(changed - wanted).max() > 1  # partner


def test_every_mode_answers(painter):
    def one(mode, **more):
        (made,) = painter.paint(["a cat"], mode=mode, seed=3, **QUICK, **more)
        validate(made)
        assert made.mode == mode and made.prompt == "a cat"
        return made

    drawn = one("one_shot", size=(16, 24))
    assert drawn.final_image.shape == (16, 24, 3) and drawn.finish_reason == "finished"
    thought = one("think", size=(16, 24))
    assert thought.final_image.shape == (16, 24, 3) and thought.text is not None
    assert thought.finish_reason in ("finished", "max_text") and thought.sampled.nfe == 2
    edited = one("edit", images=[PICTURE])
    assert edited.final_image.shape == (32, 24, 3)  # that of the picture, in whole tokens
    assert np.array_equal(edited.inputs[0], PICTURE) and edited.text is None
    answer = one("understand", images=[PICTURE])
    assert answer.final_image is None and answer.text is not None and answer.sampled.nfe == 0
    process = one("process")
    assert process.finish_reason in ("max_text", "malformed") and process.steps


def test_what_is_given_matters_and_the_rest_does_not(painter):
    def paint(prompts, picture, **more):
        return painter.paint(prompts, mode="edit", images=[picture], seed=1, **QUICK, **more)

    both = paint(["a cat", "a dog"], PICTURE, num=2)
    assert [(t.sampled.index, t.sampled.sample) for t in both] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    alone = paint(["a cat"], PICTURE)[0].final_image
    np.testing.assert_array_equal(alone, both[0].final_image)
    for other in (
        both[1].final_image,
        paint(["a cow"], PICTURE)[0].final_image,
        paint(["a cat"], 255 - PICTURE)[0].final_image,
    ):
        assert not np.array_equal(alone, other)


def test_a_painted_picture_is_read_back_in_both_copies(painter, monkeypatch):
    """Process mode over the autoencoder: a plan, a sketch, its copies, an inspection."""
    plan = "<ins>add a dot</ins><des>a dot</des>"
    texts = iter([plan, "the picture is complete."])
    monkeypatch.setattr(painter, "_tokenizer", Says(painter._tokenizer, ()))
    monkeypatch.setattr(painter._tokenizer, "decode", lambda ids: next(texts), raising=False)
    decisions = []
    from process_gen.core.grammar import Next
    from process_gen.sampling.calls import Written
    from process_gen.sampling.painting import DECISIONS, Painting
    from process_gen.sampling.programs import Programs

    ids = painter._tokenizer

    def write_text(self, weights, pool, rows, begun):
        tokens = np.tile(np.array([ids.bos, ids.eos], np.int32), (1, 8))
        count = np.where(rows.active_B, 2, 0).astype(np.int32)
        pool, _ = self.prefill(weights, pool, rows, tokens, count)
        logits = np.array([[float(d is Next.END) for d in DECISIONS]])
        closed = count > 0
        return pool, Written(tokens, count, begun.token_B, closed, ~closed, logits, np.int32(2))

    painted = Painting.painted

    def note(self, image, logits, nfe):
        decisions.append(logits)
        painted(self, image, logits, nfe)

    monkeypatch.setattr(Programs, "write_text", write_text)
    monkeypatch.setattr(Painting, "painted", note)
    (made,) = painter.paint(["a dot"], size=(24, 32), seed=2, **QUICK)
    validate(made)
    assert made.finish_reason == "finished" and made.final_image.shape == (24, 32, 3)
    assert np.all(np.isfinite(decisions[0])) and np.ptp(decisions[0]) > 0


def test_a_prompt_that_cannot_be_read_is_refused(painter):
    prompts = [" ", "x" * 5000, "a cat"]
    made = painter.paint(prompts, mode="understand", images=[PICTURE], **QUICK)
    assert [t.finish_reason for t in made[:2]] == ["refused", "refused"]
    assert made[2].finish_reason != "refused"


def test_a_blank_answer_is_no_answer(painter, monkeypatch):
    monkeypatch.setattr(interleaved.Interleaver, "_write", lambda *_: (" \n", False))
    asked = {"images": [PICTURE], "mode": "understand"}
    (made,) = painter.paint(["a cat"], **asked, **QUICK)
    assert made.finish_reason == "malformed" and made.text == " \n"
    validate(made)  # so that it can be read back
    with pytest.raises(TrajectoryError, match="an answer is missing"):
        validate(dataclasses.replace(made, finish_reason="finished"))
    monkeypatch.setattr(interleaved.Interleaver, "_write", lambda *_: ("a cat", False))
    (made,) = painter.paint(["a cat"], **asked, **QUICK)
    assert made.finish_reason == "finished"


def test_stopping_closes_what_is_under_way(painter):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 3

    made = list(
        painter.stream(["a", "b", "c"], seed=3, mode="think", size=(16, 24), stop=stop, **QUICK)
    )
    assert [t.finish_reason == "stopped" for t in made] == [False, True]


def test_texts_are_greedy_and_end_where_they_should(painter):
    """Token by token, with the piece that the parity check runs, the same text comes out."""
    programs: ContextPrograms = painter._contexts
    ids = programs.ids
    contexts = interleaved.Contexts(programs, painter.weights, 1)
    contexts.add_text([0], [ids.bos, *b"what is this?", ids.eos])
    contexts.reserve([0], 8)
    tokens, count, cut = programs.write_text(
        painter.weights, contexts.pool, contexts.at([0]), np.zeros(4, np.uint32), 0.0, 1.0, 8
    )
    forbidden = [ids.image_start, ids.image_end, ids.end_of_text]
    token, wanted = ids.bos, []
    for _ in range(8):
        hidden = contexts.add_text([0], [token])
        logits = np.array(painter._fns.logits(painter.weights.model, hidden))[0, 0]
        logits[forbidden], logits[programs.vocab_size :] = -np.inf, -np.inf
        token = int(logits.argmax())
        if token in (ids.eos, ids.bos):
            break
        wanted.append(token)
    assert np.asarray(tokens)[: int(count)].tolist() == wanted[:7]
    assert bool(cut) == (len(wanted) == 8)


def test_a_prompt_of_another_length_compiles_nothing(painter):
    def paint(prompt):
        with compilations() as found:
            painter.paint([prompt], mode="edit", images=[PICTURE], seed=1, **QUICK)
        return found.count

    paint("a cat")
    assert paint("a grey dog") == 0
    assert paint("a cat " * 9) > 0  # more places than a short prompt has


def test_a_call_is_handed_the_slots_in_use(painter):
    programs: ContextPrograms = painter._contexts
    contexts = interleaved.Contexts(programs, painter.weights, 2)
    assert contexts.pool.k[0].shape[-1] == 1024
    shapes = {0: 0, 20: 64, 60: 128}  # tokens added, slots handed over
    for added, slots in shapes.items():
        if added:
            contexts.add_text([0], [5] * added)
        assert contexts.at([0]).visible_to_RxC.shape == (1, slots)
        assert contexts.at([0, 1]).visible_from_RxC.shape == (2, slots)
        assert contexts.at([1]).visible_to_RxC.shape == (1, 0)
    at = contexts.at([0, 1])
    assert ((at.visible_to_RxC > 0).sum(1) == [80, 0]).all()
    assert [readable(n) for n in (0, 1, 64, 65, 1024, 1025)] == [0, 64, 64, 128, 1024, 2048]


def test_settings_of_the_modes():
    own = dataclasses.replace(Config().sampler, one_shot_steps=7)

    def guidance(mode, pictures, **changes):
        s = interleaved.sampler_settings(own, mode, pictures, changes)
        assert s.one_shot_steps == 7
        return s.one_shot_guidance, s.image_guidance, s.guidance_interval, s.renorm

    assert guidance("edit", True) == (4.0, 2.0, (0.0, 1.0), "text_channel")
    assert guidance("think", False) == (4.0, 1.0, (0.4, 1.0), "global")
    assert guidance("think", True) == guidance("edit", True)
    assert guidance("edit", True, one_shot_guidance=3.0, image_guidance=1.5)[:2] == (3.0, 1.5)
    assert guidance("one_shot", False)[0] == own.one_shot_guidance
    assert [padded(n, 64) for n in (1, 64, 65, 4900)] == [64, 64, 128, 5120]


@pytest.mark.parametrize(
    ("mode", "pictures", "encoder", "words"),
    [
        ("edit", 0, "siglip", "needs a picture: --image"),
        ("understand", 0, "siglip", "needs a picture"),
        ("one_shot", 1, "siglip", "takes no --image"),
        ("edit", 1, "none", "no understanding encoder"),
        ("process", 0, "none", "no understanding encoder"),
        ("dream", 0, "siglip", "not one of"),
    ],
)
def test_modes_that_are_not_served(painter, mode, pictures, encoder, words):
    model = dataclasses.replace(painter.config.model, und_encoder=encoder)
    config = dataclasses.replace(painter.config, model=model)
    with pytest.raises(ConfigError, match=words):
        check_mode(config, mode, pictures)
    check_mode(config, "one_shot", 0)
    check_mode(config, "think", 0)
    for pixels in ("think", "edit", "understand"):
        with pytest.raises(ConfigError, match="no picture autoencoder"):
            check_mode(Config(), pixels, 1)


def test_a_checkpoint_without_its_autoencoder(painter):
    with pytest.raises(CheckpointError, match="autoencoder"):
        Painter(painter.config, painter.weights.model)


def test_pictures_that_are_read_are_drawn_from_the_autoencoder(painter):
    def edited(**more):
        settings = {**QUICK, **more}
        (made,) = painter.paint(["a cat"], mode="edit", images=[PICTURE], seed=1, **settings)
        return made.final_image

    assert np.array_equal(edited(), edited())
    assert not np.array_equal(edited(), edited(sample_latents=False))
