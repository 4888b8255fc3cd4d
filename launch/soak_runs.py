"""Real runs to be disturbed: processes of the train command, and what they leave behind.

Processes are forked from one that has imported the command, which spares most of their start; each
is a process of its own, with its own devices, that runs `launch.train` or `launch.sample`.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["launch.train", "launch.sample", "launch.soak_runs"])

PATIENCE = 900  # seconds; on a machine with nothing else to do things take a hundredth of it
HEARTBEAT = 30  # seconds; of runs of two processes
_NUMBERS = re.compile(r"(loss|grad_norm|learning_rate|skipped_updates|(\w+_)?(ce|mse))$")


class SoakError(Exception):
    """A fault was not borne as it should be."""


class Doctored:
    """A dataset whose batches come slowly, or hold numbers that are not finite.

    Args:
      data: a `pipeline.TrainIterator`.
      control: a folder. While it holds `slow`, no batch comes; batches whose numbers, from 0,
        stand in `poison.json` hold a NaN.
      pace: seconds that a batch takes besides.
    """

    def __init__(self, data: Any, control: Path, pace: float):
        self._data, self._control, self._pace = data, control, pace

    def __getattr__(self, name: str) -> Any:
        return getattr(self._data, name)

    def __next__(self) -> Any:
        number = self._data.get_state()["next_batch"]
        while (self._control / "slow").exists():
            time.sleep(0.05)
        time.sleep(self._pace)
        batch = next(self._data)
        if number not in read_json(self._control / "poison.json", []):
            return batch
        latent = batch.latent_BxGxP.astype(np.float32)
        latent[..., 0] = np.nan
        return batch._replace(latent_BxGxP=latent)


def train_process(argv: Sequence[str], control: Path, log: Path, devices: int, pace: float) -> None:
    """`launch.train` with a doctored dataset; what it prints goes to the end of `log`."""
    _prepare(log, devices)
    from launch import common, distributed, train

    real = train.pipeline.train_dataset
    train.pipeline.train_dataset = lambda *a: Doctored(real(*a), control, pace)  # type: ignore
    common.run(train.main, train.define_flags, "", ["train", *argv], join=distributed.join)
    _orderly_exit()


def sample_process(argv: Sequence[str], log: Path) -> None:
    """`launch.sample`."""
    _prepare(log, 1)
    from launch import common, sample

    common.run(sample.main, sample.define_flags, "", ["sample", *argv])


def _prepare(log: Path, devices: int) -> None:
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import jax  # comes with the fork, and has read its variables

    # Compiling is most of what a start costs; the smallest programs are kept as well.
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # or the command sets its own
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    os.environ["XLA_FLAGS"] = (
        f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
    )


def _orderly_exit() -> None:
    import jax

    if jax.distributed.is_initialized():  # multiprocessing ends its processes without exit hooks
        jax.distributed.shutdown()


class Run:
    """A run that is started, ended and started again, always in the same way.

    Args:
      name: of the run, its folder and its logs.
      workdir: of the run.
      root: for logs and control files.
      arguments: of the command, without `--workdir`.
      processes, devices: how many, and devices in each.
      pace: seconds that a batch takes at least.
    """

    def __init__(
        self,
        name: str,
        workdir: Path,
        root: Path,
        arguments: Sequence[str],
        processes: int = 1,
        devices: int = 1,
        pace: float = 0.05,
    ):
        self.name, self.workdir, self.devices, self.pace = name, workdir, devices, pace
        self.control, self.log = root / "control", root / f"{name}.log"
        self.control.mkdir(parents=True, exist_ok=True)
        self.log.touch()
        self.arguments, self.count = tuple(arguments), processes
        self.lost = self.starts = 0  # steps that were made again, and starts

    def start(self, *more: str) -> list[Any]:
        """Starts its processes."""
        self.starts += 1
        argv = [*self.arguments, f"--workdir={self.workdir}", *more]
        if self.count == 1:
            return [self._process(argv)]
        with socket.socket() as free:
            free.bind(("localhost", 0))
            place = f"localhost:{free.getsockname()[1]}"
        argv += [
            f"--coordinator_address={place}",
            f"--num_processes={self.count}",
            f"--heartbeat_seconds={HEARTBEAT}",
        ]
        return [self._process([*argv, f"--process_id={n}"]) for n in range(self.count)]

    def _process(self, argv: Sequence[str]) -> Any:
        process = CONTEXT.Process(
            target=train_process,
            args=(argv, self.control, self.log, self.devices, self.pace),
            daemon=True,
        )
        process.start()
        return process

    def begin(self, draw: random.Random, more: int = 6) -> list[Any]:
        """Starts it and lets it make a few steps; counts those that it makes once more."""
        logged, offset = self.step(), self.log.stat().st_size
        processes = self.start()
        wait(lambda: "from step" in self.since(offset), processes, f"{self.name} to start")
        match = re.search(r"from step (\d+) of", self.since(offset))
        first = int(match[1]) if match else 0
        self.lost += max(0, logged - first)
        wanted = first + 1 + draw.randrange(more)
        wait(lambda: first < self.step() >= wanted, processes, f"{self.name}, step {wanted}")
        return processes

    def since(self, offset: int) -> str:
        """What was printed after the first `offset` bytes."""
        with self.log.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def step(self) -> int:
        """The last step that is logged."""
        entries = read_lines(self.workdir / "metrics.jsonl", tail=8192)
        return max((e["step"] for e in entries if e["split"] == "train"), default=0)

    def checkpoints(self) -> list[Path]:
        """Folders of the finished checkpoints, rising."""
        folder = self.workdir / "checkpoints"
        found = [p for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []
        return sorted(found, key=lambda p: int(p.name))

    def numbers(self) -> list[tuple[int, dict[str, float]]]:
        """Steps and what was logged of each, without clocks."""
        entries = read_lines(self.workdir / "metrics.jsonl")
        return [
            (e["step"], {k: v for k, v in e.items() if _NUMBERS.match(k)})
            for e in entries
            if e["split"] == "train"
        ]


def end(processes: Sequence[Any], status: int | None, seconds: float = PATIENCE) -> list[int]:
    """Waits for processes to end; returns their statuses.

    Args:
      processes: of one run.
      status: that they must have; None is any but 0.
      seconds: after which they count as hanging.

    Raises:
      SoakError: another status, or they hang.
    """
    limit = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.1, limit - time.monotonic()))
    found = [process.exitcode for process in processes]
    stop(processes)
    if any(code is None for code in found):
        raise SoakError(f"still there after {seconds:.0f} s: {found}")
    if any(code == 0 if status is None else code != status for code in found):
        raise SoakError(f"ended with {found}, wanted {status}")
    return found


def stop(processes: Sequence[Any]) -> None:
    """Ends processes for good."""
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()


def wait(
    ready: Callable[[], bool], processes: Sequence[Any], what: str, pause: float = 0.1
) -> None:
    """Waits until something is so, looking every `pause` seconds.

    Raises:
      SoakError: a process ended meanwhile, or it took too long.
    """
    limit = time.monotonic() + PATIENCE
    while not ready():
        ended = [p.exitcode for p in processes if not p.is_alive()]
        if ended and not ready():
            raise SoakError(f"waiting for {what}: a process ended with {ended}")
        if time.monotonic() > limit:
            raise SoakError(f"waited {PATIENCE} s for {what}")
        time.sleep(pause)


def compare(run: Run, wanted: Run) -> dict[str, Any]:
    """Compares a run with one that nobody disturbed, bit for bit."""
    have, want = run.numbers(), wanted.numbers()
    steps = [step for step, _ in have]
    last = run.checkpoints()[-1]
    loaded = [
        _whole(folder / last.name)
        for folder in (run.workdir / "checkpoints", wanted.workdir / "checkpoints")
    ]
    for found in loaded:
        found["optimizer"].pop("total_steps")  # the other one was to end here
    reference = dict(want)
    return {
        "steps": int(last.name),
        "steps_missing": len(set(range(1, int(last.name) + 1)) - set(steps)),
        "steps_doubled": len(steps) - len(set(steps)),
        "steps_that_differ": sum(values != reference.get(step) for step, values in have),
        "arrays_that_differ": _different(*({k: f[k] for k in f if k != "data"} for f in loaded)),
        "data_state_equal": loaded[0]["data"] == loaded[1]["data"],
        "steps_made_twice_after_faults": run.lost,
        "starts": run.starts,
    }


def _whole(folder: Path) -> dict[str, Any]:
    """All arrays of a checkpoint on one device, however many wrote them, and the data's state."""
    import jax

    from process_gen.checkpoint import stored

    path = stored.absolute(folder)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    parts: dict[str, Any] = {
        part: jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            stored.stored_shapes(path, part),
        )
        for part in ("params", "ema", "optimizer")
    }
    return stored.load(path, {**parts, "data": None})


def _different(have: Any, want: Any) -> int:
    import jax

    pairs = zip(jax.tree.leaves(have), jax.tree.leaves(want), strict=True)
    return sum(np.asarray(a).tobytes() != np.asarray(b).tobytes() for a, b in pairs)


def read_json(path: Path, default: Any) -> Any:
    """What a file holds; `default` where there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return default


def read_lines(path: Path, tail: int = 0) -> list[Mapping[str, Any]]:
    """Objects of a JSONL file, or of its last `tail` bytes; a line that is half written is none."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - tail) if tail else 0)
        data = file.read()
    found = []
    for line in data.split(b"\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and "split" in entry:
            found.append(entry)
    return found
