"""Going on with a painting: what is given is read as if the model had made it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import Step, Trajectory
from process_gen.data.tokenizer import load_tokenizer
from process_gen.models import functional
from process_gen.sampling import programs
from process_gen.sampling.painter import Painter
from process_gen.sampling.painting import given_parts
from process_gen.sampling.text_decode import next_token
from tests.lively import SMALLEST, lively

CONFIG = from_mapping(
    {
        "model": SMALLEST,
        "sampler": {
            "batch": 2,
            "max_text": 8,
            "max_context": 256,
            "max_prompt": 32,
            "max_images": 3,
            "denoise_steps": 2,
            "temperature": 1.0,
        },
    }
)
PROMPT = "two blue stars"


class Remembers:
    """A tokenizer that gives the noise of an untrained model words, and knows them again.

    Texts are plans and inspections by turns.
    """

    def __init__(self):
        self._real = load_tokenizer()
        self.words: dict[tuple[int, ...], str] = {}
        names = "vocab_size bos eos image_start image_end end_of_text specials"
        for name in names.split():
            setattr(self, name, getattr(self._real, name))
        self.fingerprint = "remembers"

    def encode(self, text):
        known = {words: ids for ids, words in self.words.items()}
        return list(known[text]) if text in known else self._real.encode(text)

    def decode(self, ids):
        key = tuple(int(i) for i in ids)
        number = len(self.words)
        plan = f"<ins>add {number}</ins><des>{number}</des>"
        return self.words.setdefault(key, f"seen {number}." if number % 2 else plan)


@pytest.fixture(scope="module")
def painter():
    fresh = jax.jit(functional.build(CONFIG.model).init)(jax.random.key(0))
    tokenizer = Remembers()
    # An untrained model hardly ever closes a text.
    closes = np.zeros(CONFIG.model.vocab_size, np.float32)
    closes[tokenizer.eos] = 6.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "next_token", lambda x, *rest: next_token(x + closes[None], *rest))
        yield Painter(CONFIG, lively(fresh), tokenizer=tokenizer)


@pytest.fixture(scope="module")
def whole(painter):
    (trajectory,) = painter.paint([PROMPT], seed=5)
    assert len(trajectory.steps) >= 2 and trajectory.steps[0].inspection
    return trajectory


def prefix(whole: Trajectory, **cut) -> Trajectory:
    first = dataclasses.replace(whole.steps[0], **cut)
    return Trajectory(PROMPT, steps=(first,))


CUTS = [{"sketch": None, "inspection": None}, {"inspection": None}, {}]


@pytest.mark.parametrize("cut", CUTS, ids=["plan", "sketch", "inspection"])
def test_the_rest_is_what_it_would_have_been(painter, whole, cut):
    (out,) = painter.paint([prefix(whole, **cut)], seed=5)
    assert out.finish_reason == whole.finish_reason
    assert [s.plan for s in out.steps] == [s.plan for s in whole.steps]
    assert [s.inspection for s in out.steps] == [s.inspection for s in whole.steps]
    for ours, theirs in zip(out.images, whole.images, strict=True):
        # A text read at once and the same text written token by token round differently.
        assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_it_depends_on_what_is_given(painter, whole):
    other = 255 - whole.steps[0].sketch
    (out,) = painter.paint([prefix(whole, sketch=other, inspection=None)], seed=5)
    assert np.array_equal(out.steps[0].sketch, other)
    rest = [i.astype(int) for i in (*out.images[1:2], *whole.images[1:2])]
    assert len(rest) == 2 and np.abs(rest[0] - rest[1]).max() > 1


def test_given_pictures_cost_no_denoising(painter, whole):
    (out,) = painter.paint([prefix(whole)], seed=5)
    assert out.sampled.nfe == whole.sampled.nfe - CONFIG.sampler.denoise_steps


def test_a_given_fault_is_repaired(painter, whole):
    fault = prefix(whole, inspection="wrong. <refine>x</refine>")
    (out,) = painter.paint([fault], seed=5, max_images=2, max_text=64)
    assert out.steps[0].inspection == fault.steps[0].inspection
    assert out.steps[0].refined is not None


def test_many_at_once_beside_plain_prompts(painter, whole):
    out = painter.paint([PROMPT, prefix(whole), prefix(whole, inspection=None)], seed=5)
    assert [t.sampled.index for t in out] == [0, 1, 2]
    assert out[0].steps[0].plan == whole.steps[0].plan
    assert all(np.array_equal(t.steps[0].sketch, whole.steps[0].sketch) for t in out[1:])


def test_a_painting_can_be_watched(painter, whole):
    seen = list(painter.stream([PROMPT], seed=5, unfinished=True))
    assert [t.finish_reason for t in seen] == [None] * (len(seen) - 1) + [whole.finish_reason]
    parts = [len(given_parts(t)) for t in seen]
    assert parts == list(range(len(seen) - 1)) + [parts[-1]] and parts[-1] >= len(seen) - 2
    assert seen[-1].steps[0].plan == whole.steps[0].plan
    assert len(list(painter.stream([PROMPT], seed=5))) == 1


def test_what_does_not_follow_is_refused(painter, whole):
    plan = whole.steps[0].plan
    gap = Trajectory(PROMPT, steps=(Step(plan), Step(plan)))
    with pytest.raises(DataError, match="part 1 is a plan after a plan"):
        given_parts(gap)
    large = prefix(whole, sketch=np.zeros((64, 64, 3), np.uint8), inspection=None)
    with pytest.raises(ConfigError, match="64x64 px at 32x32"):
        painter.paint([large])
    with pytest.raises(ConfigError, match="cannot go on"):
        painter.paint([prefix(whole)], mode="one_shot")
    (out,) = painter.paint([prefix(whole, inspection="seen " * 40)])
    assert out.finish_reason == "refused" and "given text" in out.text


def test_what_the_host_decides_needs_no_other_programs(painter):
    def bound(**settings):
        return painter._bound(dataclasses.replace(CONFIG.sampler, **settings), (32, 32))

    plain = bound()
    assert bound(guidance=2.5, denoise_steps=4, one_shot_guidance=1.0, max_images=1) is plain
    assert bound(temperature=0.5) is not plain


def test_and_is_heard_all_the_same(painter, whole):
    (out,) = painter.paint([PROMPT], seed=5, max_images=1, denoise_steps=3)
    assert out.sampled.nfe == 3 and len(out.images) == 1
    assert not np.array_equal(out.images[0], whole.images[0])
