"""A source that does not answer ends the run and is named."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from process_gen.core.batch import Dropout
from process_gen.core.configs import SourceConfig, from_mapping
from process_gen.core.errors import DataError, StalledError
from process_gen.data import sources
from process_gen.data.pipeline import eval_batches, train_dataset
from process_gen.data.rows import Rows, batch_builder
from process_gen.data.sources import Stored, build_source
from process_gen.data.stalls import Watch


@pytest.fixture
def stuck(monkeypatch, tmp_path):
    """A kind of source whose reads hang until the test is over; `state.at` says which ones."""
    state = threading.Event()
    state.at = {"read", "outline", "open"}
    strokes = build_source(SourceConfig("strokes"), 0)

    def wait(what):
        if what in state.at:
            state.wait()

    class Stuck(Stored):
        def outline(self, index):
            wait("outline")
            return strokes.outline(index)

        def __getitem__(self, index):
            wait("read")
            return strokes[index]

    def build(config, seed, split):
        wait("open")
        # Of this test alone: threads that an earlier one let go fill the cache of the next.
        return Stuck([None] * config.size, config.path, str(tmp_path), "all")

    monkeypatch.setitem(sources.KINDS, "stuck", build)
    yield state
    state.set()


def config(**data):
    source = {"kind": "stuck", "path": "gs://bucket/data", "size": 12}
    return from_mapping(
        {"data": {"sources": [source], "eval_sources": [source], "rows": 1, **data}}
    )


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("at", ["open", "outline", "read"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_stalled_source_is_named(stuck, at, prefetch):
    stuck.at = {at}
    record = "" if at == "open" else r", record \d+"
    name = rf"stuck \(source 0\) gs://bucket/data{record}: no answer for .* \(data.timeout is 0.3\)"
    with pytest.raises(StalledError, match=name):
        next(train_dataset(config(timeout=0.3, prefetch=prefetch)))
    with pytest.raises(StalledError, match=name):
        eval_batches(config(timeout=0.3))


def test_a_worker_says_so_as_well(stuck):
    patient, settings = config(timeout=60.0), config(timeout=0.3)
    stuck.at = set()
    order = Rows(patient, patient.data.sources, "train", Dropout()).order(0)
    assert batch_builder(patient, Dropout())([order]).failed == ()
    build = batch_builder(settings, Dropout())
    stuck.at = {"read"}
    with pytest.raises(
        StalledError, match=r"stuck \(source 0\) gs://bucket/data, record \d+: no answer"
    ):
        build([order])


def test_a_source_that_answers_gives_what_it_gave(stuck):
    stuck.at = set()
    waiting, watched = (train_dataset(config(timeout=seconds)) for seconds in (0.0, 60.0))
    for _ in range(6):
        for a, b in zip(next(waiting), next(watched), strict=True):
            for x, y in zip(np.atleast_1d(a), np.atleast_1d(b), strict=True):
                assert np.array_equal(x, y)
    assert waiting.get_state() == watched.get_state()


def test_what_the_work_raises_is_raised():
    def fail():
        raise DataError("of the work")

    with pytest.raises(DataError, match="of the work"):
        Watch(60.0).run(fail)
    assert Watch(60.0).run(lambda: 3) == Watch(0.0).run(lambda: 3) == 3


def test_only_reads_count():
    """Work that takes long without reading, such as planning, is waited for."""
    watch, seen = Watch(0.05), threading.Event()

    def work():
        with watch.reading("a record"):
            pass
        return seen.wait(0.4)

    assert watch.run(work) is False
