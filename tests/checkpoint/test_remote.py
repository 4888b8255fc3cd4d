"""Imports from and to remote storage, a dictionary that stands for a bucket."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from process_gen.checkpoint import bagel, manager, remote, safetensors_io
from process_gen.core.errors import CheckpointError
from process_gen.models.shapes import BAGEL

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"


class Bucket(MemoryFileSystem):
    """Contents of its own, and a count of the bytes that were fetched."""

    cachable = False
    store: dict = {}
    pseudo_dirs = [""]
    fetched = 0

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        if mode != "rb":
            return file
        return _Counted(file.getvalue())


class _Counted(io.BytesIO):
    def read(self, size=-1):
        data = super().read(size)
        Bucket.fetched += len(data)
        return data


@pytest.fixture
def bucket(monkeypatch):
    systems = {"gcs": Bucket(), "file": LocalFileSystem()}
    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "_get_filesystem", lambda _, name: systems[name]
    )
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    return epath.Path("gs://bucket")


def upload(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        epath.Path(file).copy(target / file.name)


def run_import(source, output):
    return bagel.import_folder(source, output, BAGEL, lambda *_: ("{}", "print"))


def files_of(folder):
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def test_a_remote_import_equals_a_local_one(bucket, tmp_path):
    upload(CHECKPOINT, bucket / "BAGEL")
    config, notes = run_import(bucket / "BAGEL", "gs://bucket/imported")
    wanted, wanted_notes = run_import(CHECKPOINT, tmp_path / "local")
    assert config.model == wanted.model and notes == wanted_notes
    assert config.data.tokenizer == "gs://bucket/imported/tokenizer.json"
    # TensorStore knows no bucket of this test: what was written is read from a local copy.
    for path in Bucket.store:
        copy = tmp_path / "copy" / path.split("bucket/", 1)[1]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(Bucket.store[path].getvalue())
    _, params, _ = manager.load_for_sampling(tmp_path / "copy" / "imported")
    _, local, _ = manager.load_for_sampling(tmp_path / "local")
    jax.tree.map(np.testing.assert_array_equal, params, local)
    official = tmp_path / "copy" / "imported" / "official"
    assert files_of(official) == files_of(tmp_path / "local" / "official")
    # The autoencoder is read where it is, also along the way that a run remembers.
    vae = bagel.load_vae("gs://bucket/imported", config.model.vae, BAGEL)
    jax.tree.map(
        np.testing.assert_array_equal, vae, bagel.load_vae(CHECKPOINT, config.model.vae, BAGEL)
    )
    found = bagel.find_official("gs://bucket/imported", bucket / "imported/checkpoints/0", config)
    assert str(found) == "gs://bucket/imported/official"
    # And out again.
    assert bagel.export_folder(tmp_path / "local", "gs://bucket/out") == 139
    for name in ("ema.safetensors", "ae.safetensors"):
        with (
            safetensors_io.open_folder(bucket / "out" / name, ()) as ours,
            safetensors_io.open_folder(CHECKPOINT / name, ()) as theirs,
        ):
            assert ours.infos.keys() == theirs.infos.keys()
            for key in theirs.infos:
                np.testing.assert_array_equal(ours.read(key), theirs.read(key))


def test_tensors_are_fetched_one_by_one(bucket):
    upload(CHECKPOINT, bucket / "BAGEL")
    with safetensors_io.open_folder(bucket / "BAGEL", ("ae",)) as reader:
        Bucket.fetched = 0
        key = "decoder.conv_in.bias"
        array = reader.read(key)
        assert Bucket.fetched == array.nbytes
    with safetensors_io.open_folder(CHECKPOINT, ("ae",)) as local:
        np.testing.assert_array_equal(array, local.read(key))


def test_nothing_is_left_in_the_bucket_when_an_import_fails(bucket, tmp_path, monkeypatch):
    upload(CHECKPOINT, bucket / "BAGEL")
    whole = (bucket / "BAGEL" / "ema.safetensors").read_bytes()
    (bucket / "BAGEL" / "ema.safetensors").write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match="ema.safetensors: damaged.* its header describes"):
        run_import(bucket / "BAGEL", "gs://bucket/imported")
    (bucket / "BAGEL" / "ema.safetensors").write_bytes(whole)
    write = epath.Path.copy

    def copy(self, target, *args):
        if target.name == "config.json":
            raise OSError("the connection broke")
        return write(self, target, *args)

    monkeypatch.setattr(type(epath.Path("x")), "copy", copy)
    with pytest.raises(OSError, match="broke"):
        run_import(CHECKPOINT, "gs://bucket/imported")
    assert not (bucket / "imported").exists()


def test_a_checkpoint_that_was_cut_off_is_not_seen(bucket):
    for step, name in (
        (2, "commit_success.txt"),
        (10, "commit_success.txt"),
        (11, "meta/data.json"),
    ):
        file = bucket / "run" / "checkpoints" / str(step) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("{}")
    assert manager.steps("gs://bucket/run") == [2, 10]
    (bucket / "run/checkpoints/11/commit_success.txt").write_text("")
    assert manager.steps("gs://bucket/run") == [2, 10, 11]


def header_file(path, header, data=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def tensor(first, last, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    ("header", "why"),
    [
        ({"a": tensor(0, 4), "b": tensor(4, 8)}, None),
        ({"__metadata__": {"x": "y"}, "a": tensor(0, 8, (2, 1))}, None),
        ({"a": tensor(0, 4), "b": tensor(5, 8)}, "tensor b does not lie"),
        ({"a": tensor(0, 4), "b": tensor(0, 4)}, "tensor b does not lie"),
        ({"a": tensor(0, 8, (3,))}, "tensor a does not lie"),
        ({"a": tensor(0, 4)}, "its header describes"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "malformed"),
        (b'{"a": 1, "a": 2}', "names a tensor twice"),
        (b"[1]", "malformed"),
        (b"not json", "Expecting"),
    ],
)
def test_damaged_headers(header, why, tmp_path):
    file = epath.Path(header_file(tmp_path / "x.safetensors", header))
    if why is None:
        assert remote.RangeReader(file, safetensors_io.DTYPES).tensors.keys() <= {"a", "b"}
        return
    with pytest.raises(ValueError, match=why):
        remote.RangeReader(file, safetensors_io.DTYPES)
