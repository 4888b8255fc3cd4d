"""Prompts of the seven tags, in GenEval's metadata schema, and which of them are held out.

A requirement is the plain dict of one JSON line (docs/strokes.md; fixed):
`{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude":
[{"class", "count"}], "prompt"}`. As in GenEval a `position` points to the index of another include
item, so the group a relation refers to comes first: "a square left of a red circle" is
`[circle, square with ["left of", 0]]`.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.scene import COLOR_NAMES, COLORS, INVERSE, RELATIONS, SHAPES

Requirement = dict[str, Any]
Group = tuple[int, str | None, str]  # count, colour, shape

TAGS = (
    "single_object",
    "two_object",
    "counting",
    "colors",
    "position",
    "color_attr",
    "complex",
)
HELD_OUT_TAGS = ("position", "color_attr", "complex")
NUMBERS = ("no", "a", "two", "three", "four", "five")

_RELATION = re.compile(r" (left of|right of|above|below) ")
_GROUP = re.compile(
    rf"(?P<number>an?|two|three|four) (?:(?P<color>{'|'.join(COLORS)}) )?"
    rf"(?P<shape>{'|'.join(SHAPES)})(?P<plural>s?)"
)
# How many objects a `complex` prompt has in each of its two or three groups: 3 to 5 in all, at most
# three in one group.
_TWO_GROUPS = tuple((a, b) for a in (1, 2, 3) for b in (1, 2, 3) if 3 <= a + b <= 5)
_THREE_GROUPS = tuple(
    (a, b, c) for a in (1, 2, 3) for b in (1, 2, 3) for c in (1, 2, 3) if a + b + c <= 5
)


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of `options`; much cheaper than `rng.choice`."""
    return options[int(rng.random() * len(options))]


def noun(count: int, color: str | None, shape: str) -> str:
    """A group without its number: "red circle", "circles"."""
    name = shape if count == 1 else shape + "s"
    return f"{color} {name}" if color else name


def phrase(count: int, color: str | None, shape: str) -> str:
    """A group in words: "an orange star", "two circles"."""
    if count == 1:
        return f"{'an' if color == 'orange' else 'a'} {noun(1, color, shape)}"
    return f"{NUMBERS[count]} {noun(count, color, shape)}"


def _item(group: Group, position: list[Any] | None = None) -> dict[str, Any]:
    count, color, shape = group
    item: dict[str, Any] = {"class": shape, "count": count}
    if color:
        item["color"] = color
    if position:
        item["position"] = position
    return item


def requirement(tag: str, groups: Sequence[Group], relation: str | None = None) -> Requirement:
    """The requirement of groups in the order of the prompt; `relation` joins the first two."""
    words = [phrase(*group) for group in groups]
    if relation is None:
        prompt = " and ".join(words)
        include = [_item(group) for group in groups]
    else:
        prompt = " and ".join([f"{words[0]} {relation} {words[1]}", *words[2:]])
        include = [_item(groups[1]), _item(groups[0], [relation, 0])]
        include += [_item(group) for group in groups[2:]]
    # GenEval excludes one more than asked for, in this tag only.
    count, _, shape = groups[0]
    exclude = [{"class": shape, "count": count + 1}] if tag == "counting" else []
    return {"tag": tag, "include": include, "exclude": exclude, "prompt": prompt}


def _two_shapes(rng: np.random.Generator) -> tuple[str, str]:
    first = int(rng.random() * 4)
    return SHAPES[first], SHAPES[(first + 1 + int(rng.random() * 3)) % 4]


def _two_colors(rng: np.random.Generator) -> tuple[str, str]:
    first = int(rng.random() * 7)
    return COLOR_NAMES[first], COLOR_NAMES[(first + 1 + int(rng.random() * 6)) % 7]


def _draw(rng: np.random.Generator, tag: str) -> Requirement:
    if tag == "single_object":
        return requirement(tag, [(1, None, pick(rng, SHAPES))])
    if tag == "colors":
        return requirement(tag, [(1, pick(rng, COLOR_NAMES), pick(rng, SHAPES))])
    if tag == "counting":
        return requirement(tag, [(pick(rng, (2, 3, 4)), None, pick(rng, SHAPES))])
    if tag == "two_object":
        return requirement(tag, [(1, None, shape) for shape in _two_shapes(rng)])
    if tag == "color_attr":
        pairs = zip(_two_colors(rng), _two_shapes(rng), strict=True)
        return requirement(tag, [(1, color, shape) for color, shape in pairs])
    if tag == "position":
        groups = [
            (1, pick(rng, COLOR_NAMES) if rng.random() < 0.5 else None, shape)
            for shape in _two_shapes(rng)
        ]
        return requirement(tag, groups, pick(rng, RELATIONS))
    if tag == "complex":
        counts = pick(rng, _TWO_GROUPS if rng.random() < 0.5 else _THREE_GROUPS)
        kinds: list[tuple[str, str]] = []
        while len(kinds) < len(counts):
            kind = (pick(rng, COLOR_NAMES), pick(rng, SHAPES))
            if kind not in kinds:
                kinds.append(kind)
        groups = [(count, *kind) for count, kind in zip(counts, kinds, strict=True)]
        return requirement(tag, groups, pick(rng, RELATIONS))
    raise DataError(f"unknown tag {tag!r}; one of {', '.join(TAGS)}")


def canonical(prompt: str) -> str:
    """One spelling for prompts that ask for the same thing.

    "A right of B" becomes "B left of A", "A below B" becomes "B above A" (a third group stays
    last), and the groups of "A and B" are sorted.
    """
    match = _RELATION.search(prompt)
    if match is None:
        return " and ".join(sorted(prompt.split(" and ")))
    first, relation, rest = prompt[: match.start()], match[1], prompt[match.end() :]
    second, joint, third = rest.partition(" and ")
    if relation in ("right of", "below"):
        first, relation, second = second, INVERSE[relation], first
    return f"{first} {relation} {second}{joint}{third}"


def _hash_is_held_out(prompt: str) -> bool:
    return zlib.crc32(canonical(prompt).encode()) % 10 == 0


def parse(prompt: str) -> Requirement | None:
    """The requirement that a prompt in one of the templates states; None for any other text."""
    match = _RELATION.search(prompt)
    relation = match[1] if match else None
    parts = (
        [prompt[: match.start()], *prompt[match.end() :].split(" and ")]
        if match
        else prompt.split(" and ")
    )
    groups: list[Group] = []
    for part in parts:
        found = _GROUP.fullmatch(part)
        if found is None:
            return None
        number = found["number"]
        count = 1 if number in ("a", "an") else NUMBERS.index(number)
        groups.append((count, found["color"], found["shape"]))
        if phrase(*groups[-1]) != part:
            return None
    tag = _tag_of(groups, relation)
    return requirement(tag, groups, relation) if tag else None


def _tag_of(groups: list[Group], relation: str | None) -> str | None:
    counts = [count for count, _, _ in groups]
    colors = [color for _, color, _ in groups]
    shapes = {shape for _, _, shape in groups}
    if relation is None:
        if len(groups) == 1:
            if counts[0] > 1:
                return "counting" if colors[0] is None else None
            return "colors" if colors[0] else "single_object"
        if counts == [1, 1] and len(shapes) == 2:
            if colors == [None, None]:
                return "two_object"
            if all(colors) and len(set(colors)) == 2:
                return "color_attr"
        return None
    if counts == [1, 1]:
        return "position" if len(shapes) == 2 else None
    kinds = {(color, shape) for _, color, shape in groups}
    fits = len(groups) in (2, 3) and 3 <= sum(counts) <= 5 and max(counts) <= 3
    return "complex" if fits and all(colors) and len(kinds) == len(groups) else None


def held_out(prompt: str) -> bool:
    """Whether a prompt must never be trained on (docs/strokes.md); False for foreign text."""
    stated = parse(prompt)
    return stated is not None and stated["tag"] in HELD_OUT_TAGS and _hash_is_held_out(prompt)


def sample_requirement(rng: np.random.Generator, tag: str, *, split: str = "train") -> Requirement:
    """Draws a prompt of a tag.

    Args:
      rng: random numbers.
      tag: one of `TAGS`.
      split: "train" never gives a held-out prompt; "held_out" gives only such for `HELD_OUT_TAGS`
        and any prompt for the other tags, which have too few to hold some out.

    Raises:
      DataError: an unknown tag or split.
    """
    if split not in ("train", "held_out"):
        raise DataError(f"unknown split {split!r}; 'train' or 'held_out'")
    while True:
        drawn = _draw(rng, tag)
        if tag not in HELD_OUT_TAGS or _hash_is_held_out(drawn["prompt"]) == (split == "held_out"):
            return drawn


def held_out_requirements(tag: str, n: int, seed: int) -> list[Requirement]:
    """The `n` prompts that a tag is scored on: held out, or for the small tags freshly drawn.

    Prompts repeat only where the tag has fewer than `n` of them.
    """
    rng = np.random.Generator(np.random.PCG64([seed, TAGS.index(tag), 0x5C0E]))
    found: list[Requirement] = []
    seen: set[str] = set()
    misses = 0
    while len(found) < n:
        drawn = sample_requirement(rng, tag, split="held_out")
        if drawn["prompt"] in seen and misses < 200:
            misses += 1
            continue
        if drawn["prompt"] in seen:
            seen.clear()
        misses = 0
        seen.add(drawn["prompt"])
        found.append(drawn)
    return found


# ---- metadata lines ------------------------------------------------------------------------------


def check(record: Any, where: str = "requirement") -> Requirement:
    """Checks one decoded metadata line and fills in what GenEval leaves out.

    Raises:
      DataError: starts with `where` and names the field.
    """

    def fail(what: str) -> None:
        raise DataError(f"{where}: {what}")

    if not isinstance(record, Mapping):
        fail(f"must be a JSON object, got {type(record).__name__}")
    prompt, tag = record.get("prompt"), record.get("tag")
    if not isinstance(prompt, str) or not prompt.strip():
        fail("'prompt' must be a non-empty string")
    if not _one_of(tag, TAGS):
        fail(f"'tag' is {tag!r}, not one of {', '.join(TAGS)}")
    include, exclude = record.get("include"), record.get("exclude", [])
    if not isinstance(include, list) or not include or not isinstance(exclude, list):
        fail("'include' must be a non-empty list and 'exclude' a list")
    for field, items in (("include", include), ("exclude", exclude)):
        for i, item in enumerate(items):
            name = f"'{field}'[{i}]"
            if not isinstance(item, Mapping) or not _one_of(item.get("class"), SHAPES):
                fail(f"{name} must be an object whose 'class' is one of {', '.join(SHAPES)}")
            count = item.get("count", 1)
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 9:
                fail(f"{name}: 'count' must be a whole number from 1 to 9, got {count!r}")
            if "color" in item and not _one_of(item["color"], COLORS):
                fail(f"{name}: 'color' must be one of {', '.join(COLORS)}, got {item['color']!r}")
            if "position" in item:
                _check_position(item["position"], i, len(items), name, fail)
    return {
        **record,
        "include": [{"count": 1, **item} for item in include],
        "exclude": [{"count": 1, **item} for item in exclude],
    }


def _one_of(value: Any, names: Container[str]) -> bool:
    return isinstance(value, str) and value in names


def _check_position(position: Any, own: int, total: int, name: str, fail: Any) -> None:
    good = (
        isinstance(position, list)
        and len(position) == 2
        and _one_of(position[0], RELATIONS)
        and isinstance(position[1], int)
        and 0 <= position[1] < total
        and position[1] != own
    )
    if not good:
        fail(
            f"{name}: 'position' must be [relation, index of another item] with a relation of "
            f"{', '.join(RELATIONS)}; got {position!r}"
        )


def read_lines(lines: Iterable[str], name: str) -> Iterator[Requirement]:
    """Reads requirements from the lines of a metadata JSONL file; blank lines are skipped.

    Raises:
      DataError: a bad line; the text starts with `name` and the line's number.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, too
            raise DataError(f"{where}: not valid JSON ({error})") from error
        yield check(record, where)
