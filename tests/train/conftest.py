"""Runs of the real train command on other meshes and in several processes, and what they saw."""

from __future__ import annotations

import collections
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
import ml_collections
from configs import strokes_tiny

def get_config(arg=None):
    config = strokes_tiny.get_config("debug")
    source = dict(kind="strokes", size=40)
    config.data.update(dict(sources=(source,), eval_sources=(source,), rows=4, eval_rows=4))
    config.model.update(dict(num_kv_heads=2, head_dim=8, width=16, mlp_width=32))
    config.train.update(dict(steps=10, log_every=1, eval_every=0, save_every=3, keep=9))
    # Nothing depends on the number of steps, so that a run may be stopped and given more.
    config.optimizer.update(dict(name="adamw", schedule="constant", warmup_steps=0))
    config.loss.ce_weight_late = None
    return config
"""

# Calls the command once per list of arguments, and writes down a checksum of each row of the global
# training batches as they arrived on the devices, [step, {row: sum}] a line. Elements are hashed
# with their places and added up, so that sums over the shards of several processes add up as well.
SCRIPT = """
import collections, json, os, pathlib, sys
import numpy as np
from launch import common, distributed, train
from process_gen.sharding import rules

drawn = []
datasets, put = train.pipeline.train_dataset, rules.put_batch

def train_dataset(*args):
    dataset = datasets(*args)
    class Noted(type(dataset)):
        def __next__(self):
            drawn[:] = [self.get_state()["next_batch"], super().__next__()]
            return drawn[-1]
    dataset.__class__ = Noted
    return dataset

def put_batch(batch, mesh):
    placed = put(batch, mesh)
    if drawn and batch is drawn[1]:  # and not for validation
        assert str(drawn[0]) != os.environ["BREAK_AT"], "planted"
        sums = collections.Counter()
        for number, leaf in enumerate(train.jax.tree.leaves(placed)):
            for shard in leaf.addressable_shards:
                if shard.replica_id == 0:
                    add(sums, number, leaf.shape, shard)
        with (workdir / f"rows_{train.jax.process_index()}.jsonl").open("a") as file:
            file.write(json.dumps([drawn[0], sums]) + "\\n")
    return placed

def add(sums, number, shape, shard):
    data = np.asarray(shard.data)
    place = np.arange(np.prod(shape[1:], dtype=int), dtype=np.uint64).reshape(shape[1:])
    place = (place[shard.index[1:]] * 64 + number) * np.uint64(0x9E3779B97F4A7C15)
    bits = data.view(f"u{data.itemsize}").astype(np.uint64) ^ place[None]
    bits = (bits ^ (bits >> 33)) * np.uint64(0xFF51AFD7ED558CCD)
    bits = bits ^ (bits >> 33)
    for row, values in enumerate(bits, shard.index[0].start or 0):
        sums[row] += int(values.sum())

train.pipeline.train_dataset, rules.put_batch = train_dataset, put_batch
join = distributed.join
for args in json.loads(sys.argv[1]):
    workdir = pathlib.Path(next(a for a in args if a.startswith("--workdir="))[10:])
    workdir.mkdir(parents=True, exist_ok=True)
    common.run(train.main, train.define_flags, "", ["train", *args], join=join)
    join = None
"""


class Runs:
    """Starts the command in processes of their own, and reads what it left behind."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.py"
        self.config.write_text(CONFIG)

    def arguments(self, name: str, *more: str) -> list[str]:
        return [f"--config={self.config}", f"--workdir={self.root / name}", *more]

    def start(
        self, calls: list[list[str]], devices: int, break_at: str = ""
    ) -> subprocess.Popen[str]:
        # Compiling is most of what these runs do, and each mesh needs a program of its own.
        xla_flags = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0 "
            f"--xla_force_host_platform_device_count={devices}"
        )
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(calls)],
            env={
                **os.environ,
                "XLA_FLAGS": xla_flags,
                "PYTHONPATH": os.getcwd(),
                "BREAK_AT": break_at,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def alone(self, calls: list[list[str]], devices: int) -> None:
        self.finish([self.start(calls, devices)])

    def together(
        self, name: str, *more: str, count: int = 2, devices: int = 1
    ) -> list[tuple[str, str]]:
        """`count` processes; what each wrote."""
        return self.finish(self.start_together(name, *more, count=count, devices=devices))

    def start_together(
        self, name: str, *more: str, count: int = 2, devices: int = 1, break_last_at: str = ""
    ) -> list[subprocess.Popen[str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            place = f"localhost:{free.getsockname()[1]}"
        joined = [f"--coordinator_address={place}", f"--num_processes={count}"]
        calls = [self.arguments(name, *more, *joined, f"--process_id={i}") for i in range(count)]
        breaks = [""] * (count - 1) + [break_last_at]
        return [self.start([call], devices, at) for call, at in zip(calls, breaks, strict=True)]

    def finish(
        self, processes: list[subprocess.Popen[str]], status: int = 0
    ) -> list[tuple[str, str]]:
        """Waits; what each wrote to stdout and stderr. One that hangs takes the others with it."""
        try:
            printed = [process.communicate(timeout=600) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (out, err) in zip(processes, printed, strict=True):
            text = f"status {process.returncode}\n{out[-2000:]}\n{err[-3000:]}"
            assert process.returncode == status, text
        return printed

    def branch(self, source: str, name: str, step: int) -> None:
        """A copy of a run as it was after a step at which it saved."""
        shutil.copytree(self.root / source, self.root / name)
        for checkpoint in (self.root / name / "checkpoints").iterdir():
            if int(checkpoint.name) > step:
                shutil.rmtree(checkpoint)
        for file in (self.root / name).glob("rows_*.jsonl"):
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join(lines[:step]))

    def losses(self, name: str, split: str = "train") -> list[float]:
        lines = (self.root / name / "metrics.jsonl").read_text().splitlines()
        entries = [entry for entry in map(json.loads, lines) if entry["split"] == split]
        if split == "train":
            assert [entry["step"] for entry in entries] == list(range(1, len(entries) + 1))
        return [entry["loss"] for entry in entries]

    def batches(self, name: str) -> list[dict[str, int]]:
        """By step, the checksum of each row of its global batch."""
        whole: dict[int, collections.Counter[str]] = {}
        for part in (self.root / name).glob("rows_*.jsonl"):
            for line in part.read_text().splitlines():
                step, rows = json.loads(line)
                whole.setdefault(step, collections.Counter()).update(rows)
        assert sorted(whole) == list(range(len(whole)))
        return [{r: v % 2**64 for r, v in whole[step].items()} for step in sorted(whole)]


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Runs below one folder; the run "one" is there already: ten steps on one device."""
    found = Runs(tmp_path_factory.mktemp("runs"))
    found.alone([found.arguments("one")], devices=1)
    return found
