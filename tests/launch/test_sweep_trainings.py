"""A sweep of six real trainings, killed half way with the training that it was at."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch import trials

_ROOT = Path(__file__).parents[2]
_SWEEP = "configs/sweeps/short.py"
_TRAIN = "$ python -m launch.train "


def _start(folder: Path, said: Path) -> subprocess.Popen:
    words = ["-m", "launch.sweep", f"--sweep={_SWEEP}", f"--workdir={folder}", "--json"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    with said.open("w") as file:
        return subprocess.Popen([sys.executable, *words], cwd=_ROOT, env=environment, stdout=file)


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _starts(folder: Path, name: str) -> int:
    log = folder / name / "log.txt"
    return log.read_text().count(_TRAIN) if log.exists() else 0


def _steps(folder: Path, name: str) -> list[int]:
    lines = map(json.loads, (folder / name / "run" / "metrics.jsonl").read_text().splitlines())
    return [line["step"] for line in lines if line["split"] == "train"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks into /proc")
def test_six_trainings_killed_half_way_and_resumed(tmp_path, capsys):
    names = [trial.name for trial in trials.load(str(_ROOT / _SWEEP))]
    assert len(names) == 6
    folder, said = tmp_path / "runs", tmp_path / "said.txt"
    half = folder / names[3] / "run" / "checkpoints"
    runner = _start(folder, said)
    while not any(path.name.isdecimal() for path in half.glob("*")):  # the fourth has saved a step
        assert runner.poll() is None, said.read_text()
        time.sleep(0.01)
    (trial,) = _children(runner.pid)
    runner.kill()  # first, so that it cannot see its trial end
    os.killpg(trial, signal.SIGKILL)
    runner.wait()
    assert runner.returncode == -signal.SIGKILL
    done = {path.parent.name: path.read_bytes() for path in folder.glob("*/done.json")}
    assert list(sorted(done)) == names[:3]
    before = {name: _starts(folder, name) for name in names}
    assert before == dict(zip(names, [1, 1, 1, 1, 0, 0], strict=True))

    assert _start(folder, said).wait() == 0
    said_last = said.read_text()
    with capsys.disabled():  # the table is to be seen
        print("\n" + said_last.rpartition("\n{")[0])
    results = json.loads(said_last.splitlines()[-1])
    assert list(results["trials"]) == names and results["failed"] == {}
    for name, result in results["trials"].items():
        assert result["scores"]["n"] == 7
        assert _steps(folder, name) == list(range(1, 9))  # each once, also of the killed one
    after = {name: _starts(folder, name) for name in names}
    assert after == dict(zip(names, [1, 1, 1, 2, 1, 1], strict=True))
    assert {name: (folder / name / "done.json").read_bytes() for name in done} == done
    log = (folder / names[3] / "log.txt").read_text()
    second = log[log.rindex(_TRAIN) :]
    assert "from step 0 of" not in second and "from step" in second
