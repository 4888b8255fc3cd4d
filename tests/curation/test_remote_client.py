"""Against a real local HTTP server that misbehaves: nothing is lost, nothing is asked twice."""

import json
import logging
import random
import re
import threading
import traceback

import numpy as np
import pytest

from process_gen.core.errors import ConfigError
from process_gen.curation.protocols import CheckRequest, DrawRequest, Failed
from process_gen.curation.remote_account import Prices
from process_gen.curation.remote_client import RemoteClient, RemoteError
from process_gen.curation.remote_drafter import RemoteDrafter
from process_gen.curation.remote_judge import RemoteJudge
from process_gen.curation.remote_options import RemoteOptions
from tests.curation.fake_server import CHAT, PICTURES, REASONS, FakeServer, picture_of

KEY = "sk-very-secret-0123456789"
PLAN = "<ins>Add it.</ins><des>A lawn.</des>"
PICTURE = picture_of("before")


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("TEST_KEY", KEY)


@pytest.fixture
def options(tmp_path):
    def build(server, **changes):
        settings = {
            "base_url": server.url,
            "api_key_env": "TEST_KEY",
            "chat_model": "seer",
            "image_model": "painter",
            "cache": str(tmp_path / "answers"),
            "timeout": 3.0,
            "backoff": 0.01,
            "attempts": 4,
        }
        return RemoteOptions(**settings | changes)

    return build


def steps(prompts):
    return [CheckRequest(prompt, {}, (), PLAN, PICTURE) for prompt in prompts]


def drawings(texts):
    return [DrawRequest("", text, None, seed=5) for text in texts]


def first_time(text, number):
    """Each question names its own misbehaviour, which it meets once."""
    found = re.search(r"\[(.*)\]", text)
    return found[1] if found and number == 0 else "good"


def faults(account, kind):
    return account.report()["kinds"][kind]["faults"]


def reasons(names):
    return {r: sum(REASONS[n] == r for n in names) for r in {REASONS[n] for n in names}}


def test_every_misbehaviour_is_counted_and_asked_again(options):
    """One of each: all are answered in the end, in order, and a second run asks nothing."""
    asked = [f"a dog [{name}]" for name in CHAT]
    drawn = [f"a cat [{name}]" for name in PICTURES]
    with FakeServer(first_time) as server:
        with RemoteClient(options(server)) as client:
            verdicts = RemoteJudge(client).check(steps(asked))
            pictures = RemoteDrafter(client).draw(drawings(drawn))
        assert [v.analysis for v in verdicts] == [f"a lawn {p} is still to come." for p in asked]
        assert all(np.array_equal(p, picture_of(t)) for p, t in zip(pictures, drawn, strict=True))
        assert faults(client.account, "judge") == reasons(CHAT)
        assert faults(client.account, "draw") == reasons(PICTURES)
        # None lost, none twice: one request for the misbehaviour, one for the answer.
        assert len(server.requests) == 2 * len(asked + drawn)
        assert server.count("good") == len(asked + drawn)
        with RemoteClient(options(server)) as client:
            again = RemoteJudge(client).check(steps(asked))
            redrawn = RemoteDrafter(client).draw(drawings(drawn))
        assert again == verdicts and all(map(np.array_equal, pictures, redrawn))
        assert len(server.requests) == 2 * len(asked + drawn), "asked a second time"
        assert client.account.report()["kinds"]["judge"]["cached"] == len(asked)
        # Another seed is another question.
        with RemoteClient(options(server)) as client:
            RemoteDrafter(client).draw([DrawRequest("", drawn[0], None, seed=6)])
        assert len(server.requests) == 2 * len(asked + drawn) + 1


@pytest.mark.parametrize("seed", range(2))
def test_books_are_right_whatever_happens(options, seed):
    """Random misbehaviour at every request: each question has one end, each request one place."""
    rng, lock = random.Random(seed), threading.Lock()
    names = [name for name in CHAT if name != "silence"] + ["bad question", "refused"]

    def behave(text, number):
        with lock:
            return rng.choice(names) if rng.random() < 0.5 else "good"

    prompts = [f"dog {i % 50}" for i in range(60)]  # ten of them twice
    with FakeServer(behave) as server, RemoteClient(options(server, attempts=3)) as client:
        verdicts = RemoteJudge(client).check(steps(prompts))
        counts = client.account.report()["kinds"]["judge"]
        good = {p for p, v in zip(prompts, verdicts, strict=True) if not isinstance(v, Failed)}
        assert all(
            v.analysis == f"a lawn {p} is still to come."
            for p, v in zip(prompts, verdicts, strict=True)
            if p in good
        )
        assert verdicts[50:] == verdicts[:10]
        assert 0 < len(good) < 50, "the seed shows only one kind of end"
        assert counts["answered"] == len(good) == server.count("good")
        assert sum(counts["failed"].values()) == 50 - len(good)
        assert (counts["asked"], counts["repeated"], counts.get("cached", 0)) == (50, 10, 0)
        assert len(server.requests) == counts["answered"] + sum(counts["faults"].values())


def test_what_never_gets_better_is_given_up_and_not_kept(options):
    """A reason, after as many attempts as allowed, and not after more; the others are answered."""
    prompts = [
        "a dog",
        *(f"a dog [{name}]" for name in ("500", "no json", "bad question", "refused")),
    ]

    def always(text, number):
        return first_time(text, 0)

    with FakeServer(always) as server:
        with RemoteClient(options(server)) as client:
            verdicts = RemoteJudge(client).check(steps(prompts))
        assert not isinstance(verdicts[0], Failed)
        failed = [v.reason for v in verdicts[1:]]
        assert failed == ["server error", "malformed JSON", "refused", "refused"]
        tries = [server.count(name) for name in ("500", "no json", "bad question", "refused")]
        assert tries == [4, 4, 1, 1], "what is refused is not asked again"
        with RemoteClient(options(server)) as client:
            often = RemoteJudge(client).check(steps(["a cow [bad question]"] * 200))
        assert len(set(often)) == 1 and server.count("bad question") == 2, "a repeated question"
        server.behave = lambda text, number: "good"
        with RemoteClient(options(server)) as client:
            repaired = RemoteJudge(client).check(steps(prompts))
        assert not any(isinstance(v, Failed) for v in repaired)
        assert client.account.report()["kinds"]["judge"]["cached"] == 1


def test_a_request_to_wait_holds_for_everyone(options):
    with FakeServer(first_time) as server:
        with RemoteClient(options(server, concurrency=1)) as client:
            RemoteJudge(client).check(steps(["a dog [429 retry-after]", "a cat"]))
        times = {r["behaviour"] + r["text"]: r["time"] for r in server.requests}
        begin = min(times.values())
        others = sorted(t - begin for t in times.values() if t > begin)
        assert len(others) == 2 and others[0] >= 0.2, "the server asked for 0.2 s"


def test_requests_run_side_by_side_up_to_a_limit(options):
    with FakeServer() as server:
        server.delay = 1.0
        with RemoteClient(options(server, concurrency=3)) as client:
            RemoteJudge(client).check(steps(f"dog {i}" for i in range(9)))
        assert server.most_at_once == 3


def test_the_rate_is_kept(options):
    """200 a minute is one every 0.3 s."""
    with FakeServer() as server:
        with RemoteClient(options(server, requests_per_minute=200.0)) as client:
            RemoteJudge(client).check(steps(["a cat"]))  # sets the connection up, which takes long
            RemoteJudge(client).check(steps(f"dog {i}" for i in range(5)))
        times = sorted(request["time"] for request in server.requests)[1:]
        assert len(times) == 5 and times[-1] - times[0] >= 1.05  # of 1.2: the first may be late


def all_text(folder):
    return "".join(path.read_text() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("behaviour", ["401", "404", "no quota"])
def test_what_cannot_work_ends_the_run_without_telling_the_key(options, behaviour, tmp_path):
    """The fake server repeats the key in its message, as some do."""
    with FakeServer(lambda text, number: behaviour) as server:
        with RemoteClient(options(server)) as client, pytest.raises(RemoteError) as caught:
            RemoteJudge(client).check(steps(["a dog"]))
        assert KEY in str(server.requests[0]["headers"]), "the key was never sent"
    told = "".join(traceback.format_exception(caught.value))
    assert server.url in told and "TEST_KEY" in told and KEY not in told
    assert KEY not in repr(client.account.report()) + repr(client.description()) + repr(
        vars(client.options)
    )


def test_the_key_is_in_no_file_and_no_failure(options, tmp_path):
    with FakeServer(lambda text, number: "400" if "bad" in text else "good") as server:
        with RemoteClient(options(server)) as client:
            verdicts = RemoteJudge(client).check(steps(["a dog", "a bad dog"]))
    assert verdicts[1].reason == "bad request"
    assert "***" in verdicts[1].detail and KEY not in repr(verdicts)
    kept = all_text(tmp_path)
    assert "a dog" in kept and KEY not in kept and "127.0.0.1" not in kept


def test_the_key_is_in_no_log_whatever_is_logged(options, caplog):
    caplog.set_level(logging.DEBUG)

    def behave(text, number):
        return "401" if "last" in text else "500" if number == 1 else "good"

    with FakeServer(behave) as server, RemoteClient(options(server)) as client:
        RemoteJudge(client).check(steps(["a dog", "a cat"]))
        with pytest.raises(RemoteError):
            RemoteJudge(client).check(steps(["the last"]))
    assert "127.0.0.1" in caplog.text and KEY not in caplog.text
    assert all(KEY not in repr(vars(record)) for record in caplog.records)


def test_a_run_without_any_answer_ends(options):
    with FakeServer() as server:
        gone = server.url

    class Gone:
        url = gone

    settings = options(Gone, attempts=1)
    with RemoteClient(settings) as client, pytest.raises(RemoteError, match="none was answered"):
        RemoteJudge(client).check(steps(f"dog {i}" for i in range(8)))
    with RemoteClient(settings) as client:
        (failed,) = RemoteJudge(client).check(steps(["a dog"]))
    assert failed == Failed("connection", failed.detail)


def test_damaged_answers_are_asked_again(options, tmp_path):
    with FakeServer() as server:
        with RemoteClient(options(server)) as client:
            first = RemoteJudge(client).check(steps(["a dog", "a cat", "a cow"]))
        half, other, _ = sorted((tmp_path / "answers").rglob("*.json"))
        half.write_bytes(half.read_bytes()[:100])
        record = json.loads(other.read_text())
        other.write_text(json.dumps(record | {"answer": {"seen": 3}}))
        with RemoteClient(options(server)) as client:
            second = RemoteJudge(client).check(steps(["a dog", "a cat", "a cow"]))
        assert second == first and len(server.requests) == 5


def test_costs_are_added_up(options):
    """The fake server takes 100 + 10 tokens for a verdict, 5 + 50 for a picture."""
    prices = Prices(input_per_million=1000.0, output_per_million=2000.0, per_picture=0.25)
    with FakeServer(first_time) as server, RemoteClient(options(server, prices=prices)) as client:
        RemoteJudge(client).check(steps(["a dog", "a cat [no json]"]))
        RemoteDrafter(client).draw(drawings(["a cow"]))
        report = client.account.report()
        tally = client.account.drain()
        assert client.account.drain() == {}
        RemoteJudge(client).check(steps(["a dog"]))
        assert client.account.drain() == {"judge asked": 1, "judge cached": 1}
    assert tally["judge faults: malformed JSON"] == tally["draw pictures"] == 1
    assert tally["judge input_tokens"] == 300
    assert tally["cost in millionths"] == pytest.approx(report["cost"] * 1e6)
    assert report["kinds"]["judge"]["input_tokens"] == 300, "a rejected answer was paid too"
    assert report["kinds"]["draw"]["pictures"] == 1
    assert report["cost"] == pytest.approx((305 * 1000 + 80 * 2000) / 1e6 + 0.25)


def test_settings_are_checked(monkeypatch):
    for wrong in (
        {"base_url": "http://me:secret@host/v1"},
        {"base_url": "host/v1"},
        {"concurrency": 0},
        {"backoff": -1.0},
        {"api_key_env": "sk-secret-1"},  # the key itself, where its variable should stand
        {"api_key_env": "0123456789secret"},
        {"api_key": "sk-secret-1"},
        {"chat_options": {"api_key": "sk-secret-1"}},
        {"image_options": {"Authorization": "Bearer secret-1"}},
    ):
        with pytest.raises(ConfigError, match="remote") as caught:
            RemoteOptions.from_mapping(wrong)
        assert "secret" not in str(caught.value)
    assert RemoteOptions(api_key_env="", chat_options={"max_tokens": 5}).chat_options
    monkeypatch.setenv("TEST_KEY", " ")
    with pytest.raises(RemoteError, match="TEST_KEY"):
        RemoteClient(RemoteOptions(api_key_env="TEST_KEY"))
    monkeypatch.setenv("TEST_KEY", "clé")
    with pytest.raises(RemoteError, match="ASCII"):
        RemoteClient(RemoteOptions(api_key_env="TEST_KEY"))
