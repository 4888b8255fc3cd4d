from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from process_gen.core.batch import PatchSizes, measure
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import to_segments
from process_gen.core.trajectory import Step, Trajectory
from process_gen.data import packing
from process_gen.data.packing import (
    BAD,
    cache_dir,
    cached_lengths,
    draw,
    make_plan,
    measure_source,
    shares,
)
from process_gen.data.tokenizer import load_tokenizer, token_ids

LIMITS = (448, 112, 224)
SIZES = PatchSizes(latent=8, und=8, latent_grid=4, und_grid=4)


def lengths(n, seed=0):
    rng = np.random.default_rng(seed)
    steps = rng.integers(1, 5, n)
    text = 12 + steps * rng.integers(55, 75, n)
    return np.stack([text, 16 * steps, 32 * steps], axis=1).astype(np.int32)


def plan_of(length_Nx3, **changes):
    n = len(length_Nx3)
    arguments = dict(seed=0, epoch=0, window=512) | changes
    return make_plan(np.zeros(n, int), np.arange(n), length_Nx3, LIMITS, **arguments)


def test_every_trajectory_is_packed_once_and_within_the_limits():
    length_Nx3 = lengths(3000)
    plan = plan_of(length_Nx3)
    assert sorted(plan.index_N.tolist()) == list(range(3000))
    for number in range(len(plan)):
        used_3 = sum(length_Nx3[index] for _, index in plan[number])
        assert (used_3 <= LIMITS).all()
    total = length_Nx3.sum(axis=0) / (np.array(LIMITS) * len(plan))
    np.testing.assert_allclose(plan.fill, total)
    assert max(plan.fill) > 0.93


def test_the_plan_is_a_function_of_its_arguments():
    length_Nx3 = lengths(600)
    plan = plan_of(length_Nx3)
    assert plan.hash == plan_of(length_Nx3).hash
    longer = length_Nx3.copy()
    longer[17, 0] += 100
    for other in (
        plan_of(length_Nx3, seed=1),
        plan_of(length_Nx3, epoch=1),
        plan_of(length_Nx3, window=64),
        plan_of(length_Nx3, key="another tokenizer"),
        plan_of(longer),
    ):
        assert other.hash != plan.hash


def test_what_does_not_fit_is_reported():
    length_Nx3 = lengths(100)
    length_Nx3[3] = (449, 0, 0)
    length_Nx3[7] = (10, 0, 240)
    length_Nx3[9] = BAD
    plan = plan_of(length_Nx3)
    assert plan.too_long_Kx5.tolist() == [[0, 3, 449, 0, 0], [0, 7, 10, 0, 240]]
    assert plan.bad_Kx2.tolist() == [[0, 9]]
    assert not {3, 7, 9} & set(plan.index_N.tolist())
    assert "2 too long" in plan.summary() and "1 unreadable" in plan.summary()


def test_nothing_fits():
    with pytest.raises(DataError, match=r"5 are too long.*500.*data\.text_len"):
        plan_of(np.full((5, 3), 500, np.int32))


def test_a_stream_of_no_length_takes_only_texts():
    length_Nx3 = np.array([[10, 0, 0], [10, 16, 0]], np.int32)
    plan = make_plan(np.zeros(2, int), np.arange(2), length_Nx3, (40, 0, 0), 0, 0)
    assert plan.index_N.tolist() == [0] and len(plan.too_long_Kx5) == 1


def test_many_windows_plan_each_trajectory_once():
    plan = plan_of(lengths(20_000), window=2048)
    assert np.array_equal(np.sort(plan.index_N), np.arange(20_000))


@dataclasses.dataclass
class Counted:
    size: int
    fresh: bool = False

    def __len__(self):
        return self.size


def test_shares_follow_the_weights():
    assert shares([100, 300], [3.0, 1.0]) == [300, 100]
    assert shares([10, 10, 10], [1.0, 1.0, 1.0]) == [10, 10, 10]
    assert sum(shares([7, 7, 7], [0.3, 0.3, 0.4])) == 21
    assert shares([5, 5], [1.0, 1e-9]) == [10, 1]


def test_generated_sources_go_on_and_stored_ones_turn_over():
    sources = [Counted(10, fresh=True), Counted(6)]
    seen = {0: [], 1: []}
    for epoch in range(3):
        source_N, index_N = draw(sources, [1.0, 1.0], seed=5, epoch=epoch)
        assert len(source_N) == 16
        for number in seen:
            seen[number].append(index_N[source_N == number])
    assert sorted(np.concatenate(seen[0])) == list(range(24))
    # 24 draws from 6 records: each came exactly four times.
    assert np.bincount(np.concatenate(seen[1])).tolist() == [4] * 6
    assert np.bincount(seen[1][0], minlength=6).max() <= 2


def test_the_order_differs_between_epochs_and_seeds():
    sources = [Counted(50)]
    first = draw(sources, [1.0], 0, 0)[1].tolist()
    assert first == draw(sources, [1.0], 0, 0)[1].tolist()
    assert first != draw(sources, [1.0], 0, 1)[1].tolist()
    assert first != draw(sources, [1.0], 1, 0)[1].tolist()


class Handmade:
    """Trajectories of one to three steps; records 4 and 6 are broken, 5 has an odd picture."""

    fresh = False
    supervise = "all"
    fingerprint = "handmade"
    reads = 0
    broken = (4,)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.reads += 1
        if index in self.broken:
            raise DataError("a broken record")
        side = {5: 20, 6: 64}.get(index, 32)
        picture = np.zeros((side, side, 3), np.uint8)
        step = Step("<ins>add a star</ins><des>a star</des>", picture, "the picture is complete.")
        return Trajectory(prompt="a star" * index, steps=(step,) * (1 + index % 3))

    outline = __getitem__


def test_measured_lengths_are_those_of_the_grammar():
    tokenizer, grammar, source = load_tokenizer(), GrammarConfig(), Handmade()
    measured = measure_source(source, 0, 8, grammar, tokenizer, SIZES)
    for index in (0, 1, 2, 3, 7):
        wanted = measure(to_segments(source[index], grammar), token_ids(tokenizer), SIZES)
        assert measured.length_Nx3[index].tolist() == list(wanted)
    assert (measured.length_Nx3[4:7] == BAD).all()
    reasons = dict(measured.reasons)
    assert set(reasons) == {4, 5, 6}
    assert "broken record" in reasons[4] and "20x20" in reasons[5] and "64x64" in reasons[6]


def test_lengths_are_kept_and_a_damaged_cache_is_rebuilt(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer, grammar, source = load_tokenizer(), GrammarConfig(), Handmade()
    first = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
    reads = source.reads
    again = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
    assert source.reads == reads + 3 and again.reasons == first.reasons  # the broken ones again
    np.testing.assert_array_equal(again.length_Nx3, first.length_Nx3)

    (file,) = cache_dir().iterdir()
    for damaged in (b"", file.read_bytes()[:100], b"\0" * 400):
        file.write_bytes(damaged)
        rebuilt = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
        np.testing.assert_array_equal(rebuilt.length_Nx3, first.length_Nx3)
        assert "damaged" in caplog.text
        caplog.clear()
    assert source.reads > reads

    more = dataclasses.replace(grammar, noise_copies=2)
    assert (
        cached_lengths(source, 0, 8, more, tokenizer, SIZES).length_Nx3[0, 2]
        > (first.length_Nx3[0, 2])
    )
    dropped = dataclasses.replace(grammar, text_dropout=0.5)
    reads = source.reads
    cached_lengths(source, 0, 8, dropped, tokenizer, SIZES)
    assert source.reads == reads + 3


def test_a_repaired_record_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokenizer, grammar, source = load_tokenizer(), GrammarConfig(), Handmade()
    broken = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
    monkeypatch.setattr(Handmade, "broken", ())
    whole = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
    assert (broken.length_Nx3[4] == BAD).all() and (whole.length_Nx3[4] > 0).all()
    assert [index for index, _ in whole.reasons] == [5, 6]
    reads = source.reads
    again = cached_lengths(source, 0, 8, grammar, tokenizer, SIZES)
    np.testing.assert_array_equal(again.length_Nx3, whole.length_Nx3)
    assert source.reads == reads + 2


@pytest.mark.parametrize(
    ("edited", "known"),
    [
        ("core/batch.py", False),
        ("strokes/plans.py", False),
        ("data/augment.py", False),
        ("data/builders.py", False),
        ("data/images.py", False),
        ("data/pictures.py", False),
        ("data/sources.py", False),
        ("data/tokenizer.py", False),
        ("data/fitting.py", True),  # partner: how packs are filled decides no length
    ],
)
def test_lengths_are_those_of_the_code_that_measured_them(tmp_path, monkeypatch, edited, known):
    package = Path(packing.__file__).parent.parent
    for part in ("core", "strokes", "data"):
        (tmp_path / part).mkdir()
        for file in (package / part).glob("*.py"):
            shutil.copy(file, tmp_path / part)
    monkeypatch.setattr(packing, "__file__", str(tmp_path / "data" / "packing.py"))
    before = packing._code_key()
    with (tmp_path / edited).open("a") as file:
        file.write("#")
    assert (packing._code_key() == before) == known
