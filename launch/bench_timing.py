"""How the benchmarks measure: medians over rounds, peaks of this machine, compile times, memory."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

SQUARES = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096))
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass
class Times:
    """Seconds of one thing, a number a round."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def summary(self, **more: Any) -> dict[str, Any]:
        """Median, least, largest and the middle half in milliseconds, fit for JSON."""
        ordered = sorted(self.seconds)
        low, high = (ordered[round(q * (len(ordered) - 1))] for q in (0.25, 0.75))
        numbers = {
            "ms": self.median,
            "ms_min": ordered[0],
            "ms_max": ordered[-1],
            "ms_quartiles": (low, high),
        }
        found: dict[str, Any] = {
            name: [round(1e3 * x, 4) for x in value]
            if isinstance(value, tuple)
            else round(1e3 * value, 4)
            for name, value in numbers.items()
        }
        return {**found, "rounds": len(ordered), **more}


def interleaved(
    calls: Mapping[Any, Callable[[], Any]], rounds: int, warm: int = 0
) -> dict[Any, Times]:
    """Times every call in every round, one after the other, after one call that does not count.

    A machine that slows down for a while slows all of them, so ratios are worth more than times.

    Args:
      calls: what is timed, by name.
      rounds: timed calls of each.
      warm: calls right before each timed one that do not count. Without any, every call finds the
        caches full of another call's weights.
    """
    for call in calls.values():
        jax.block_until_ready(call())
    times = {name: Times() for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(warm):
                jax.block_until_ready(call())
            started = time.perf_counter()
            jax.block_until_ready(call())
            times[name].seconds.append(time.perf_counter() - started)
    return times


def peak(shapes: Sequence[tuple[int, int, int]], dtype: str, seconds: float = 0.4) -> float:
    """The best FLOP/s of matrix products of these shapes (rows, inner, columns) on all cores."""
    best = 0.0
    for rows, inner, columns in dict.fromkeys(shapes):
        # Not ones: a GPU that multiplies equal numbers takes less power and clocks higher.
        a, b = (
            jax.random.normal(jax.random.key(i), shape, dtype)
            for i, shape in enumerate(((rows, inner), (inner, columns)))
        )
        product = jax.jit(jnp.matmul)
        product(a, b).block_until_ready()
        ends = time.perf_counter() + seconds
        while True:
            started = time.perf_counter()
            product(a, b).block_until_ready()
            now = time.perf_counter()
            best = max(best, 2.0 * rows * inner * columns / (now - started))
            if now > ends:
                break
    return best


def bandwidth(megabytes: int, seconds: float = 0.4) -> float:
    """The best bytes a second of a copy, read and written, on the first device."""
    x = jnp.zeros(megabytes * 2**18, jnp.float32)
    copy, best = jax.jit(lambda x: x + 1.0), 0.0
    copy(x).block_until_ready()
    ends = time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        copy(x).block_until_ready()
        best = max(best, 2.0 * x.nbytes / (time.perf_counter() - started))
    return best


def peaks(shapes: Sequence[tuple[int, int, int]], dtypes: Sequence[str]) -> dict[str, Any]:
    """The peak by type, and what it was taken of."""
    found = {dtype: round(peak([*SQUARES, *shapes], dtype) / 1e9, 2) for dtype in dtypes}
    return {"gflops": found, "shapes": [list(s) for s in dict.fromkeys([*SQUARES, *shapes])]}


def compile_seconds(lower: Callable[[], Any]) -> dict[str, float]:
    """Seconds to trace, to compile cold, and to have the same from the cache on disk.

    Programs compiled before are forgotten by the process; they come back from its own cache.

    Args:
      lower: traces anew at each call, as ``jitted.lower`` does.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value in zip(names, (folder, 0.0), strict=True):
                jax.config.update(name, value)
            for kind in ("cold", "from_disk"):
                compilation_cache.reset_cache()
                jax.clear_caches()
                started = time.perf_counter()
                lowered = lower()
                traced = time.perf_counter()
                lowered.compile()
                found["trace"] = round(traced - started, 3)
                found[kind] = round(time.perf_counter() - traced, 3)
        finally:
            for name, value in zip(names, before, strict=True):
                jax.config.update(name, value)
            compilation_cache.reset_cache()
    return found


class Compilations:
    """Counts programs that are compiled (or fetched from disk) while it listens."""

    def __init__(self):
        self.count = 0

    def hear(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """Told by jax of every event that takes time."""
        del duration_secs, kwargs
        self.count += event == _COMPILED


@contextmanager
def compilations() -> Iterator[Compilations]:
    """What is compiled inside the block; a counter that can be read on the way."""
    counter = Compilations()
    jax.monitoring.register_event_duration_secs_listener(counter.hear)
    try:
        yield counter
    finally:
        jax.monitoring.unregister_event_duration_listener(counter.hear)


def memory(compiled: Any) -> dict[str, float]:
    """Megabytes that a compiled program needs, by the compiler's account."""
    found = compiled.memory_analysis()
    return {
        "arguments_mb": round(found.argument_size_in_bytes / 1e6, 2),
        "temporary_mb": round(found.temp_size_in_bytes / 1e6, 2),
        "in_place_mb": round(found.alias_size_in_bytes / 1e6, 2),
    }


def peak_memory_mb() -> float:
    """The most that this process has held, in megabytes: on the device, or on a CPU in all."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return round(stats["peak_bytes_in_use"] / 1e6, 1)
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kib * 1024 / 1e6, 1)
