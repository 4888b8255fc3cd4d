"""The desk: what it refuses, one painting at a time, and whoever stops watching."""

from __future__ import annotations

import dataclasses
import time

import pytest

from launch import app_desk
from launch.app_desk import Desk, Limits, Wish
from process_gen.core.errors import DataError
from process_gen.core.grammar import Part
from process_gen.sampling import editing


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def open_desk(scripted):
    desks = []

    def make(limits=Limits(), **more):  # noqa: B008  frozen
        desks.append(Desk(scripted, limits, **more))
        return desks[-1]

    yield make
    scripted.release()
    for desk in desks:
        desk.close()
        assert not desk._thread.is_alive() and not desk._jobs and not desk._current


def soon(condition):
    end = time.monotonic() + 20
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_a_painting_comes_part_by_part(open_desk, scripted):
    wish = Wish("a star", beside=True, seed=7, steps=20, guidance=2.0)
    seen = [u for u in open_desk().ask("me", wish).watch() if u.painting]
    assert [u.done for u in seen] == [False] * (len(seen) - 1) + [True]
    assert [len(u.painting.images) for u in seen] == [0, 0, 1, 1, 1, 1]
    assert seen[-1].painting.finish_reason == "finished"
    assert seen[-1].one_shot.mode == "one_shot" and seen[-2].one_shot is None
    first, second = scripted.asked
    assert first[1:] == (
        "process",
        {"seed": 7, "batch": 1, "denoise_steps": 20, "guidance": 2.0},
    )
    assert second[1:] == ("one_shot", {"seed": 7, "batch": 1})


def test_it_goes_on_from_other_words(open_desk):
    desk = open_desk()
    *_, last = desk.ask("me", Wish("a star")).watch()
    begun = editing.rewrite(last.painting, editing.Place(0, Part.INSPECTION), "No.", "a moon")
    *_, out = desk.ask("me", Wish(begun, seed=3)).watch()
    assert out.painting.steps[0].refined is not None
    assert out.painting.steps[0].sketch is last.painting.steps[0].sketch


def test_stopped_in_the_middle(open_desk, scripted):
    scripted.hold(1)
    desk = open_desk()
    job = desk.ask("me", Wish("a star", beside=True))
    updates = job.watch()
    next(updates)
    desk.stop("somebody else")
    assert not job.stopped
    desk.stop("me")
    scripted.release()
    *_, last = updates
    assert last.done and last.painting.finish_reason == "stopped" and last.one_shot is None
    assert list(desk.ask("me", Wish("a moon")).watch())[-1].painting.finish_reason == "finished"


def test_two_at_once_are_served_in_turn(open_desk, scripted):
    scripted.hold()
    desk = open_desk()
    one, two = desk.ask("one", Wish("a star")), desk.ask("two", Wish("a moon"))
    seen = two.watch(every=0.02)
    assert next(seen).ahead == 1
    scripted.release()
    *_, last = seen
    assert last.painting.prompt == "a moon"
    assert list(one.watch())[-1].painting.prompt == "a star"
    assert scripted.most == 1


def test_nobody_watches(open_desk, scripted):
    clock = Clock()
    scripted.hold()
    desk = open_desk(clock=clock)
    job = desk.ask("gone", Wish("a star"))
    clock.now = 29.0
    assert not job.stopped
    clock.now = 31.0
    assert job.stopped and not job.ended
    scripted.release()
    assert soon(lambda: job.ended)
    closed = desk.ask("closed", Wish("a star")).watch()
    next(closed)
    closed.close()  # what becomes of a generator whose browser is gone
    assert soon(lambda: not desk._current)
    assert list(desk.ask("me", Wish("a moon")).watch())[-1].painting.finish_reason == "finished"


def test_too_many_and_too_often(open_desk, scripted):
    clock = Clock()
    scripted.hold()
    desk = open_desk(Limits(waiting=2, per_minute=2, sessions=50), clock=clock)
    jobs = [desk.ask(name, Wish("a star")) for name in "abc"]
    with pytest.raises(DataError, match="your last painting is not finished"):
        desk.ask("a", Wish("a moon"))
    with pytest.raises(DataError, match="2 paintings are waiting"):
        desk.ask("d", Wish("a star"))
    scripted.release()
    for job in jobs:
        list(job.watch())
    list(desk.ask("a", Wish("a star")).watch())
    with pytest.raises(DataError, match="2 paintings a minute are the limit; try again in 60 s"):
        desk.ask("a", Wish("a star"))
    clock.now = 61.0
    list(desk.ask("a", Wish("a star")).watch())
    for number in range(60):
        list(desk.ask(f"s{number}", Wish("a star")).watch())
    assert len(desk._begun) == 50


LONG = Wish("x" * 1001)
WRONG = [
    (LONG, "the prompt has 1,001 characters; 1,000 are the limit"),
    (Wish("star " * 190), "the prompt has [0-9]+ tokens"),
    (Wish(" \n"), "the prompt is empty"),
    (Wish("a \ud800"), "."),
    (Wish("a", seed=-1), "the seed is a whole number"),
    (Wish("a", steps=11), "one of 5, 10, 20, 40"),
    (Wish("a", guidance=float("nan")), "guidance lies between 1 and 5"),
]


@pytest.mark.parametrize(("wish", "why"), WRONG)
def test_wishes_that_are_refused(open_desk, scripted, wish, why):
    with pytest.raises(DataError, match=why):
        open_desk().ask("me", wish)
    assert not scripted.asked


def test_given_words_have_limits_too(open_desk):
    desk = open_desk()
    *_, last = desk.ask("me", Wish("a star")).watch()
    for words, why in (("x" * 2001, "characters"), ("star moon " * 90, "tokens")):
        begun = editing.rewrite(last.painting, editing.Place(0, Part.INSPECTION), words, "")
        with pytest.raises(DataError, match=why):
            desk.ask("me", Wish(begun))
    begun = dataclasses.replace(begun, prompt=LONG.prompt)
    with pytest.raises(DataError, match="1,001"):
        desk.ask("me", Wish(begun))


def test_a_defect_ends_one_painting_only(open_desk, scripted, monkeypatch, capsys):
    desk = open_desk()
    with monkeypatch.context() as patch:
        patch.setattr(scripted, "_parts", lambda *_: 1 / 0)
        (last,) = desk.ask("me", Wish("a star")).watch()
    assert last.done and "ZeroDivisionError" in last.error
    assert "Traceback" in capsys.readouterr().err
    assert list(desk.ask("me", Wish("a star")).watch())[-1].error == ""


@pytest.mark.parametrize(
    "form",
    [
        (None, False, 0, 10, 1.5),
        ("a", False, None, 10, 1.5),
        ("a", False, 0.5, 10, 1.5),
        ("a", False, 0, "ten", 1.5),
        ("a", False, float("inf"), 10, 1.5),
        ("a", False, 0, 10, "much"),
    ],
)
def test_forms_that_make_no_wish(form):
    with pytest.raises(DataError, match="whole numbers"):
        app_desk.read_wish(*form)


def test_a_form_makes_a_wish():
    assert app_desk.read_wish("a", 1, 3.0, 10, 2) == Wish("a", True, 3, 10, 2.0)


@pytest.mark.slow
def test_the_real_painter_at_the_desk(untrained):
    import process_gen

    desk = Desk(process_gen.load(str(untrained)))
    try:
        wish = Wish("a red circle", beside=True, steps=2, guidance=1.0)
        *_, last = desk.ask("me", wish).watch()
    finally:
        desk.close()
    assert last.error == "" and last.painting.finish_reason
    assert last.one_shot.final_image.shape == (32, 32, 3)
