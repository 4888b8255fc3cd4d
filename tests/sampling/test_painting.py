"""The walk over the grammar, without a model."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from process_gen.core.grammar import TRANSITIONS, Next, Part
from process_gen.sampling.painting import DECISIONS, Painting, choose, hide

PLAN = "<ins>a</ins><des>b</des>"
IMAGE = np.zeros((32, 32, 3), np.uint8)


def logits(decision):
    return [float(d is decision) for d in DECISIONS]


def begin(mode="process", **settings):
    return Painting("a circle", mode, {}, 0, 0, 0, **{"max_images": 8, **settings})


@pytest.mark.parametrize("part", list(Part))
def test_only_legal_decisions_are_taken(part):
    for order in itertools.permutations((3.0, 2.0, 1.0)):
        taken = choose(part, order)
        legal = TRANSITIONS[part]
        assert taken in legal if legal else taken is None
        for other in legal:
            assert order[DECISIONS.index(taken)] >= order[DECISIONS.index(other)]


def test_one_shot_is_one_picture():
    painting = begin("one_shot")
    assert painting.wants is Next.TEXT
    painting.prompted(logits(Next.END))  # an illegal wish changes nothing
    assert painting.wants is Next.IMAGE
    painting.painted(IMAGE, logits(Next.TEXT), 7)
    assert (painting.wants, painting.finish_reason, painting.nfe) == (Next.END, "finished", 7)


def test_the_model_decides_when_to_stop():
    for decision, goes_on in ((Next.TEXT, True), (Next.END, False)):
        painting = begin()
        painting.prompted(logits(Next.TEXT))
        painting.wrote(PLAN, logits(Next.IMAGE), False)
        painting.painted(IMAGE, logits(Next.TEXT), 1)
        painting.wrote("fine.", logits(decision), False)
        assert (painting.wants is Next.TEXT) == goes_on
        assert painting.finish_reason == (None if goes_on else "finished")


def test_a_cut_text_and_a_malformed_one_end_it():
    for text, cut, reason in ((PLAN, True, "max_text"), ("<ins>a", False, "malformed")):
        painting = begin()
        painting.prompted(logits(Next.TEXT))
        painting.wrote(text, logits(Next.IMAGE), cut)
        assert painting.finish_reason == reason
        assert painting.trajectory(1.0).steps[0].plan == text


def test_hidden_slots_stay_visible_to_the_inspection():
    visible_to = np.full(10, 99)
    hide(visible_to, [(2, 4), (6, 7)], 50)
    assert visible_to.tolist() == [99, 99, 50, 50, 99, 99, 50, 99, 99, 99]
