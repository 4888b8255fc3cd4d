"""Steps in plain English, by rule: the `Writer` that asks nobody."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from process_gen.core.errors import DataError
from process_gen.curation.prompt_words import QUANTIFIERS
from process_gen.curation.protocols import Change, Failed, Node, SceneGraph

_NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_PEOPLE = {"person": "people", "man": "men", "woman": "women", "child": "children"}
_ENDINGS = {"ife": "ives", "mouse": "mice", "goose": "geese", "tooth": "teeth", "foot": "feet"}
_SAME = ("sheep", "fish", "deer", "skis", "scissors")


def plural(name: str) -> str:
    """The plural of a noun; of the last word of several."""
    head, space, noun = name.rpartition(" ")
    if noun in _SAME:
        return name
    if noun in _PEOPLE:
        return head + space + _PEOPLE[noun]
    for ending, many in _ENDINGS.items():
        if noun.endswith(ending):
            return head + space + noun[: -len(ending)] + many
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return name + "es"
    if noun.endswith("y") and noun[-2:-1] not in tuple("aeiou"):
        return name[:-1] + "ies"
    return name + "s"


def noun(node: Node) -> str:
    """A node without its number: "running black dog", "wooden benches"."""
    name = node.name if node.count == 1 else plural(node.name)
    before = [word for word in node.attributes if " " not in word and word not in QUANTIFIERS]
    after = [words for words in node.attributes if " " in words]  # "on the left"
    return " ".join([*before, *([node.color] if node.color else []), name, *after])


def phrase(node: Node) -> str:
    """A node in words: "an orange cat", "two wooden benches", "many trees on the left"."""
    words = noun(node)
    if node.count == 1:
        return f"{'an' if words[:1].lower() in tuple('aeiou') else 'a'} {words}"
    number = _NUMBERS[node.count] if node.count < len(_NUMBERS) else str(node.count)
    number = next((word for word in node.attributes if word in QUANTIFIERS), number)
    return f"{number} {words}"


def describe(graph: SceneGraph) -> str:
    """A whole scene: its nodes, then how they relate."""
    if not graph.nodes:
        return "an empty canvas"
    things = ", ".join(phrase(node) for node in graph.nodes)
    return "; ".join([things, *(_said(*relation) for relation in _relations(graph))])


def _relations(graph: SceneGraph) -> list[tuple[Node, str, Node]]:
    """How the nodes of a scene relate, without their numbers, which differ between scenes."""
    return [(graph.nodes[e.subject], e.relation, graph.nodes[e.target]) for e in graph.edges]


def _said(subject: Node, relation: str, target: Node) -> str:
    return f"the {noun(subject)} {relation} the {noun(target)}"


class TemplateWriter:
    """Writes every step in the same few forms."""

    def write(self, changes: Sequence[Change]) -> list[tuple[str, str] | Failed]:
        """(instruction, description) of each change."""
        return [(instruction(change), describe(change.after)) for change in changes]


def instruction(change: Change) -> str:
    """What a step does.

    Raises:
      DataError: nothing, or something that its operation does not do.
    """
    gone = list((Counter(change.before.nodes) - Counter(change.after.nodes)).elements())
    new = list((Counter(change.after.nodes) - Counter(change.before.nodes)).elements())
    if change.operation == "add" and new and not gone:
        return _add(change, new)
    if change.operation == "remove" and gone and not new:
        return f"Remove the {' and the '.join(noun(node) for node in gone)}."
    if change.operation == "modify" and len(gone) == len(new) == 1:
        return f"Change the {noun(gone[0])} to {phrase(new[0])}."
    if change.operation == "swap" and not gone and not new:
        turned = next(e for e in change.after.edges if e not in change.before.edges)
        a, b = change.after.nodes[turned.subject], change.after.nodes[turned.target]
        return f"Swap the {noun(a)} and the {noun(b)}."
    raise DataError(f"a step of kind {change.operation!r} that takes {gone} and adds {new}")


def _add(change: Change, new: Sequence[Node]) -> str:
    settings = [node for node in new if node.background]
    things = [node for node in new if not node.background]
    said = []
    if settings:
        said.append(f"Paint {' and '.join(map(phrase, settings))} as the background.")
    if things:
        # An older node may equal a new one: only what was not related before is said.
        fresh = Counter(_relations(change.after)) - Counter(_relations(change.before))
        where = [_said(*x) for x in fresh.elements() if x[0] in things or x[2] in things]
        added = f"Add {' and '.join(map(phrase, things))}"
        said.append(f"{added}: {'; '.join(where)}." if where else f"{added}.")
    return " ".join(said)
