"""Data made with remote models, from a config to a folder, over a real local server."""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("openai")
pytest.importorskip("jsonschema")

from configs.data import remote
from launch.make_data import make_data
from process_gen.core.configs import from_mapping
from process_gen.core.errors import ProcessGenError
from process_gen.data.builders import TrajectoryFolder
from tests.curation.fake_server import CHAT, PICTURES, FakeServer

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk-very-secret-0123456789"
PROMPTS = [
    "a photo of two red zorblats left of a bench",
    "a dog chasing a ball in a park",
    "a green vase and a yellow cup",
    "Why would a fish ride it?",  # for the model: no rule reads it
    "a conflict",  # the fake judge finds one in every drawing of it
]
SETTINGS = """
import sys
sys.path.insert(0, {root!r})
from configs.data import remote
def get_config(arg=""):
    common = {common!r}
    remote.CHAT |= common
    remote.DRAW |= common
    return remote.get_config(arg)
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    """configs/data/remote.py with the addresses of the fake server, as a file and as settings."""
    monkeypatch.setenv("TEST_KEY", KEY)
    for server in ("CHAT", "DRAW"):  # given back after the test
        monkeypatch.setattr(remote, server, dict(getattr(remote, server)))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))

    def build(server, **changes):
        common = {"base_url": server.url, "api_key_env": "TEST_KEY", "backoff": 0.01}
        common |= {"timeout": 5.0, "cache": str(tmp_path / "cache"), **changes}
        text = SETTINGS.format(root=str(ROOT), common=common)
        (tmp_path / "config.py").write_text(text)
        names: dict = {}
        exec(text, names)
        made = names["get_config"](str(tmp_path / "prompts.txt")).to_dict()
        made["data"]["sources"][0]["size"] = len(PROMPTS)
        return from_mapping(made)

    return build


def misbehaving(seed):
    """Every third request goes wrong, each time in another way."""
    rng, lock = random.Random(seed), threading.Lock()
    chat = [name for name in CHAT if name != "silence"]
    pictures = [name for name in PICTURES if name != "silence"]

    def behave(text, number):
        asked = "Prompt" in text or "finished picture" in text
        with lock:
            return rng.choice(chat if asked else pictures) if rng.random() < 1 / 3 else "good"

    return behave


def good_answers(server):
    """How often each question was answered well."""
    return collections.Counter(
        (r["path"], json.dumps(r["body"], sort_keys=True), *sorted(r["files"].items()))
        for r in server.requests
        if r["behaviour"] == "good"
    )


def all_bytes(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_from_prompts_to_a_folder(config, tmp_path):
    """Misbehaviour costs requests and nothing else: the same bytes as from a good server."""
    with FakeServer(misbehaving(0)) as server:
        manifest = make_data(config(server, attempts=12), str(tmp_path / "out"), show=2)
        requests, answers = len(server.requests), good_answers(server)
    assert set(answers.values()) == {1}, "a question was answered twice"
    tally = manifest["tally"]
    faults = sum(n for key, n in tally.items() if "faults: " in key)
    answered = sum(n for key, n in tally.items() if key.endswith(" answered"))
    assert answered == len(answers) and answered + faults == requests and faults > 5
    stored = TrajectoryFolder(str(tmp_path / "out"))
    assert [stored[i].prompt for i in range(len(stored))] == PROMPTS[:4]
    assert manifest["skipped"] == {"a step that the judge did not accept": 1}
    assert len(stored[0].steps) >= 2 and stored[0].steps[-1].sketch.shape == (24, 16, 3)
    assert stored[0].steps[0].inspection.startswith("a lawn")
    templates = manifest["made_by"]["recipe"]["templates"]
    assert sorted(templates) == ["draw", "judge", "parse", "write"]
    assert KEY.encode() not in all_bytes(tmp_path / "out") + all_bytes(tmp_path / "cache")

    other = tmp_path / "other"
    with FakeServer() as server:
        made = config(server, cache=str(other / "answers"))
        again = make_data(made, str(other / "out"))
        assert again["shards"] == manifest["shards"]
        # Once more with the answers at hand: no request at all, and the same bytes.
        before = len(server.requests)
        assert make_data(made, str(other / "again"))["shards"] == manifest["shards"]
        assert len(server.requests) == before == len(answers)


def test_a_refused_key_ends_a_run_that_goes_on_later(config, tmp_path):
    """What was answered until then is not asked again."""
    with FakeServer() as server:
        lock, left = threading.Lock(), [12]

        def behave(text, number):
            with lock:
                left[0] -= 1
                return "good" if left[0] >= 0 else "401"

        server.behave = behave
        made = config(server)
        with pytest.raises(ProcessGenError, match="401") as caught:
            make_data(made, str(tmp_path / "out"))
        assert KEY not in str(caught.value)
        server.behave = lambda text, number: "good"
        assert make_data(made, str(tmp_path / "out"))["count"] == 4
        assert set(good_answers(server).values()) == {1}
    assert KEY.encode() not in all_bytes(tmp_path / "out")


def test_the_oracle_measures_a_remote_judge(tmp_path):
    """Of the Strokes world's own drawings, a third of which is wrong; the fake judge likes all."""
    with FakeServer() as server:
        settings = {"base_url": server.url, "api_key_env": "", "chat_model": "seer"}
        settings["cache"] = str(tmp_path / "cache")
        options = {"faults": 1 / 3, "makers": {"judge": "remote", "remote": settings}}
        source = {"kind": "multi_turn", "size": 20, "options": options}
        made = make_data(from_mapping({"data": {"sources": [source]}}), str(tmp_path / "out"))
    verdicts = made["verdicts"]["judge"]
    assert verdicts["recall"] == 0.0 and verdicts["precision"] is None
    assert verdicts["misses"] > 5 and verdicts["true approvals"] > 5


@pytest.mark.slow
def test_a_killed_run_asks_nothing_twice(config, tmp_path):
    """SIGKILL at a request; the request itself is the only one that may be made again."""
    command = [sys.executable, "-m", "launch.make_data", f"--out={tmp_path / 'out'}"]
    command += [f"--config={tmp_path / 'config.py'}:{tmp_path / 'prompts.txt'}", "--limit=5"]
    with FakeServer() as server:
        victims = []

        def behave(text, number):
            if len(server.requests) in (5, 11, 17) and victims:
                os.kill(victims.pop(), signal.SIGKILL)
                return "drop"
            return "good"

        server.behave = behave
        config(server, concurrency=1)
        for _ in range(4):
            process = subprocess.Popen(command, cwd=ROOT)
            victims[:] = [process.pid]
            if process.wait(timeout=120) == 0:
                break
            assert process.returncode == -signal.SIGKILL
        assert process.returncode == 0 and server.count("drop") == 3
        assert set(good_answers(server).values()) == {1}
    assert len(TrajectoryFolder(str(tmp_path / "out"))) == 4
