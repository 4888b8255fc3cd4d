"""Values of JSON files: what is wanted is returned, all else is refused by file and key."""

from __future__ import annotations

import functools

import pytest
from etils import epath

from process_gen.checkpoint import json_values
from process_gen.core.errors import CheckpointError

POSITIVE = functools.partial(json_values.number, above=0.0)
COUNT = functools.partial(json_values.whole, least=1)


@pytest.mark.parametrize(
    ("take", "good", "bad"),
    [
        (json_values.number, [0, -1.5, 1e6], [None, "1", True, [], float("nan"), 10**400]),
        (POSITIVE, [1, 1e-6], [0, -1.0, float("inf")]),
        (json_values.whole, [-2, 0, 10**30], [1.0, True, None, "2", 0.5]),
        (COUNT, [1, 7], [0, -1]),
        (json_values.section, [{}, {"a": 1}], [3, "x", [], True]),
    ],
)
def test_kinds(take, good, bad):
    for value in good:
        assert take({"key": value}, "key", "file") == value
    for value in bad:
        with pytest.raises(CheckpointError, match=r"^file: key is .*; wanted is a ") as error:
            take({"key": value}, "key", "file")
        assert len(str(error.value)) < 200


def test_absent_ones():
    for take in (json_values.number, json_values.whole):
        with pytest.raises(CheckpointError, match="^file: key is missing"):
            take({}, "key", "file")
    assert json_values.section({}, "key", "file") == {}
    assert json_values.section({"key": None}, "key", "file") == {}


def test_files(tmp_path):
    file = epath.Path(tmp_path / "config.json")
    for text in ("{", "[]", '[["a", 1]]', "3", "null", "[" * 100_000, "\udcff"):
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CheckpointError, match="config.json: no JSON object"):
            json_values.read(file)
    file.write_text('{"a": 1}')
    assert json_values.read(file) == {"a": 1}
    file.unlink()
    with pytest.raises(CheckpointError, match="config.json: no JSON object"):
        json_values.read(file)
