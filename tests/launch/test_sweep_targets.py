"""Tests of sweeps that are sent somewhere: what is rendered, what arrives, what is refused."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import common, submit, sweep, sweep_targets, trials
from process_gen.core.errors import ConfigError
from tests.launch.test_sweep import _STUB

GOLDEN = Path(__file__).parent / "golden"
SWEEP = f"""
from launch.trials import Trial
def get_sweep():
    made = [Trial(f"t{{i}}", (({_STUB!r}, "{{here}}", "0.5"),)) for i in range(4)]
    return [*made, Trial("last", (({_STUB!r}, "{{here}}", "0.5"),), needs=("t0",))]
"""
GIVEN = {
    "slurm": ["--name=rates", "--gpus_per_node=1", "--partition=gpu", "--directory=/home/me/gen"],
    "gke": [
        "--name=rates",
        "--image=us-docker.pkg.dev/project/repo/process_gen:0.1",
        "--topology=v5e:2x2",
        "--volume=disk:/data",
        "--queue=sweeps",
        "--spot",
    ],
    "commands": [],
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Calls the command in a folder with a sweep of five trials, the last of which needs t0."""
    (tmp_path / "configs").mkdir()
    for file in ("five.py", "configs/five.py"):
        (tmp_path / file).write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_targets, "_ROOT", tmp_path)

    def call(target: str, *more: str, workdir: str = "/data/rates", without: str = "-") -> None:
        kept = [word for word in GIVEN[target] if not word.startswith(without)]
        file = "configs/five.py" if target == "gke" else "five.py"  # what images have
        words = [f"--sweep={file}", f"--workdir={workdir}", f"--target={target}", *kept, *more]
        sweep.main(common.parse(sweep.define_flags, ["launch.sweep", *words]))

    return call


@pytest.mark.golden
@pytest.mark.parametrize("target", GIVEN)
def test_dry_run(target, call, update_golden, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)  # nothing may be run
    call(target, "--jobs=2", "--dry_run", without="none")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [
        "5 trials, 5 to run: t0, t1, t2, t3, last",
        "left for later, when what they need is done: last",
    ]
    file = GOLDEN / f"sweep_{target}.txt"
    if update_golden:
        file.write_text(printed.out)
    assert printed.out == file.read_text()


def test_only_what_has_no_result_is_sent(call, tmp_path, capsys):
    folder = tmp_path / "runs"
    for name in ("t0", "t2"):
        call("commands", f"--trial={name}", workdir=str(folder), without="none")
    capsys.readouterr()
    call("commands", workdir=str(folder), without="none")
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("=")[2] for line in lines] == ["t1", "t3", "last"]
    call("slurm", "--dry_run", workdir=str(folder), without="none")
    assert "#SBATCH --array=1,3,4%1\n" in capsys.readouterr().out
    call("gke", "--dry_run", f"--volume=disk:{tmp_path}", workdir=str(folder), without="--volume")
    text = capsys.readouterr().out
    job = yaml.safe_load(text.partition("# ---- command")[0])["spec"]["replicatedJobs"][0]
    job = job["template"]["spec"]
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (3, 1, "Indexed")
    container = job["template"]["spec"]["containers"][0]
    assert container["command"][-2:] == ["--only=t1,t3,last", "--trial=$(JOB_COMPLETION_INDEX)"]
    # A pod's number is the place in that list.
    only = ["t1", "t3", "last"]
    ordered = trials.load("five.py")
    chosen = [trial for trial in ordered if trial.name in only]
    assert [trial.name for trial in chosen] == only


def test_kubernetes_looks_up_no_variable(call, capsys):
    call("gke", "--dry_run", workdir="/data/$(HOME)$$x", without="none")
    text = capsys.readouterr().out.partition("# ---- command")[0]
    assert '"--workdir=/data/$$(HOME)$$$$x"' in text and '"--trial=$(JOB_' in text


def test_the_directory_is_checked_by_default_too(call, monkeypatch):
    monkeypatch.setattr(submit, "__file__", "/my code/launch/submit.py")
    with pytest.raises(ConfigError, match="--directory=/my code must be without spaces"):
        call("slurm", "--dry_run", without="--directory")


def test_a_printed_command_runs_its_trial(call, tmp_path, capsys):
    folder = tmp_path / "with space"
    call("commands", "--only=t1", workdir=str(folder), without="none")
    (line,) = capsys.readouterr().out.splitlines()
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", "launch.sweep"]
    sweep.main(common.parse(sweep.define_flags, words[2:]))
    assert (folder / "t1" / "done.json").exists()


def test_the_array_as_bash_reads_it(call, capsys):
    """The task's number reaches the command, and a preempted task is queued again."""
    call("slurm", "--dry_run", without="none")
    script = capsys.readouterr().out.partition("# ---- command")[0]
    fakes = """
      srun() { printf '%s\\n' "$@"; return 75; }
      scontrol() { echo "scontrol $@"; }
      SLURM_ARRAY_JOB_ID=7 SLURM_ARRAY_TASK_ID=3
    """
    done = subprocess.run(["bash", "-c", fakes + script], capture_output=True, text=True)
    assert done.returncode == common.PREEMPTED
    assert done.stdout.splitlines() == [
        ".venv/bin/python",
        "-m",
        "launch.sweep",
        "--sweep=five.py",
        "--workdir=/data/rates",
        "--trial=3",
        "scontrol requeue 7_3",
    ]


@pytest.mark.parametrize(
    ("target", "without", "more", "message"),
    [
        ("slurm", "--name", (), "--name is missing"),
        ("slurm", "none", ("--image=x",), "--image has no meaning for --target=slurm"),
        ("commands", "none", ("--name=x",), "--name has no meaning for --target=commands"),
        ("gke", "--volume", (), "--volume is missing"),
        ("gke", "--volume", ("--volume=disk",), "--volume=disk should be CLAIM:FOLDER"),
        ("gke", "--volume", ("--volume=disk:/else",), "must lie on the volume, in /else"),
        ("gke", "--topology", ("--topology=v5e:4x4",), "a trial runs on one host"),
        ("gke", "none", ("--record=docs",), "--record=docs must lie on the volume, in /data"),
        (
            "gke",
            "none",
            ("--record=/data/../home",),
            "--record=/data/../home must lie on the volume",
        ),
        ("gke", "none", ("--sweep=five.py",), "five.py must lie in configs, launch, process_gen"),
        ("gke", "none", ("--sweep={tmp}/five.py",), "five.py must lie in configs, launch"),
        ("gke", "none", ("--sweep=../{name}/five.py",), "five.py must lie in configs, launch"),
        ("slurm", "none", ("--workdir=runs",), "--workdir=runs must be absolute"),
        ("slurm", "--directory", ("--directory=/a b",), "without spaces"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(target, without, more, message, call, tmp_path):
    more = [word.format(tmp=tmp_path, name=tmp_path.name) for word in more]
    with pytest.raises(ConfigError, match=message):
        call(target, *more, "--dry_run", without=without)


@pytest.mark.parametrize("file", ["{tmp}/configs/five.py", "configs/../configs/five.py", "five.py"])
def test_a_pod_finds_the_sweep_in_its_copy_of_the_checkout(
    file, call, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path / "configs" if file == "five.py" else tmp_path)
    call("gke", "--dry_run", f"--sweep={file.format(tmp=tmp_path)}", without="none")
    assert '"--sweep=configs/five.py"' in capsys.readouterr().out


def test_record_and_sweep_may_lie_on_the_volume(call, tmp_path, capsys):
    more = (
        f"--volume=disk:{tmp_path}",
        f"--record={tmp_path / 'kept'}",
        f"--sweep={tmp_path}/five.py",
    )
    call("gke", "--dry_run", *more, workdir=str(tmp_path / "runs"), without="--volume")
    assert f"--record={tmp_path / 'kept'}" in capsys.readouterr().out
    call("slurm", "--dry_run", "--record=docs", without="none")  # a folder of the checkout there
    assert "--record=docs" in capsys.readouterr().out
