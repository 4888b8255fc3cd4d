"""Painting many prompts: what is promised of a painting, whatever the model writes."""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
import pytest

from process_gen.checkpoint.manager import CheckpointManager
from process_gen.core.batch import Lengths, PatchSizes, lay_out, pack, stack
from process_gen.core.configs import from_mapping
from process_gen.core.errors import CheckpointError, ConfigError, DataError
from process_gen.core.grammar import Next, from_segments, to_segments
from process_gen.core.trajectory import validate
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.kernels.native_library import available
from process_gen.models import functional
from process_gen.sampling.calls import Written
from process_gen.sampling.painter import Painter, arranged, load
from process_gen.sampling.painting import DECISIONS
from process_gen.sampling.programs import Programs
from process_gen.train import optimizer, state, step
from tests.lively import SMALLEST, lively

PLAN = "<ins>add a dot</ins><des>a dot</des>"


class Says:
    """A tokenizer that reads written texts as given words: an untrained model's are noise."""

    def __init__(self, *texts: str):
        self._real = load_tokenizer()
        self.texts, self.asked = texts, 0
        names = "vocab_size bos eos image_start image_end end_of_text specials"
        for name in names.split():
            setattr(self, name, getattr(self._real, name))
        self.fingerprint = "says"

    def encode(self, text):
        return self._real.encode(text)

    def decode(self, ids):
        self.asked += 1
        return self.texts[min(self.asked, len(self.texts)) - 1]


CONFIG = from_mapping(
    {
        "model": SMALLEST,
        "sampler": {
            "batch": 2,
            "max_text": 6,
            "max_context": 256,
            "max_prompt": 32,
            "max_images": 2,
            "denoise_steps": 2,
            "one_shot_steps": 2,
            "temperature": 1.0,
        },
    }
)


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(functional.build(CONFIG.model).init)(jax.random.key(0))
    return lively(fresh)


@pytest.fixture(scope="module")
def painter(params):
    return Painter(CONFIG, params, tokenizer=Says(PLAN))


PROMPTS = ["a red circle", "two blue stars", "a white square above a green triangle"]


def pictures(trajectories):
    return [np.stack(t.images) for t in trajectories]


def equal(a, b):
    return all(np.array_equal(x, y) for x, y in zip(pictures(a), pictures(b), strict=True))


def test_one_shot_paints_every_prompt_num_times_in_order(painter):
    out = painter.paint([*PROMPTS[:2], {"prompt": PROMPTS[2], "tag": "x"}], mode="one_shot", num=2)
    assert [(t.sampled.index, t.sampled.sample) for t in out] == [
        (0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1),
    ]  # fmt: skip
    for trajectory in out:
        validate(trajectory)
        assert trajectory.finish_reason == "finished"
        assert trajectory.final_image.shape == (32, 32, 3)
        assert trajectory.sampled.nfe == 2 and not trajectory.steps
    assert out[4].metadata["tag"] == "x"
    assert not np.array_equal(out[0].final_image, out[1].final_image)


def test_the_same_seed_paints_the_same_and_batch_mates_do_not_matter(painter):
    everything = painter.paint(PROMPTS, mode="one_shot", seed=3, num=2)
    assert equal(everything, painter.paint(PROMPTS, mode="one_shot", seed=3, num=2))
    assert not equal(everything, painter.paint(PROMPTS, mode="one_shot", seed=4, num=2))
    alone = painter.paint(PROMPTS[:1], mode="one_shot", seed=3)
    assert np.array_equal(alone[0].final_image, everything[0].final_image)


@pytest.fixture
def script(monkeypatch, params):
    """Paints one prompt whose texts and decisions are given, over real caches and pictures."""

    def play(*lines, **settings):
        texts, decisions = [line[0] for line in lines], [line[1] for line in lines]
        tokenizer = Says(*texts)

        def write_text(self, params, pool, rows, begun):
            token_BxT = np.tile(np.array([tokenizer.bos, tokenizer.eos], np.int32), (2, 8))
            count_B = np.where(rows.active_B, 2, 0).astype(np.int32)
            pool, _ = self.prefill(params, pool, rows, token_BxT, count_B)
            wanted = decisions[min(tokenizer.asked, len(decisions) - 1)]
            logits = np.tile([float(d is wanted) for d in DECISIONS], (2, 1))
            closed, cut = count_B > 0, count_B * 0 + (wanted == "cut")
            return pool, Written(
                token_BxT, count_B, begun.token_B, closed, cut, logits, np.int32(2)
            )

        monkeypatch.setattr(Programs, "write_text", write_text)
        painter = Painter(CONFIG, params, tokenizer=tokenizer)
        (trajectory,) = painter.paint(PROMPTS[:1], **settings)
        validate(trajectory)
        return trajectory

    return play


FINE = "the picture is complete."
FAULT = "the circle is green. <refine>change it to red</refine>"


def test_a_painting_without_faults(script):
    out = script((PLAN, Next.TEXT), (FINE, Next.TEXT), (PLAN, Next.TEXT), (FINE, Next.END))
    assert out.finish_reason == "finished"
    assert [s.plan for s in out.steps] == [PLAN, PLAN]
    assert [s.inspection for s in out.steps] == [FINE, FINE]
    assert len(out.images) == 2 and out.sampled.nfe == 4
    assert np.array_equal(out.final_image, out.steps[1].sketch)
    assert not np.array_equal(out.steps[0].sketch, out.steps[1].sketch)


def test_a_misalignment_is_repainted_at_once(script):
    out = script((PLAN, Next.TEXT), (FAULT, Next.IMAGE))
    step = out.steps[0]
    assert step.rejected and step.refined is not None and step.refined_plan is None
    assert np.array_equal(out.steps[-1].image, out.final_image)


def test_a_conflict_is_planned_anew(script):
    corrected = "<ins>add another dot</ins><des>a dot</des>"
    out = script((PLAN, Next.TEXT), (FAULT, Next.TEXT), (corrected, Next.TEXT), (FINE, Next.END))
    assert out.steps[0].refined_plan == corrected
    assert out.steps[0].refined is not None


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([("no tags at all", Next.TEXT)], "malformed"),
        ([(PLAN, Next.TEXT), ("bad <refine>never closed", Next.TEXT)], "malformed"),
        ([(PLAN, "cut")], "max_text"),
        ([(PLAN, Next.TEXT), (FINE, Next.TEXT)] * 9, "max_images"),
    ],
)
def test_whatever_is_written_ends_with_a_reason(script, lines, reason):
    out = script(*lines)
    assert out.finish_reason == reason
    assert len(out.images) <= CONFIG.sampler.max_images


def test_a_full_cache_closes_a_painting(script):
    lines = [(PLAN, Next.TEXT), (FINE, Next.TEXT)] * 9
    assert script(*lines, max_images=9, max_context=96).finish_reason == "max_text"


def test_a_model_that_never_closes_its_text_is_cut(params):
    endless = jax.tree.map(lambda x: x, params)
    kernel = np.zeros_like(np.asarray(endless["lm_head"]["kernel"]))
    kernel[:, 65], kernel[:, 66] = 9.0, -9.0  # one of these two letters always wins
    endless["lm_head"] = {"kernel": kernel}
    painter = Painter(CONFIG, endless)
    (trajectory,) = painter.paint(PROMPTS[:1], temperature=0.0)
    assert trajectory.finish_reason == "max_text"
    assert len(trajectory.steps[0].plan) == CONFIG.sampler.max_text - 2


def test_refined_pictures_follow_rejected_context(monkeypatch, script):
    """What is hidden after an inspection changes the picture that comes next, and only then."""
    lines = (PLAN, Next.TEXT), (FAULT, Next.IMAGE)
    kept = script(*lines)
    for rejected, same_picture in (("keep", True), ("drop", False)):
        grammar = dataclasses.replace(CONFIG.data.grammar, rejected_context=rejected)
        data = dataclasses.replace(CONFIG.data, grammar=grammar)
        monkeypatch.setattr(sys.modules[__name__], "CONFIG", dataclasses.replace(CONFIG, data=data))
        out = script(*lines)
        assert np.array_equal(out.steps[0].sketch, kept.steps[0].sketch)
        assert np.array_equal(out.steps[0].refined, kept.steps[0].refined) == same_picture


def test_what_cannot_be_read_is_refused_and_the_rest_painted(painter):
    hostile = ["", "word " * 5000, "a\ud800b", "<|vision_start|></ins>\U0001f600"]
    out = painter.paint(hostile, mode="one_shot", max_prompt=64)
    assert [t.finish_reason for t in out] == ["refused", "refused", "refused", "finished"]
    assert "empty" in out[0].text and "tokens" in out[1].text and "Unicode" in out[2].text
    assert out[0].final_image is None
    assert out[3].prompt == hostile[3]


def test_a_prompt_that_no_cache_holds_is_refused_and_the_rest_painted(painter):
    long = "word " * 70
    assert 256 < len(painter.tokenizer.encode(long)) < 400
    out = painter.paint([long, "a circle"], mode="one_shot", max_prompt=400)
    assert [t.finish_reason for t in out] == ["refused", "finished"]
    assert "more than 254" in out[0].text


def test_no_special_token_is_written(params):
    """All ids but two are special ones of this tokenizer: texts consist of one and end with one."""
    told = []

    class Listens(Says):
        def decode(self, ids):
            told.extend(ids)
            return super().decode(ids)

    tokenizer = Listens(PLAN)
    free = max(set(range(tokenizer.vocab_size)) - tokenizer.specials)
    Painter(CONFIG, params, tokenizer=tokenizer).paint(PROMPTS)
    assert set(told) - {free}
    told.clear()
    tokenizer.specials = frozenset(range(tokenizer.vocab_size)) - {free}
    Painter(CONFIG, params, tokenizer=tokenizer).paint(PROMPTS)
    assert set(told) == {free}


def test_stopping_closes_what_is_under_way(painter):
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 1

    out = list(painter.stream(PROMPTS * 3, mode="one_shot", stop=stop))
    assert {t.finish_reason for t in out} <= {"finished", "stopped"}
    assert "stopped" in {t.finish_reason for t in out}
    assert len(out) < 9


def test_a_sampled_trajectory_can_be_trained_on(script, painter):
    ids, sizes = token_ids(load_tokenizer()), PatchSizes(8, 8, 4, 4)
    process = script((PLAN, Next.TEXT), (FAULT, Next.IMAGE), (PLAN, Next.TEXT), (FINE, Next.END))
    for trajectory in [process, *painter.paint(PROMPTS, mode="one_shot")]:
        segments = to_segments(trajectory, CONFIG.data.grammar)
        run = lay_out(segments, ids, sizes)
        assert run.copies >= 1 and np.any(run.gen[6] >= 0)
        again = from_segments(segments)
        assert again.prompt == trajectory.prompt
        assert [s.inspection for s in again.steps] == [s.inspection for s in trajectory.steps]
        assert all(map(np.array_equal, again.images, trajectory.images))
    # And a step on it moves the weights.
    rows = [
        pack(
            [lay_out(to_segments(t, CONFIG.data.grammar), ids, sizes)], Lengths(128, 64, 96), sizes
        )
        for t in (process, painter.paint(PROMPTS[:1], mode="one_shot")[0])
    ]
    fns = functional.build(CONFIG.model)
    tx, schedule = optimizer.make_optimizer(CONFIG.optimizer, fns.logical_axes)
    before = state.make_state(painter.weights.model, tx, 10)
    train = jax.jit(step.make_train_step(fns, tx, schedule, CONFIG))
    after, metrics = train(before, stack(rows), jax.random.key(0))
    assert np.isfinite(float(metrics["loss"][0])) and metrics["refine_mse"][1] > 0
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), after.params, before.params)
    assert all(jax.tree.leaves(moved["layers"]))


def test_nothing_is_compiled_anew_for_other_prompts(painter):
    painter.paint(PROMPTS, mode="one_shot")
    pieces = (Programs.prefill, Programs.denoise)
    before = [piece._cache_size() for piece in pieces]
    painter.paint([f"{p} and a star" for p in PROMPTS] * 2, mode="one_shot", seed=9)
    assert [piece._cache_size() for piece in pieces] == before


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"mode": "sculpt"}, ConfigError),
        ({"num": 0}, ConfigError),
        ({"seed": -1}, ConfigError),
        ({"size": (20, 32)}, ConfigError),
        ({"size": (64, 64)}, ConfigError),
        ({"denoise_step": 3}, ConfigError),
    ],
)
def test_wrong_requests_say_what_is_wrong(painter, settings, error):
    with pytest.raises(error):
        painter.paint(PROMPTS, **settings)


def test_a_mapping_without_a_prompt_is_an_error(painter):
    with pytest.raises(DataError, match="prompt"):
        painter.paint([{"tag": "x"}])


def test_weights_of_another_tokenizer_are_refused(params, tmp_path):
    def saved(name, tokenizer):
        with CheckpointManager(tmp_path / name, CONFIG) as checkpoints:
            checkpoints.save(1, {"params": params}, {"tokenizer": tokenizer}, {})
        return str(tmp_path / name)

    with pytest.raises(CheckpointError, match=r"trained with tokenizer 0ther.*put the file"):
        load(saved("other", "0ther"))
    own = load_tokenizer().fingerprint
    assert load(saved("own", own)).meta["tokenizer"] == own  # partner
    assert load(saved("unsaid", None)).meta["tokenizer"] is None  # as imported weights are


def test_layers_run_as_asked(params, tmp_path):
    stacked = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, layers="scan"))
    with CheckpointManager(tmp_path, stacked) as checkpoints:
        checkpoints.save(1, {"params": params}, {}, {})
    looped, inlined = load(str(tmp_path)), load(str(tmp_path), layers="unroll")
    assert not isinstance(looped.weights.model["layers"], tuple)
    assert isinstance(inlined.weights.model["layers"], tuple)
    assert inlined.config.model.layers == "unroll" and looped.config.model.layers == "scan"
    same, other = (
        painter.paint(PROMPTS[:1], mode="one_shot", seed=seed)
        for painter, seed in ((inlined, 0), (inlined, 1))
    )
    assert equal(looped.paint(PROMPTS[:1], mode="one_shot"), same) and not equal(same, other)
    with pytest.raises(ConfigError, match="'unroll' or 'scan', got 'loop'"):
        load(str(tmp_path), layers="loop")


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_weights_lie_in_strips_where_cpp_multiplies_them(monkeypatch):
    def dimensions(**model):
        config = from_mapping({"model": model})
        params = jax.jit(functional.build(config.model).init)(jax.random.key(0))
        return arranged(config, params)["lm_head"]["kernel"].ndim

    assert dimensions() == 3
    assert dimensions(dtype="bfloat16") == dimensions(layers="scan") == 2
    monkeypatch.setattr("process_gen.sampling.painter.available", lambda: False)
    assert dimensions() == 2


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_strips_paint_the_same(monkeypatch):
    """As weights in rows do: the same words, and values of pixels that differ by 1 at most."""
    own = load()
    monkeypatch.setattr("process_gen.sampling.painter.available", lambda: False)
    plain = load()
    assert own.fingerprint == plain.fingerprint
    assert (
        own.weights.model["lm_head"]["kernel"].shape
        != plain.weights.model["lm_head"]["kernel"].shape
    )
    for one, other in zip(own.paint(PROMPTS[:2]), plain.paint(PROMPTS[:2]), strict=True):
        assert [step.plan for step in one.steps] == [step.plan for step in other.steps]
        for a, b in zip(one.images, other.images, strict=True):
            assert np.abs(a.astype(int) - b.astype(int)).max() <= 1 and a.std() > 1
