"""Prompts of the seven tags, in GenEval's metadata schema, and which of them are held out.

A requirement is the plain dict of one JSON line (docs/strokes.md; fixed):
`{"tag", "include": [{"class", "count", "color"?, "position"?: [relation, index]}], "exclude":
[{"class", "count"}], "prompt"}`. As in GenEval a `position` points to the index of another include
item, so the group a relation refers to comes first: "a square left of a red circle" is
`[circle, square with ["left of", 0]]`.
"""

from __future__ import annotations

import functools
import json
import re
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from process_gen.core.errors import DataError
from process_gen.strokes.scene import (
    COLOR_NAMES,
    COLORS,
    DEPTHS,
    EASY,
    INVERSE,
    RELATIONS,
    World,
)

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
_LAYERED = 1 / 3  # share of `position` and `complex` prompts about depth, in a layered world
HELD_OUT_TAGS = ("position", "color_attr", "complex")
NUMBERS = ("no", "a", "two", "three", "four", "five", "six", "seven", "eight")


@functools.cache
def _patterns(world: World) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """A relation between groups, and a group."""
    numbers = "|".join(("an?", *(NUMBERS[n] for n in world.numbers)))
    return (
        re.compile(rf" ({'|'.join(world.relations)}) "),
        re.compile(
            rf"(?P<number>{numbers}) (?:(?P<color>{'|'.join(COLORS)}) )?"
            rf"(?P<shape>{'|'.join(world.shapes)})(?P<plural>s?)"
        ),
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


def _two_shapes(rng: np.random.Generator, shapes: Sequence[str]) -> tuple[str, str]:
    first, n = int(rng.random() * len(shapes)), len(shapes)
    return shapes[first], shapes[(first + 1 + int(rng.random() * (n - 1))) % n]


def _two_colors(rng: np.random.Generator) -> tuple[str, str]:
    first = int(rng.random() * 7)
    return COLOR_NAMES[first], COLOR_NAMES[(first + 1 + int(rng.random() * 6)) % 7]


def _draw(rng: np.random.Generator, tag: str, world: World, uncolored: float = 0.0) -> Requirement:
    shapes = world.shapes
    if world.layered and tag in ("position", "complex") and rng.random() < _LAYERED:
        return _draw_layered(rng, tag, world)
    if tag == "single_object":
        return requirement(tag, [(1, None, pick(rng, shapes))])
    if tag == "colors":
        return requirement(tag, [(1, pick(rng, COLOR_NAMES), pick(rng, shapes))])
    if tag == "counting":
        return requirement(tag, [(pick(rng, world.counting), None, pick(rng, shapes))])
    if tag == "two_object":
        return requirement(tag, [(1, None, shape) for shape in _two_shapes(rng, shapes)])
    if tag == "color_attr":
        pairs = zip(_two_colors(rng), _two_shapes(rng, shapes), strict=True)
        return requirement(tag, [(1, color, shape) for color, shape in pairs])
    if tag == "position":
        groups = [
            (1, pick(rng, COLOR_NAMES) if rng.random() < 0.5 else None, shape)
            for shape in _two_shapes(rng, shapes)
        ]
        return requirement(tag, groups, pick(rng, RELATIONS))
    if tag == "complex":
        counts = pick(rng, world.groups[int(rng.random() * len(world.groups))])
        kinds: list[tuple[str | None, str]] = []
        while len(kinds) < len(counts):
            kind = (pick(rng, COLOR_NAMES), pick(rng, shapes))
            if kind not in kinds:
                kinds.append(kind)
        if uncolored:
            alone = _alone([shape for _, shape in kinds])
            kinds = [
                (None if own and rng.random() < uncolored else color, shape)
                for (color, shape), own in zip(kinds, alone, strict=True)
            ]
        groups = [(count, *kind) for count, kind in zip(counts, kinds, strict=True)]
        return requirement(tag, groups, pick(rng, RELATIONS))
    raise DataError(f"unknown tag {tag!r}; one of {', '.join(TAGS)}")


def _alone(shapes: Sequence[str]) -> list[bool]:
    """Which shapes are of one group only, so that they tell without a colour which is meant."""
    return [shapes.count(shape) == 1 for shape in shapes]


def _draw_layered(rng: np.random.Generator, tag: str, world: World) -> Requirement:
    """One thing in front of another, and in `complex` more groups."""
    layers = [[k.name for k in world.kinds if bool(k.layer) == front] for front in (True, False)]
    shapes, colors = [pick(rng, layer) for layer in layers], _two_colors(rng)
    relation = pick(rng, DEPTHS)
    kinds = list(zip(colors, shapes, strict=True))
    if relation == "behind":
        kinds.reverse()
    if tag == "position":
        bare = [None if rng.random() < 0.5 else color for color, _ in kinds]
        groups = [(1, color, shape) for color, (_, shape) in zip(bare, kinds, strict=True)]
        return requirement(tag, groups, relation)
    pairs = [entry for pool in world.groups for entry in pool if entry[:2] == (1, 1)]
    counts = pick(rng, pairs)
    while len(kinds) < len(counts):
        kind = (pick(rng, COLOR_NAMES), pick(rng, world.shapes))
        if kind not in kinds:
            kinds.append(kind)
    return requirement(tag, [(n, *kind) for n, kind in zip(counts, kinds, strict=True)], relation)


def _possible(drawn: Requirement, world: World) -> bool:
    """Whether what lies in front can: one thing of a higher layer, of another colour."""
    if not world.layered or "position" not in drawn["include"][min(1, len(drawn["include"]) - 1)]:
        return True
    other, item = drawn["include"][:2]
    relation = item["position"][0]
    if relation not in DEPTHS:
        return True
    front, back = (item, other) if relation == DEPTHS[0] else (other, item)
    return (
        front["count"] == back["count"] == 1
        and world.kind[front["class"]].layer > world.kind[back["class"]].layer
        and ("color" not in front or front["color"] != back.get("color"))
    )


def canonical(prompt: str, world: World = EASY) -> str:
    """One spelling for most prompts that ask for the same thing.

    "A right of B" becomes "B left of A", "A below B" "B above A", "A behind B" "B in front of A",
    and the groups of "A and B" are sorted. Groups after these two stay last, in their order: "A
    above B and C and D" and "A above B and D and C", of the hard world, ask for the same and are
    two. What is held out hangs on it, so it stays as it is.
    """
    match = _patterns(world)[0].search(prompt)
    if match is None:
        return " and ".join(sorted(prompt.split(" and ")))
    first, relation, rest = prompt[: match.start()], match[1], prompt[match.end() :]
    second, joint, third = rest.partition(" and ")
    if relation in ("right of", "below", "behind"):
        first, relation, second = second, INVERSE[relation], first
    return f"{first} {relation} {second}{joint}{third}"


def _hash_is_held_out(prompt: str, world: World) -> bool:
    return zlib.crc32(canonical(prompt, world).encode()) % 10 == 0


def parse(prompt: str, world: World = EASY) -> Requirement | None:
    """The requirement that a prompt in one of the templates states; None for any other text."""
    joining, group = _patterns(world)
    match = joining.search(prompt)
    relation = match[1] if match else None
    parts = (
        [prompt[: match.start()], *prompt[match.end() :].split(" and ")]
        if match
        else prompt.split(" and ")
    )
    groups: list[Group] = []
    for part in parts:
        found = group.fullmatch(part)
        if found is None:
            return None
        number = found["number"]
        count = 1 if number in ("a", "an") else NUMBERS.index(number)
        groups.append((count, found["color"], found["shape"]))
        if phrase(*groups[-1]) != part:
            return None
    tag = _tag_of(groups, relation, world)
    if tag is None:
        return None
    stated = requirement(tag, groups, relation)
    return stated if _possible(stated, world) else None


def _tag_of(groups: list[Group], relation: str | None, world: World) -> str | None:
    counts = [count for count, _, _ in groups]
    colors = [color for _, color, _ in groups]
    shapes = {shape for _, _, shape in groups}
    if relation is None:
        if len(groups) == 1:
            if counts[0] > 1:
                return "counting" if colors[0] is None and counts[0] in world.counting else None
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
    fits = any(tuple(counts) in pool for pool in world.groups)
    alone = _alone([shape for _, _, shape in groups])
    told_apart = all(color or own for color, own in zip(colors, alone, strict=True))
    return "complex" if fits and told_apart and len(kinds) == len(groups) else None


def held_out(prompt: str, world: World = EASY) -> bool:
    """Whether a prompt must never be trained on (docs/strokes.md); False for foreign text."""
    stated = parse(prompt, world)
    if stated is None or stated["tag"] not in HELD_OUT_TAGS:
        return False
    return _hash_is_held_out(prompt, world)


def sample_requirement(
    rng: np.random.Generator,
    tag: str,
    *,
    split: str = "train",
    world: World = EASY,
    uncolored: float = 0.0,
) -> Requirement:
    """Draws a prompt of a tag.

    Args:
      rng: random numbers.
      tag: one of `TAGS`.
      split: "train" never gives a held-out prompt; "held_out" gives only such for `HELD_OUT_TAGS`
        and any prompt for the other tags, which have too few to hold some out.
      world: that it is about.
      uncolored: probability that a group of `complex` names no colour, where its shape alone tells
        which one is meant.

    Raises:
      DataError: an unknown tag or split.
    """
    if split not in ("train", "held_out"):
        raise DataError(f"unknown split {split!r}; 'train' or 'held_out'")
    while True:
        drawn = _draw(rng, tag, world, uncolored)
        if tag not in HELD_OUT_TAGS:
            return drawn
        if _hash_is_held_out(drawn["prompt"], world) == (split == "held_out"):
            return drawn


def held_out_requirements(tag: str, n: int, seed: int, world: World = EASY) -> list[Requirement]:
    """The `n` prompts that a tag is scored on: held out, or for the small tags freshly drawn.

    Prompts repeat only where the tag has fewer than `n` of them.
    """
    rng = np.random.Generator(np.random.PCG64([seed, TAGS.index(tag), 0x5C0E]))
    found: list[Requirement] = []
    seen: set[str] = set()
    misses = 0
    while len(found) < n:
        drawn = sample_requirement(rng, tag, split="held_out", world=world)
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


def check(record: Any, where: str = "requirement", world: World = EASY) -> Requirement:
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
            if not isinstance(item, Mapping) or not _one_of(item.get("class"), world.shapes):
                fail(f"{name} must be an object whose 'class' is one of {', '.join(world.shapes)}")
            count = item.get("count", 1)
            if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 9:
                fail(f"{name}: 'count' must be a whole number from 1 to 9, got {count!r}")
            if "color" in item and not _one_of(item["color"], COLORS):
                fail(f"{name}: 'color' must be one of {', '.join(COLORS)}, got {item['color']!r}")
            if "position" in item:
                _check_position(item["position"], i, len(items), world.relations, name, fail)
    return {
        **record,
        "include": [{"count": 1, **item} for item in include],
        "exclude": [{"count": 1, **item} for item in exclude],
    }


def _one_of(value: Any, names: Container[str]) -> bool:
    return isinstance(value, str) and value in names


def _check_position(
    position: Any, own: int, total: int, relations: Sequence[str], name: str, fail: Any
) -> None:
    good = (
        isinstance(position, list)
        and len(position) == 2
        and _one_of(position[0], relations)
        and isinstance(position[1], int)
        and 0 <= position[1] < total
        and position[1] != own
    )
    if not good:
        fail(
            f"{name}: 'position' must be [relation, index of another item] with a relation of "
            f"{', '.join(relations)}; got {position!r}"
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
