"""C++ functions for CPUs, which XLA calls on the threads of its pool (`jax.ffi`).

The sources come with the package and are compiled when they are first wanted, by the C++ compiler
of this machine for its processor, into the cache of the user.
"""

from __future__ import annotations

import concurrent.futures
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
from pathlib import Path

import jax

from process_gen.core.errors import ConfigError

_LOG = logging.getLogger(__name__)

# What each file defines.
SOURCES = {
    "native_attention.cc": ("interval_attention_forward", "interval_attention_backward"),
    "native_few.cc": ("few_queries_forward",),
    "native_layer.cc": ("layer_before", "layer_after"),
    "native_norm.cc": ("norm_forward", "norm_backward"),
    "native_products.cc": (
        "linear_outputs",
        "linear_input_gradient",
        "linear_weight_gradients",
    ),
    "native_swiglu.cc": ("swiglu_forward", "swiglu_backward"),
}
HEADERS = ("native.h", "native_matmul.h", "native_rows.h", "native_strips.h", "native_visits.h")
FOLDER = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fPIC", "-pthread")
_FASTER = "-march=native"  # which some compilers do not know


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
    for name in (name for names in SOURCES.values() for name in names):
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
        _LOG.warning("C++ functions cannot be had, so XLA's own loops run instead: %s", error)
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
        *((FOLDER / name).read_text() for name in (*SOURCES, *HEADERS)),
        " ".join((*_FLAGS, _FASTER)),
        version,
        importlib.metadata.version("jaxlib"),
        _processor(),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    file = cache_dir() / f"native_{digest}.so"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        for further in ([_FASTER], []):
            failed = _build([compiler, *_FLAGS, *further], Path(folder) / file.name)
            if failed is None:
                break
        else:
            raise ConfigError(
                f"model.attention='native': {compiler} refuses {', '.join(SOURCES)}: "
                f"{failed.strip()[-300:] or 'no reason given'}; 'rows' does without"
            )
        # Whole or not there, also for processes that start together.
        os.replace(Path(folder) / file.name, file)
    return file


def _build(command: list[str], made: Path) -> str | None:
    """Compiles the sources side by side and links them; the complaint of what failed, or None."""
    objects = [str(made.with_name(f"{name}.o")) for name in SOURCES]
    steps = [
        [*command, "-isystem", jax.ffi.include_dir(), "-c", str(FOLDER / name), "-o", object_]
        for name, object_ in zip(SOURCES, objects, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        done = list(pool.map(_run, steps))
    if not any(step.returncode for step in done):
        done = [_run([*command, "-shared", *objects, "-o", str(made)])]
    return next((step.stderr for step in done if step.returncode), None)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True)


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() + platform.machine()
    lines = info.read_text().splitlines()
    return "\n".join(
        sorted({x for x in lines if x.startswith(("flags", "Features", "model name"))})
    )
