"""The C++ kernels of `kernels.native`, compiled here; more in `test_interval_attention.py`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.errors import ConfigError
from process_gen.kernels import native as native_lib
from process_gen.kernels.dense import dense
from process_gen.kernels.key_block import KeyBlock
from process_gen.kernels.native import native
from tests.kernels.against_dense import (
    check,
    check_bfloat16,
    check_zeros,
    differences,
    on,
    packs,
    tensors,
)

pytestmark = pytest.mark.skipif(native_lib.compiler() is None, reason="needs a C++ compiler")


def test_equals_dense_with_three_gradients():
    place = packs(2, 4)
    assert place.order.shape[1] % 64
    check_zeros(place, check(native, place, 4, 2)[0])


@pytest.mark.parametrize(("heads", "kv_heads", "cuts"), [(7, 1, ()), (3, 3, (170, 171))])
def test_every_grouping_of_heads_and_split_of_keys(heads, kv_heads, cuts):
    check(native, packs(3, 4), heads, kv_heads, cuts, relative=True)


@pytest.mark.parametrize("width", [3, 8, 24, 32, 40, 56, 64])
def test_every_width_of_a_head(width):
    """Each takes other tiles of the products; widths that eight does not divide are filled up."""
    place = packs(1, 1)
    arrays = tensors(place, 2, 1, width)
    expected, got = on(dense, place, arrays), on(native, place, arrays)
    largest = [max(1.0, float(np.abs(np.asarray(x)).max())) for x in expected]
    errors = differences(got, expected)
    assert max(e / x for e, x in zip(errors, largest, strict=True)) < 1e-5
    other = (arrays[0], arrays[1], -arrays[2], arrays[3])
    assert differences(on(native, place, other), expected)[0] > 0.1


def test_bfloat16_stays_close():
    check_bfloat16(native, packs(2, 0))


def test_the_same_bytes_every_time():
    """Whichever thread takes which row."""
    place = packs(6, 6)
    arrays = tensors(place, 4, 2)
    first = on(native, place, arrays)
    for _ in range(5):
        for a, b in zip(first, on(native, place, arrays), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    moved = on(native, place, tensors(place, 4, 2, seed=1))
    assert np.asarray(moved[0]).tobytes() != np.asarray(first[0]).tobytes()


def test_many_calls_at_a_time_end():
    """All threads of the pool may be inside a call, and wait for no other thread to come free."""
    place = packs(2, 2)
    q, k, v, _ = tensors(place, 4, 2)
    block = KeyBlock(k, v, jnp.asarray(place.visible_from), jnp.asarray(place.visible_to))
    order = jnp.asarray(place.order)

    def several(q):
        return [native(q + i / 8, order, [block]) for i in range(8)]

    outs = jax.block_until_ready([jax.jit(several)(q + n) for n in range(4)])
    assert differences([outs[1][4]], [dense(q + 1.5, order, [block])])[0] < 1e-5
    assert differences([outs[1][4]], [outs[0][4]])[0] > 0.1


@pytest.fixture
def afresh():
    cached = (native_lib.library, native_lib.available)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_without_a_compiler_it_says_what_to_do(afresh, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not native_lib.available() and not caplog.records
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler.*'rows', which does without"):
        native_lib.library()


def test_a_compiler_that_refuses_is_quoted(afresh, monkeypatch, tmp_path, caplog):
    broken = tmp_path / "native.cc"
    broken.write_text("#error no such thing\n")
    monkeypatch.setattr(native_lib, "SOURCE", broken)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="refuses native.cc.*no such thing"):
        native_lib.library()
    assert not native_lib.available() and "cannot be had" in caplog.text
    assert not list((tmp_path / "cache" / "process_gen" / "native").iterdir())


def test_a_compiler_that_does_not_know_the_processor_compiles_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_lib, "_FASTER", "-march=unheard-of")
    found = native_lib.compiler()
    assert found and native_lib._compiled(found).exists()


def test_it_is_compiled_once_for_each_source(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = native_lib.compiler()
    assert compiler
    file = native_lib._compiled(compiler)
    written = file.stat().st_mtime_ns
    assert native_lib._compiled(compiler) == file and file.stat().st_mtime_ns == written
    monkeypatch.setattr(native_lib, "_FLAGS", (*native_lib._FLAGS, "-DOTHER"))
    assert native_lib._compiled(compiler) != file
    assert len(list(native_lib.cache_dir().glob("*.so"))) == 2
