"""No parser raises anything but the project's own errors, whatever it is given."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from process_gen.core import configs
from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.trajectory import from_json
from process_gen.data.builders import from_line
from process_gen.sampling.prompt_file import parse_prompts
from process_gen.strokes import prompts
from tests.fuzz import mutation, targets
from tests.fuzz.campaign import main, run
from tests.fuzz.targets import TARGETS, open_target


def findings(name, cases, first=0):
    with open_target(name) as call:
        return run(call, cases, first=first)


@pytest.mark.parametrize("name", TARGETS)
def test_a_few_cases_of_every_parser(name):
    ledger = findings(name, 100)
    assert ledger.findings == {} and ledger.cases == 100
    assert ledger.accepted + sum(ledger.refused.values()) == 100
    assert ledger.refused  # what no case can break is no target


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", TARGETS)
def test_two_hundred_thousand_cases_of_every_parser(name):
    assert findings(name, 200_000).findings == {}


def test_foreign_errors_and_panics_are_found_by_their_number():
    class Panic(BaseException):
        pass

    def call(rng):
        number = rng.randrange(4)
        if number == 0:
            raise KeyError("foreign")
        if number == 1:
            raise Panic
        if number == 2:
            raise DataError("own")

    ledger = run(call, 50)
    assert (
        0 < len(ledger.findings) <= 5 and 0 < ledger.accepted < 50 and ledger.refused["DataError"]
    )
    number, what = next(iter(ledger.findings.items()))
    assert "foreign" in what or "Panic" in what
    assert list(run(call, 1, first=number).findings) == [number]


def test_a_case_is_known_by_its_number():
    def cases(first, count, seed=0):
        made = []
        run(
            lambda rng: made.append(mutation.blob(rng, b"some bytes")),
            count,
            first=first,
            seed=seed,
        )
        return made

    assert cases(0, 20) == cases(0, 10) + cases(10, 10) != cases(0, 20, seed=1)


def test_the_command_prints_what_came_of_them(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["campaign", "--target=grammar", "--cases=20", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    found = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0 and (found["target"], found["cases"]) == ("grammar", 20)
    assert found["accepted"] + sum(found["refused"].values()) == 20 and found["findings"] == {}


def test_mutations_leave_the_seed_as_it_is():
    seed = targets.trajectory_seeds()[0]
    before = json.dumps(seed)
    rng = random.Random(0)
    changed = sum(mutation.tree(rng, seed) != seed for _ in range(50))
    assert json.dumps(seed) == before and changed > 40


# ---- values that no mutation of a valid one comes to ---------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def known(fields):
    return st.dictionaries(st.sampled_from(fields), VALUES, max_size=6)


@settings(max_examples=60, deadline=None)
@given(value=VALUES | known(targets.FIELDS), data=st.binary(max_size=40))
def test_any_value_for_a_trajectory(value, data):
    for call in (lambda: from_json(value), lambda: from_line(data)):
        with pytest.raises(ProcessGenError):
            call()


@settings(max_examples=60, deadline=None)
@given(value=VALUES | known(targets.SAID[:8]), data=st.binary(max_size=40))
def test_any_value_for_a_requirement(value, data):
    for call in (lambda: prompts.check(value), lambda: parse_prompts(data, "file")):
        try:
            call()
        except ProcessGenError:
            continue


@settings(max_examples=60, deadline=None)
@given(
    section=st.sampled_from(list(configs.to_mapping(configs.Config()))),
    value=VALUES,
    data=st.data(),
)
def test_any_value_for_a_setting(section, value, data):
    names = list(configs.to_mapping(configs.Config())[section])
    key = data.draw(st.sampled_from(names))
    try:
        configs.from_mapping({section: {key: value}})
    except ProcessGenError:
        return
