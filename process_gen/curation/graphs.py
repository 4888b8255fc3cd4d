"""From a scene graph to the steps of a painting: growing subgraphs, then a detour.

Every step extends the one before, so that nothing contradicts it. A detour paints something
otherwise first, or something more, and puts it right later: another path to the same end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from process_gen.curation.protocols import (
    Change,
    Edge,
    Failed,
    Node,
    Operation,
    Parser,
    PlannedStep,
    PlanRequest,
    SceneGraph,
    Writer,
)

INVERSE = {
    "left of": "right of",
    "right of": "left of",
    "above": "below",
    "below": "above",
    "in front of": "behind",
    "behind": "in front of",
}
COLORS = ("red", "blue", "green", "yellow", "orange", "purple", "brown", "black", "white", "pink")
# Things that a detour paints and takes away again.
PASSERS_BY = ("balloon", "umbrella", "kite", "ball", "lamp", "suitcase", "chair", "bird")


@dataclasses.dataclass(frozen=True)
class Beat:
    """A step as a change of graphs; see `protocols.Change`."""

    operation: Operation
    before: SceneGraph
    after: SceneGraph


@dataclasses.dataclass
class _Draft:
    """A script while it is being varied.

    Attributes:
      script: (operation, indices of nodes) of every step.
      first: nodes as they are first painted, where that is not how they end.
      reversed: edges that are painted the other way round first.
      extra: a node that is taken away again, by its index.
    """

    script: list[tuple[Operation, tuple[int, ...]]]
    first: dict[int, Node] = dataclasses.field(default_factory=dict)
    reversed: set[int] = dataclasses.field(default_factory=set)
    extra: dict[int, Node] = dataclasses.field(default_factory=dict)


def painting_order(graph: SceneGraph) -> list[int]:
    """Settings first; then what others relate to before them; else the order of the prompt."""
    left = list(range(len(graph.nodes)))
    left.sort(key=lambda i: not graph.nodes[i].background)
    order: list[int] = []
    while left:
        ready = (
            i
            for i in left
            if all(e.target in order for e in graph.edges if e.subject == i and e.target != i)
        )
        # Relations that run in a circle have no first one.
        order.append(next(ready, left[0]))
        left.remove(order[-1])
    return order


def beats(
    graph: SceneGraph, rng: np.random.Generator, *, max_steps: int, diversify: float
) -> list[Beat]:
    """The steps of a painting.

    Args:
      graph: with at least one node.
      rng: random numbers.
      max_steps: where there are more nodes, the last ones are painted together.
      diversify: probability of a detour, if it fits into `max_steps`.
    """
    order = painting_order(graph)
    script: list[tuple[Operation, tuple[int, ...]]] = [
        ("add", (i,)) for i in order[: max_steps - 1]
    ]
    rest = tuple(order[max_steps - 1 :])
    draft = _Draft([*script, ("add", rest)] if rest else script)
    if rng.random() < diversify:
        for number in rng.permutation(len(_DETOURS)).tolist():
            varied = _DETOURS[number](graph, draft, rng)
            if varied is not None and len(varied.script) <= max_steps:
                draft = varied
                break
    return _replay(graph, draft)


def _replay(graph: SceneGraph, draft: _Draft) -> list[Beat]:
    shown: dict[int, Node] = {}
    turned = set(draft.reversed)
    made = []
    before = SceneGraph()
    for operation, indices in draft.script:
        for i in indices:
            if operation == "remove":
                del shown[i]
            elif operation == "add":
                shown[i] = draft.extra.get(i) or draft.first.get(i, graph.nodes[i])
            elif operation == "modify":
                shown[i] = graph.nodes[i]
        if operation == "swap":
            turned.clear()
        after = _picture(graph, shown, turned)
        made.append(Beat(operation, before, after))
        before = after
    return made


def _picture(graph: SceneGraph, shown: dict[int, Node], turned: set[int]) -> SceneGraph:
    """The graph of the nodes that are shown, with some edges turned round."""
    edges = tuple(
        Edge(edge.subject, INVERSE[edge.relation], edge.target) if number in turned else edge
        for number, edge in enumerate(graph.edges)
    )
    extra = [node for i, node in shown.items() if i >= len(graph.nodes)]
    nodes = [shown.get(i, node) for i, node in enumerate(graph.nodes)]
    whole = SceneGraph((*nodes, *extra), edges)
    present = [i for i in shown if i < len(graph.nodes)]
    return whole.subgraph([*present, *range(len(graph.nodes), len(whole.nodes))])


# ---- detours: each gives a longer script, or None where it cannot --------------------------------


def _later(rng: np.random.Generator, first: int, last: int) -> int:
    return int(rng.integers(first, last + 1))


def _modify(graph: SceneGraph, draft: _Draft, rng: np.random.Generator) -> _Draft | None:
    """Something is painted in another colour, or without an attribute, and changed later."""
    able = [
        (place, i)
        for place, (_, indices) in enumerate(draft.script)
        for i in indices
        if len(indices) == 1 and (graph.nodes[i].color or graph.nodes[i].attributes)
    ]
    if not able:
        return None
    place, i = able[int(rng.integers(len(able)))]
    node = graph.nodes[i]
    if node.color:
        others = [color for color in COLORS if color != node.color]
        first = dataclasses.replace(node, color=others[int(rng.integers(len(others)))])
    else:
        first = dataclasses.replace(node, attributes=node.attributes[:-1])
    script = list(draft.script)
    script.insert(_later(rng, place + 1, len(script)), ("modify", (i,)))
    return dataclasses.replace(draft, script=script, first={i: first})


def _swap(graph: SceneGraph, draft: _Draft, rng: np.random.Generator) -> _Draft | None:
    """Two things are painted in each other's places, and swapped later."""
    places = {indices[0]: p for p, (_, indices) in enumerate(draft.script) if len(indices) == 1}
    able = [
        number
        for number, edge in enumerate(graph.edges)
        if edge.relation in INVERSE
        and edge.subject in places
        and edge.target in places
        # With other relations of the two, exchanging them would break those.
        and sum({e.subject, e.target} & {edge.subject, edge.target} != set() for e in graph.edges)
        == 1
    ]
    if not able:
        return None
    number = able[int(rng.integers(len(able)))]
    edge = graph.edges[number]
    both = max(places[edge.subject], places[edge.target])
    script = list(draft.script)
    script.insert(_later(rng, both + 1, len(script)), ("swap", (edge.subject, edge.target)))
    return dataclasses.replace(draft, script=script, reversed={number})


def _remove(graph: SceneGraph, draft: _Draft, rng: np.random.Generator) -> _Draft | None:
    """Something that nobody asked for is painted, and taken away later."""
    names = {node.name for node in graph.nodes}
    able = [name for name in PASSERS_BY if name not in names]
    if not able or len(draft.script) < 2:
        return None
    extra, number = Node(able[int(rng.integers(len(able)))]), len(graph.nodes)
    script = list(draft.script)
    place = _later(rng, 1, len(script) - 1)
    script.insert(place, ("add", (number,)))
    script.insert(_later(rng, place + 2, len(script)), ("remove", (number,)))
    return dataclasses.replace(draft, script=script, extra={number: extra})


_DETOURS: tuple[Callable[[SceneGraph, _Draft, np.random.Generator], _Draft | None], ...] = (
    _modify,
    _swap,
    _remove,
)


class GraphPlanner:
    """Plans from scene graphs.

    Args:
      parser: reads the graphs.
      writer: puts the steps into words.
      max_steps, diversify: see `beats`.
    """

    def __init__(
        self, parser: Parser, writer: Writer, *, max_steps: int = 5, diversify: float = 0.3
    ):
        self._parser, self._writer = parser, writer
        self._max_steps, self._diversify = max_steps, diversify

    def plan(self, requests: Sequence[PlanRequest]) -> list[tuple[PlannedStep, ...] | Failed]:
        """The steps of each request."""
        graphs = self._parser.parse([request.prompt for request in requests])
        scripts: list[list[Beat] | Failed] = []
        changes: list[Change] = []
        for request, graph in zip(requests, graphs, strict=True):
            if isinstance(graph, Failed):
                scripts.append(graph)
                continue
            if not graph.nodes:
                scripts.append(Failed("a prompt that asks for nothing", request.prompt))
                continue
            rng = np.random.default_rng(request.seed)
            script = beats(graph, rng, max_steps=self._max_steps, diversify=self._diversify)
            scripts.append(script)
            changes += [
                Change(request.prompt, b.operation, b.before, b.after, request.seed) for b in script
            ]
        words: Any = iter(self._writer.write(changes))
        return [
            script if isinstance(script, Failed) else _steps(script, [next(words) for _ in script])
            for script in scripts
        ]


def _steps(
    script: Sequence[Beat], words: Sequence[tuple[str, str] | Failed]
) -> tuple[PlannedStep, ...] | Failed:
    steps = []
    for beat, said in zip(script, words, strict=True):
        if isinstance(said, Failed):
            return said
        steps.append(PlannedStep(*said, beat.operation))
    return tuple(steps)
