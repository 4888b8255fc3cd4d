"""Tests of the tables of a sweep."""

from __future__ import annotations

import dataclasses
import io

import pytest
from PIL import Image
from rich.console import Console

from process_gen.report import trials
from process_gen.report.trials import Rate, Row

HALF = Rate(0.5, 0.4, 0.6)
SCORED = Row("t0", "rate=0.1 | seed=0", "done", "", 61.0, {"exact": Rate(0.5, 0.25, 0.75)})
FAILED = Row("t1", "rate=0.2", "failed", "exit status 3")


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        (None, {}),
        ([1], {}),
        ({"overall": 3}, {}),
        ({"overall": {"exact": 0.5, "other": 1.0}}, {}),
        ({"overall": {"exact": 0.5, "exact_low": 0.4, "exact_high": 0.6}}, {"exact": HALF}),
        ({"overall": {"exact": {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}}}, {"exact": HALF}),
        ({"overall": {"exact": {"rate": None, "low": 0.0, "high": 1.0}}}, {}),
    ],
)
def test_rates_of_scores(scores, found):
    assert trials.rates(scores) == found


def test_markdown_keeps_its_columns():
    lines = trials.markdown([SCORED, FAILED]).splitlines()
    assert lines == [
        "| trial | what | state | time | exact % |",
        "| --- | --- | --- | ---: | ---: |",
        "| t0 | rate=0.1 \\| seed=0 | done | 1m01s | 50.0 [25.0, 75.0] |",
        "| t1 | rate=0.2 | failed: exit status 3 |  |  |",
    ]


def test_terminal():
    console = Console(file=io.StringIO(), width=100)
    console.print(trials.table([SCORED, FAILED]))
    text = console.file.getvalue()
    assert "50.0 [25.0, 75.0]" in text and "failed: exit status 3" in text


def test_names_are_no_markup():
    console = Console(file=io.StringIO(), width=100)
    odd = dataclasses.replace(SCORED, name="run[v2]", about="[/x] :bug:", rates={"a[b]": HALF})
    console.print(trials.table([odd]))
    text = console.file.getvalue()
    assert "run[v2]" in text and "[/x] :bug:" in text and "a[b] %" in text


def test_a_figure_of_what_was_scored():
    assert trials.figure([FAILED]) is None
    picture = trials.figure([SCORED, FAILED])
    assert Image.open(io.BytesIO(picture)).width > 400
    higher = Row("t0", SCORED.about, "done", "", 61.0, {"exact": Rate(0.6, 0.25, 0.75)})
    assert trials.figure([higher, FAILED]) != picture
