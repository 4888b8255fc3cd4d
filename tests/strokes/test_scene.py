"""Scenes: the words for places, and when a relation holds."""

from __future__ import annotations

from process_gen.strokes.scene import (
    INVERSE,
    PLACES,
    RELATIONS,
    SceneObject,
    cells_related,
    related,
)


def test_places_and_centres():
    item = SceneObject("star", "red", 2, 0, dx=0.4, dy=-0.6)
    assert (item.cell, item.place, item.center) == (6, "bottom left", (6.4, 25.4))
    assert PLACES[4] == "middle center" and len(set(PLACES)) == 9


def test_relations_need_more_than_four_pixels():
    assert related((6, 6), "left of", (10.1, 30))
    assert not related((6, 6), "left of", (10, 6))
    assert related((6, 10.1), "below", (30, 6))
    assert related((6, 6), "above", (6, 10.1))
    assert not related((6, 6), "right of", (16, 6))


def test_cells_agree_with_centres_whatever_the_jitter():
    for relation in RELATIONS:
        for a in range(9):
            for b in range(9):
                for jitter in (-0.6, 0.6):
                    x = SceneObject("star", "red", a // 3, a % 3, jitter, jitter).center
                    y = SceneObject("star", "red", b // 3, b % 3, -jitter, -jitter).center
                    assert related(x, relation, y) == cells_related(a, relation, b)
                    assert related(x, relation, y) == related(y, INVERSE[relation], x)
