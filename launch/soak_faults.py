"""The faults of a soak: what is done to a run, and how it has to end.

Each is a function that does real harm (signals, files, a full disk, bad data) to real processes and
raises `SoakError` unless what follows is what the documentation says.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launch import common
from launch.soak_runs import (
    CONTEXT,
    HEARTBEAT,
    Run,
    SoakError,
    end,
    read_json,
    sample_process,
    wait,
)
from process_gen.sampling import records

Fault = Callable[[Run, random.Random], None]


def killed(run: Run, draw: random.Random) -> None:
    """SIGKILL to all processes at a random moment."""
    processes = run.begin(draw)
    time.sleep(draw.random())
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    end(processes, -signal.SIGKILL)


def killed_in_a_save(run: Run, draw: random.Random) -> None:
    """SIGKILL to all processes while a checkpoint is being written."""
    processes = run.begin(draw)
    folder = run.workdir / "checkpoints"
    wait(lambda: any(folder.glob("*.orbax-checkpoint-tmp*")), processes, "a save", 0.005)
    for process in processes:
        os.kill(process.pid, signal.SIGKILL)
    end(processes, -signal.SIGKILL)


def taken(run: Run, draw: random.Random) -> None:
    """SIGTERM to one process: all save one step and end with the status of a preemption."""
    processes = run.begin(draw)
    os.kill(draw.choice(processes).pid, signal.SIGTERM)
    end(processes, common.PREEMPTED)
    saved, logged = int(run.checkpoints()[-1].name), run.step()
    if saved != logged:
        raise SoakError(f"step {saved} is saved, {logged} was made")


def interrupted(run: Run, draw: random.Random) -> None:
    """Ctrl-C: saves, and ends with 130."""
    processes = run.begin(draw)
    os.kill(processes[0].pid, signal.SIGINT)
    end(processes, 130)
    if int(run.checkpoints()[-1].name) != run.step():
        raise SoakError("the last step was not saved")


def one_of_two_killed(run: Run, draw: random.Random) -> None:
    """SIGKILL to one of two processes: the other one ends as well, in the time stated."""
    processes = run.begin(draw)
    victim = draw.choice(processes)
    os.kill(victim.pid, signal.SIGKILL)
    end(processes, None, HEARTBEAT + 30 + 60)


def one_of_two_stopped(run: Run, draw: random.Random) -> None:
    """SIGSTOP to one of two processes: the other one ends and says which one is silent."""
    processes = run.begin(draw)
    offset = run.log.stat().st_size
    victim = draw.randrange(2)
    os.kill(processes[victim].pid, signal.SIGSTOP)
    try:
        end([processes[1 - victim]], None, HEARTBEAT + 30 + 60)
    finally:
        os.kill(processes[victim].pid, signal.SIGKILL)
        end([processes[victim]], -signal.SIGKILL)
    words = run.since(offset)
    if f"process {victim} has not been heard of" not in words and "has not answered" not in words:
        raise SoakError("the silent process was not named")


def _after_damage(harm: Callable[[Path, Run], str]) -> Fault:
    """Damages the newest checkpoint of a run that is not there, then starts it."""

    def fault(run: Run, draw: random.Random) -> None:
        if len(run.checkpoints()) < 2:
            taken(run, draw)
        if len(run.checkpoints()) < 2:
            raise SoakError("there is no older checkpoint to fall back to")
        newest, before = run.checkpoints()[-1], run.checkpoints()[-2]
        words = harm(newest, run)
        offset = run.log.stat().st_size
        processes = run.begin(draw)
        text = run.since(offset)
        os.kill(processes[0].pid, signal.SIGTERM)
        end(processes, common.PREEMPTED)
        if words not in text or "it was set aside" not in text:
            raise SoakError(f"the damage was not named: {words}")
        if f"from step {before.name} of" not in text:
            raise SoakError(f"the run did not go on from step {before.name}")

    fault.__doc__ = harm.__doc__
    return fault


def _biggest(folder: Path) -> Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def _flip(newest: Path, run: Run) -> str:
    """One bit of the newest checkpoint's weights is flipped."""
    file = _biggest(newest / "params")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return "has other contents than were written"


def _cut(newest: Path, run: Run) -> str:
    """A file of the newest checkpoint loses its end."""
    file = _biggest(newest / "optimizer")
    os.truncate(file, file.stat().st_size // 2)
    return " bytes, "


def _swap(newest: Path, run: Run) -> str:
    """The newest checkpoint's weights are those of a wider model, with the right sums."""
    import numpy as np
    from etils import epath
    from orbax.checkpoint import v1 as ocp

    from process_gen.checkpoint import integrity, stored

    kept = stored.load(stored.absolute(newest), {"params": None})["params"]
    kept["text_norm_of_another"] = np.ones(3, np.float32)
    other = newest.parent.parent / "other"
    ocp.save_checkpointables(stored.absolute(other), {"params": kept})
    shutil.rmtree(newest / "params")
    shutil.move(other / "params", newest / "params")
    shutil.rmtree(other)
    integrity.record(epath.Path(newest))
    return "params/text_norm_of_another is"


def _foreign(newest: Path, run: Run) -> str:
    """The newest checkpoint is one of another program."""
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    from process_gen.checkpoint import stored

    shutil.rmtree(newest)
    ocp.save(stored.absolute(newest), {"w": np.ones(3, np.float32)})
    return "is no checkpoint of process_gen"


def bad_shard(run: Run, draw: random.Random) -> None:
    """A shard of the data is overwritten: the run ends and names it; mended, it goes on."""
    shard = min((run.log.parent / "data").rglob("*.array_record*"))
    whole = shard.read_bytes()
    offset = run.log.stat().st_size
    size = len(whole)
    shard.write_bytes(whole[: size // 8] + b"\xff" * (size - size // 4) + whole[-(size // 8) :])
    try:
        processes = run.start()
        end(processes, 2)
    finally:
        shard.write_bytes(whole)
    if shard.name.split(".")[0] not in run.since(offset) and "record" not in run.since(offset):
        raise SoakError("the shard was not named")
    taken(run, draw)


ON_ONE: dict[str, Fault] = {
    "SIGKILL at a random moment": killed,
    "SIGKILL inside a save": killed_in_a_save,
    "SIGTERM": taken,
    "SIGINT": interrupted,
    "checkpoint: a bit flipped": _after_damage(_flip),
    "checkpoint: truncated": _after_damage(_cut),
    "checkpoint: another model's shapes": _after_damage(_swap),
    "checkpoint: foreign": _after_damage(_foreign),
    "data: a shard overwritten": bad_shard,
}
ON_FOUR: dict[str, Fault] = {
    "4 devices: SIGKILL at a random moment": killed,
    "4 devices: SIGKILL inside a save": killed_in_a_save,
}
ON_TWO: dict[str, Fault] = {
    "2 processes: one SIGKILLed": one_of_two_killed,
    "2 processes: one SIGSTOPped": one_of_two_stopped,
    "2 processes: both SIGKILLed": killed,
    "2 processes: SIGTERM to one": taken,
}


class InPlace:
    """Faults that a living process has to bear.

    Args:
      run: of one process, whose working directory lies on a small disk of its own.
      processes: of the run.
    """

    def __init__(self, run: Run, processes: list[Any]):
        self.run, self.processes = run, processes
        self.faults: dict[str, Callable[[random.Random], None]] = {
            "disk full": self.disk_full,
            "stopped for 3 s": self.stopped,
            "slow source": self.slow,
            "batch with a NaN": self.bad_batch,
        }

    def _goes_on(self, more: int = 2) -> None:
        now = self.run.step()
        wait(lambda: self.run.step() >= now + more, self.processes, "the run to go on")

    def disk_full(self, draw: random.Random) -> None:
        """No room for checkpoints and logs until a save has failed; the next one goes well."""
        del draw
        run, offset = self.run, self.run.log.stat().st_size
        filler = run.workdir.parent / "filler"
        try:
            with filler.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(b"\0" * 65536)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            said = "the checkpoint of step"
            wait(lambda: said in run.since(offset), self.processes, "a save to fail")
            text = run.since(offset)
            if "could not be written" not in text:
                raise SoakError("the save did not say that it failed")
        finally:
            filler.unlink(missing_ok=True)
        there = {p.name for p in run.checkpoints()}
        wait(
            lambda: any(p.name not in there for p in run.checkpoints()),
            self.processes,
            "a checkpoint after the disk was emptied",
        )

    def stopped(self, draw: random.Random) -> None:
        """SIGSTOP, and SIGCONT three seconds later."""
        del draw
        os.kill(self.processes[0].pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(self.processes[0].pid, signal.SIGCONT)
        self._goes_on()

    def slow(self, draw: random.Random) -> None:
        """No batch for some seconds."""
        flag = self.run.control / "slow"
        flag.touch()
        time.sleep(2 + 3 * draw.random())
        flag.unlink()
        self._goes_on()

    def bad_batch(self, draw: random.Random) -> None:
        """A batch of the near future holds a NaN: its update is left out, counted and kept."""
        number = self.run.step() + 5 + draw.randrange(5)
        offset = self.run.log.stat().st_size
        poison = self.run.control / "poison.json"
        part = poison.with_suffix(".part")
        part.write_text(json.dumps([*read_json(poison, []), number]))
        part.replace(poison)
        said = f"step {number + 1}: the loss or a gradient is not finite, the update was left out"
        wait(lambda: said in self.run.since(offset), self.processes, f"batch {number}")
        self._goes_on()


def paint(checkpoint: Path, out: Path, log: Path, prompts: Path) -> Any:
    """Starts painting all prompts, or goes on with it."""
    argv = [f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--out={out}", "--resume"]
    # One-shot, for an untrained model writes no plans that lead to pictures.
    argv += ["--one_shot", "--set=batch=2", "--set=one_shot_steps=4"]
    process = CONTEXT.Process(target=sample_process, args=(argv, log), daemon=True)
    process.start()
    return process


def painted(out: Path) -> list[str]:
    """What was painted, finished or not: whole lines without clocks, pictures as their sums."""
    for name in (records.FINISHED, records.EARLIER, records.PART):
        if (out / name).exists():
            lines = (out / name).read_text().split("\n")[:-1]
            return [_without_clock(json.loads(line), out) for line in lines]
    return []


def _without_clock(record: dict[str, Any], out: Path) -> str:
    def digest(name: str | None) -> str | None:
        return name and hashlib.sha256((out / name).read_bytes()).hexdigest()

    del record["seconds"]
    for step in record["steps"]:
        step |= {key: digest(step[key]) for key in ("sketch", "refined")}
    return json.dumps(record | {"final_image": digest(record["final_image"])})
