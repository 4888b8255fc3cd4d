"""Shards, receipts and manifests; how workers share them is in test_workers.py."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.errors import DataError
from process_gen.core.trajectory import Step, Trajectory, same
from process_gen.curation import shard_files, site
from process_gen.curation.engine import Job, Passed, Record, Skip, make_shard
from process_gen.curation.recipes import make_job
from process_gen.curation.site import finish, open_site
from process_gen.curation.workers import build
from process_gen.data.builders import TrajectoryFolder, read_manifest
from process_gen.strokes.plans import trajectory_at


class Toy:
    """Every third item is skipped, every fifth gives two records."""

    supervise = "all"
    identity = {"kind": "toy"}

    def __len__(self):
        return 20

    def make(self, start, stop):
        for item in range(start, stop):
            if item % 3 == 2:
                yield Skip(item, "a multiple of three", str(item))
            else:
                yield Record(item, trajectory_at(1, item))
                if item % 5 == 0:
                    yield Record(item, trajectory_at(2, item))
            yield Counter({"numbers": item})
            yield Passed(1)


def length(trajectory, supervise):
    return len(trajectory.prompt), len(trajectory.steps), 0


def job(recipe=Toy, shards=4, **settings):
    identity = {**recipe.identity, "shards": shards, "note": settings.pop("note", "a")}
    return Job(recipe, lambda: length, identity, len(recipe()), shards, "all", **settings)


def content(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def wanted():
    for item in range(20):
        if item % 3 != 2:
            yield trajectory_at(1, item)
            if item % 5 == 0:
                yield trajectory_at(2, item)


@pytest.mark.parametrize("shards", [1, 4, 20])
def test_a_folder_holds_what_the_recipe_made_in_order(tmp_path, shards):
    told = []
    manifest = build(job(shards=shards), str(tmp_path / "data"), report=told.append)
    stored = TrajectoryFolder(str(tmp_path / "data"))
    everything = list(wanted())
    assert len(stored) == len(everything) == manifest["count"] == 17
    for index, trajectory in enumerate(everything):
        assert same(stored[index], trajectory)
    assert manifest == read_manifest(str(tmp_path / "data"))
    assert manifest["items"] == 20 and manifest["skipped"] == {"a multiple of three": 6}
    assert manifest["skips"][1] == {"item": 5, "reason": "a multiple of three", "detail": "5"}
    assert manifest["tally"] == {"numbers": sum(range(20))}
    assert sum(manifest["lengths"]["text"]["histogram"]) == 17
    assert len(content(tmp_path / "data")) == shards + 1, "something was left behind"
    assert (told[-1].done, told[-1].fresh, told[-1].shards_done) == (20, 20, shards)


def test_the_same_job_again_changes_nothing(tmp_path):
    build(job(), str(tmp_path / "a"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}

    class Never(Toy):
        def make(self, start, stop):
            raise AssertionError("made again")

    assert build(job(Never), str(tmp_path / "a")) == read_manifest(str(tmp_path / "a"))
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()} == before
    with pytest.raises(DataError, match="not empty"):
        build(job(note="b"), str(tmp_path / "a"))


def test_what_is_done_is_not_made_again(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    build(job(), str(whole))

    made = []

    class Watched(Toy):
        def make(self, start, stop):
            made.append((start, stop))
            yield from super().make(start, stop)

    for shard in (2, 0):
        with open_site(job(Watched), str(parts)) as site:
            make_shard(job(Watched), Watched(), length, str(parts), shard)
            assert shard in site.todo
    assert sorted(made) == [(0, 5), (10, 15)] and not (parts / "manifest.json").exists()
    made.clear()
    told = []
    build(job(Watched), str(parts), report=told.append)
    assert made == [(5, 10), (15, 20)]
    assert (told[-1].done, told[-1].fresh) == (20, 10)
    assert content(parts) == content(whole)


@pytest.mark.parametrize("finished", [True, False])
def test_a_build_that_ended_while_it_was_waited_for_is_not_made_again(
    tmp_path, monkeypatch, finished
):
    folder, waits, found = str(tmp_path / "data"), threading.Event(), []

    def sleep(seconds):
        waits.set()
        time.sleep(seconds)

    monkeypatch.setattr(site, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    monkeypatch.setattr(site, "_PATIENCE", 60.0)

    def second():
        with open_site(job(), folder) as opened:
            found.append((list(opened.todo), opened.manifest))

    with open_site(job(), folder) as first:
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(20)
        for shard in first.todo[: 4 if finished else 1]:
            make_shard(job(), Toy(), length, folder, shard)
        if finished:
            finish(job(), first)
    thread.join()
    # Partner: a build that was given up is gone on with.
    assert found == [([], read_manifest(folder)) if finished else ([1, 2, 3], None)]
    assert (tmp_path / "data" / "build.json").exists() != finished


def test_a_build_that_ended_between_two_looks_is_not_made_again(tmp_path, monkeypatch):
    folder = str(tmp_path / "data")
    begin = site._begin

    def late(own, where):
        if not (tmp_path / "data" / "manifest.json").exists():
            with monkeypatch.context() as patch:
                patch.setattr(site, "_begin", begin)
                build(own, where)
        return begin(own, where)

    monkeypatch.setattr(site, "_begin", late)
    with open_site(job(), folder) as opened:
        assert opened.todo == [] and opened.manifest == read_manifest(folder)


def break_receipt(folder):
    (folder / "trajectories-00001-of-00004.json").write_text('{"shard"')


def cut_shard(folder):
    path = folder / "trajectories-00001-of-00004.array_record"
    path.write_bytes(path.read_bytes()[:-1])


def remove_shard(folder):
    (folder / "trajectories-00001-of-00004.array_record").unlink()


def leave_scratch(folder):
    (folder / ".unfinished-x").mkdir()
    (folder / ".unfinished-x" / "trajectories-00001-of-00004.array_record").write_text("half")


@pytest.mark.parametrize("damage", [break_receipt, cut_shard, remove_shard, leave_scratch])
def test_a_damaged_shard_is_made_again(tmp_path, damage):
    whole, hurt = tmp_path / "whole", tmp_path / "hurt"
    build(job(), str(whole))
    with open_site(job(), str(hurt)):
        for shard in range(3):
            make_shard(job(), Toy(), length, str(hurt), shard)
    damage(hurt)
    with open_site(job(), str(hurt)) as site:
        assert site.todo == ([3] if damage is leave_scratch else [1, 3])
    build(job(), str(hurt))
    assert content(hurt) == content(whole)


@pytest.mark.parametrize("left", ["build.json", "trajectories-00001-of-00004.json"])
def test_a_kill_after_the_manifest_leaves_nothing(tmp_path, left):
    build(job(), str(tmp_path / "a"))
    before = content(tmp_path / "a")
    (tmp_path / "a" / left).write_text("{}")
    build(job(), str(tmp_path / "a"))
    assert content(tmp_path / "a") == before


def test_a_beginning_of_something_else_is_refused(tmp_path):
    with open_site(job(), str(tmp_path / "a")):
        pass
    with pytest.raises(DataError, match="note was 'a', now 'b'"):
        build(job(note="b"), str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "dear").write_text("mine")
    with pytest.raises(DataError, match="not empty"):
        build(job(), str(tmp_path / "b"))
    assert [p.name for p in (tmp_path / "b").iterdir()] == ["dear"]


def test_two_do_not_build_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(site, "_PATIENCE", 0.1)
    with open_site(job(), str(tmp_path)), pytest.raises(DataError, match="another process"):
        build(job(), str(tmp_path))
    monkeypatch.setattr(site, "_PATIENCE", 60.0)
    with contextlib.ExitStack() as held:
        held.enter_context(open_site(job(), str(tmp_path)))
        release = threading.Timer(0.3, held.pop_all().close)
        release.start()
        assert build(job(), str(tmp_path))["count"] == 17, "it did not wait"
        release.join()


def test_a_disk_without_locks_is_not_another_process(tmp_path, monkeypatch):
    def flock(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(site.fcntl, "flock", flock)
    with pytest.raises(DataError, match="a disk without file locks.*No locks available"):
        build(job(), str(tmp_path))


def test_an_interruption_keeps_what_is_finished(tmp_path):
    build(job(), str(tmp_path / "whole"))
    asked = iter([None] * 12 + [KeyboardInterrupt()])
    with pytest.raises(KeyboardInterrupt):
        build(job(), str(tmp_path / "part"), stop=lambda: next(asked))
    assert len(list((tmp_path / "part").glob("*.array_record"))) == 2
    assert not list((tmp_path / "part").glob(".unfinished*"))
    build(job(), str(tmp_path / "part"))
    assert content(tmp_path / "part") == content(tmp_path / "whole")


class Bad(Toy):
    """Trajectories that cannot be stored or trained on."""

    def make(self, start, stop):
        good = trajectory_at(0, 0)
        step = good.steps[0]
        yield Record(0, good)
        yield Record(1, Trajectory("", steps=good.steps))
        yield Record(2, Trajectory("half a pair \ud800", steps=good.steps))
        yield Record(3, Trajectory("x", steps=(Step("no plan", step.sketch, "seen"),)))
        yield Record(4, Trajectory("too long", steps=good.steps))


def picky(trajectory, supervise):
    if trajectory.prompt == "too long":
        raise DataError("it has too many tokens")
    return 1, 1, 1


def test_what_cannot_be_used_is_counted_with_its_place(tmp_path):
    bad = dataclasses.replace(job(Bad, shards=1), measure=lambda: picky)
    manifest = build(bad, str(tmp_path / "a"))
    assert manifest["count"] == 1
    assert manifest["skipped"] == {"a trajectory that cannot be used": 4}
    said = [skip["detail"] for skip in manifest["skips"]]
    for i, what in enumerate(("empty", "Unicode", "<ins>", "too many tokens")):
        assert what in said[i] and manifest["skips"][i]["item"] == i + 1
    with pytest.raises(DataError, match="item 1: .*empty"):
        build(dataclasses.replace(bad, strict=True), str(tmp_path / "b"))


def test_nothing_at_all_is_an_error(tmp_path):
    class Nothing(Toy):
        def make(self, start, stop):
            for item in range(start, stop):
                yield Skip(item, "no luck")

    with pytest.raises(DataError, match="no luck.*20"):
        build(job(Nothing), str(tmp_path / "a"))
    with pytest.raises(DataError, match="0 shards"):
        job(shards=0)


def test_a_missing_shard_is_noticed(tmp_path):
    with open_site(job(), str(tmp_path)) as site, pytest.raises(DataError, match="shard 0 of 4"):
        finish(job(), site)


def test_bounds_cover_every_item_once():
    for items, shards in ((20, 4), (7, 3), (5, 5), (1000, 7)):
        cut = dataclasses.replace(job(), items=items, shards=shards)
        bounds = [cut.bounds(shard) for shard in range(shards)]
        assert [i for start, stop in bounds for i in range(start, stop)] == list(range(items))
        assert {stop - start for start, stop in bounds} <= {items // shards, items // shards + 1}


def test_a_folder_without_renames_gets_whole_files(tmp_path, monkeypatch):
    """An object store shows a file when its upload is complete; here another folder stands in."""
    build(job(), str(tmp_path / "a"))
    for module in (shard_files, site):
        monkeypatch.setattr(module, "is_local", lambda folder: False)
    build(job(), str(tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_another_seed_gives_other_bytes(tmp_path):
    def strokes(seed):
        data = {"sources": [{"kind": "strokes", "size": 8}], "seed": seed}
        return make_job(from_mapping({"data": data}), shards=2)

    build(strokes(0), str(tmp_path / "a"))
    build(strokes(0), str(tmp_path / "b"))
    build(strokes(1), str(tmp_path / "c"))
    a, b, c = (content(tmp_path / name) for name in "abc")
    assert a == b and all(a[name] != c[name] for name in a)
    assert json.loads(a["manifest.json"])["made_by"]["versions"]["process_gen"]
