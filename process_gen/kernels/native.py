"""Interval attention for CPUs in C++ (`native.cc`), which XLA calls on the threads of its pool.

What `by_row` does in XLA's loops, whose small products fill one core: here rows and key heads are
dealt to all cores. The source comes with the package and is compiled when it is first wanted, by
the C++ compiler of this machine for its processor, into the cache of the user.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from process_gen.core.errors import ConfigError
from process_gen.kernels.key_block import ATTENDED, KeyBlock

_LOG = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("native.cc")
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread")
_FASTER = "-march=native"  # which some compilers do not know
_FORWARD, _BACKWARD = "interval_attention_forward", "interval_attention_backward"


def native(q_BxSxHxDh: jax.Array, order_BxS: jax.Array, blocks: Sequence[KeyBlock]) -> jax.Array:
    """The implementation "native" of `interval_attention`; computes in float32.

    Several blocks of keys are copied together.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the source.
    """
    library()
    k, v, start, end = (jnp.concatenate(part, 1) for part in zip(*blocks, strict=True))
    floats = (x.astype(jnp.float32) for x in (q_BxSxHxDh, k, v))
    return _attend(*floats, order_BxS, start, end).astype(q_BxSxHxDh.dtype)


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, *integers: jax.Array) -> jax.Array:
    return _forward(q, k, v, *integers)[0]


def _forward(
    q: jax.Array, k: jax.Array, v: jax.Array, *integers: jax.Array
) -> tuple[jax.Array, tuple]:
    b, s, heads, _ = q.shape
    shapes = (q.shape, (b, heads, s))
    call = jax.ffi.ffi_call(_FORWARD, [jax.ShapeDtypeStruct(x, jnp.float32) for x in shapes])
    out, lse = call(q, k, v, *integers)
    out, lse = checkpoint_name(out, ATTENDED), checkpoint_name(lse, ATTENDED)
    return out, (q, k, v, *integers, out, lse)


def _backward(kept: tuple, d_out: jax.Array) -> tuple:
    *given, out, lse = kept
    delta = (d_out * out).sum(-1).swapaxes(1, 2)
    call = jax.ffi.ffi_call(
        _BACKWARD, [jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in given[:3]]
    )
    # Integers have no gradient.
    return *call(*given, lse, delta, d_out), None, None, None


_attend.defvjp(_forward, _backward)


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions, made known to XLA; compiled first where that was not done yet.

    Raises:
      ConfigError: there is no C++ compiler, or it refuses the source.
    """
    found = compiler()
    if found is None:
        raise ConfigError(
            "model.attention='native' needs a C++ compiler: install g++ (or set CXX), or take "
            "'rows', which does without"
        )
    loaded = ctypes.cdll.LoadLibrary(str(_compiled(found)))
    for name in (_FORWARD, _BACKWARD):
        target = jax.ffi.pycapsule(getattr(loaded, name))
        jax.ffi.register_ffi_target(name, target, platform="cpu")
    return loaded


@functools.cache
def available() -> bool:
    """Whether this machine can have it; that a compiler is here and refuses is told."""
    if compiler() is None:
        return False
    try:
        library()
    except (ConfigError, OSError) as error:  # OSError: what it made cannot be loaded
        _LOG.warning("attention in C++ cannot be had, so it runs as 'rows': %s", error)
        return False
    return True


def compiler() -> str | None:
    """The C++ compiler of this machine: what CXX names, or c++ or g++."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("c++") or shutil.which("g++")


def cache_dir() -> Path:
    """Where it lies: ``${XDG_CACHE_HOME:-~/.cache}/process_gen/native``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "process_gen" / "native"


def _compiled(compiler: str) -> Path:
    """The library for this source, compiler and processor; a home may be shared by several."""
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    parts = (
        SOURCE.read_text(),
        " ".join((*_FLAGS, _FASTER)),
        version,
        importlib.metadata.version("jaxlib"),
        _processor(),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    file = cache_dir() / f"attention_{digest}.so"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        made = Path(folder) / file.name
        command = [compiler, *_FLAGS, "-isystem", jax.ffi.include_dir(), str(SOURCE), "-o", made]
        for further in ([_FASTER], []):
            done = subprocess.run([*command, *further], capture_output=True, text=True)
            if not done.returncode:
                break
        else:
            raise ConfigError(
                f"model.attention='native': {compiler} refuses {SOURCE.name}: "
                f"{done.stderr.strip()[-300:] or 'no reason given'}; 'rows' does without"
            )
        os.replace(made, file)  # whole or not there, also for processes that start together
    return file


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() + platform.machine()
    lines = info.read_text().splitlines()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    )
