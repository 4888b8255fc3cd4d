"""Tests of the submit command: what it renders, what it refuses, and that it runs one command."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from launch import common, submit, train
from process_gen.core.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden"
ODD = '--config.train.init_from=it\'s $(HOME) $$(HOME) $$ $x "x"; rm -rf / #'
BASE = {
    "name": "tiny-1",
    "config": "configs/strokes_tiny.py:debug",
    "workdir": "gs://bucket/runs/tiny",
    "config.sampler.guidance_interval": "(0.1, 0.9)",
}
TPU = {**BASE, "topology": "v5p:4x4x4", "image": "us-docker.pkg.dev/project/repo/process_gen:0.1"}
TARGETS = {
    "tpu": {**TPU, "zone": "us-east5-a", "topology": "v6e:8x8", "slices": "2", "spot": "true"},
    "gke": {**TPU, "queue": "multislice", "spot": "true", "service_account": "writer"},
    "gke_toolkit": {**TPU, "restarts": "3"},
    "slurm": {
        **BASE,
        "nodes": "2",
        "gpus_per_node": "8",
        "directory": "/home/me/process_gen",
        "partition": "gpu",
    },
}


def words(target, change=None, *more):
    given = {"target": target, **TARGETS[target], **(change or {})}
    named = [f"--{key}={value}" for key, value in given.items() if value is not None]
    return ["launch.submit", *named, *more]


def plan(target, change=None, *more):
    argv = words(target, change, *more)
    return submit.make_plan(common.parse(submit.define_flags, argv), argv)


def call(*argv):
    common.run(
        lambda values: submit.main(values, argv), submit.define_flags, submit.__doc__, list(argv)
    )


@pytest.mark.golden
@pytest.mark.parametrize("target", TARGETS)
def test_dry_run(target, update_golden, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)  # nothing may be run
    call(*words(target, None, "--dry_run"))
    printed = capsys.readouterr().out
    file = GOLDEN / f"submit_{target}.txt"
    if update_golden:
        file.parent.mkdir(exist_ok=True)
        file.write_text(printed)
    assert printed == file.read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_arguments_arrive_as_they_were_given(target):
    """Also those that a shell, YAML or Kubernetes would like to read themselves."""
    made = plan(target, None, ODD)
    sent = ["configs/strokes_tiny.py:debug", "gs://bucket/runs/tiny", "(0.1, 0.9)"]
    if target == "gke":
        container = _container(made.text)
        arrived = [_as_kubernetes_reads_it(word) for word in container["command"]]
    elif target == "gke_toolkit":
        arrived = shlex.split(made.command[-1].removeprefix("--command="))
    else:
        arrived = _as_bash_reads_it(made.text, target)
    assert arrived[1:3] == ["-m", "launch.train"] and arrived[-1] == "--distributed=on"
    assert ODD in arrived and all(any(a.endswith(s) for a in arrived) for s in sent)
    flags = common.parse(train.define_flags, ["launch.train", *arrived[3:]])
    config = common.read_config(flags)
    assert config.train.init_from == ODD.partition("=")[2]
    assert config.sampler.guidance_interval == (0.1, 0.9)


def test_what_is_set_to_false_is_passed_on():
    words = ["submit", "--config=configs/base.py", "--noconfig.optimizer.ema_warmup", "--workdir=w"]
    assert submit._passed_on(words, "slurm") == words[1:]
    with pytest.raises(ConfigError, match="must be one word"):
        submit._passed_on([*words, "--config.train.steps"], "slurm")


def _as_kubernetes_reads_it(word):
    """$$ is $, wherever it stands; $(NAME) is a variable, here an unknown one made visible."""
    return re.sub(r"\$\$|\$\((.*?)\)", lambda m: "$" if m[0] == "$$" else f"variable {m[1]}", word)


def test_the_directory_of_a_batch_script_is_checked_by_default_too(monkeypatch):
    assert "#SBATCH --chdir=/home/me/process_gen\n" in plan("slurm").text
    checkout = Path(submit.__file__).parents[1]
    assert f"#SBATCH --chdir={checkout}\n" in plan("slurm", {"directory": None}).text
    monkeypatch.setattr(submit, "__file__", "/my code/launch/submit.py")
    with pytest.raises(ConfigError, match="--directory=/my code must be without spaces"):
        plan("slurm", {"directory": None})


def _as_bash_reads_it(script, target):
    """The words of the trainer's command, by the script itself, with what it calls replaced."""
    caller = {"tpu": "docker", "slurm": "srun"}[target]
    fakes = f"""
      {caller}() {{ case $1 in rm | pull) ;; *) printf '%s\\0' "$@" >&3 ;; esac; }}
      gcloud() {{ :; }}
    """
    read, write = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{write}\n{fakes}\n{script}"], pass_fds=[write], timeout=20
    )
    os.close(write)
    with os.fdopen(read) as output:
        found = output.read().split("\0")[:-1]
    assert done.returncode == 0
    return found[found.index("-m") - 1 :]


def _container(text):
    job = yaml.safe_load(text)["spec"]["replicatedJobs"][0]["template"]["spec"]
    return job["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("target", ["tpu", "slurm"])
def test_scripts_are_bash(target):
    script = plan(target, None, ODD).text
    check = ["bash", "-n", "-s"]
    assert subprocess.run(check, input=script, text=True, capture_output=True).stderr == ""
    broken = script.replace("\nfi\n", "\n").replace("\ndone\n", "\n")
    assert subprocess.run(check, input=broken, text=True, capture_output=True).returncode


@pytest.mark.parametrize(
    ("target", "statuses", "starts", "ends"),
    [
        ("tpu", [0], 1, 0),
        ("tpu", [common.PREEMPTED, 134, 0], 3, 0),
        ("tpu", [2], 1, 2),
        ("tpu", [1] * 9, 4, 1),
        ("slurm", [0], 0, 0),
        ("slurm", [common.PREEMPTED], 1, common.PREEMPTED),
        ("slurm", [1], 0, 1),
    ],
)
def test_what_is_started_again(target, statuses, starts, ends):
    """TPU VMs try again at once, SLURM asks for the job's next turn."""
    change = {"restarts": "3"} if target == "tpu" else {}
    fakes = f"""
      statuses=({" ".join(map(str, statuses))}); starts=0
      docker() {{ case $1 in run) return ${{statuses[starts++]}} ;; esac; }}
      gcloud() {{ :; }}
      srun() {{ return ${{statuses[0]}}; }}
      scontrol() {{ starts=$((starts + 1)); }}
      trap 'echo starts $starts' EXIT
      SLURM_JOB_ID=7
    """
    script = plan(target, change).text
    done = subprocess.run(["bash", "-c", fakes + script], capture_output=True, text=True)
    assert done.returncode == ends and f"starts {starts}" in done.stdout.splitlines()


def test_a_jobset_restarts_on_preemption_and_counts_hosts():
    found = yaml.safe_load(plan("gke", {"slices": "2", "topology": "v5e:16x16"}).text)
    replicated = found["spec"]["replicatedJobs"][0]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["parallelism"], job["completions"]) == (2, 64, 64)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [common.PREEMPTED]
    assert found["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] == ["PodFailurePolicy"]
    pods = job["template"]["spec"]
    assert pods["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pods["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    plain = yaml.safe_load(plan("gke", {"spot": None, "queue": None}).text)
    assert "tolerations" not in json.dumps(plain) and "labels" not in plain["metadata"]


@pytest.mark.parametrize(
    ("target", "change", "message"),
    [
        ("gke", {"target": None}, "--target is missing"),
        ("gke", {"name": None}, "--name is missing"),
        ("gke", {"name": "Tiny_1"}, "--name=Tiny_1 should be lower-case"),
        ("gke", {"image": None}, "--image is missing"),
        ("gke", {"image": "a b"}, "--image=a b should be REGISTRY/NAME:TAG"),
        ("gke", {"workdir": "runs/tiny"}, "must be gs://BUCKET/FOLDER"),
        ("slurm", {"workdir": "runs/tiny"}, "must be absolute"),
        ("gke", {"zone": "us-east5-a"}, "--zone has no meaning for --target=gke"),
        ("slurm", {"image": "x"}, "--image has no meaning for --target=slurm"),
        ("tpu", {"zone": None}, "--zone is missing"),
        ("gke", {"topology": "v7:4x4"}, "chips are v4, v5e, v5p, v6e"),
        ("gke", {"topology": "v5p:4x4"}, "a shape of v5p is like 4x4x4"),
        ("gke", {"topology": "v5e:4xx4"}, "a shape of v5e is like 4x4"),
        ("gke", {"topology": "v5e:1x2"}, "has 2 chips; a host has 4"),
        ("gke", {"config.mesh.tensor": "3"}, "tensor=3.* does not fit 64 device"),
        ("slurm", {"config.mesh.fsdp": "32"}, "fsdp=32.* does not fit 16 device"),
        ("gke", {"config.train.stepss": "5"}, "unknown config key 'stepss'"),
        ("slurm", {"directory": "/a b"}, "without spaces"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(target, change, message, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(SystemExit) as stopped:
        call(*words(target, change))
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1
    assert re.search(message, error), error


def test_a_config_file_must_be_in_the_image(tmp_path, capsys):
    file = tmp_path / "own.py"
    file.write_text("from configs.strokes_tiny import get_config\n")
    with pytest.raises(SystemExit):
        call(*words("gke", {"config": file}, "--dry_run"))
    assert "must lie in the checkout" in capsys.readouterr().err
    call(*words("slurm", {"config": file}, "--dry_run"))
    with pytest.raises(SystemExit):
        call(*words("slurm", {"workdir": None}, "--workdir", "/runs/tiny"))
    assert "must be one word" in capsys.readouterr().err


@pytest.mark.parametrize("status", [0, 3])
def test_the_command_is_run_as_a_list_beside_its_file(status, monkeypatch, capsys):
    ran = []

    def run(command, *, cwd):
        ran.append((command, (Path(cwd) / "jobset.yaml").read_text()))
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr(subprocess, "run", run)
    if status:
        with pytest.raises(SystemExit) as stopped:
            call(*words("gke"))
        assert stopped.value.code == 2
        assert "kubectl ended with status 3" in capsys.readouterr().err
    else:
        call(*words("gke"))
    assert ran == [(["kubectl", "apply", "--filename=jobset.yaml"], plan("gke").text)]


def test_a_missing_command_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit) as stopped:
        call(*words("slurm"))
    assert stopped.value.code == 2 and "sbatch is not installed" in capsys.readouterr().err
