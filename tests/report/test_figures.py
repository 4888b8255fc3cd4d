"""The PNG strip and grid: sizes, pixels kept, faults in red, any text survives."""

import dataclasses

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.report.figures import RED, filmstrip, grid

RNG = np.random.default_rng(0)
PICTURE = RNG.integers(0, 200, (32, 32, 3), np.uint8)
PICTURE[..., 0] = 0  # nothing in a picture is as red as a fault
GOOD = Step(plan_text("add a circle", "a circle"), PICTURE, "the picture is complete.")
FAULT = Step(GOOD.plan, PICTURE, "it should be red. <refine>change it</refine>", None, PICTURE)


def painting(*steps, **fields):
    fields = {"final_image": PICTURE, "finish_reason": "finished"} | fields
    return Trajectory("a circle", steps=steps, **fields)


def reds(picture):
    return int((np.asarray(picture) == RED).all(-1).sum())


@pytest.mark.parametrize("scale", [1, 4, 8])
def test_pictures_are_enlarged_without_blur(scale):
    strip = np.asarray(filmstrip(painting(GOOD), scale))
    big = PICTURE.repeat(scale, 0).repeat(scale, 1)
    middle = big[big.shape[0] // 2, big.shape[1] // 4 : -big.shape[1] // 4]
    found = [
        y
        for y in range(strip.shape[0])
        if middle.tobytes() in strip[y].tobytes()  # whole runs of pixels, unchanged
    ]
    assert len(found) >= scale
    other = middle ^ 1
    assert not any(other.tobytes() in strip[y].tobytes() for y in range(strip.shape[0]))


def test_faults_are_red_and_only_faults():
    assert reds(filmstrip(painting(GOOD))) == 0
    assert reds(filmstrip(painting(FAULT))) > 200
    assert reds(filmstrip(painting(GOOD), verdicts={"exact": True})) == 0
    assert reds(filmstrip(painting(GOOD), verdicts={"exact": False})) > 0


def test_long_trajectories_wrap():
    one = filmstrip(painting(*[GOOD] * 4), columns=4)
    two = filmstrip(painting(*[GOOD] * 5), columns=4)
    assert two.width == one.width and two.height > 1.5 * one.height


def test_the_same_every_time_and_different_for_another():
    sampled = dataclasses.replace(painting(GOOD), sampled=Sampled(0, 0, 0, 10, 0.5))
    assert filmstrip(painting(GOOD)).tobytes() == filmstrip(painting(GOOD)).tobytes()
    assert filmstrip(painting(GOOD)).tobytes() != filmstrip(sampled).tobytes()


@pytest.mark.parametrize(
    "prompt",
    ["", "word " * 5000, "x" * 5000, "😀 \ud800 \x00 \n <script>", "</ins>{{ 7 * 7 }}"],
    ids=["empty", "words", "one word", "odd", "tags"],
)
def test_any_prompt_is_drawn_in_a_bounded_figure(prompt):
    steps = (GOOD, Step(prompt), dataclasses.replace(GOOD, inspection=prompt))
    bad = Trajectory(prompt, steps=steps, finish_reason="malformed")
    strip = filmstrip(bad)
    assert strip.width < 700 and strip.height < 700


def test_modes_without_steps():
    for trajectory in (
        Trajectory("p", mode="one_shot", final_image=PICTURE),
        Trajectory("p", mode="one_shot", finish_reason="refused"),
        Trajectory("p", mode="understand", text="a cat"),
    ):
        assert filmstrip(trajectory).width > 100


def test_grid():
    pictures = [PICTURE] * 5
    plain = grid(pictures, columns=3, scale=2)
    labelled = grid(pictures, labels=["a long label of many words"] * 5, columns=3, scale=2)
    assert plain.width == labelled.width and plain.height < labelled.height
    with pytest.raises(DataError, match="one size"):
        grid([PICTURE, PICTURE[:16]])
    with pytest.raises(DataError, match="one size"):
        grid([])
    with pytest.raises(DataError, match="1 labels for 5"):
        grid(pictures, labels=["x"])
    with pytest.raises(DataError, match="at least 1"):
        grid(pictures, scale=0)
