"""Sweeps with real processes: order, failures, resuming after kills, results."""

import errno
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from jax._src.clusters.slurm_cluster import SlurmCluster

from launch import common, sweep, sweep_results, trials
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
        ([_stub("here")], "trial name 'here' has a meaning of its own"),
        ([_stub("comparison")], "trial name 'comparison' has a meaning of its own"),
        ([Trial("a", (("m", "--x={"),))], "'a': '--x={' cannot be read .*written twice"),
        ([Trial("a", (("m", "}"),))], "'a': '}' cannot be read .*written twice"),
        ([Trial("a", (("m", "{here!x}"),))], "{here} in '{here!x}' has more in its braces"),
        ([Trial("a", (("m", "{here:run}"),))], "has more in its braces"),
        ([Trial("a", ())], "no command"),
        ([Trial("a", (("m", "{b}/x"),)), _stub("b")], "{b} in '{b}/x' is neither"),
    ],
)
def test_a_wrong_sweep_is_refused_by_name(wrong, said):
    with pytest.raises(ConfigError, match=said.replace("{", r"\{")):
        trials.in_order(wrong)


def test_a_brace_that_is_written_twice_is_a_brace():
    (trial,) = trials.in_order([Trial("a", (("m", "--x={{", "}}"),))])
    assert trial.words(Path("w")) == [["m", "--x={", "}"]]


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


def test_trials_of_overrides():
    overrides = trials.product(
        trials.sweep("optimizer.name", ["muon", "adamw"]), trials.sweep("data.x", ["{a}"])
    )
    made = trials.in_order(trials.of_overrides("c.py:demo", overrides, ("--suite=strokes",)))
    assert [t.name for t in made] == ["t0", "t1"] and made[0].about == "name=muon"
    train, evaluate = made[1].words(Path("/runs"))
    assert train[:3] == ["launch.train", "--config=c.py:demo", "--workdir=/runs/t1/run"]
    assert train[3:] == ["--config.optimizer.name=adamw", "--config.data.x={a}"]
    assert "--checkpoint=/runs/t1/run" in evaluate and evaluate[-1] == "--suite=strokes"
    (only,) = trials.of_overrides("c.py", [{}], evaluate=())
    assert len(only.commands) == 1 and only.scores == ""


def test_a_failure_stops_only_those_that_need_it(tmp_path, capsys):
    todo = [_stub("bad", "fail"), _stub("after", needs=("bad",)), _stub("good"), _stub("next")]
    todo[3] = _stub("next", needs=("good",))
    ledger, failed, stopped = _run(todo, tmp_path, tmp_path / "record", jobs=2)
    assert not stopped
    assert failed == {"bad": "exit status 3", "after": "needs bad"}
    assert sweep.needed(todo, ledger, ()) == todo[:2]
    result = json.loads((tmp_path / "record" / "next.json").read_text())
    assert result["scores"]["overall"]["exact"] == 0.5
    assert result["command"] == "python -m launch.sweep --sweep=x.py --only=next"
    states = {trial.name: ledger.result(trial) for trial in todo}
    sweep_results.write(tmp_path, todo, states, failed, "python -m launch.sweep")
    assert "50.0 [0.0, 100.0]" in capsys.readouterr().out
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0] == "| trial | what | state | time | exact % |" and len(lines) == 6
    assert lines[2].startswith("| bad |  | failed: exit status 3 |")
    assert lines[3].startswith("| after |  | failed: needs bad |")
    assert lines[4].startswith("| good |  | done |") and "50.0 [0.0, 100.0]" in lines[4]
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["failed"] == failed and kept["trials"]["good"]["scores"]["overall"]["exact"] == 0.5
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    compared = json.loads((tmp_path / "comparison" / "compare.json").read_text())
    assert [run["name"] for run in compared["runs"]] == ["good", "next"]


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


def test_the_commit_is_that_of_the_start(tmp_path, monkeypatch):
    commits = ["a1", "b2", "b2", "b2"]
    monkeypatch.setattr(common, "git_hash", lambda: commits.pop(0))
    ledger, _, _ = _run([_stub("a"), _stub("b")], tmp_path)
    moved, stayed = ledger.result(_stub("a")), ledger.result(_stub("b"))
    assert moved is not None and stayed is not None
    assert (moved["commit"], moved["commit_at_end"]) == ("a1", "b2")
    assert stayed["commit"] == "b2" and "commit_at_end" not in stayed


def test_results_name_no_folder_of_the_machine(tmp_path):
    source = tmp_path / "source.json"
    places = [str(_ROOT / "process_gen"), str(tmp_path / "w" / "a"), "/elsewhere"]
    source.write_text(json.dumps(places))
    trial = Trial("a", (("json.tool", str(source), "{here}/scores.json"),), scores="scores.json")
    ledger, _, _ = _run([trial], tmp_path / "w")
    result = ledger.result(trial)
    assert result is not None and result["scores"] == ["process_gen", "a", "/elsewhere"]


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


def test_a_trial_in_a_step_of_slurm_has_the_whole_machine(tmp_path, monkeypatch):
    step = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_NODELIST": "node1",
        "SLURM_NTASKS": "1",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
    }
    for name, value in step.items():
        monkeypatch.setenv(name, value)
    assert SlurmCluster.is_env_present()  # so jax would see a cluster here
    (tmp_path / "tell.py").write_text(
        "import json, os, sys\njson.dump(dict(os.environ), open(sys.argv[1], 'w'))\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    trial = Trial("a", (("tell", "{here}/scores.json"),), scores="scores.json")
    ledger, failed, _ = _run([trial], tmp_path / "w")
    result = ledger.result(trial)
    assert not failed and result is not None and result["scores"]["SLURM_JOB_ID"] == "7"
    monkeypatch.setattr(os, "environ", result["scores"])
    assert not SlurmCluster.is_env_present()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_disk_without_locks_is_refused(tmp_path, monkeypatch, number):
    file = tmp_path / "six.py"
    file.write_text(_SIX)

    def flock(file, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(ConfigError, match=rf"{tmp_path} cannot be locked.*--workdir on a disk"):
        _main(f"--sweep={file}", f"--workdir={tmp_path}", "--only=t0")
    with pytest.raises(ConfigError, match=rf"{tmp_path / 't0'} cannot be locked"):
        _main(f"--sweep={file}", f"--workdir={tmp_path}", "--trial=t0")


def test_the_example_is_a_sweep():
    six = trials.load(str(_ROOT / "configs/sweeps/learning_rate.py"))
    assert [t.name for t in six] == [f"t{i}" for i in range(6)]
    assert len({t.about for t in six}) == 6


def _main(*words: str) -> None:
    sweep.main(common.parse(sweep.define_flags, ["sweep", *words]))


def test_commands_are_said_as_a_shell_takes_them(tmp_path, capsys):
    sources = [{"data.sources": ({"kind": "strokes"},)}]
    (trial,) = trials.of_overrides("c.py", sources, evaluate=())
    file = tmp_path / "one.py"
    file.write_text(f"from launch.trials import Trial\ndef get_sweep():\n    return [{trial!r}]\n")
    _main(f"--sweep={file}", f"--workdir={tmp_path / 'runs'}", "--list")
    name, _, said = capsys.readouterr().out.strip().partition(": ")
    assert name == "t0" and shlex.split(said) == [
        "python",
        "-m",
        *trial.words(tmp_path / "runs")[0],
    ]


def test_the_record_is_completed_by_what_was_made_before(tmp_path):
    file, folder, record = tmp_path / "six.py", tmp_path / "runs", tmp_path / "record"
    file.write_text(_SIX.replace("0.4", "0"))
    where = (f"--sweep={file}", f"--workdir={folder}")
    _main(*where, "--only=t0,t1")
    record.mkdir()
    kept = (folder / "t1" / "done.json").read_text() + "\n"
    (record / "t1.json").write_text(kept)
    _main(*where, "--only=t2", f"--record={record}")
    assert sorted(p.name for p in record.iterdir()) == ["t0.json", "t1.json", "t2.json"]
    assert (record / "t0.json").read_text() == (folder / "t0" / "done.json").read_text()
    assert (record / "t1.json").read_text() == kept  # what is there stays as it is
    (record / "t0.json").unlink()
    _main(*where, "--trial=t0", f"--record={record}")
    assert (record / "t0.json").is_file() and _count(folder, "t0") == 1


def test_one_trial_by_number_or_name(tmp_path, capsys):
    file, folder = tmp_path / "six.py", tmp_path / "runs"
    file.write_text(_SIX.replace("0.4", "0"))
    where = (f"--sweep={file}", f"--workdir={folder}")
    _main(*where, "--trial=3")
    _main(*where, "--trial=t3")
    assert capsys.readouterr().out.endswith("t3: done already\n")
    _main(*where, "--only=t1,t4", "--trial=1")
    assert {p.parent.name for p in folder.glob("*/done.json")} == {"t3", "t4"}
    assert _count(folder, "t3") == _count(folder, "t4") == 1
    with pytest.raises(ConfigError, match="--trial=6 is neither a number below 6 nor one of t0"):
        _main(*where, "--trial=6")


def test_a_trial_waits_for_what_it_needs_and_says_when_it_fails(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        f"""
from launch.trials import Trial
def get_sweep():
    words = ({_STUB!r}, "{{here}}", "fail")
    return [Trial("a", (words,)), Trial("b", (words,), needs=("a",))]
"""
    )
    where = (f"--sweep={file}", f"--workdir={tmp_path / 'runs'}")
    with pytest.raises(ConfigError, match="b needs a, not done yet"):
        _main(*where, "--trial=b")
    with pytest.raises(SystemExit) as stopped:
        _main(*where, "--trial=a")
    assert stopped.value.code == 1


def test_what_another_runner_finished_is_not_run_again(tmp_path):
    ledger, *_ = _run([_stub("a")], tmp_path)
    failed, stopped = sweep.run_trials([_stub("a")], ledger, 1, "--sweep=x.py")
    assert not failed and not stopped and _count(tmp_path, "a") == 1


def test_sigterm_is_a_preemption(tmp_path):
    file, folder = tmp_path / "six.py", tmp_path / "runs"
    file.write_text(_SIX.replace("0.4", "60"))
    words = ["-m", "launch.sweep", f"--sweep={file}", f"--workdir={folder}", "--trial=t0"]
    runner = subprocess.Popen([sys.executable, *words], cwd=_ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while not (folder / "t0" / "ran.txt").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    runner.send_signal(signal.SIGTERM)
    runner.communicate()
    assert runner.returncode == common.PREEMPTED
    assert not (folder / "t0" / "done.json").exists()
