"""Renderer: colours, places, areas and edges."""

from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.strokes import render
from process_gen.strokes.scene import BACKGROUND, COLORS, SHAPES, Scene, SceneObject


def test_an_empty_scene_is_background():
    picture = render.render(Scene())
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (picture == BACKGROUND).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("color", COLORS)
def test_colour_and_place(shape, color):
    for cell in (0, 4, 5, 8):
        item = SceneObject(shape, color, cell // 3, cell % 3)
        picture = render.render(Scene((item,)))
        x, y = item.center
        assert tuple(picture[int(y), int(x)]) == COLORS[color]
        row, col = 1 + 10 * (cell // 3), 1 + 10 * (cell % 3)
        outside = np.ones((32, 32), bool)
        outside[row - 1 : row + 11, col - 1 : col + 11] = False
        assert (picture[outside] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("shape", "factor"),
    [("circle", np.pi), ("square", 1.68**2), ("triangle", 1.7), ("star", 1.6361)],
)
def test_areas(shape, factor):
    # Star: 5 * R * r * sin(36 degrees) with R = 1.1 and r = 0.506. Sampling 16 points a pixel
    # misplaces a straight edge by up to 1/32 px.
    for radius, dx in ((3.6, 0.0), (4.2, 0.6), (3.93, -0.31)):
        area = render.coverage(shape, radius, dx, -dx).sum()
        assert area == pytest.approx(factor * radius**2, rel=0.02)


def test_extents():
    def reach(shape, radius=4.0):
        share = render.coverage(shape, radius, 0.0, 0.0)[..., 0]
        rows, cols = np.nonzero(share)
        return rows.min() - 6, rows.max() - 5, cols.min() - 6, cols.max() - 5

    assert reach("circle") == (-4, 4, -4, 4)
    assert reach("square") == (-4, 4, -4, 4)  # 3.36
    assert reach("triangle") == (-4, 4, -4, 4)  # from -3.6 to 3.2
    assert reach("star") == (-5, 4, -5, 5)  # up 4.4, down 3.56, sideways 4.18
    triangle = render.coverage("triangle", 4.0, 0.0, 0.0)[..., 0]
    assert triangle[3].sum() < triangle[8].sum()  # apex up


def test_edges_are_soft_and_later_objects_lie_on_top():
    picture = render.render(Scene((SceneObject("circle", "white", 1, 1),))).astype(int)
    assert ((picture[..., 0] > 40) & (picture[..., 0] < 230)).sum() > 10
    red, blue = (SceneObject("circle", color, 1, 1) for color in ("red", "blue"))
    assert tuple(render.render(Scene((red, blue)))[16, 16]) == COLORS["blue"]
    assert tuple(render.render(Scene((blue, red)))[16, 16]) == COLORS["red"]


def test_refuses_what_it_cannot_paint():
    for bad in (
        SceneObject("circle", "pink", 0, 0),
        SceneObject("blob", "red", 0, 0),
        SceneObject("circle", "red", 0, 0, radius=5.0),
        SceneObject("circle", "red", 0, 0, dx=1.0),
    ):
        with pytest.raises(DataError):
            render.render(Scene((bad,)))
