"""Prompts become graphs by grammar, so that words nobody has seen are read like any other."""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.core.errors import DataError
from process_gen.curation.plurals import is_plural, singular
from process_gen.curation.prompt_graph import RuleParser, agrees, geneval_include, read_prompt
from process_gen.curation.protocols import Edge, Failed, Node, SceneGraph

# GenEval's 553 prompts (MIT, see LICENSE beside them).
GENEVAL = Path(__file__).parent / "fixtures" / "geneval" / "evaluation_metadata.jsonl"
ROWS = [json.loads(line) for line in GENEVAL.read_text(encoding="utf-8").splitlines()]
COLORS = "red orange yellow green blue purple pink brown black white".split()


def agreement(rows):
    """Share of rows whose graph equals `include`, and the prompts where it does not."""
    graphs = [read_prompt(row["prompt"]).graph for row in rows]
    pairs = zip(graphs, rows, strict=True)
    wrong = [row["prompt"] for graph, row in pairs if not agrees(graph, row["include"])]
    return 1 - len(wrong) / len(rows), wrong


def test_graphs_of_geneval_equal_its_metadata():
    assert len(ROWS) == 553
    share, wrong = agreement(ROWS)
    assert share >= 0.98, wrong
    assert all(read_prompt(row["prompt"]).unread == () for row in ROWS)


def test_a_wrong_requirement_is_found():
    """The same prompts with each requirement altered in one place: none of them agrees."""
    for key, value in (
        ("class", "thing"),
        ("count", 9),
        ("color", "mauve"),
        ("position", ["of", 0]),
    ):
        altered = [
            {**r, "include": [*r["include"][:-1], {**r["include"][-1], key: value}]} for r in ROWS
        ]
        assert agreement(altered)[0] == 0.0


def invented(rng: random.Random) -> str:
    """A word that is in no dictionary, and does not end like a plural, a verb or an adverb."""
    syllables = ("zor", "bla", "kri", "mun", "fle", "gop", "vish", "tro", "quam", "dex")
    return "".join(rng.choices(syllables, k=3)) + rng.choice(("t", "k", "m", "rn", "lp"))


@pytest.mark.parametrize("seed", range(3))
def test_words_that_nobody_has_seen_are_read_by_their_place(seed):
    """Every object of GenEval renamed, to one, two or three invented words."""
    rng = random.Random(seed)
    names = {item["class"] for row in ROWS for item in row["include"]}
    new = {
        name: " ".join(invented(rng) for _ in range(rng.randint(1, 3))) for name in sorted(names)
    }

    def word_for(count, name):
        return new[name] if count == 1 else f"{new[name]}s"

    def phrase(item):
        number = ("a", "two", "three", "four")[item["count"] - 1]
        color = f"{item['color']} " if "color" in item else ""
        return f"{number} {color}{word_for(item['count'], item['class'])}"

    renamed = []
    for row in ROWS:
        include = [{**item, "class": new[item["class"]]} for item in row["include"]]
        parts = [phrase(item) for item in row["include"]]
        if row["tag"] == "position":
            prompt = f"a photo of {parts[1]} {row['include'][1]['position'][0]} {parts[0]}"
        else:
            prompt = f"a photo of {' and '.join(parts)}"
        renamed.append({"prompt": prompt, "include": include})
    share, wrong = agreement(renamed)
    assert share == 1.0, wrong[:5]


def graph(*nodes, edges=()):
    return SceneGraph(nodes, tuple(Edge(*edge) for edge in edges))


READINGS = {
    "a zorblat": graph(Node("zorblat")),
    "two zorblats": graph(Node("zorblat", 2)),
    "a photo of a purple orange": graph(Node("orange", color="purple")),
    "an orange and three oranges": graph(Node("orange"), Node("orange", 3)),
    "a wine glass on a glass table": graph(
        Node("wine glass"), Node("table", attributes=("glass",)), edges=[(0, "on", 1)]
    ),
    "a quibbly red wine glass": graph(Node("wine glass", color="red", attributes=("quibbly",))),
    "a light blue teddy bear to the left of two dark grey hot dogs": graph(
        Node("teddy bear", color="light blue"),
        Node("hot dog", 2, color="dark grey"),
        edges=[(0, "left of", 1)],
    ),
    "a black and white cat next to a soft, plush cushion": graph(
        Node("cat", color="black", attributes=("white",)),
        Node("cushion", attributes=("soft", "plush")),
        edges=[(0, "next to", 1)],
    ),
    "three clocks on the left and one cats on the right": graph(
        Node("clock", 3, attributes=("on the left",)), Node("cat", attributes=("on the right",))
    ),
    "a mountain in the background": graph(
        Node("mountain", attributes=("in the background",), background=True)
    ),
    "a dog running in a park": graph(
        Node("dog"), Node("park", background=True), edges=[(0, "running in", 1)]
    ),
    "a chair hidden by a zorblat": graph(
        Node("chair"), Node("zorblat"), edges=[(0, "hidden by", 1)]
    ),
    "The wooden fork and the spoon were resting on the red napkin.": graph(
        Node("fork", attributes=("wooden",)),
        Node("spoon"),
        Node("napkin", color="red"),
        edges=[(0, "resting on", 2), (1, "resting on", 2)],
    ),
    "A woman is holding a paint can and smiling at her two dogs.": graph(
        Node("woman"),
        Node("paint can"),
        Node("dog", 2),
        edges=[(0, "holding", 1), (0, "smiling at", 2)],
    ),
    "The crisp omelet zorbled the fluffy eggs and the crisp leaves.": graph(
        Node("omelet", attributes=("crisp",)),
        Node("egg", 2, attributes=("fluffy",)),
        Node("leaf", 2, attributes=("crisp",)),
        edges=[(0, "zorbled", 1), (0, "zorbled", 2)],
    ),
    "The cat is asleep.": graph(Node("cat", attributes=("asleep",))),
    "The vases are red and shiny.": graph(Node("vase", 2, color="red", attributes=("shiny",))),
    "many tall trees": graph(Node("tree", 2, attributes=("many", "tall"))),
    "A dog left of a cat; a bird above it": None,
    "The old house, a marvel of its time, was empty.": None,
    "A man hopes that it will grow because he planted it.": None,
}


@pytest.mark.parametrize("prompt", READINGS)
def test_reading(prompt):
    reading = read_prompt(prompt)
    if READINGS[prompt] is None:
        assert reading.unread
    else:
        assert (reading.graph, reading.unread) == (READINGS[prompt], ())


def lost(prompt, reading):
    """The content words of a prompt that a reading does not hold."""
    parts = [*reading.unread, *(edge.relation for edge in reading.graph.edges)]
    for node in reading.graph.nodes:
        parts += [node.name, node.color or "", *node.attributes]
    held = " ".join(parts).split()
    free = "a an the of and or is are was were that it he her its will to on photo one two three"
    found = "".join(letter if letter.isalpha() else " " for letter in prompt.lower()).split()
    return [w for w in found if w not in free.split() and not {w, singular(w)} & set(held)]


@pytest.mark.parametrize("prompt", [*READINGS, *(row["prompt"] for row in ROWS[::50])])
def test_no_word_is_lost(prompt):
    assert lost(prompt, read_prompt(prompt)) == []
    assert lost(f"{prompt} gloop", read_prompt(prompt)) == ["gloop"]


def test_parser_fails_where_words_are_left_over():
    partly = "A dog left of a cat; a bird above it"
    found = RuleParser().parse(["a dog", partly, "?!"])
    assert found[0] == graph(Node("dog"))
    assert [f.reason for f in found[1:] if isinstance(f, Failed)] == [
        "not understood",
        "empty prompt",
    ]
    (kept,) = RuleParser(partial=True).parse([partly])
    assert isinstance(kept, SceneGraph) and len(kept.nodes) == 3
    with pytest.raises(DataError, match="no words"):
        read_prompt(" ?! ")


def test_positions_point_to_earlier_items():
    """A chain and a circle of relations; the schema has one position an item, to one before it."""
    chain = graph(Node("a"), Node("b"), Node("c"), edges=[(0, "left of", 1), (1, "on top of", 2)])
    assert geneval_include(chain) == [
        {"class": "c", "count": 1},
        {"class": "b", "count": 1, "position": ["above", 0]},
        {"class": "a", "count": 1, "position": ["left of", 1]},
    ]
    circle = graph(Node("a"), Node("b"), edges=[(0, "left of", 1), (1, "right of", 0)])
    positions = [item.get("position") for item in geneval_include(circle)]
    assert positions == [None, ["left of", 0]]


@pytest.mark.parametrize(
    ("many", "one"),
    [
        *(("benchs", "bench"), ("benches", "bench"), ("knifes", "knife"), ("knives", "knife")),
        *(("buses", "bus"), ("vases", "vase"), ("glasses", "glass"), ("horses", "horse")),
        *(("cherries", "cherry"), ("ties", "tie"), ("cookies", "cookie"), ("tomatoes", "tomato")),
        *(("shoes", "shoe"), ("broccolis", "broccoli"), ("sheeps", "sheep"), ("women", "woman")),
        *(("firemen", "fireman"), ("houses", "house"), ("boxes", "box"), ("zorblats", "zorblat")),
        *(("scissorses", "scissors"), ("doves", "dove"), ("wolves", "wolf"), ("toys", "toy")),
    ],
)
def test_plurals(many, one):
    assert is_plural(many) and singular(many) == one


@pytest.mark.parametrize("word", "bus glass tennis canvas scissors sheep gas specimen yes".split())
def test_words_that_only_look_like_plurals(word):
    assert not is_plural(word) and singular(word) == word


WORDS = """a an the two three many red wooden dark light zorblat zorblats sheep wine glass running
jumped is are has and , . ; on in at left of right to the above next with by while because it which
quickly can not background & 3 orange frobbed 's""".split()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
def test_any_words_give_a_graph_that_holds_together(tokens):
    """No order of words breaks the reader, and edges join nodes that are there."""
    prompt = " ".join(["dog", *tokens])
    reading = read_prompt(prompt)
    count = len(reading.graph.nodes)
    for edge in reading.graph.edges:
        assert 0 <= edge.subject < count and 0 <= edge.target < count
    assert all(node.count >= 1 and node.name for node in reading.graph.nodes)
    assert len(geneval_include(reading.graph)) == count
