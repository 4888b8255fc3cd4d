from __future__ import annotations

import collections

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.curation.graphs import GraphPlanner, beats, painting_order
from process_gen.curation.prompt_graph import RuleParser
from process_gen.curation.protocols import Change, Edge, Failed, Node, PlanRequest, SceneGraph
from process_gen.curation.wording import TemplateWriter, describe, instruction, phrase, plural

GARDEN = SceneGraph(
    (
        Node("boy", attributes=("young",)),
        Node("garden", background=True),
        Node("dog", color="black"),
        Node("bench", count=2),
    ),
    (Edge(0, "in", 1), Edge(2, "left of", 3), Edge(0, "holding", 2)),
)


def test_settings_come_first_and_what_others_relate_to_before_them():
    assert [GARDEN.nodes[i].name for i in painting_order(GARDEN)] == [
        "garden", "bench", "dog", "boy",
    ]  # fmt: skip
    circle = SceneGraph((Node("a"), Node("b")), (Edge(0, "on", 1), Edge(1, "under", 0)))
    assert painting_order(circle) == [0, 1]


def test_every_step_without_a_detour_only_extends():
    steps = beats(GARDEN, np.random.default_rng(0), max_steps=5, diversify=0.0)
    assert [b.operation for b in steps] == ["add"] * 4
    for beat, following in zip(steps, steps[1:], strict=False):
        assert beat.after == following.before
    for beat in steps:
        assert set(beat.before.nodes) < set(beat.after.nodes)
    assert steps[0].before == SceneGraph() and steps[-1].after == GARDEN
    short = beats(GARDEN, np.random.default_rng(0), max_steps=3, diversify=0.0)
    assert [len(b.after.nodes) for b in short] == [1, 2, 4] and short[-1].after == GARDEN


def test_detours_end_in_the_same_scene():
    operations = collections.Counter()
    for seed in range(200):
        steps = beats(GARDEN, np.random.default_rng(seed), max_steps=6, diversify=1.0)
        operations.update(b.operation for b in steps)
        assert steps[-1].after == GARDEN
        assert all(a.after == b.before for a, b in zip(steps, steps[1:], strict=False))
        assert len(steps) > 4
        for beat in steps:
            words = instruction(Change("", beat.operation, beat.before, beat.after))
            assert words.endswith(".") and describe(beat.after)
    assert min(operations[kind] for kind in ("modify", "remove")) > 10
    assert operations["swap"] == 0, "the dog is held as well: it cannot change places"
    pair = SceneGraph((Node("cat"), Node("dog")), (Edge(0, "left of", 1),))
    kinds = {
        tuple(b.operation for b in beats(pair, np.random.default_rng(s), max_steps=5, diversify=1))
        for s in range(50)
    }
    assert ("add", "add", "swap") in kinds


def test_a_swap_begins_the_other_way_round():
    pair = SceneGraph((Node("cat"), Node("dog")), (Edge(0, "left of", 1),))
    for seed in range(50):
        steps = beats(pair, np.random.default_rng(seed), max_steps=5, diversify=1.0)
        if steps[-1].operation == "swap":
            assert steps[-2].after.edges == (Edge(0, "right of", 1),)
            change = Change("", "swap", steps[-1].before, steps[-1].after)
            assert instruction(change) == "Swap the cat and the dog."
            return
    raise AssertionError("no swap")


def test_a_second_thing_of_the_same_kind_has_its_own_place():
    nodes = (Node("cup", color="red"), Node("table"), Node("cup", color="red"), Node("shelf"))
    graph = SceneGraph(nodes, (Edge(0, "on", 1), Edge(2, "on", 3)))
    steps = beats(graph, np.random.default_rng(0), max_steps=5, diversify=0.0)
    said = [instruction(Change("", b.operation, b.before, b.after)) for b in steps]
    assert said == [
        "Add a table.",
        "Add a red cup: the red cup on the table.",
        "Add a shelf.",
        "Add a red cup: the red cup on the shelf.",
    ]


def test_how_settings_relate_is_said_of_things_only():
    nodes = (Node("hill", background=True), Node("lake", background=True), Node("dog"))
    graph = SceneGraph(nodes, (Edge(0, "behind", 1), Edge(2, "near", 1)))
    assert instruction(Change("", "add", SceneGraph(), graph)) == (
        "Paint a hill and a lake as the background. Add a dog: the dog near the lake."
    )


def test_the_planner_answers_in_order_and_passes_failures_on():
    class Parser(RuleParser):
        def parse(self, prompts):
            return [Failed("no") if p == "?" else g
                    for p, g in zip(prompts, super().parse(prompts), strict=True)]  # fmt: skip

    class Writer(TemplateWriter):
        def write(self, changes):
            return [Failed("dumb") if "cow" in c.prompt else w
                    for c, w in zip(changes, super().write(changes), strict=True)]  # fmt: skip

    prompts = ["a photo of a red dog", "?", "a photo of a cow", "a photo of two benches"]
    planner = GraphPlanner(Parser(), Writer(), diversify=0.0)
    plans = planner.plan([PlanRequest(p, {}, i) for i, p in enumerate(prompts)])
    assert plans[1:3] == [Failed("no"), Failed("dumb")]
    assert plans[0][0].plan == "<ins>Add a red dog.</ins><des>a red dog</des>"
    assert plans[3][0].description == "two benches"


def test_words():
    assert phrase(Node("apple", 1, "orange")) == "an orange apple"
    assert phrase(Node("bench", 12, None, ("old",))) == "12 old benches"
    assert phrase(Node("dog", 2, "red", ("many", "on the left"))) == "many red dogs on the left"
    for one, many in (("wine glass", "wine glasses"), ("knife", "knives"), ("sheep", "sheep"),
                      ("berry", "berries"), ("toy", "toys"), ("old man", "old men")):  # fmt: skip
        assert plural(one) == many
    assert describe(SceneGraph()) == "an empty canvas"
    assert describe(GARDEN).endswith("the black dog left of the benches; "
                                     "the young boy holding the black dog")  # fmt: skip
    with pytest.raises(DataError, match="'add'"):
        instruction(Change("", "add", GARDEN, GARDEN))
