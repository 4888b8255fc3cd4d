from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import pytest

from process_gen.core.errors import ConfigError
from process_gen.core.settings import build


@dataclasses.dataclass(frozen=True)
class Brush:
    colour: Literal["red", "blue"] = "red"
    width: float = 1.0

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ConfigError(f"width must be positive, got {self.width}")


@dataclasses.dataclass(frozen=True)
class Studio:
    name: str
    brushes: tuple[Brush, ...] = ()
    first: Brush = Brush()
    size: tuple[int, int] = (1, 1)
    seed: int | None = None
    clean: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def test_nested_tuples_of_dataclasses():
    studio = build(
        Studio,
        {
            "name": "a",
            "brushes": [{"colour": "blue"}, {"width": 3}, Brush("red", 2.0)],
            "first": {"width": 0.5},
            "size": [3, 4],
            "seed": 5,
            "options": {"anything": [1]},
        },
    )
    assert studio == Studio(
        "a",
        (Brush("blue"), Brush("red", 3.0), Brush("red", 2.0)),
        Brush("red", 0.5),
        (3, 4),
        5,
        False,
        {"anything": [1]},
    )
    assert isinstance(studio.brushes[1].width, float)  # a whole number stands for a float
    assert build(Studio, {"name": "a", "seed": None}).seed is None
    assert build(Studio, studio) is studio


@pytest.mark.parametrize(
    ("mapping", "reason"),
    [
        ({"nam": "a"}, "unknown config key 'nam'; did you mean 'name'?"),
        ({"name": "a", "zzz": 1}, "unknown config key 'zzz'; known: name, brushes"),
        ({"name": "a", "first": {"color": "red"}}, "unknown config key 'first.color'.*'colour'"),
        ({"name": "a", "brushes": [{}, {"size": 1}]}, r"'brushes\[1\].size'; known: colour"),
        ({}, "missing 1 required positional argument: 'name'"),
        ({"name": 3}, "name must be str, got 3"),
        ({"name": None}, "name must be str, got None"),
        ({"name": "a", "brushes": "red"}, "brushes must be a list, got str"),
        ({"name": "a", "brushes": [3]}, r"brushes\[0\] must be a mapping, got int"),
        ({"name": "a", "first": []}, "first must be a mapping, got list"),
        ({"name": "a", "size": [1, 2, 3]}, "size must have 2 items, got 3"),
        ({"name": "a", "size": [1, 2.5]}, r"size\[1\] must be int, got 2.5"),
        ({"name": "a", "seed": "1"}, "seed must be int, got '1'"),
        ({"name": "a", "seed": True}, "seed must be int, got True"),
        ({"name": "a", "clean": 1}, "clean must be bool, got 1"),
        ({"name": "a", "first": {"width": "1"}}, "first.width must be float, got '1'"),
        ({"name": "a", "first": {"width": True}}, "first.width must be float, got True"),
        ({"name": "a", "first": {"colour": "green"}}, "first.colour must be one of 'red', 'blue'"),
        ({"name": "a", "first": {"colour": ["red"]}}, "first.colour must be one of"),
        ({"name": "a", "first": {"width": -1}}, "width must be positive, got -1.0"),
        ({"name": "a", "options": [1]}, "options must be a mapping, got list"),
        ([], "config must be a mapping, got list"),
        ({3: "a"}, "unknown config key '3'"),
    ],
)
def test_what_is_refused(mapping, reason):
    with pytest.raises(ConfigError, match=reason):
        build(Studio, mapping)


def test_the_path_can_start_anywhere():
    with pytest.raises(ConfigError, match="house.studio.first.width must be float"):
        build(Studio, {"first": {"width": "wide"}}, "house.studio")
