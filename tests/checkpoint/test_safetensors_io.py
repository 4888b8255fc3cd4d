"""Reading and writing safetensors: bit for bit, and every kind of damage refused by name."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from process_gen.checkpoint import safetensors_io
from process_gen.core.errors import CheckpointError

CHECKPOINT = Path(__file__).parents[1] / "parity" / "fixtures" / "checkpoint"
TENSORS = {
    "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b": np.arange(5, dtype=np.float32).astype(ml_dtypes.bfloat16),
    "scalar": np.asarray(2.5, np.float32),
}


def _write(file: Path, tensors) -> None:
    specs = {key: (array.shape, array.dtype) for key, array in tensors.items()}
    with safetensors_io.write_file(file, specs) as writer:
        for key in reversed(tensors):
            writer.write(key, tensors[key])


def _read(reader) -> dict[str, np.ndarray]:
    with reader:
        return {key: reader.read(key) for key in reader.infos}


def _same(left, right) -> bool:
    return left.keys() == right.keys() and all(
        left[k].dtype == right[k].dtype
        and left[k].shape == right[k].shape
        and left[k].tobytes() == right[k].tobytes()
        for k in left
    )


def test_own_writer_gives_the_bytes_of_the_package(tmp_path):
    _write(tmp_path / "ours.safetensors", TENSORS)
    save_file(TENSORS, tmp_path / "theirs.safetensors")
    ours = (tmp_path / "ours.safetensors").read_bytes()
    assert ours == (tmp_path / "theirs.safetensors").read_bytes()
    got = _read(safetensors_io.open_folder(tmp_path / "ours.safetensors", ()))
    assert _same(got, TENSORS)
    changed = {**TENSORS, "b": TENSORS["b"] + 1}
    assert not _same(got, changed)


def test_rewriting_the_fixture_is_byte_identical(tmp_path):
    for name in ("ema", "ae"):
        tensors = _read(safetensors_io.open_folder(CHECKPOINT, (name,)))
        _write(tmp_path / f"{name}.safetensors", tensors)
        original = (CHECKPOINT / f"{name}.safetensors").read_bytes()
        assert (tmp_path / f"{name}.safetensors").read_bytes() == original


def _shard(folder: Path) -> Path:
    save_file({"a.weight": TENSORS["a.weight"]}, folder / "m-00001-of-00002.safetensors")
    save_file({"b": TENSORS["b"]}, folder / "m-00002-of-00002.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps(
            {
                "weight_map": {
                    "a.weight": "m-00001-of-00002.safetensors",
                    "b": "m-00002-of-00002.safetensors",
                }
            }
        )
    )
    return index


def test_sharded_index_and_preference_of_stems(tmp_path):
    _shard(tmp_path)
    got = _read(safetensors_io.open_folder(tmp_path, ("ema", "model")))
    assert _same(got, {key: TENSORS[key] for key in ("a.weight", "b")})
    save_file({"b": TENSORS["b"]}, tmp_path / "ema.safetensors")
    assert set(_read(safetensors_io.open_folder(tmp_path, ("ema", "model")))) == {"b"}


@pytest.mark.parametrize(
    ("weight_map", "named"),
    [
        ({"a.weight": "m-00001-of-00002.safetensors"}, None),
        (
            {
                "b": "m-00002-of-00002.safetensors",
                "gone": "m-00002-of-00002.safetensors",
            },
            "gone",
        ),
        ({"b": "m-00001-of-00002.safetensors"}, "a.weight"),
        ({"b": "m-00003-of-00002.safetensors"}, "m-00003-of-00002.safetensors"),
        ({"b": "../m.safetensors"}, "../m.safetensors"),
        ({"b": 3}, "3"),
        ([], "weight_map"),
    ],
)
def test_index_that_lies_is_refused(tmp_path, weight_map, named):
    index = _shard(tmp_path)
    index.write_text(json.dumps({"weight_map": weight_map} if weight_map else {}))
    if named is None:  # An index that tells the truth about fewer shards is no lie.
        assert set(_read(safetensors_io.open_folder(tmp_path, ("model",)))) == {"a.weight"}
        return
    with pytest.raises(CheckpointError, match=named):
        safetensors_io.open_folder(tmp_path, ("model",))


def _damage(kind: str, file: Path) -> None:
    save_file(TENSORS, file)
    whole = file.read_bytes()
    if kind == "truncated":
        file.write_bytes(whole[:-3])
    elif kind == "longer":
        file.write_bytes(whole + b"abc")
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "pickle":
        file.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "zip":
        file.write_bytes(b"PK\x03\x04" + bytes(100))
    elif kind == "integers":
        save_file({"a": np.arange(3)}, file)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", "damaged"),
        ("longer", "damaged"),
        ("empty", "damaged"),
        ("pickle", "pickle"),
        ("zip", "pickle"),
        ("integers", "tensor a has type I64"),
        ("whole", None),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, kind, words):
    file = tmp_path / "ema.safetensors"
    _damage(kind, file)
    if words is None:
        assert _same(_read(safetensors_io.open_folder(tmp_path, ("ema",))), TENSORS)
        return
    with pytest.raises(CheckpointError, match=words) as caught:
        safetensors_io.open_folder(tmp_path, ("ema",))
    assert "ema.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_as_long_as_a_pickle_begins_is_read(tmp_path, length):
    file = tmp_path / "ema.safetensors"
    fill = 0
    while True:
        save_file(TENSORS, file, metadata={"fill": "x" * fill})
        start = file.read_bytes()[:8]
        if int.from_bytes(start, "little") == length:
            break
        fill += 1
        assert fill < length
    assert start.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
    with safetensors_io.Reader([file]) as reader:
        assert set(reader.infos) == set(TENSORS)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        safetensors_io.open_folder(tmp_path / "gone", ("ema",))
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds no ema.safetensors.*model\.pt.*never opened"):
        safetensors_io.open_folder(tmp_path, ("ema",))


def test_a_key_in_two_files_is_refused(tmp_path):
    save_file(TENSORS, tmp_path / "one.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="tensor b is also in"):
        safetensors_io.Reader([tmp_path / "one.safetensors", tmp_path / "two.safetensors"])


def test_nothing_half_written_stays(tmp_path):
    specs = {key: (array.shape, array.dtype) for key, array in TENSORS.items()}
    file = tmp_path / "out.safetensors"
    with pytest.raises(CheckpointError, match="announced but not written"):
        with safetensors_io.write_file(file, specs) as writer:
            writer.write("b", TENSORS["b"])
    assert list(tmp_path.iterdir()) == []
    for key, array, words in (
        ("b", TENSORS["a.weight"], "announced as"),
        ("c", TENSORS["b"], "never announced"),
    ):
        with pytest.raises(CheckpointError, match=words):
            with safetensors_io.write_file(file, specs) as writer:
                writer.write(key, array)
    with pytest.raises(CheckpointError, match="knows no type"):
        with safetensors_io.write_file(file, {"i": ((2,), np.dtype(np.int32))}):
            pass
    assert list(tmp_path.iterdir()) == []
