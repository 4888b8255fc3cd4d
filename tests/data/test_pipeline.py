from __future__ import annotations

import dataclasses
import json
import time

import numpy as np
import pytest

from process_gen.core.batch import NO_COPY, NO_LABEL, Dropout, Lengths, PackedBatch
from process_gen.core.configs import Config, SourceConfig, from_mapping
from process_gen.core.errors import ConfigError, DataError, LostDataError
from process_gen.core.trajectory import Stage
from process_gen.data import sources
from process_gen.data.builders import write_folder
from process_gen.data.pipeline import eval_batches, train_dataset
from process_gen.data.rows import Rows
from process_gen.data.sources import Generated, build_source
from process_gen.data.tokenizer import DEFAULT_PATH, load_tokenizer

DROPOUT = Dropout(text=0.3)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def config(**data) -> Config:
    data = {
        "sources": [
            {"kind": "strokes", "size": 24},
            {"kind": "strokes_one_shot", "size": 8},
            {"kind": "strokes_plans", "weight": 0.5, "size": 8},
        ],
        "rows": 4,
        "window": 16,
        "prefetch": 2,
    } | data
    return from_mapping({"data": data})


def arrays(batch: PackedBatch) -> list[np.ndarray]:
    return [*batch.text, *batch.und, *batch.gen, *batch[3:]]


def equal(a: PackedBatch, b: PackedBatch) -> bool:
    return all(map(np.array_equal, arrays(a), arrays(b)))


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_shapes_and_types():
    batch = next(train_dataset(config()))
    assert batch.token_BxT.shape == batch.text.order.shape == (4, 448)
    assert batch.patch_BxVxQ.shape == (4, 112, 192) and batch.patch_BxVxQ.dtype == np.uint8
    assert batch.latent_BxGxP.shape == (4, 224, 192)
    assert batch.token_BxT.dtype == batch.copy_BxG.dtype == np.int32
    assert (batch.label_BxT != NO_LABEL).any() and (batch.copy_BxG != NO_COPY).any()
    assert int(Stage.CONTROL) in batch.label_stage_BxT[batch.label_BxT != NO_LABEL]


def test_batches_are_a_function_of_the_config():
    first = take(train_dataset(config()), 3)
    assert all(map(equal, first, take(train_dataset(config(prefetch=0)), 3)))
    assert not equal(first[0], first[1])
    assert not equal(first[0], next(train_dataset(config(seed=1))))


def test_resume_is_exact_across_epochs_and_through_json():
    whole = train_dataset(config())
    packs = len(whole.plan(0))
    batches = take(whole, packs // 4 + 6)  # well into the second epoch
    for stop in (0, 1, packs // 4 + 1, packs // 4 + 3):
        begun = train_dataset(config())
        take(begun, stop)
        state = json.loads(json.dumps(begun.get_state()))
        resumed = train_dataset(config())
        next(resumed)
        resumed.set_state(state)
        assert resumed.get_state() == state
        assert all(map(equal, take(resumed, 3), batches[stop : stop + 3]))
    assert begun.epoch >= 1
    assert begun.plan_hash == whole.plan(begun.epoch).hash != whole.plan(0).hash


def test_a_resumed_run_plans_no_earlier_epoch(monkeypatch):
    begun = train_dataset(config())
    take(begun, 8)
    state = begun.get_state()
    assert state["epoch"] >= 1
    planned = []
    make = Rows._make_plan
    monkeypatch.setattr(
        Rows, "_make_plan", lambda self, epoch: planned.append(epoch) or make(self, epoch)
    )
    resumed = train_dataset(config(prefetch=0))
    resumed.set_state(state)
    next(resumed)
    assert min(planned) == state["epoch"]


def test_any_number_of_processes_builds_the_same_global_batches():
    whole = take(train_dataset(config()), 3)
    for count in (2, 4):
        parts = [take(train_dataset(config(), (p,), count), 3) for p in range(count)]
        for step, batch in enumerate(whole):
            for process in range(count):
                mine = [np.split(array, count)[process] for array in arrays(batch)]
                assert all(map(np.array_equal, mine, arrays(parts[process][step])))
    # A mesh may give the devices of a process rows that do not lie together.
    apart = next(train_dataset(config(), (0, 2), 4))
    for own, array in zip(arrays(apart), arrays(whole[0]), strict=True):
        assert np.array_equal(own, array[[0, 2]]) and not np.array_equal(own, array[:2])
    state = train_dataset(config(), (1,), 2).get_state()
    assert state == train_dataset(config()).get_state()


def joined(iterators):
    """The global batch of processes, each of which holds a block of rows."""
    parts = [arrays(next(iterator)) for iterator in iterators]
    return [np.concatenate(blocks) for blocks in zip(*parts, strict=True)]


def go_through(phases, whole):
    """Goes on from state to state with other numbers of workers and processes."""
    state, at = None, 0
    for workers, processes, batches in phases:
        made = config(workers=workers)
        iterators = [train_dataset(made, (p,), processes) for p in range(processes)]
        for iterator in iterators:
            if state is not None:
                iterator.set_state(state)
        for _ in range(batches):
            both = zip(joined(iterators), arrays(whole[at]), strict=True)
            assert all(np.array_equal(a, b) for a, b in both), (workers, processes, at)
            at += 1
        states = [json.dumps(iterator.get_state()) for iterator in iterators]
        assert len(set(states)) == 1
        state = json.loads(states[0])
        for iterator in iterators:
            iterator.close()
    return state, at


def test_workers_and_processes_come_and_go():
    whole = take(train_dataset(config()), 12)
    phases = [(0, 1, 2), (2, 1, 3), (3, 1, 2), (0, 2, 3), (0, 1, 1)]
    state, at = go_through(phases, whole)
    assert at == 11 and state["epoch"] >= 1  # over the border of an epoch
    with pytest.raises(AssertionError):  # partner: one batch further on nothing fits
        go_through([(0, 1, 1)], whole[1:])


@pytest.mark.slow
def test_workers_and_processes_come_and_go_together():
    go_through([(0, 1, 2), (2, 2, 3), (3, 1, 2), (1, 4, 2)], take(train_dataset(config()), 9))


def test_shares_of_the_mixture_are_those_of_what_was_taken():
    sources = [
        {"kind": "strokes", "weight": 3.0, "size": 24},
        {"kind": "strokes_plans", "weight": 1.0, "size": 12},
    ]
    iterator = train_dataset(config(sources=sources, rows=2))
    assert iterator.counters() == {"data/epoch": 0.0, "data/trajectories": 0.0}
    take(iterator, 3)
    planned = [source for pack in range(6) for source, _ in iterator.plan()[pack]]
    counters = iterator.counters()
    assert counters["data/trajectories"] == len(planned)
    assert counters["data/share_strokes"] == planned.count(0) / len(planned)
    assert counters["data/share_strokes"] + counters["data/share_strokes_plans"] == 1.0
    assert 0 < counters["data/share_strokes_plans"] < counters["data/share_strokes"]
    twice = train_dataset(config(sources=[sources[0], sources[0]], rows=2))
    take(twice, 1)
    assert {"data/share_strokes_0", "data/share_strokes_1"} <= twice.counters().keys()


def test_what_fails_in_a_worker_is_counted_here(tmp_path):
    strokes = build_source(SourceConfig("strokes"), 0)
    manifest = write_folder(str(tmp_path / "data"), [strokes[i] for i in range(12)])
    made = config(sources=[{"kind": "folder", "path": str(tmp_path / "data")}], rows=1, workers=1)
    iterator = train_dataset(made)
    packs = len(iterator.plan(0))  # measured while all was well
    shard = tmp_path / "data" / manifest["shards"][0]["file"]
    data = bytearray(shard.read_bytes())
    data[200:220] = bytes(20)
    shard.write_bytes(data)
    take(iterator, packs)
    iterator.close()
    counters = iterator.counters()
    assert (counters["skipped_failed"], counters["data/trajectories"]) == (1.0, 12.0)
    (example,) = iterator.skipped.examples
    assert "folder (source 0), record " in example and "epoch 0, pack" in example


def test_a_record_that_could_not_be_read_changes_the_plan_and_is_named(tmp_path, monkeypatch):
    strokes = build_source(SourceConfig("strokes"), 0)
    manifest = write_folder(str(tmp_path / "data"), [strokes[i] for i in range(12)])
    made = config(sources=[{"kind": "folder", "path": str(tmp_path / "data")}], rows=1)
    shard = tmp_path / "data" / manifest["shards"][0]["file"]
    whole = shard.read_bytes()

    def on_host(name, data):
        """What a host says that measures the folder by itself."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        shard.write_bytes(data)
        return train_dataset(made)

    state, facts = (it := on_host("a", whole)).get_state(), it.plan_facts
    assert "12 trajectories" in facts and it.plan_hash in facts
    assert on_host("b", whole).plan_facts == facts
    damaged = on_host("c", whole[:200] + bytes(20) + whole[220:])
    assert "1 unreadable" in damaged.plan_facts and damaged.plan_facts != facts
    lost = r"\(now 1 cannot be read, the first: folder .*start again"
    with pytest.raises(LostDataError, match=lost):
        damaged.set_state(state)
    # The other way round: mended since, and no new start would help.
    with pytest.raises(DataError, match=r"\(now 0 cannot be read\).*train.init_from") as refused:
        on_host("d", whole).set_state(damaged.get_state())
    assert not isinstance(refused.value, LostDataError)
    on_host("e", whole).set_state(state)


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"text_len": 512},
        {"grammar": {"noise_copies": 2}},
        {"sources": [{"kind": "strokes", "size": 24, "options": {"conflict": 0.8}}]},
    ],
)
def test_a_state_of_other_data_is_refused(change):
    state = train_dataset(config()).get_state()
    with pytest.raises(DataError, match="plan of epoch 0 is"):
        train_dataset(config(**change)).set_state(state)


def test_a_state_of_another_tokenizer_is_refused(tmp_path):
    spec = json.loads(DEFAULT_PATH.read_text())
    (tmp_path / "moved.json").write_text(json.dumps(spec))
    spec["model"]["merges"].pop()
    (tmp_path / "other.json").write_text(json.dumps(spec))
    state = train_dataset(config()).get_state()
    assert state["tokenizer"] == load_tokenizer().fingerprint
    with pytest.raises(DataError, match="trained with tokenizer .* set data.tokenizer"):
        train_dataset(config(tokenizer=str(tmp_path / "other.json"))).set_state(state)
    # Partners: the same ids from another place, and a state of before the fingerprint was kept.
    moved = train_dataset(config(tokenizer=str(tmp_path / "moved.json")))
    moved.set_state(state)
    old = {key: value for key, value in state.items() if key != "tokenizer"}
    train_dataset(config()).set_state(old)


def test_damaged_states_are_refused():
    iterator = train_dataset(config())
    state = iterator.get_state()
    for broken, what in (
        ({}, "damaged"),
        (state | {"version": 9}, "version"),
        (state | {"rows": 8}, "data.rows"),
        (state | {"next_batch": "x"}, "damaged"),
        (state | {"epoch_first_row": 10**6, "epoch": 0}, "damaged"),
    ):
        with pytest.raises(DataError, match=what):
            iterator.set_state(broken)
    iterator.set_state(state)


def test_an_epoch_holds_every_trajectory_once():
    rows = train_dataset(config()).plan(0)
    pairs = sorted(zip(rows.source_N.tolist(), rows.index_N.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs) == 40 - len(rows.too_long_Kx5)
    counts = np.bincount(rows.source_N)
    assert counts.tolist() == [16, 16, 8]  # weights 1, 1, 0.5 of 40


def test_rows_with_wrong_sizes():
    with pytest.raises(ConfigError, match="multiple of the number of devices"):
        train_dataset(config(), (0,), 3)
    with pytest.raises(ConfigError, match="vocab_size"):
        small = dataclasses.replace(config().model, vocab_size=100)
        train_dataset(dataclasses.replace(config(), model=small))
    with pytest.raises(DataError, match="text_len"):
        next(train_dataset(config(text_len=4)))


class Faulty:
    """A Strokes source whose record 3 breaks when it is read, but not when it is measured."""

    def __init__(self, whole, broken):
        self.whole, self.broken = whole, broken
        self.fresh, self.supervise, self.fingerprint = False, "all", whole.fingerprint

    def __len__(self):
        return 12

    def outline(self, index):
        return self.whole.outline(index)

    def __getitem__(self, index):
        if index == self.broken:
            raise DataError("moths ate it")
        return self.whole[index]


def faulty(broken, monkeypatch):
    def build(config, seed, split):
        return Faulty(build_source(dataclasses.replace(config, kind="strokes"), seed), broken)

    monkeypatch.setitem(sources.KINDS, "faulty", build)
    made = config(sources=[{"kind": "faulty"}], prefetch=0)
    rows = Rows(made, made.data.sources, "train", dropout=DROPOUT)
    return [rows[i] for i in range(len(rows.plan(0)))], rows


def test_a_bad_record_is_counted_and_the_pack_goes_on(monkeypatch):
    whole, rows = faulty(None, monkeypatch)
    assert rows.skipped().counts == {}
    partial, rows = faulty(3, monkeypatch)
    assert rows.skipped().counts == {"failed": 1}
    (example,) = rows.skipped().examples
    assert "faulty (source 0), record 3 (epoch 0, pack" in example and "moths" in example
    plan = rows.plan(0)
    pack = next(i for i in range(len(plan)) if (0, 3) in plan[i])
    changed = [i for i in range(len(plan)) if not equal(whole[i], partial[i])]
    assert changed == [pack]
    if len(plan[pack]) > 1:
        assert (partial[pack].label_BxT != NO_LABEL).any()


def test_a_longer_trajectory_than_measured_is_left_out(monkeypatch):
    def build(config, seed, split):
        strokes = build_source(dataclasses.replace(config, kind="strokes"), seed)

        def longer(index):
            trajectory = strokes[index]
            return dataclasses.replace(trajectory, prompt=trajectory.prompt + " and more" * 300)

        return Generated(longer, strokes.outline, 4, strokes.fingerprint, fresh=False)

    monkeypatch.setitem(sources.KINDS, "longer", build)
    iterator = train_dataset(config(sources=[{"kind": "longer"}], rows=1, prefetch=0))
    batch = next(iterator)
    assert (batch.label_BxT == NO_LABEL).all()
    assert iterator.skipped.counts["failed"] >= 1
    assert "more than was planned" in iterator.skipped.examples[0]


def test_strictness_makes_an_error_of_it(monkeypatch):
    faulty(None, monkeypatch)

    def build(own, seed, split):
        return Faulty(build_source(dataclasses.replace(own, kind="strokes"), seed), 3)

    monkeypatch.setitem(sources.KINDS, "faulty", build)
    iterator = train_dataset(config(sources=[{"kind": "faulty"}], prefetch=0, strict=True))
    with pytest.raises(
        DataError, match=r"record 3 \(epoch 0, pack \d+\): moths ate it; data.strict"
    ):
        take(iterator, 10)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_run_whose_data_is_gone_ends(monkeypatch, rows):
    readable = set(range(12))

    class Bucket(Faulty):
        def __getitem__(self, index):
            if index not in readable:
                raise DataError("the credentials have expired")
            return self.whole[index]

    def build(own, seed, split):
        return Bucket(build_source(dataclasses.replace(own, kind="strokes"), seed), None)

    monkeypatch.setitem(sources.KINDS, "bucket", build)
    # Packs for one or two of the twelve.
    small = {"text_len": 300, "und_len": 80, "gen_len": 144, "prefetch": 0}
    iterator = train_dataset(config(sources=[{"kind": "bucket"}], rows=rows, **small))
    take(iterator, 2)
    readable.clear()
    empty = []
    said = r"none of the last \d+ planned .* have expired.*goes on"
    with pytest.raises(LostDataError, match=said):
        for _ in range(20):
            empty.append(next(iterator))
    assert not any((batch.label_BxT != NO_LABEL).any() for batch in empty)
    assert len(empty) >= 2 and iterator.skipped.counts["failed"] >= 8
    # Partner: one record of every batch is enough, here of all that there are.
    readable.add(0)
    rows = len(iterator.plan())
    left = train_dataset(config(sources=[{"kind": "bucket"}], rows=rows, **small))
    take(left, 2)
    assert left.skipped.counts["failed"] == 22


def test_the_next_epoch_is_planned_while_one_is_read():
    iterator = train_dataset(config())
    next(iterator)
    planned = iterator._rows._plans
    for _ in range(1200):
        if 1 in planned:
            break
        time.sleep(0.05)
    assert 1 in planned
    held_out = Rows(config(), config().data.sources, "train", DROPOUT)
    held_out[0]
    time.sleep(0.2)
    assert 1 not in held_out._plans  # partner: not for those who did not ask


def test_critiques_carry_text_loss_only():
    batch = next(train_dataset(config(sources=[{"kind": "strokes_critique", "size": 20}])))
    assert (batch.target_stage_BxG == NO_LABEL).all()
    stages = batch.label_stage_BxT[batch.label_BxT != NO_LABEL]
    assert set(stages.tolist()) == {int(Stage.INSPECT)}


EVAL = {"eval_sources": [{"kind": "strokes", "size": 40, "options": {"prompts": "held_out"}}]}


def test_the_held_out_split_is_fixed():
    batches = eval_batches(config(**EVAL, eval_rows=6))
    assert [b.token_BxT.shape for b in batches] == [(4, 448)] * 2
    same = eval_batches(config(**EVAL, eval_rows=6, seed=5, prefetch=0))
    assert all(map(equal, batches, same))
    assert (batches[1].text.order[2:] == -1).all()  # two empty rows fill the last batch
    assert (batches[1].text.order[:2] >= 0).any()
    parts = [eval_batches(config(**EVAL, eval_rows=6), (p,), 2) for p in range(2)]
    for process, part in enumerate(parts):
        for mine, whole in zip(part, batches, strict=True):
            rows = [np.split(array, 2)[process] for array in arrays(whole)]
            assert all(map(np.array_equal, rows, arrays(mine)))
    assert eval_batches(config()) == []


def test_a_row_keeps_to_its_limits():
    made = config()
    rows = Rows(made, made.data.sources, "train", dropout=DROPOUT)
    data = made.data
    limits = Lengths(data.text_len, data.und_len, data.gen_len)
    for i in range(6):
        row = rows[i]
        lengths = [len(row.text.order), len(row.und.order), len(row.gen.order)]
        assert lengths == list(limits)
