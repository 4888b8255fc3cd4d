"""Reads a scene graph out of a prompt by grammar alone: no list of nouns, no look-up of prompts.

Written for the prompts of text-to-image benchmarks ("a photo of two red zebras left of a bench")
and for plain English sentences. What the grammar cannot place is returned as `unread`, so that a
caller can hand such prompts to a language model (`remote_judge.RemoteParser`). The rules are in
`prompt_reader`.
"""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from process_gen.core.errors import DataError
from process_gen.curation import prompt_words as words
from process_gen.curation.prompt_reader import Reader
from process_gen.curation.protocols import Failed, SceneGraph

GENEVAL_RELATIONS = {
    "left of": "left of",
    "right of": "right of",
    "above": "above",
    "over": "above",
    "on top of": "above",
    "below": "below",
    "under": "below",
}
_TOKEN = re.compile(r"[^\W_]+(?:['’.-][^\W_]+)*|[^\w\s]")


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the grammar made of a prompt.

    Attributes:
      graph: nodes and edges, in the order of the prompt.
      unread: content words that no node, attribute or edge holds, or that stand where the grammar
        is not sure of them; empty for a prompt that was read completely.
    """

    graph: SceneGraph
    unread: tuple[str, ...] = ()


def read_prompt(prompt: str) -> Reading:
    """Reads a prompt; see `Reading`.

    Raises:
      DataError: the prompt has no word at all.
    """
    text = unicodedata.normalize("NFKC", prompt).lower().replace("’", "'")
    text = text.replace("as well as", "and")
    tokens = _TOKEN.findall(text)
    if not any(token[0].isalnum() for token in tokens):
        raise DataError(f"the prompt {prompt!r} has no words")
    reader = Reader(_without_frame(tokens))
    reader.read()
    return Reading(SceneGraph(tuple(reader.nodes), tuple(reader.edges)), tuple(reader.unread))


@dataclasses.dataclass(frozen=True)
class RuleParser:
    """The `Parser` without a model.

    Attributes:
      partial: whether a prompt that is read only in part gives its graph rather than a failure.
    """

    partial: bool = False

    def parse(self, prompts: Sequence[str]) -> list[SceneGraph | Failed]:
        """The graph of each prompt; "not understood" where words are left over."""
        return [self._one(prompt) for prompt in prompts]

    def _one(self, prompt: str) -> SceneGraph | Failed:
        try:
            reading = read_prompt(prompt)
        except DataError as error:
            return Failed("empty prompt", str(error))
        if not reading.graph.nodes or (reading.unread and not self.partial):
            return Failed("not understood", f"{prompt!r}: {', '.join(reading.unread)}")
        return reading.graph


def geneval_include(graph: SceneGraph) -> list[dict[str, Any]]:
    """The graph in GenEval's schema: {"class", "count", "color"?, "position"?: [relation, index]}.

    A position points to an item before its own, so targets are moved up. Only relations of
    `GENEVAL_RELATIONS` are kept, one a node; attributes have no place in the schema.
    """
    positions = {e.subject: e for e in graph.edges if e.relation in GENEVAL_RELATIONS}
    order: list[int] = []

    def place(index: int, above: tuple[int, ...] = ()) -> None:
        if index in order:
            return
        edge = positions.get(index)
        if edge is not None and edge.target not in above:
            place(edge.target, (*above, index))
        order.append(index)

    for index in range(len(graph.nodes)):
        place(index)
    items = []
    for index in order:
        node, edge = graph.nodes[index], positions.get(index)
        item: dict[str, Any] = {"class": node.name, "count": node.count}
        if node.color:
            item["color"] = node.color
        if edge is not None and order.index(edge.target) < order.index(index):
            item["position"] = [GENEVAL_RELATIONS[edge.relation], order.index(edge.target)]
        items.append(item)
    return items


def agrees(graph: SceneGraph, include: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a graph says what an `include` of GenEval does; keys of other schemas are ignored."""
    keys = ("class", "count", "color", "position")
    return geneval_include(graph) == [{k: item[k] for k in keys if k in item} for item in include]


def _without_frame(tokens: list[str]) -> list[str]:
    """The words after "a photo of", where a prompt begins like that."""
    head = tokens[:5]
    if "of" in head:
        end = head.index("of")
        if end and head[end - 1] in words.FRAMES:
            return tokens[end + 1 :]
    return tokens
