from __future__ import annotations

import json

import pytest

from launch import common
from launch.parse_prompts import define_flags, main, parse_prompts

METADATA = [
    {
        "tag": "colors",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
        "prompt": "a red dog",
    },
    {"tag": "counting", "include": [{"class": "cat", "count": 3}], "prompt": "two cats"},
    {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"},
]


def test_graphs_are_compared_with_the_metadata(tmp_path, capsys):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "graphs.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in METADATA))
    argv = ["parse_prompts", f"--prompts={prompts}", f"--out={out}", "--show=9", "--json"]
    common.run(main, define_flags, "", argv)
    told = capsys.readouterr().out
    assert 'two cats\n  wanted [{"class": "cat", "count": 3}]' in told
    result = json.loads(told.splitlines()[-1])
    assert result == {
        "prompts": 3,
        "complete": 3,
        "compared": 3,
        "equal": 2,
        "tags": {"colors": "1/1", "counting": "1/2"},
    }
    first = json.loads(out.read_text().splitlines()[0])
    assert first["prompt"] == "a red dog" and first["nodes"][0]["color"] == "red"


def test_plain_prompts_are_counted(tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog left of a cat\nwhy it is so\n?!\n")
    assert parse_prompts(str(prompts))[0] == {"prompts": 3, "complete": 1}
    with pytest.raises(SystemExit) as caught:
        common.run(main, define_flags, "", ["parse_prompts"])
    assert caught.value.code == 2 and "--prompts is missing" in capsys.readouterr().err
