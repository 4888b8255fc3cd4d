"""Recipes whose planner, drafter and judge sit behind a real HTTP server that misbehaves."""

from __future__ import annotations

import json
import random

import pytest

from process_gen.core.configs import from_mapping
from process_gen.core.trajectory import parse_plan
from process_gen.curation.recipes import make_job
from process_gen.curation.workers import build
from process_gen.data.builders import TrajectoryFolder
from tests.curation.fake_server import FakeServer

KEY = "sk-very-secret-0001"
PROMPTS = ["a red dog", "a cow", "a misalignment", "a conflict", "two green benches", "a blue cat"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def job(server, tmp_path, prompts, kind="multi_turn", **options):
    remote = {
        "base_url": server.url,
        "api_key_env": "PROCESS_GEN_TEST_KEY",
        "chat_model": "m",
        "image_model": "i",
        "backoff": 0.01,
        "timeout": 2.0,
        "cache": str(tmp_path / "answers"),
    }
    makers = {"planner": "remote", "drafter": "remote", "judge": "remote", "remote": remote}
    source = {"kind": kind, "size": len(PROMPTS)}
    source["options"] = {"prompts": str(prompts), "makers": makers, "chunk": 4, **options}
    return make_job(from_mapping({"data": {"sources": [source]}}), shards=2)


def test_a_misbehaving_server_loses_nothing_and_is_asked_nothing_twice(
    tmp_path, prompts, monkeypatch
):
    monkeypatch.setenv("PROCESS_GEN_TEST_KEY", KEY)
    luck = random.Random(1)
    faults = ["429", "500", "drop", "half json", "half an image", "malformed"]

    def behave(text, number):
        fault = luck.choice(faults) if number == 0 and luck.random() < 0.5 else "good"
        return {"half an image": "half a body", "malformed": "html page"}.get(fault, fault)

    with FakeServer(behave) as server:
        manifest = build(job(server, tmp_path, prompts), str(tmp_path / "a"))
        assert manifest["count"] + sum(manifest["skipped"].values()) == len(PROMPTS)
        assert manifest["skipped"] == {"a step that the judge did not accept": 2}
        stored = TrajectoryFolder(str(tmp_path / "a"))
        right = ["a red dog", "a cow", "two green benches", "a blue cat"]
        assert [stored[i].prompt for i in range(4)] == right
        for i in range(4):
            assert len(stored[i].steps) == 2 and not any(s.rejected for s in stored[i].steps)
            assert parse_plan(stored[i].steps[1].plan)[1] == f"{stored[i].prompt}."
            assert stored[i].final_image.shape == (24, 16, 3)
        tally = manifest["tally"]
        assert tally["remote/plan answered"] == 6
        assert sum(n for key, n in tally.items() if " faults: " in key) > 5
        assert KEY not in json.dumps(manifest) + (tmp_path / "prompts.txt").read_text()

        asked = len(server.requests)
        again = build(job(server, tmp_path, prompts), str(tmp_path / "b"))
        assert len(server.requests) == asked, "a second build asked the server again"
        assert again["shards"] == manifest["shards"]


def test_faulty_drawings_become_critiques_and_their_repairs_are_judged(
    tmp_path, prompts, monkeypatch
):
    monkeypatch.setenv("PROCESS_GEN_TEST_KEY", KEY)
    with FakeServer() as server:
        manifest = build(job(server, tmp_path, prompts, "alignment"), str(tmp_path / "a"))
        assert manifest["supervise"] == "last_repair"
        # The server finds the same fault in every repair.
        assert manifest["skipped"]["a repair that the judge did not accept"] >= 1
        plain = build(
            job(server, tmp_path, prompts, "alignment", repair=False), str(tmp_path / "b")
        )
        stored = TrajectoryFolder(str(tmp_path / "b"))
        faulty = [t for t in map(stored.__getitem__, range(len(stored))) if t.steps[-1].rejected]
        assert plain["count"] > manifest["count"] and faulty
        assert all(t.steps[-1].inspection.endswith("<refine>Make it red.</refine>") for t in faulty)
