"""How rows share calls: occupancy, texts in several calls, pictures painted again, few steps."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import ConfigError
from process_gen.models import functional
from process_gen.sampling import studio
from process_gen.sampling.painter import Painter
from process_gen.sampling.programs import Programs
from process_gen.sampling.studio import Usage, bucket
from tests.lively import SMALLEST, lively
from tests.sampling.test_painter import PLAN, Says

CONFIG = from_mapping(
    {
        "model": SMALLEST,
        "sampler": {
            "batch": 4,
            "max_text": 12,
            "max_context": 192,
            "max_prompt": 32,
            "max_images": 2,
            "denoise_steps": 3,
            "one_shot_steps": 3,
            "guidance": 2.0,
            "temperature": 1.0,
        },
    }
)
PROMPTS = [f"{number} {shape}" for number in ("a", "two", "three") for shape in ("circle", "stars")]


@pytest.fixture(scope="module")
def painter():
    fresh = jax.jit(functional.build(CONFIG.model).init)(jax.random.key(0))
    params = lively(fresh)
    # An untrained model hardly ever closes a text.
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, Says(PLAN).eos].mul(30.0)
    return Painter(CONFIG, params, tokenizer=Says(PLAN))


@pytest.fixture(scope="module")
def plain(painter):
    painted = painter.paint(PROMPTS)
    assert max(len(t.images) for t in painted) == 2
    return painted


def same(some, others):
    pairs = zip([t.images for t in some], [t.images for t in others], strict=True)
    return all(len(a) == len(b) and all(map(np.array_equal, a, b)) for a, b in pairs)


def compiled():
    pieces = (Programs.prefill, Programs.write_text, Programs.denoise, Programs.read_picture)
    return [piece._cache_size() for piece in pieces]


def test_texts_written_in_several_calls_are_the_same(painter, plain, monkeypatch):
    usage, patient = Usage(), Usage()
    again = list(painter.stream(PROMPTS, usage=usage))
    monkeypatch.setattr(studio, "_PATIENCE", 1)  # all rows of a call wait for its longest text
    waiting = list(painter.stream(PROMPTS, usage=patient))
    for found in (again, waiting):
        found.sort(key=lambda t: t.sampled.index)
        assert [t.steps[0].plan for t in found] == [t.steps[0].plan for t in plain]
        assert [t.finish_reason for t in found] == [t.finish_reason for t in plain]
        assert same(found, plain)
    assert usage.calls["write text"] > patient.calls["write text"]


def test_usage_counts_rows_that_work_and_places_that_idle(painter):
    usage = Usage()
    list(painter.stream(PROMPTS, mode="one_shot", usage=usage))
    # 6 prompts in batches of 4: a full call and one with two rows, of 3 steps each.
    assert usage.calls == {"read text": 2, "denoise": 2}
    assert usage.rows["denoise"] == 3 * 6 and usage.slots["denoise"] == 3 * 8
    assert usage.summary()["occupancy"] == 0.75
    assert usage.summary()["passes"] == {"read text": 2, "denoise": 6}


def test_nothing_is_compiled_anew_once_every_size_was_seen(painter, plain):
    before = compiled()
    painter.paint([f"{p} and a star" for p in reversed(PROMPTS)] * 4, seed=9)
    painter.paint(PROMPTS, denoise_steps=5, process_shift=2.0, guidance=1.5)
    assert compiled() == before
    painter.paint(PROMPTS[:1], batch=3)
    assert compiled() != before


def test_the_last_picture_is_painted_once_more(painter, plain):
    final = painter.paint(PROMPTS, final_steps=7)
    done = [t.finish_reason in ("finished", "max_images") for t in plain]
    assert any(done)
    for few, more, complete in zip(plain, final, done, strict=True):
        assert few.finish_reason == more.finish_reason
        assert more.sampled.nfe == few.sampled.nfe + 7 * complete
        assert [s.plan for s in more.steps] == [s.plan for s in few.steps]
        if not complete:
            continue
        assert all(map(np.array_equal, more.images[:-1], few.images[:-1]))
        assert not np.array_equal(more.images[-1], few.images[-1])
        assert np.array_equal(more.images[-1], more.final_image)
    # With as many steps, in the same context and from the same noise, it is the same picture; the
    # sums of a wider cache are taken in another order.
    for once, again in zip(plain, painter.paint(PROMPTS, final_steps=3), strict=True):
        for a, b in zip(once.images, again.images, strict=True):
            assert np.abs(a.astype(int) - b).max() <= 1


def test_what_is_cut_off_before_its_last_picture_is_not_called_finished(painter):
    whole = {t.sampled.index: t for t in painter.paint(PROMPTS, final_steps=7)}
    ends = set()
    for most in range(1, 40):
        asked = []

        def stop(asked=asked, most=most):
            asked.append(1)
            return len(asked) > most

        for t in painter.stream(PROMPTS, final_steps=7, stop=stop):
            ends.add(t.finish_reason)
            if t.finish_reason != "stopped":
                assert t.sampled.nfe == whole[t.sampled.index].sampled.nfe
    assert "stopped" in ends


@pytest.mark.slow
def test_a_later_picture_begins_at_the_one_before(painter, plain):
    # Where t is below `loss.min_t`, 0.05, a step of an x0 prediction goes a part of the way only.
    late = painter.paint(PROMPTS, later_start=0.01)
    several = [i for i, t in enumerate(plain) if len(t.images) > 1 and len(late[i].images) > 1]
    assert several
    for i in several:
        before, after = plain[i].images[:2], late[i].images[:2]
        assert np.array_equal(before[0], after[0])  # the first one has none before it
        moved = [np.abs(a.astype(int) - b).mean() for a, b in (before, after)]
        assert moved[1] < moved[0] / 3


@pytest.mark.slow
def test_guidance_outside_its_interval_is_no_guidance(painter, plain):
    nowhere = painter.paint(PROMPTS, guidance_interval=(1.0, 1.0))
    assert same(nowhere, painter.paint(PROMPTS, guidance=1.0))
    assert not same(nowhere, plain)


@pytest.mark.slow
def test_a_difference_is_used_again_between_the_steps_that_make_it(painter, plain):
    firsts = [
        [t.images[0] for t in painter.paint(PROMPTS, mode="one_shot", **settings)]
        for settings in ({}, {"guidance_every": 2}, {"one_shot_guidance": 1.0})
    ]
    assert all(map(np.array_equal, firsts[0], [t.images[0] for t in painter.paint(
        PROMPTS, mode="one_shot", guidance_every=1)]))  # fmt: skip
    reused, without = (
        np.mean([np.abs(a.astype(int) - b).mean() for a, b in zip(firsts[0], other, strict=True)])
        for other in firsts[1:]
    )
    assert 0 < reused < without


def test_sizes():
    assert [bucket(n, 512) for n in (0, 1, 128, 129, 300, 512)] == [0, 128, 128, 256, 512, 512]
    assert bucket(130, 200) == 200 and bucket(17, 128, 16) == 32


@pytest.mark.parametrize(
    "settings",
    [
        {"final_steps": -1},
        {"later_start": 1.5},
        {"guidance_every": 0},
        {"process_shift": 0.0},
        {"guidance": math.inf},
        {"temperature": math.nan},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ConfigError, match=f"sampler.{next(iter(settings))}"):
        dataclasses.replace(CONFIG.sampler, **settings)
