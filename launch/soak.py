"""Disturb real training and painting for a while, and count what was lost.

    python -m launch.soak --minutes=30 --seed=0 --out=soak

--minutes=N  how long to do harm (30); comparing with undisturbed runs takes some minutes more
--seed=S     of the order and the moments of the faults (0)
--out=DIR    for logs and ledger.json; new

Four runs of the tiny model: one process that bears what it meets until the end, and one process,
one with four devices, and two processes, which are ended and started again. Every fault must end
as docs/robustness.md says. Afterwards each run is made once more without faults: losses, weights,
moments and the data's state must be the same, bit for bit. The exit status is 1 if anything was
not. Linux only; the disk that is filled up is a tmpfs, which root may mount.
"""

from __future__ import annotations

import json
import platform
import random
import shutil
import statistics
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from absl import flags

from launch import common, soak_faults
from launch.soak_faults import InPlace, painted
from launch.soak_runs import Run, SoakError, compare, end, stop, wait
from process_gen.core.errors import ConfigError, ProcessGenError

CONFIG = """
from configs import strokes_tiny

def get_config(arg=""):
    config = strokes_tiny.get_config("debug")
    folder = {{"kind": "folder", "path": {data!r}, "weight": 0.4, "size": 60}}
    strokes = {{"kind": "strokes", "weight": 0.6, "size": 100}}
    config.model.update(dict(num_layers=1, num_kv_heads=2, head_dim=8, width=16, mlp_width=32))
    config.data.update(dict(sources=(strokes, folder), eval_sources=(), rows=4, strict=True))
    # Nothing depends on the number of steps, which is not known before the end.
    config.optimizer.update(dict(name="adamw", schedule="constant", warmup_steps=0))
    config.loss.ce_weight_late = None
    config.train.update(
        dict(steps=10**6, log_every=1, eval_every=0, save_every=5, keep=3)
    )
    return config
"""
PROMPTS = ("a red circle", "a blue star", "two green squares", "a circle and a star")
DISK_MIB = 64
PACE = 1.0  # seconds a batch of the run that lives: it shall not take the machine
_EQUAL = ("steps_missing", "steps_doubled", "steps_that_differ", "arrays_that_differ")
_SETTLED = 300.0  # seconds after which a process should grow no more


class Ledger:
    """What was done, and how it ended."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self._lock = threading.Lock()

    def attempt(self, kind: str, act: Any) -> bool:
        """Injects one fault; returns whether it ended as documented."""
        began, wrong = time.monotonic(), ""
        try:
            act()
        except (SoakError, ProcessGenError, OSError, ValueError, IndexError) as error:
            wrong = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        entry = {
            "kind": kind,
            "at": round(began - self._started, 1),
            "seconds": round(time.monotonic() - began, 1),
            "wrong": wrong,
        }
        with self._lock:
            if wrong or not kind.startswith("start"):  # a start is no fault
                self.entries.append(entry)
            bad = sum(bool(e["wrong"]) for e in self.entries)
            print(
                f"{entry['at']:7.1f} s  fault {len(self.entries)} ({bad} bad)  {kind}: "
                f"{wrong or 'as documented'} after {entry['seconds']} s",
                flush=True,
            )
        return not wrong

    def kinds(self) -> dict[str, dict[str, int]]:
        """By kind: how many, and how many ended as documented."""
        table: dict[str, dict[str, int]] = {}
        for entry in self.entries:
            row = table.setdefault(entry["kind"], {"injected": 0, "as_documented": 0})
            row["injected"] += 1
            row["as_documented"] += not entry["wrong"]
        return table


class Gauge(threading.Thread):
    """Reads a process's resident memory and open files every few seconds."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self._pid, self.samples = pid, []
        self._began, self._over = time.monotonic(), threading.Event()

    def run(self) -> None:
        """Until the process or `finish` ends it."""
        while not self._over.wait(2.0):
            try:
                text = Path(f"/proc/{self._pid}/status").read_text()
                rss = int(text.split("VmRSS:")[1].split()[0])
                count = len(list(Path(f"/proc/{self._pid}/fd").iterdir()))
            except (OSError, IndexError):
                return
            self.samples.append((time.monotonic() - self._began, rss, count))

    def finish(self) -> dict[str, Any]:
        """Growth from the fifth minute on: medians of the first and the last fifth of it."""
        self._over.set()
        late = [s for s in self.samples if s[0] >= _SETTLED]
        if len(late) < 20:
            return {"minutes": round(self.samples[-1][0] / 60, 1) if self.samples else 0}
        fifth = len(late) // 5
        found: dict[str, Any] = {"minutes": round(late[-1][0] / 60, 1), "samples": len(late)}
        for name, column in (("memory_kib", 1), ("open_files", 2)):
            ends = [
                statistics.median(s[column] for s in part) for part in (late[:fifth], late[-fifth:])
            ]
            found[name] = ends
            found[f"{name}_growth_percent"] = round(100 * (ends[1] / ends[0] - 1), 2)
        return found


def soak(minutes: float, seed: int, out: Path) -> dict[str, Any]:
    """Does the harm, then compares; returns the ledger."""
    disk = out / "disk"
    mounted = _mount(disk)
    make_data(out / "data")
    runs = {}
    shapes: dict[str, dict[str, int]] = {"one": {}, "four": {"devices": 4}, "two": {"processes": 2}}
    for name, shape in shapes.items():
        argument = prepare(out / name, out / "data")
        runs[name] = Run(name, out / name / "run", out / name, (argument,), **shape)
    often = (prepare(out / "long", out / "data"), "--config.train.save_every=10")
    runs["long"] = Run("long", disk / "long", out / "long", often, pace=PACE)
    ledger, until = Ledger(), time.monotonic() + 60 * minutes
    gauges: dict[str, Any] = {}
    draw = random.Random(f"{seed} long")
    arguments = (runs["long"], ledger, until, draw, mounted, gauges)
    living = threading.Thread(target=_bear, args=arguments)
    living.start()
    try:
        _end_and_restart(runs, ledger, until, random.Random(f"{seed} ended"), out)
    finally:
        living.join()
        if (disk / "long").exists():
            shutil.copytree(disk / "long", out / "long" / "run")
        runs["long"].workdir = out / "long" / "run"
        if mounted:
            subprocess.run(["umount", str(disk)], check=False)
    # Comparing takes a while, and what was seen until now shall not be lost with it.
    (out / "faults.json").write_text(json.dumps([ledger.entries, gauges], indent=1) + "\n")
    compared = _compare(runs, ledger, out)
    return _summary(minutes, seed, ledger, compared, gauges)


def prepare(folder: Path, data: Path) -> str:
    """A folder with a config and data of its own; returns the argument that names the config."""
    shutil.copytree(data, folder / "data")
    config = folder / "config.py"
    config.write_text(CONFIG.format(data=str(folder / "data")))
    return f"--config={config}"


def make_data(folder: Path) -> None:
    """Makes a few trajectories in two shards."""
    where = ["--config=configs/data/strokes.py", "--limit=60", "--shards=2", f"--out={folder}"]
    subprocess.run([sys.executable, "-m", "launch.make_data", *where], check=True)


def _mount(disk: Path) -> bool:
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(disk)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"no disk to fill up ({done.stderr.strip()}): that fault is left out")
    return done.returncode == 0


def _bear(
    run: Run,
    ledger: Ledger,
    until: float,
    draw: random.Random,
    mounted: bool,
    gauges: dict[str, Any],
) -> None:
    """One process to the end, and what it has to bear."""
    processes: list[Any] = []
    if not ledger.attempt("start of the living process", lambda: processes.extend(run.begin(draw))):
        return
    gauge = Gauge(processes[0].pid)
    gauge.start()
    hurt = InPlace(run, processes)
    faults = {k: f for k, f in hurt.faults.items() if mounted or k != "disk full"}
    while time.monotonic() < until and processes[0].is_alive():
        for kind in draw.sample(sorted(faults), len(faults)):
            if time.monotonic() >= until or not processes[0].is_alive():
                break
            ledger.attempt(kind, lambda kind=kind: faults[kind](draw))
            time.sleep(2 + 6 * draw.random())
    gauges.update(gauge.finish())

    def last() -> None:
        soak_faults.os.kill(processes[0].pid, soak_faults.signal.SIGTERM)
        end(processes, common.PREEMPTED)

    ledger.attempt("SIGTERM", last)
    stop(processes)


def _end_and_restart(
    runs: dict[str, Run], ledger: Ledger, until: float, draw: random.Random, out: Path
) -> None:
    """Faults that end processes, in turns, until the time is over; at last all runs save."""
    kinds = [
        *((kind, runs["one"], fault) for kind, fault in soak_faults.ON_ONE.items()),
        *((kind, runs["four"], fault) for kind, fault in soak_faults.ON_FOUR.items()),
        *((kind, runs["two"], fault) for kind, fault in soak_faults.ON_TWO.items()),
    ]
    for name in ("one", "four", "two"):  # so that there is something to damage
        ledger.attempt("SIGTERM", lambda run=runs[name]: soak_faults.taken(run, draw))
    painting = _Painting(runs["one"], out) if runs["one"].checkpoints() else None
    while time.monotonic() < until:
        for kind, run, fault in draw.sample(kinds, len(kinds)):
            if time.monotonic() >= until:
                break
            ledger.attempt(kind, lambda run=run, fault=fault: fault(run, draw))
        if painting is not None and time.monotonic() < until:
            ledger.attempt("painting killed and gone on with", lambda: painting.killed(draw))
    for name in ("one", "four", "two"):
        ledger.attempt("SIGTERM", lambda run=runs[name]: soak_faults.taken(run, draw))


class _Painting:
    """Paintings of one checkpoint, ended in the middle and begun again."""

    def __init__(self, run: Run, out: Path):
        self._folder, self._log = out / "painting", out / "painting.log"
        self._folder.mkdir()
        self._prompts = self._folder / "prompts.txt"
        self._prompts.write_text("\n".join(PROMPTS * 3) + "\n")
        shutil.copytree(run.checkpoints()[-1], self._folder / "checkpoint")
        self._wanted: list[str] = []
        self.lines = 0

    def _whole(self, name: str) -> list[str]:
        out = self._folder / name
        end([self._start(name)], 0)
        return painted(out)

    def _start(self, name: str) -> Any:
        checkpoint, out = self._folder / "checkpoint", self._folder / name
        return soak_faults.paint(checkpoint, out, self._log, self._prompts)

    def killed(self, draw: random.Random) -> None:
        """What was painted before a SIGKILL is right; gone on with, it is what it would be."""
        if not self._wanted:
            self._wanted = self._whole("wanted")
        count = 1 + draw.randrange(len(self._wanted) // 2)
        out = self._folder / "killed"
        shutil.rmtree(out, ignore_errors=True)
        process = self._start("killed")
        wait(lambda: len(painted(out)) >= count, [process], f"{count} paintings", 0.01)
        process.kill()
        end([process], -soak_faults.signal.SIGKILL)
        before = painted(out)
        if len(set(before)) != len(before) or not set(before) <= set(self._wanted):
            raise SoakError("a painting was lost or doubled, or is another one")
        self.lines += len(before)
        if self._whole("killed") != self._wanted:
            raise SoakError("gone on with, a painting is lost, doubled or another one")


def _compare(runs: dict[str, Run], ledger: Ledger, out: Path) -> dict[str, Any]:
    compared = {}
    for name, run in runs.items():
        if not run.checkpoints():
            ledger.attempt(f"comparison of {name}", lambda name=name: _missing(name))
            continue
        steps = int(run.checkpoints()[-1].name)
        wanted = Run(
            f"{name}_undisturbed",
            out / name / "wanted",
            out / name,
            (*run.arguments, f"--config.train.steps={steps}", "--config.train.save_every=0"),
            processes=run.count,
            devices=run.devices,
            pace=0.0,
        )
        print(f"the run {name} once more, {steps} steps without faults", flush=True)
        try:
            end(wanted.start(), 0, 3600)
            compared[name] = compare(run, wanted)
        except (SoakError, ProcessGenError, ValueError, OSError) as error:
            traceback.print_exc()
            ledger.entries.append({"kind": f"comparison of {name}", "wrong": str(error)})
    return compared


def _missing(name: str) -> None:
    raise SoakError(f"the run {name} has no checkpoint")


def same(found: dict[str, Any]) -> bool:
    """Whether a comparison (`soak_runs.compare`) found no difference."""
    return found["data_state_equal"] and not any(found[name] for name in _EQUAL)


def _summary(
    minutes: float, seed: int, ledger: Ledger, compared: dict[str, Any], gauge: dict[str, Any]
) -> dict[str, Any]:
    wrong = [entry for entry in ledger.entries if entry["wrong"]]
    differ = [name for name, found in compared.items() if not same(found)]
    return {
        "minutes": minutes,
        "seed": seed,
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "faults": len(ledger.entries),
        "kinds": ledger.kinds(),
        "wrong": wrong,
        "compared": compared,
        "differ": differ,
        "living_process": gauge,
        "passed": not wrong and not differ,
    }


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_float("minutes", 30.0, "how long", 0.1, flag_values=values)
    flags.DEFINE_integer("seed", 0, "of the faults", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Soaks, writes the ledger, and exits with 1 if anything was lost."""
    out = Path(common.required(values, "out")).resolve()
    if sys.platform != "linux":
        raise ConfigError("launch.soak reads /proc and needs Linux")
    if out.exists():
        raise ConfigError(f"{out} exists; choose a new folder")
    out.mkdir(parents=True)
    found = soak(values.minutes, values.seed, out)
    text = json.dumps(found, indent=2)
    (out / "ledger.json").write_text(text + "\n")
    print(text)
    if not found["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
