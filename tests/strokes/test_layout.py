"""Layout: every requirement gets cells that satisfy it, and all such cells come up."""

from __future__ import annotations

import collections

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.strokes import layout, oracle, prompts
from process_gen.strokes.scene import COLOR_NAMES, Scene


@pytest.mark.parametrize("tag", prompts.TAGS)
def test_layout_satisfies_the_requirement(tag):
    rng = np.random.default_rng(0)
    for _ in range(60):
        asked = prompts.sample_requirement(rng, tag)
        groups = layout.draw_objects(rng, layout.wanted(asked))
        objects = [item for group in groups for item in group]
        assert len({item.cell for item in objects}) == len(objects)
        assert all(item.color in COLOR_NAMES for item in objects)
        seen = oracle.truth(Scene(tuple(objects)))
        assert oracle.satisfies_exactly(seen, asked)
        assert not oracle.satisfies_exactly(seen[1:], asked)


def test_cells_are_uniform():
    groups = layout.wanted(prompts.parse("a circle left of a square"))
    rng = np.random.default_rng(0)
    drawn = collections.Counter(tuple(layout.draw_cells(rng, groups)) for _ in range(5400))
    assert len(drawn) == 27  # 3 x 3 rows, and three pairs of columns
    assert 130 < min(drawn.values()) and max(drawn.values()) < 280  # 200 expected, 6 sigma


def test_an_uncoloured_group_has_one_colour():
    rng = np.random.default_rng(0)
    groups = layout.wanted(prompts.parse("four stars"))
    drawn = [{o.color for o in layout.draw_objects(rng, groups)[0]} for _ in range(50)]
    assert all(len(colors) == 1 for colors in drawn)
    assert len(set.union(*drawn)) == 7


def test_an_uncoloured_group_can_take_the_colour_of_another():
    groups = layout.wanted(prompts.parse("a circle left of a red square"))

    def share(same_color):
        rng = np.random.default_rng(0)
        drawn = [layout.draw_objects(rng, groups, same_color=same_color) for _ in range(400)]
        return sum(group[0].color == "red" for _, group in drawn) / 400

    assert share(1.0) == 1.0
    assert 0.07 < share(0.0) < 0.22  # one colour in seven
    assert 0.48 < share(0.5) < 0.67
    # There is none to take, or what is asked for already has it.
    rng = np.random.default_rng(0)
    assert layout.draw_objects(rng, layout.wanted(prompts.parse("a circle")), same_color=1.0)
    both = layout.wanted(prompts.parse("two circles left of a square"))
    assert all(
        len({item.color for group in drawn for item in group}) == 1
        for drawn in (layout.draw_objects(rng, both, same_color=1.0) for _ in range(20))
    )


def test_prompt_order():
    stated = prompts.parse("two red circles above an orange star and a red square")
    assert layout.prompt_order(layout.wanted(stated)) == [1, 0, 2]
    assert layout.prompt_order(layout.wanted(prompts.parse("a star and a circle"))) == [0, 1]


def test_what_does_not_fit_is_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(DataError, match="lay out"):
        layout.draw_cells(rng, [layout.Wanted(5, None, "star"), layout.Wanted(5, None, "circle")])
    crowded = [layout.Wanted(4, None, "star"), layout.Wanted(4, None, "circle", "left of", 0)]
    with pytest.raises(DataError, match="relation"):
        layout.draw_cells(rng, crowded)
