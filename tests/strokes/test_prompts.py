"""Prompts: templates of every tag, the metadata schema, and what is held out."""

from __future__ import annotations

import json
import re
import zlib

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.strokes import prompts
from process_gen.strokes.scene import COLORS, SHAPES

SHAPE = f"(?:{'|'.join(SHAPES)})"
COLOR = f"(?:{'|'.join(COLORS)})"
COLORED = rf"an? {COLOR} {SHAPE}"
RELATION = "(?:left of|right of|above|below)"
GROUP = rf"(?:{COLORED}|(?:two|three) {COLOR} {SHAPE}s)"
TEMPLATES = {
    "single_object": rf"a {SHAPE}",
    "two_object": rf"a {SHAPE} and a {SHAPE}",
    "counting": rf"(?:two|three|four) {SHAPE}s",
    "colors": COLORED,
    "position": rf"(?:a {SHAPE}|{COLORED}) {RELATION} (?:a {SHAPE}|{COLORED})",
    "color_attr": rf"{COLORED} and {COLORED}",
    "complex": rf"{GROUP} {RELATION} {GROUP}(?: and {GROUP})?",
}


def draw(tag, n, split="train", seed=0):
    rng = np.random.default_rng(seed)
    return [prompts.sample_requirement(rng, tag, split=split) for _ in range(n)]


@pytest.mark.parametrize("tag", prompts.TAGS)
def test_templates(tag):
    for drawn in draw(tag, 200):
        assert re.fullmatch(TEMPLATES[tag], drawn["prompt"])
        assert not re.search(r"\ba orange|\ban (?!orange)", drawn["prompt"])
        assert drawn["tag"] == tag
        assert json.loads(json.dumps(drawn)) == drawn
        assert prompts.parse(drawn["prompt"]) == drawn
        assert prompts.check(drawn) == drawn
        shapes = [item["class"] for item in drawn["include"]]
        colors = [item.get("color") for item in drawn["include"]]
        if tag in ("two_object", "position", "color_attr"):
            assert len(set(shapes)) == 2
        if tag == "color_attr":
            assert len(set(colors)) == 2
        if tag == "complex":
            assert 3 <= sum(item["count"] for item in drawn["include"]) <= 5
            assert len(set(zip(colors, shapes, strict=True))) == len(shapes)


def test_every_template_has_variety():
    for tag, least in (("single_object", 4), ("counting", 12), ("colors", 28), ("complex", 190)):
        assert len({r["prompt"] for r in draw(tag, 200, seed=1)}) >= least
    relations = {r["include"][1]["position"][0] for r in draw("position", 100)}
    assert relations == {"left of", "right of", "above", "below"}
    colored = [sum("color" in item for item in r["include"]) for r in draw("position", 200)]
    assert set(colored) == {0, 1, 2}


def test_complex_prompts_without_some_colours():
    rng = np.random.default_rng(0)
    drawn = [prompts.sample_requirement(rng, "complex", uncolored=0.5) for _ in range(300)]
    bare = 0
    for asked in drawn:
        assert prompts.parse(asked["prompt"]) == asked == prompts.check(asked)
        assert not prompts.held_out(asked["prompt"])
        shapes = [item["class"] for item in asked["include"]]
        unnamed = [item["class"] for item in asked["include"] if "color" not in item]
        assert all(shapes.count(shape) == 1 for shape in unnamed)
        bare += bool(unnamed)
    assert 120 < bare < 240
    # Some are held out, and none of them is what a painter is scored on.
    held = [
        prompts.sample_requirement(rng, "complex", split="held_out", uncolored=0.9)
        for _ in range(20)
    ]
    assert all(prompts.held_out(asked["prompt"]) for asked in held)
    assert sum("color" not in item for asked in held for item in asked["include"]) > 10
    scored = prompts.held_out_requirements("complex", 200, 0)
    assert all("color" in item for asked in scored for item in asked["include"])


def test_schema_example_of_the_design():
    assert prompts.parse("a square left of a red circle") == {
        "tag": "position",
        "include": [
            {"class": "circle", "count": 1, "color": "red"},
            {"class": "square", "count": 1, "position": ["left of", 0]},
        ],
        "exclude": [],
        "prompt": "a square left of a red circle",
    }


def test_schema_of_complex():
    stated = prompts.parse("two red circles above an orange star and three red squares")
    assert stated is None  # six objects
    stated = prompts.parse("two red circles above an orange star and a red square")
    assert stated["include"] == [
        {"class": "star", "count": 1, "color": "orange"},
        {"class": "circle", "count": 2, "color": "red", "position": ["above", 0]},
        {"class": "square", "count": 1, "color": "red"},
    ]


@pytest.mark.parametrize(
    "text",
    [
        "a orange circle",
        "a dog",
        "two circle",
        "a circles",
        "a circle and a circle",
        "a red circle and a square",
        "a circle left of a circle",
        "a red circle above two circles",
        "A circle",
        "a circle left of a square and a red circle",
        "",
    ],
)
def test_foreign_text_is_not_parsed(text):
    assert prompts.parse(text) is None
    assert not prompts.held_out(text)


def test_canonical():
    same = {
        "a square right of a red circle": "a red circle left of a square",
        "a square left of a red circle": "a square left of a red circle",
        "two red stars below a blue circle and a green star": (
            "a blue circle above two red stars and a green star"
        ),
        "a red circle above a blue star and an orange star": (
            "a red circle above a blue star and an orange star"
        ),
        "a red circle and a blue square": "a blue square and a red circle",
        "an orange star and a red circle": "a red circle and an orange star",
        "three stars": "three stars",
    }
    for prompt, wanted in same.items():
        assert prompts.canonical(prompt) == wanted
        assert prompts.canonical(wanted) == wanted


# crc32 of the canonical prompts, computed with another program.
@pytest.mark.parametrize(
    ("prompt", "crc", "held"),
    [
        ("a star left of a square", 565100130, True),
        ("a square right of a star", 565100130, True),
        ("a square below a circle", 2889165530, True),
        ("a circle left of a square", 97703293, False),
        ("a red circle and a blue square", 41551051, False),  # unsorted it would be 3568033190
        ("a purple triangle and a green square", 3090246550, True),
        ("three green squares left of a red square", 2551346810, True),
        (
            "two blue circles below two green squares and a purple circle",
            1406178200,
            True,
        ),
    ],
)
def test_held_out_rule(prompt, crc, held):
    assert zlib.crc32(prompts.canonical(prompt).encode()) == crc
    assert prompts.held_out(prompt) is held


def test_small_tags_are_never_held_out():
    for tag in ("single_object", "two_object", "counting", "colors"):
        assert not any(prompts.held_out(r["prompt"]) for r in draw(tag, 100))


@pytest.mark.parametrize("tag", prompts.HELD_OUT_TAGS)
def test_splits_are_disjoint(tag):
    assert not any(prompts.held_out(r["prompt"]) for r in draw(tag, 400))
    assert all(prompts.held_out(r["prompt"]) for r in draw(tag, 40, "held_out"))


def test_held_out_requirements():
    first = prompts.held_out_requirements("complex", 120, 0)
    assert len({r["prompt"] for r in first}) == 120
    assert all(prompts.held_out(r["prompt"]) for r in first)
    assert first == prompts.held_out_requirements("complex", 120, 0)
    assert first != prompts.held_out_requirements("complex", 120, 1)
    assert len(prompts.held_out_requirements("single_object", 10, 0)) == 10
    with pytest.raises(DataError, match="split"):
        prompts.sample_requirement(np.random.default_rng(0), "position", split="test")
    with pytest.raises(DataError, match="unknown tag"):
        prompts.sample_requirement(np.random.default_rng(0), "shapes")


def test_read_lines():
    lines = [json.dumps(r) for r in draw("complex", 3)]
    read = list(prompts.read_lines([lines[0], "", "  \n", lines[1] + "\n"], "p.jsonl"))
    assert [r["prompt"] for r in read] == [json.loads(line)["prompt"] for line in lines[:2]]


GOOD = {"tag": "colors", "prompt": "a red star", "include": [{"class": "star", "color": "red"}]}


def test_check_fills_in_counts():
    assert prompts.check(GOOD)["include"] == [{"class": "star", "color": "red", "count": 1}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tag": "shapes"}, "tag"),
        ({"prompt": " "}, "prompt"),
        ({"include": []}, "include"),
        ({"include": [{"class": "dog"}]}, "'include'\\[0\\].*class"),
        ({"include": [{"class": "star", "count": 0}]}, "count"),
        ({"include": [{"class": "star", "color": "pink"}]}, "color"),
        ({"include": [{"class": "star", "position": ["near", 0]}]}, "position"),
        ({"include": [{"class": "star", "position": ["above", 0]}]}, "position"),
        ({"exclude": {}}, "exclude"),
    ],
)
def test_bad_lines_name_file_and_line(change, message):
    lines = [json.dumps(GOOD), json.dumps({**GOOD, **change})]
    with pytest.raises(DataError, match=f"p.jsonl, line 2: .*{message}"):
        list(prompts.read_lines(lines, "p.jsonl"))


@pytest.mark.parametrize("line", ["{", "[1]", "3"])
def test_lines_that_are_no_objects(line):
    with pytest.raises(DataError, match="p.jsonl, line 1"):
        list(prompts.read_lines([line], "p.jsonl"))
