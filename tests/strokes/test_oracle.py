"""Oracle: reads renders back, judges them, and is not fooled."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.strokes import oracle, prompts
from process_gen.strokes.layout import draw_objects, wanted
from process_gen.strokes.measure import measure
from process_gen.strokes.render import render
from process_gen.strokes.scene import COLORS, SHAPES, Scene, SceneObject


def test_every_shape_colour_and_cell_is_read():
    for i, (shape, color) in enumerate((s, c) for s in SHAPES for c in COLORS):
        item = SceneObject(shape, color, i % 3, (i // 3) % 3, 0.6, -0.6, 3.6 if i % 2 else 4.2)
        reading = oracle.read(render(Scene((item,))))
        assert reading.placed == ((color, shape, item.place),) and reading.stray == 0.0
        (found,) = reading.objects
        assert np.hypot(found.x - item.center[0], found.y - item.center[1]) < 0.5


def test_a_full_canvas_of_one_colour_is_read():
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        objects = [
            SceneObject(shape, "red", i // 3, i % 3, *rng.uniform(-0.6, 0.6, 2), 4.2)
            for i in range(9)
        ]
        reading = oracle.read(render(Scene(tuple(objects))))
        assert [o.shape for o in reading.objects] == [shape] * 9
        assert [o.place for o in reading.objects] == [o.place for o in objects]


def test_touching_shapes_are_told_apart():
    picture = render(Scene((SceneObject("square", "red", 0, 0), SceneObject("star", "blue", 0, 1))))
    picture[6, 9:13] = COLORS["red"]  # a bridge
    reading = oracle.read(picture)
    assert {(o.color, o.shape) for o in reading.objects} == {("red", "square"), ("blue", "star")}


def test_small_run_of_the_measurement():
    figures = measure(140, seed=1)
    assert figures.clean == figures.clean_read == 1.0
    assert figures.noisy >= 0.99
    assert figures.found_in_noise == 0.0
    assert figures.mismatched == 0.0
    assert figures.milliseconds < 20  # about 1 on a free core


@pytest.mark.slow
def test_figures_of_the_design():
    figures = measure(5000, seed=0)
    assert figures.clean >= 0.995 and figures.worst_tag >= 0.99
    assert figures.noisy >= 0.98
    assert figures.found_in_noise == 0.0
    assert figures.mismatched < 0.005


def blurred(picture, sigma):
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    taps /= taps.sum()
    soft = np.pad(picture.astype(float), ((3, 3), (3, 3), (0, 0)), "edge")
    soft = sum(taps[i] * soft[i : i + 32] for i in range(7))
    return sum(taps[i] * soft[:, i : i + 32] for i in range(7))


def test_soft_faint_and_tinted_pictures_are_read():
    rng = np.random.default_rng(2)
    right = 0
    for i in range(70):
        asked = prompts.sample_requirement(rng, prompts.TAGS[i % 7])
        objects = [item for group in draw_objects(rng, wanted(asked)) for item in group]
        picture = blurred(render(Scene(tuple(objects))), 0.6)
        picture = 28 + (picture - 28) * rng.uniform(0.75, 1.1) + rng.normal(0, 8, 3)
        picture = np.clip(picture + rng.normal(0, 8, picture.shape), 0, 255).astype(np.uint8)
        right += oracle.exact(picture, asked)
    assert right >= 68


def picture_of(*items):
    return render(Scene(tuple(SceneObject(s, c, cell // 3, cell % 3) for s, c, cell in items)))


@pytest.mark.parametrize(
    ("prompt", "items", "geneval", "exact"),
    [
        ("a circle", [("circle", "red", 4)], True, True),
        ("a circle", [("star", "red", 4)], False, False),
        ("a circle", [], False, False),
        ("a circle", [("circle", "red", 4), ("star", "red", 0)], True, False),
        ("a circle", [("circle", "red", 4), ("circle", "red", 0)], True, False),
        ("a red circle", [("circle", "orange", 4)], False, False),
        ("two stars", [("star", "red", 4), ("star", "red", 0)], True, True),
        ("two stars", [("star", "red", 4), ("star", "blue", 0)], True, True),
        ("two stars", [("star", "red", 4)], False, False),
        ("two stars", [("star", "red", i) for i in (0, 1, 2)], False, False),  # excluded
        ("a circle left of a star", [("circle", "red", 0), ("star", "red", 5)], True, True),
        ("a circle left of a star", [("circle", "red", 5), ("star", "red", 0)], False, False),
        ("a circle left of a star", [("circle", "red", 0), ("star", "red", 3)], False, False),
        (
            "a circle left of a star",  # one of two circles is on the right side
            [("circle", "red", 2), ("circle", "red", 0), ("star", "red", 4)],
            True,
            False,
        ),
        (
            "a red circle and a blue square",  # colours exchanged
            [("circle", "blue", 2), ("square", "red", 0)],
            False,
            False,
        ),
        (
            "two red circles above a blue square",
            [("circle", "red", 0), ("circle", "red", 1), ("square", "blue", 5)],
            True,
            True,
        ),
        (
            "two red circles above a blue square",  # one of them is not above
            [("circle", "red", 0), ("circle", "red", 4), ("square", "blue", 5)],
            False,
            False,
        ),
    ],
)
def test_verdicts(prompt, items, geneval, exact):
    asked = prompts.parse(prompt)
    picture = picture_of(*items)
    assert oracle.geneval(picture, asked) is geneval
    assert oracle.exact(picture, asked) is exact


def test_an_unreadable_blot_is_not_exact():
    picture = picture_of(("circle", "red", 0))
    asked = prompts.parse("a circle")
    assert oracle.exact(picture, asked)
    picture[20:24, 16:30] = COLORS["green"]
    verdict = oracle.judge(picture, asked)
    assert verdict.reading.stray > 5 and verdict.geneval and not verdict.exact


def test_dirt_of_a_pixel_or_two_is_overlooked():
    picture = picture_of(("circle", "red", 0))
    picture[25, 25] = 255
    assert oracle.exact(picture, prompts.parse("a circle"))


def test_only_pictures_of_the_canvas_are_read():
    with pytest.raises(DataError, match="uint8"):
        oracle.read(np.zeros((32, 32, 3), np.float32))
    with pytest.raises(DataError, match="64"):
        oracle.read(np.zeros((64, 64, 3), np.uint8))
