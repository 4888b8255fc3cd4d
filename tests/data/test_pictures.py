from __future__ import annotations

import dataclasses

import numpy as np

from process_gen.core.batch import measure
from process_gen.core.configs import Config, DataConfig, GrammarConfig, ModelConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.core.grammar import Kind, to_segments
from process_gen.core.trajectory import Step, Trajectory
from process_gen.data import images
from process_gen.data.packing import settings_key
from process_gen.data.pictures import AS_THEY_ARE, picture_rule
from process_gen.data.rows import patch_sizes
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.strokes.plans import StrokesOptions, trajectory_at

MODEL = ModelConfig(
    codec="flux", patch=2, codec_channels=4, latent_grid=8, und_encoder="siglip", und_patch=14,
    und_grid=8, vae=VaeSizes(channels=32, multipliers=(1, 2), latent_channels=4),
)  # fmt: skip
CONFIG = Config(model=MODEL, data=DataConfig(image_size=16))


def test_pictures_reach_their_sizes_and_copies_share_them():
    segments = to_segments(trajectory_at(0, 1, StrokesOptions()), GrammarConfig())
    resized = picture_rule(CONFIG)(segments)
    blank = picture_rule(CONFIG)(segments, blank=True)
    by_kind = {}
    for before, after, outline in zip(segments, resized, blank, strict=True):
        if before.image is None:
            assert after is before
            continue
        side = 28 if before.kind is Kind.UND else 16
        assert after.image.shape == outline.image.shape == (side, side, 3)
        assert after.image.dtype == np.uint8 and not outline.image.any()
        by_kind.setdefault(before.kind, []).append(after.image)
    assert by_kind[Kind.NOISED][0] is by_kind[Kind.CLEAN][0]
    # Shrinking keeps the mean; the understanding copy shows the same picture.
    mean = np.mean(segments[2].image, (0, 1))
    np.testing.assert_allclose(by_kind[Kind.CLEAN][0].mean((0, 1)), mean, atol=3)
    np.testing.assert_allclose(by_kind[Kind.UND][0].mean((0, 1)), mean, atol=4)
    ids, sizes = token_ids(load_tokenizer()), patch_sizes(CONFIG)
    assert sizes.latent == 4
    assert measure(resized, ids, sizes) == measure(blank, ids, sizes)


def test_without_a_size_nothing_changes():
    segments = to_segments(trajectory_at(0, 1, StrokesOptions()), GrammarConfig())
    assert picture_rule(Config()) == AS_THEY_ARE
    same = picture_rule(Config())(segments)
    assert all(a is b for a, b in zip(same, segments, strict=True))
    # Plans of runs that were made before there was such a setting stay what they were.
    tokenizer, sizes = load_tokenizer(), patch_sizes(Config())
    key = settings_key(GrammarConfig(), tokenizer, sizes)
    assert key == settings_key(GrammarConfig(), tokenizer, sizes, picture_rule(Config()))
    assert key != settings_key(GrammarConfig(), tokenizer, sizes, picture_rule(CONFIG))


def test_pictures_of_any_shape_keep_their_aspect():
    rng = np.random.default_rng(0)

    def sizes_of(config, height, width):
        picture = rng.integers(0, 256, (height, width, 3), np.uint8)
        step = Step("<ins>a</ins><des>a</des>", picture, "fine")
        segments = to_segments(Trajectory("x", steps=(step,), final_image=picture), GrammarConfig())
        found = picture_rule(config)(segments)
        outline = picture_rule(config)(segments, blank=True)
        assert [None if s.image is None else s.image.shape for s in found] == [
            None if s.image is None else s.image.shape for s in outline
        ]
        by_kind = {s.kind: s.image.shape[:2] for s in found if s.image is not None}
        return by_kind[Kind.CLEAN], by_kind[Kind.UND]

    # Grids of 8 patches: latents of 4 px, from 16 to 32 px; understanding patches of 14 px.
    free = dataclasses.replace(CONFIG, data=DataConfig())
    assert sizes_of(free, 100, 50) == ((32, 16), (56, 28))
    assert sizes_of(free, 24, 30) == ((24, 32), (28, 42))  # 30 rounds to 28 or 32: half to even
    assert sizes_of(free, 8, 8) == ((16, 16), (28, 28))
    # A given size is that of the long side.
    assert sizes_of(CONFIG, 100, 50) == ((16, 8), (56, 28))
    assert sizes_of(CONFIG, 8, 8) == ((16, 16), (28, 28))


def test_the_release_takes_the_sizes_of_the_specification():
    model = dataclasses.replace(
        MODEL, latent_grid=64, und_grid=70, vae=VaeSizes(), codec_channels=16
    )
    rule = picture_rule(Config(model=model))
    assert (rule.latent, rule.und, rule.asked) == (
        images.VAE, images.VIT_EDIT, images.VIT_QUESTIONS,
    )  # fmt: skip
    for before, after in (((640, 480), (688, 512)), ((1920, 1080), (1024, 576))):
        assert rule.latent.size(*before) == after


def test_pictures_of_a_question_have_sizes_of_their_own_and_share_a_budget():
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in ((40, 90), (70, 30))]
    rule = picture_rule(dataclasses.replace(CONFIG, data=DataConfig()))

    def shown(trajectory, rule=rule, blank=False):
        segments = rule(to_segments(trajectory, GrammarConfig()), blank)
        return [s.image.shape[:2] for s in segments if s.kind is Kind.UND]

    asked = Trajectory("what?", mode="understand", inputs=tuple(pictures), text="noise")
    # A grid of 8 patches of 14 px, short sides of 42 px or more.
    assert shown(asked) == shown(asked, blank=True) == [(42, 98), (98, 42)]
    tight = dataclasses.replace(rule, asked=dataclasses.replace(rule.asked, max_pixels=6000))
    alone = dataclasses.replace(asked, inputs=tuple(pictures[:1]))
    assert shown(alone, tight) == [(42, 98)] != shown(asked, tight)[:1]
    # Partner: a picture that is to be edited has an edit's size.
    edited = Trajectory("x", mode="edit", inputs=tuple(pictures[:1]), final_image=pictures[1])
    assert shown(edited) == [(28, 56)]
