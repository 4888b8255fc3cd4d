"""Parity with the reference's arrays, and that a small error, a lost or a strange array is seen."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from launch import check_parity
from process_gen.core.errors import DataError
from process_gen.evaluation import parity
from process_gen.models.functional import build

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
# One case of each kind; `test_all_cases` runs the others.
QUICK = ("c2_packed_train", "d_vit", "g2_mixed_infer", "h_grads_freeze_und")


@pytest.fixture(scope="module")
def model():
    return parity.load_model(FIXTURES)


def _run(name, model):
    arrays = parity.read_arrays(FIXTURES / f"{name}.npz")
    if "in.case" in arrays:
        other = parity.read_arrays(FIXTURES / f"{arrays['in.case']}.npz")
        arrays = {**{k: v for k, v in other.items() if k.startswith("in.")}, **arrays}
        rows = parity.check_case(name, check_parity.CASES[name], model, arrays)
        return [row for row in rows if row.state != "unknown"]
    return parity.check_case(name, check_parity.CASES[name], model, arrays)


def _bad(rows):
    return {row.array: row.state for row in rows if row.state != "ok"}


@pytest.mark.parametrize("name", QUICK)
def test_one_case_of_each_kind(name, model):
    rows = _run(name, model)
    assert _bad(rows) == {} and len(rows) > 10


@pytest.mark.slow
def test_chunked_attention_and_unrolled_layers(monkeypatch):
    sides, chunked = [], parity.chunked

    def counted(q, order, blocks, chunk):
        sides.append((chunk, q.shape[1]))
        return chunked(q, order, blocks, chunk)

    monkeypatch.setattr(parity, "chunked", counted)
    with parity.chunks_of(8):
        other = parity.load_model(FIXTURES, attention="chunked", layers="unroll")
        assert _bad(_run("a_text", other)) == {}
    # It ran, and on sequences of several chunks.
    assert {chunk for chunk, _ in sides} == {8} and max(length for _, length in sides) > 16
    # Partner: another order of the queries is noticed.
    monkeypatch.setattr(parity, "chunked", lambda q, o, b, chunk: chunked(q, o + 1, b, chunk))
    with parity.chunks_of(8):
        wrong = parity.load_model(FIXTURES, attention="chunked", layers="unroll")
        assert "out.last_hidden" in _bad(_run("a_text", wrong))


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"attention": "chunked", "layers": "unroll"}])
def test_all_cases(how):
    with parity.chunks_of(16):
        assert _bad(parity.check_folder(FIXTURES, check_parity.CASES, **how)) == {}


def test_exact_gelu_is_noticed(model, monkeypatch):
    gelu = jax.nn.gelu
    monkeypatch.setattr(jax.nn, "gelu", lambda x, approximate: gelu(x, approximate=False))
    other = dataclasses.replace(model, fns=build(model.config))
    bad = _bad(_run("d_vit", other))
    assert "out.vit_0" in bad and "out.features_packed" in bad
    assert "out.tokens_0" not in bad


def test_one_weight_changed_by_a_percent_is_noticed(model):
    params = jax.tree.map(np.array, model.params)
    params["connector"]["out"]["kernel"][3] *= 1.01
    bad = _bad(_run("d_vit", dataclasses.replace(model, params=params)))
    assert "out.connector_0" in bad and "out.vit_0" not in bad


def _twice(model, x):
    return {"out.double": 2 * x["value"], "out.sum": x["value"].sum()}


VALUE = np.arange(4, dtype=np.float32)
GOOD = {"in.value": VALUE, "out.double": 2 * VALUE, "out.sum": np.float32(6)}


@pytest.mark.parametrize(
    ("change", "bad"),
    [
        ({}, {}),
        ({"out.extra": VALUE}, {"out.extra": "unknown"}),
        ({"in.extra": VALUE}, {"in.extra": "unknown"}),
        ({"out.sum": None}, {"out.sum": "missing"}),
        ({"in.value": None}, {"in.value": "missing"}),
        ({"out.double": 2 * VALUE + np.float32(2e-4)}, {}),
        ({"out.double": 2 * VALUE + np.float32(5e-4)}, {"out.double": "differs"}),
        ({"out.double": 2 * VALUE[:3]}, {"out.double": "differs"}),
        ({"out.double": (2 * VALUE).astype(np.int32)}, {"out.double": "differs"}),
        ({"out.double": VALUE * np.nan}, {"out.double": "differs"}),
    ],
)
def test_every_array_is_accounted_for(change, bad):
    arrays = {k: v for k, v in {**GOOD, **change}.items() if v is not None}
    assert _bad(parity.check_case("case", _twice, None, arrays)) == bad


def test_kinds_of_arrays_have_their_own_limits():
    def state(name, got, wanted):
        return parity.compare("c", name, np.asarray(got), np.asarray(wanted)).state

    assert state("out.ids", [1, 2], [1, 2]) == "ok"
    assert state("out.ids", [1, 2], [1, 3]) == "differs"
    assert state("out.mask", [True], [False]) == "differs"
    assert state("out.names", ["a"], ["b"]) == "differs"
    pixels = np.array([10, 20], np.uint8)
    assert state("out.image_uint8", pixels + np.uint8(1), pixels) == "ok"
    assert state("out.image_uint8", pixels + np.uint8(2), pixels) == "differs"
    for name, expected in (("out.grad.x", "ok"), ("out.x", "differs")):
        assert state(name, np.float32([1.0005]), np.float32([1.0])) == expected
    assert state("out.x", np.float32([np.nan]), np.float32([np.nan])) == "differs"
    assert state("out.x", np.zeros(2, np.float32), np.zeros(2, np.float32)) == "ok"


def test_cases_without_a_file_and_files_without_a_case(tmp_path):
    (tmp_path / "checkpoint").symlink_to(FIXTURES / "checkpoint")
    np.savez(tmp_path / "good.npz", **GOOD)
    np.savez(tmp_path / "strange.npz", **GOOD)
    cases = {"good": _twice, "gone": _twice}
    rows = parity.check_folder(tmp_path, cases)
    assert {(r.case, r.state) for r in rows} == {
        ("good", "ok"),
        ("gone", "missing"),
        ("strange", "unknown"),
    }
    only = parity.check_folder(tmp_path, {"good": _twice}, only=True)
    assert {(r.case, r.state) for r in only} == {("good", "ok")}
    (tmp_path / "good.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="good.npz: cannot be read"):
        parity.check_folder(tmp_path, cases)
    with pytest.raises(DataError, match="no such folder"):
        parity.check_folder(tmp_path / "gone", cases)


def test_command(tmp_path, capsys):
    from launch import common

    def run(*arguments):
        with pytest.raises(SystemExit) as caught:
            argv = ["check_parity", *arguments]
            common.run(check_parity.main, check_parity.define_flags, "", argv)
        return caught.value.code, capsys.readouterr()

    folder = tmp_path / "fixtures"
    shutil.copytree(FIXTURES / "checkpoint", folder / "checkpoint")
    arrays = parity.read_arrays(FIXTURES / "d_vit.npz")
    np.savez(folder / "d_vit.npz", **arrays)
    status, printed = run(f"--fixtures={folder}", "--cases=d_vit", "--json")
    assert status == 0
    report = json.loads(printed.out.splitlines()[-1])
    assert (report["attention"], report["layers"]) == ("dense", "scan")
    assert report["ok"] and {row["state"] for row in report["arrays"]} == {"ok"}
    np.savez(folder / "d_vit.npz", **{**arrays, "out.vit_0": arrays["out.vit_0"] + 1})
    status, printed = run(f"--fixtures={folder}", "--cases=d_vit")
    assert status == 1 and "differs: out.vit_0" in printed.out
    status, printed = run(f"--fixtures={folder}", "--cases=zebra")
    assert status == 2 and "unknown zebra" in printed.err
    status, printed = run(f"--fixtures={folder}", "--attention=blurred")
    assert status == 2 and "blurred" in printed.err
