"""How fast batches are made, beside how fast a step takes them."""

from __future__ import annotations

import time
from typing import Any

from launch import bench_timing
from process_gen.core.configs import from_mapping
from process_gen.data import pipeline
from process_gen.models import flops


def measure_all(config: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Batches a second as they come, and one at a time in this thread."""
    found: dict[str, Any] = {"rounds": rounds}
    for name, changes in {"ahead": {}, "one at a time": {"prefetch": 0, "workers": 0}}.items():
        own = from_mapping({**config, "data": {**config["data"], **changes}})
        started = time.perf_counter()
        dataset = pipeline.train_dataset(own)
        first = next(dataset)
        planned = time.perf_counter() - started
        dataset.plan(dataset.epoch + 1)  # made in the background, beside batches once an epoch
        times, share = bench_timing.Times(), []
        for _ in range(rounds):
            started = time.perf_counter()
            batch = next(dataset)
            times.seconds.append(time.perf_counter() - started)
            share.append(flops.useful_share(batch))
        dataset.close()
        found[name] = times.summary(
            first_batch_seconds=round(planned, 3),
            rows=len(first.token_BxT),
            useful_tokens=round(sum(share) / len(share), 4),
        )
    found["peak_memory_mb"] = bench_timing.peak_memory_mb()
    return found
