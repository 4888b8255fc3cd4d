"""Measure how fast this machine trains and paints, beside what its matrix products reach.

    python -m launch.benchmark --suite=train --config=configs/strokes_tiny.py --json
    python -m launch.benchmark --suite=sample --prompts=1000 --json
    python -m launch.benchmark --suite=bagel_cpu --rounds=7 --json
    python -m launch.benchmark --suite=steps --per_tag=100 --json

--suite=train|sample|data|bagel_cpu|steps|sizes
--config=FILE         whose step and data, or sizes, are measured; train, data and sizes
--parts=PART          attention, step, painting or trajectory; may be given several times
                      (all); sizes
--checkpoint=DIR      who paints; default: the painter that comes along; sample and
                      steps
--rounds=N            timed rounds of each call, interleaved (5); of data at least 20
--prompts=N           length of the queue that is served (1000); sample
--per_tag=N           prompts of each of the seven tags (100); steps
--reference=COMMAND   a program that does the same work, in turn with ours; bagel_cpu
                      (tests/parity/time_reference.py times the PyTorch code of BAGEL)
--bf16                the peak in bfloat16 too
--json                the whole result as one JSON object on the last line
--out=FILE            the same into a file
--figure=FILE         a picture of it, PNG; steps, sample and train

Shares of the peak are model FLOPs (`process_gen.models.flops`: pairs that are seen, no padding)
over the best matrix product of this very run, for train in model.dtype of the config.
docs/performance.md explains every number.
"""

from __future__ import annotations

import json
from typing import Any

import jax
from absl import flags
from etils import epath

import process_gen
from launch import (
    bench_bagel,
    bench_data,
    bench_figures,
    bench_sample,
    bench_sizes,
    bench_steps,
    bench_train,
    common,
)
from process_gen.core import configs
from process_gen.core.errors import ConfigError

SUITES = ("train", "sample", "data", "bagel_cpu", "steps", "sizes")
DATA_ROUNDS = 20  # at least; a batch takes little time


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    common.define_config(values)
    flags.DEFINE_enum("suite", None, SUITES, "what to measure", flag_values=values)
    flags.DEFINE_multi_enum(
        "parts", None, list(bench_sizes.PARTS), "what of sizes", flag_values=values
    )
    flags.DEFINE_string("checkpoint", "", "who paints", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "timed rounds", 1, flag_values=values)
    flags.DEFINE_integer("prompts", 1000, "length of the queue", 1, flag_values=values)
    flags.DEFINE_integer("per_tag", 100, "prompts of a tag", 1, flag_values=values)
    flags.DEFINE_string("reference", "", "command beside which ours runs", flag_values=values)
    flags.DEFINE_boolean("bf16", False, "the peak in bfloat16 too", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)
    flags.DEFINE_string("out", "", "file for the JSON object", flag_values=values)
    flags.DEFINE_string("figure", "", "PNG file", flag_values=values)


def run_suite(values: flags.FlagValues) -> dict[str, Any]:
    """The numbers of the suite that the flags name."""
    rounds = values.rounds
    dtypes = ("float32", "bfloat16") if values.bf16 else ("float32",)
    if values.suite == "bagel_cpu":
        return bench_bagel.measure_all(rounds, dtypes, values.reference)
    if values.suite == "sample":
        painter = process_gen.load(values.checkpoint)
        return bench_sample.measure_all(painter, rounds, dtypes, values.prompts)
    if values.suite == "steps":
        return bench_steps.measure_all(process_gen.load(values.checkpoint), values.per_tag)
    if values.suite == "sizes":
        parts = values.parts or list(bench_sizes.PARTS)
        return bench_sizes.measure_all(common.read_config(values), rounds, parts)
    config = configs.to_mapping(common.read_config(values))
    if values.suite == "data":
        return bench_data.measure_all(config, max(rounds, DATA_ROUNDS))
    return bench_train.measure_all(config, rounds, dtypes)


def _lines(found: Any, path: str = "") -> list[str]:
    """Every number on a line of its own."""
    if isinstance(found, dict):
        return [line for k, v in found.items() for line in _lines(v, f"{path}.{k}" if path else k)]
    if isinstance(found, list) and found and isinstance(found[0], dict):
        return [line for i, v in enumerate(found) for line in _lines(v, f"{path}[{i}]")]
    return [f"{path:<52} {found}"]


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    if values.suite is None:
        raise ConfigError(f"--suite is missing: {', '.join(SUITES)}")
    if values.figure:
        bench_figures.check(values.suite)
    common.enable_compilation_cache()
    found = {
        "suite": values.suite,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "rounds": values.rounds,
        **run_suite(values),
    }
    print("\n".join(_lines(found)))
    text = json.dumps(found)
    if values.out:
        epath.Path(values.out).write_text(text + "\n")
    if values.figure:
        bench_figures.write(found, values.figure)
    if values.json:
        print(text)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
