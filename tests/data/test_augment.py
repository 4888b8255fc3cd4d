from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.core.configs import SourceConfig
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step, Trajectory, Turn, plan_text, same
from process_gen.data.augment import Augmented, flip, names_a_side, rephrase
from process_gen.data.sources import build_source

IMAGE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
OTHER = 255 - IMAGE
PLAIN = Trajectory(
    "a red dot",
    steps=(Step(plan_text("add a dot", "a dot"), IMAGE, "no. <refine>b</refine>", None, OTHER),),
    final_image=OTHER,
)
ASKED = Trajectory(
    "what?",
    mode="understand",
    turns=(Turn(False, text="what?"), Turn(False, image=IMAGE), Turn(True, text="a dot")),
    metadata={"wordings": [["what?", "what is this?", "say"]]},
)


def drawn(change, trajectory, n=40):
    return [change(np.random.default_rng(i), trajectory) for i in range(n)]


def test_half_of_the_pictures_are_mirrored():
    made = drawn(flip, PLAIN, 200)
    mirrored = [t for t in made if not same(t, PLAIN)]
    assert 70 < len(mirrored) < 130
    one = mirrored[0]
    assert np.array_equal(one.steps[0].sketch, IMAGE[:, ::-1])
    assert np.array_equal(one.steps[0].refined, OTHER[:, ::-1])
    assert one.final_image is one.steps[0].refined  # copies of one picture stay one
    assert dataclasses.replace(one, steps=(), final_image=None).prompt == PLAIN.prompt
    turned = next(t for t in drawn(flip, ASKED) if not same(t, ASKED))
    assert np.array_equal(turned.turns[1].image, IMAGE[:, ::-1])


@pytest.mark.parametrize(
    "words",
    [
        "a dot left of a star", "the leftmost dot", "a right-hand glove", "facing East",
        "turn it clockwise", "an anti-clockwise arrow", "a clock", "a sign", 'it says "no"',
        "the number 7", "a handwritten note with text", "a map", "mirrored", "a stop sign",
        "a book", "a woman in profile", "a shirt labelled X",
    ],
)  # fmt: skip
def test_nothing_is_mirrored_where_a_text_could_become_untrue(words):
    for trajectory in (
        dataclasses.replace(PLAIN, prompt=words),
        dataclasses.replace(PLAIN, steps=(dataclasses.replace(PLAIN.steps[0], inspection=words),)),
        dataclasses.replace(ASKED, turns=(*ASKED.turns, Turn(True, text=words))),
        Trajectory("what?", mode="understand", inputs=(IMAGE,), text=words),
    ):
        assert names_a_side(trajectory)
        assert all(made is trajectory for made in drawn(flip, trajectory))


def test_other_words_name_no_side():
    for words in ("a red dot above a star", "a bright light", "an upright chair", "the beast"):
        assert not names_a_side(dataclasses.replace(PLAIN, prompt=words)), words


def test_wordings_are_drawn():
    made = drawn(rephrase, ASKED)
    assert {t.prompt for t in made} == {"what?", "what is this?", "say"}
    assert all(t.turns[0].text == t.prompt and t.turns[2].text == "a dot" for t in made)
    assert rephrase(np.random.default_rng(0), PLAIN) is PLAIN
    one_shot = Trajectory("a", mode="one_shot", final_image=IMAGE, metadata={"wordings": [["b"]]})
    assert rephrase(np.random.default_rng(0), one_shot).prompt == "b"


MALFORMED = [[["a"], ["b"]], [[]], [[1]], ["a"], [None], 5, {"a": 1}, "a", [[" "]]]


@pytest.mark.parametrize("wordings", MALFORMED)
def test_malformed_wordings_are_refused(wordings):
    broken = dataclasses.replace(ASKED, metadata={"wordings": wordings})
    with pytest.raises(DataError, match="wordings"):
        rephrase(np.random.default_rng(0), broken)


class One:
    fresh, supervise, fingerprint = False, "all", "one"

    def __init__(self, trajectory):
        self.trajectory = trajectory

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.trajectory

    outline = __getitem__


def test_a_source_keeps_its_trajectories_and_shows_the_longest():
    source = Augmented(One(ASKED), ("rephrase", "flip"), len)
    assert source[0] is ASKED and len(source) == 1 and source.repaints
    assert source.outline(0).prompt == "what is this?"  # by length, what the plan counts on
    assert {source.drawn(0, np.random.default_rng(i)).prompt for i in range(30)} >= {"say"}
    assert not Augmented(One(ASKED), ("rephrase",), len).repaints
    assert source.fingerprint != Augmented(One(ASKED), ("flip",), len).fingerprint
    with pytest.raises(DataError, match="unknown augmentation 'rotate'; known: flip, rephrase"):
        Augmented(One(ASKED), ("rotate",), len)


def test_pictures_are_changed_by_what_the_texts_say_in_the_end():
    sided = dataclasses.replace(ASKED, metadata={"wordings": [["what?", "what is on the left?"]]})
    for names in (("flip", "rephrase"), ("rephrase", "flip")):
        source = Augmented(One(sided), names, len)
        made = [source.drawn(0, np.random.default_rng(i)) for i in range(60)]
        for trajectory in made:
            if "left" in trajectory.prompt:
                assert trajectory.turns[1].image is IMAGE
        assert any("left" in t.prompt for t in made)
        assert any(t.turns[1].image is not IMAGE for t in made)


def test_strokes_are_mirrored_only_without_a_place():
    source = build_source(SourceConfig("strokes"), 0)
    paintings = [source[i] for i in range(60)]
    sided = [t for t in paintings if names_a_side(t)]
    assert sided and all(made is t for t in sided for made in drawn(flip, t, 4))
