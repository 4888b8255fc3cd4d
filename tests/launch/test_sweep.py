"""Sweeps with real processes: order, failures, resuming after kills, results."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import common, sweep, trials
from launch.trials import Trial
from process_gen.core.errors import ConfigError, DataError

_ROOT = Path(__file__).parents[2]
_STUB = "tests.launch.trial_stub"

_SIX = f"""
from launch.trials import Trial
def get_sweep():
    return [Trial(f"t{{i}}", (({_STUB!r}, "{{here}}", str(i / 10), "0.4"),), scores="scores.json")
            for i in range(6)]
"""


def _stub(name: str, score: str = "0.5", needs: tuple[str, ...] = (), **more) -> Trial:
    words = [_STUB, "{here}", score, "0"]
    if needs:
        words.append("{" + needs[0] + "}/scores.json")
    return Trial(name, (tuple(words),), needs=needs, scores="scores.json", **more)


def _run(todo, folder, record=None, jobs=1):
    ledger = sweep.Ledger(folder, record)
    return ledger, *sweep.run_trials(todo, ledger, jobs, "--sweep=x.py")


def _count(folder: Path, name: str, word: str = "finished") -> int:
    return (folder / name / "ran.txt").read_text().split().count(word)


def test_trials_run_after_those_that_they_need():
    ordered = trials.in_order([_stub("b", needs=("a",)), _stub("c"), _stub("a")])
    assert [t.name for t in ordered] == ["c", "a", "b"]


@pytest.mark.parametrize(
    "wrong, said",
    [
        ([_stub("a", needs=("b",)), _stub("b", needs=("a",))], "need each other: a, b"),
        ([_stub("a"), _stub("a")], "two trials are called 'a'"),
        ([_stub("a", needs=("b",))], "needs 'b', which is not in the sweep"),
        ([_stub("A b")], "trial name 'A b'"),
        ([Trial("a", ())], "no command"),
        ([Trial("a", (("m", "{b}/x"),)), _stub("b")], "{b} in '{b}/x' is neither"),
    ],
)
def test_a_wrong_sweep_is_refused_by_name(wrong, said):
    with pytest.raises(ConfigError, match=said.replace("{", r"\{")):
        trials.in_order(wrong)


def test_overrides_of_many_trials():
    rates, seeds = trials.sweep("lr", [1, 2]), trials.sweep("seed", [0, 1])
    assert trials.product(rates, seeds)[1] == {"lr": 1, "seed": 1}
    assert len(trials.product(rates, seeds)) == 4
    assert trials.zipped(rates, seeds) == [{"lr": 1, "seed": 0}, {"lr": 2, "seed": 1}]
    assert trials.flags({"lr": 1}) == ("--config.lr=1",)
    draws = trials.sampled({"lr": [1, 2, 3]}, 20, seed=0)
    assert draws == trials.sampled({"lr": [1, 2, 3]}, 20, seed=0)
    assert draws != trials.sampled({"lr": [1, 2, 3]}, 20, seed=1)
    with pytest.raises(ConfigError, match="lengths 2, 3"):
        trials.zipped(rates, trials.sweep("seed", [0, 1, 2]))
    with pytest.raises(ConfigError, match="two axes set lr"):
        trials.product(rates, rates)


def test_a_failure_stops_only_those_that_need_it(tmp_path):
    todo = [_stub("bad", "fail"), _stub("after", needs=("bad",)), _stub("good"), _stub("next")]
    todo[3] = _stub("next", needs=("good",))
    ledger, failed, stopped = _run(todo, tmp_path, tmp_path / "record", jobs=2)
    assert not stopped
    assert failed == {"bad": "exit status 3", "after": "needs bad"}
    assert sweep.needed(todo, ledger, ()) == todo[:2]
    result = json.loads((tmp_path / "record" / "next.json").read_text())
    assert result["scores"]["overall"]["exact"] == 0.5
    assert result["command"] == "python -m launch.sweep --sweep=x.py --only=next"
    text = sweep.table(todo, ledger, failed)
    assert "failed" in text and " 50.0 [  0.0, 100.0]" in text


def test_scores_that_were_promised_must_be_there(tmp_path):
    trial = Trial("a", (("json.tool", "--help"),), scores="scores.json")
    ledger, failed, _ = _run([trial], tmp_path)
    assert "scores.json cannot be read" in failed["a"]
    assert ledger.result(trial) is None


def test_other_files_and_the_time_of_all_starts_are_kept(tmp_path):
    trial = Trial("a", (("json.tool", "--help"), (_STUB, "{here}", "0.5")), also=("scores.json",))
    ledger = sweep.Ledger(tmp_path, None)
    ledger.folder(trial).mkdir()
    ledger.spend(trial, 1000.0, 500.0)  # as an interrupted start leaves it
    _run([trial], tmp_path)
    result = ledger.result(trial)
    assert result is not None and result["scores"] is None
    assert result["also"]["scores.json"]["overall"]["exact"] == 0.5
    assert result["seconds"] > 1000.0 and 500.0 < result["cpu_seconds"] < 1000.0
    assert not (ledger.folder(trial) / sweep.SPENT).exists()  # a repetition starts at 0
    missing = Trial("b", (("json.tool", "--help"),), also=("none.json",))
    _, failed, _ = _run([missing], tmp_path)
    assert "none.json cannot be read" in failed["b"]


def test_a_recorded_trial_runs_again_only_for_its_files(tmp_path):
    record = tmp_path / "record"
    base, top = _stub("base"), _stub("top", needs=("base",))
    _run([base], tmp_path / "first", record)
    ledger = sweep.Ledger(tmp_path / "second", record)
    assert sweep.needed([base], ledger, ()) == []
    assert sweep.needed([base, top], ledger, ()) == [base, top]
    with pytest.raises(ConfigError, match="--only=tip is not in the sweep"):
        sweep.needed([base, top], ledger, ["tip"])


def test_a_result_of_other_commands_is_not_taken_for_this_one(tmp_path):
    _run([_stub("a", "0.1")], tmp_path)
    with pytest.raises(DataError, match="other commands"):
        sweep.Ledger(tmp_path, None).result(_stub("a", "0.2"))
    assert sweep.Ledger(tmp_path, None).result(_stub("a", "0.1", about="words do not count"))


def _start(file: Path, folder: Path) -> subprocess.Popen:
    words = ["-m", "launch.sweep", f"--sweep={file}", f"--workdir={folder}", "--json"]
    return subprocess.Popen(
        [sys.executable, *words], cwd=_ROOT, stdout=subprocess.PIPE, text=True, env=os.environ
    )


@pytest.mark.parametrize(
    "kill", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_six_trials_stopped_half_way_and_resumed(tmp_path, kill):
    file, folder = tmp_path / "six.py", tmp_path / "runs"
    file.write_text(_SIX)
    first = _start(file, folder)
    deadline = time.monotonic() + 60
    while not (folder / "t2" / "done.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(kill)
    first.communicate()
    assert first.returncode not in (0, 1)
    done = {p.parent.name for p in folder.glob("*/done.json")}
    assert 3 <= len(done) < 6
    second = _start(file, folder)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0
    results = json.loads(out.splitlines()[-1])["trials"]
    assert [results[f"t{i}"]["scores"]["overall"]["exact"] for i in range(6)] == [
        0.0, 0.1, 0.2, 0.3, 0.4, 0.5,
    ]  # fmt: skip
    for name in done:
        assert _count(folder, name) == 1
    if kill == signal.SIGINT:
        assert all(_count(folder, f"t{i}") == 1 for i in range(6))


def test_two_runners_do_not_share_a_folder(tmp_path):
    file = tmp_path / "six.py"
    file.write_text(_SIX)
    lock = sweep._lock(tmp_path / "sweep.lock")
    assert lock is not None
    flags = common.parse(
        sweep.define_flags, ["sweep", f"--sweep={file}", f"--workdir={tmp_path}", "--only=t0"]
    )
    with pytest.raises(ConfigError, match="another sweep is running"):
        sweep.main(flags)
    lock.close()
    sweep.main(flags)
    assert _count(tmp_path, "t0") == 1
