"""Tests of the metric writers."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image as PILImage

from process_gen.core.errors import ConfigError
from process_gen.train import terminal, writers
from tests.train.event_files import events


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


def test_lines_wait_while_the_disk_is_full(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    writer = writers.JsonlWriter(path)
    real, room = writer._file, [70]

    class Disk:
        def write(self, data):  # takes a part of a line before it is full
            if not room[0]:
                raise OSError(28, "No space left on device")
            count = real.write(data[: room[0]])
            room[0] -= count
            return count

        def close(self):
            real.close()

    writer._file = Disk()
    for step in (1, 2, 3):
        writer.write_scalars(step, {"train/loss": 0.5})
        writer.flush()
    assert room == [0] and not path.read_bytes().endswith(b"\n")
    assert "No space left on device" in caplog.text
    room[0] = 10**6
    writer.close()
    assert [entry["step"] for entry in lines(path)] == [1, 2, 3]


def test_tensorboard_ends_with_its_disk_and_not_with_the_run(tmp_path, caplog):
    pytest.importorskip("tensorboardX")
    writer = writers.TensorBoardWriter(tmp_path)
    writer.write_scalars(1, {"train/loss": 0.5})
    worker = writer._writer.file_writer.event_writer._worker
    worker.stop()  # what an error does to it
    for step in range(100):  # its queue holds ten
        writer.write_scalars(step, {"train/loss": 0.5})
    writer.flush()
    writer.close()
    assert caplog.text.count("cannot be written any more") == 1


def test_logging_writes_plain_lines():
    stream = io.StringIO()
    writer = terminal.LoggingWriter(stream)
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


def test_tensorboard_reads_back_what_was_written(tmp_path):
    picture = np.zeros((4, 6, 3), np.uint8)
    picture[1, 2] = (200, 100, 50)
    writer = writers.TensorBoardWriter(tmp_path, restored_step=4)
    writer.write_scalars(5, {"train/loss": 1.5, "train/grad_norm/und": 2.0})
    writer.write_images(5, {"paint/0": picture})
    writer.write_texts(5, {"plan": "a red circle"})
    writer.write_hparams({"model": {"width": 8}})
    writer.close()
    found = {tag: (step, kind, value) for step, tag, kind, value in events(tmp_path)}
    assert found["train/loss"] == (5, "simple_value", 1.5)
    assert found["train/grad_norm/und"] == (5, "simple_value", 2.0)
    step, kind, image = found["paint/0"]
    assert (step, kind, image.height, image.width) == (5, "image", 4, 6)
    decoded = PILImage.open(io.BytesIO(image.encoded_image_string)).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decoded), picture)
    texts = {tag: value for tag, (_, kind, value) in found.items() if kind == "tensor"}
    assert any(b"a red circle" in text.string_val[0] for text in texts.values())
    assert any(b'"width": 8' in text.string_val[0] for text in texts.values())


class FakeWandb(types.ModuleType):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__("wandb")
        self.given, self.logged, self.axes, self.config, self.ended = [], [], {}, {}, 0
        self.Image, self.Html = (lambda x: ("image", x.shape)), (lambda x: ("html", x))

    def init(self, **given):
        self.given.append(given)
        return types.SimpleNamespace(
            define_metric=lambda name, **axis: self.axes.update({name: axis}),
            log=self.logged.append,
            config=types.SimpleNamespace(update=lambda values, **_: self.config.update(values)),
            finish=lambda: setattr(self, "ended", self.ended + 1),
        )


def test_weights_and_biases(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    workdir = tmp_path / "tiny"
    for step in (5, 4):  # the second one goes on from an earlier checkpoint
        writer = writers.default_writer(workdir, step, wandb="painters")
        writer.write_scalars(step, {"train/loss": np.float32(1.5)})
        writer.write_images(step, {"paint/0": np.zeros((4, 6, 3), np.uint8)})
        writer.write_texts(step, {"plan": "<b>"})
        writer.write_hparams({"model": {"width": 8}})
        writer.close()
    first, second = fake.given
    assert first == second and first["id"] and first["resume"] == "allow"
    assert (first["project"], first["name"]) == ("painters", "tiny")
    assert fake.logged[:3] == [
        {"step": 5, "train/loss": 1.5},
        {"step": 5, "paint/0": [("image", (4, 6, 3))]},
        {"step": 5, "plan": ("html", "&lt;b&gt;")},
    ]
    assert fake.axes["*"] == {"step_metric": "step"} and fake.config == {"model": {"width": 8}}
    assert fake.ended == 2 and fake.logged[3]["step"] == 4


def test_weights_and_biases_must_be_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install -e"):
        writers.default_writer(tmp_path, 0, wandb="painters")
    writers.default_writer(tmp_path, 0).close()


def test_no_tensorflow():
    code = (
        "import sys, tempfile; from process_gen.train import loop, writers;"
        "w = writers.default_writer(tempfile.mkdtemp(), 0); w.write_scalars(1, {'a/b': 1.0});"
        "w.close(); assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
