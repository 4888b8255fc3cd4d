"""Tests of the metric writers."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest

from process_gen.train import writers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_has_a_line_per_split(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    writer.write_scalars(3, {"train/loss": np.float32(0.5), "train/mse": np.nan, "eval/loss": 2})
    writer.close()
    train, evaluation = lines(path)
    assert train.pop("seconds") >= 0.0
    assert train == {"step": 3, "split": "train", "loss": 0.5, "mse": None}
    assert (evaluation["split"], evaluation["loss"]) == ("eval", 2.0)


def test_jsonl_drops_what_a_resume_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    for step in (10, 20, 30):
        writer.write_scalars(step, {"train/loss": step})
    writer.close()
    path.write_text(path.read_text().replace('"seconds": 0', '"seconds": 70') + '{"step": 3')

    resumed = writers.JsonlWriter(path, restored_step=20)
    resumed.write_scalars(30, {"train/loss": -1})
    resumed.close()
    got = lines(path)
    assert [(e["step"], e["loss"]) for e in got] == [(10, 10.0), (20, 20.0), (30, -1.0)]
    assert got[-1]["seconds"] >= 70.0  # time goes on
    writers.JsonlWriter(path).close()  # a new run starts a new file
    assert lines(path) == []


def test_logging_writes_plain_lines():
    stream = io.StringIO()
    writer = writers.LoggingWriter(stream)
    writer.write_scalars(5, {"train/loss": 1.5, "eval/loss": 2.0})
    writer.write_texts(5, {"note": "hello"})
    assert stream.getvalue() == "train 5  loss 1.5\neval  5  loss 2\nnote 5: hello\n"


def test_multi_writer_reaches_all(tmp_path):
    calls = []

    class Record(writers.MetricWriter):
        def __getattribute__(self, name):
            return lambda *args: calls.append(name)

    multi = writers.MultiWriter([Record(), Record()])
    multi.write_scalars(1, {})
    multi.write_images(1, {})
    multi.write_texts(1, {})
    multi.write_hparams({})
    multi.flush()
    multi.close()
    assert calls == [
        n
        for n in ("write_scalars", "write_images", "write_texts", "write_hparams", "flush", "close")
        for _ in range(2)
    ]


def test_tensorboard_files(tmp_path):
    pytest.importorskip("tensorboardX")
    writer = writers.TensorBoardWriter(tmp_path, restored_step=4)
    writer.write_scalars(5, {"train/loss": 1.0})
    writer.write_images(5, {"paint": np.zeros((2, 4, 4, 3), np.uint8)})
    writer.write_texts(5, {"plan": "a red circle"})
    writer.write_hparams({"model": {"width": 8}})
    writer.close()
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    assert b"train/loss" in content and b"a red circle" in content


def test_no_tensorflow():
    code = (
        "import sys, tempfile; from process_gen.train import loop, writers;"
        "w = writers.default_writer(tempfile.mkdtemp(), 0); w.write_scalars(1, {'a/b': 1.0});"
        "w.close(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
