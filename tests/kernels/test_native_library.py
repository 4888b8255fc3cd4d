"""C++ functions are compiled when they are wanted (`kernels.native_library`)."""

from __future__ import annotations

import pytest

from process_gen.core.errors import ConfigError
from process_gen.kernels import native_library as native_lib

pytestmark = pytest.mark.skipif(native_lib.compiler() is None, reason="needs a C++ compiler")


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
    for name in (*native_lib.SOURCES, *native_lib.HEADERS):
        (tmp_path / name).write_text("#error no such thing\n")
    monkeypatch.setattr(native_lib, "FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="refuses native_attention.cc.*no such thing"):
        native_lib.library()
    assert not native_lib.available() and "cannot be had" in caplog.text
    assert not list((tmp_path / "cache" / "process_gen" / "native").iterdir())


@pytest.fixture
def one_short_source(monkeypatch):
    monkeypatch.setattr(native_lib, "SOURCES", {"native_norm.cc": ("norm_forward",)})


def test_a_compiler_that_does_not_know_the_processor_compiles_all_the_same(
    monkeypatch, tmp_path, one_short_source
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native_lib, "_FASTER", "-march=unheard-of")
    found = native_lib.compiler()
    assert found and native_lib._compiled(found).exists()


def test_it_is_compiled_once_for_each_way_to_compile(monkeypatch, tmp_path, one_short_source):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiler = native_lib.compiler()
    assert compiler
    file = native_lib._compiled(compiler)
    written = file.stat().st_mtime_ns
    assert native_lib._compiled(compiler) == file and file.stat().st_mtime_ns == written
    monkeypatch.setattr(native_lib, "_FLAGS", (*native_lib._FLAGS, "-DOTHER"))
    assert native_lib._compiled(compiler) != file
    assert len(list(native_lib.cache_dir().glob("*.so"))) == 2
