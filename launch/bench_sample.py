"""The sampler's pieces at several batch sizes, whole trajectories, and 1,000 mixed prompts."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench_timing
from launch.bench_train import WIDTHS
from process_gen.core import flow_matching as flow
from process_gen.core.configs import SamplerConfig
from process_gen.core.grammar import Kind, context_kinds
from process_gen.models import flops, functional
from process_gen.sampling.cache import FOREVER
from process_gen.sampling.calls import Begun, Rows, course
from process_gen.sampling.painter import Painter
from process_gen.sampling.programs import Programs
from process_gen.sampling.studio import Usage, bucket
from process_gen.strokes import prompts as strokes_prompts
from process_gen.strokes import scene as strokes_scene

CONTEXT, PROMPT, WRITTEN = 128, 32, 32
LONGER = 4  # times the steps, of a call that is timed beside one of a painting
BATCHES = (1, 4, 16, 64)


def _rows(batch: int, length: int) -> Rows:
    """Rows that see the same number of earlier tokens."""
    slots = bucket(length, 1 << 30)
    used = np.arange(slots) < length
    order = np.where(used, np.arange(slots), np.iinfo(np.int32).max).astype(np.int32)
    to = np.where(used, FOREVER, -1).astype(np.int32)
    number = np.full(batch, length, np.int32)
    return Rows(
        index_B=np.arange(batch, dtype=np.int32),
        active_B=np.ones(batch, bool),
        length_B=number,
        order_B=number + 1,
        position_B=number,
        slot_order_B=number - length // 2,
        slot_position_B=number - length // 2,
        visible_from_BxC=np.tile(order, (batch, 1)),
        visible_to_BxC=np.tile(to, (batch, 1)),
        seed_Bx4=np.zeros((batch, 4), np.uint32),
    )


def pieces(
    programs: Programs, painter: Painter, batch: int, steps: int, context: int = CONTEXT
) -> dict[str, Callable]:
    """Calls of one batch size over so many earlier tokens. What writes to the pool keeps it."""
    pool = [programs.make_pool(batch)]
    rows, empty = _rows(batch, context), _rows(batch, 0)
    tokens = np.ones((batch, PROMPT), np.int32)
    counts = np.full(batch, PROMPT, np.int32)
    image = np.zeros((batch, *programs.size, 3), np.uint8)
    copies = image, programs.und_copies(jnp.asarray(image))
    # So many tokens before its end that the text is written in one call of `WRITTEN` turns.
    longest = programs.sampler.max_text
    begun = Begun(
        np.full(batch, 5, np.int32), np.full(batch, longest - WRITTEN, np.int32), np.int32(batch)
    )

    def keeping(call: Callable[..., Any], *args: Any) -> Any:
        pool[0], rest = call(painter.weights, pool[0], *args)
        return rest

    at = course([flow.time_grid(steps, 1.0)] * batch, batch, 2.0)

    def paint(guided: bool) -> Any:
        return programs.denoise(painter.weights, pool[0], rows, guided, at)

    return {
        "prefill": functools.partial(keeping, programs.prefill, empty, tokens, counts),
        "decode": functools.partial(keeping, programs.write_text, rows, begun),
        "denoise": lambda: paint(False),
        "guided": lambda: paint(True),
        "re-encode": functools.partial(keeping, programs.read_picture, rows, *copies),
    }


def compile_all(groups: Sequence[Mapping[Any, Callable]]) -> None:
    """Makes every call once: groups side by side, which may not share a pool."""

    def make(group: Mapping[Any, Callable]) -> None:
        for call in group.values():
            jax.block_until_ready(call())

    with ThreadPoolExecutor() as threads:
        list(threads.map(make, groups))


def copies_read(programs: Programs) -> dict[Kind, int]:
    """Tokens of each copy that a painter reads of its pictures, boundary tokens included."""
    kinds = context_kinds(programs.config.data.grammar)
    return {kind: programs.picture_tokens[kind] for kind in kinds}


def _piece_flops(programs: Programs, batch: int, steps: int, turns: dict[str, float]) -> dict:
    model = programs.config.model
    n = (programs.size[0] // programs.codec.side) * (programs.size[1] // programs.codec.side)
    one = sum(flops.forward(model, flops.velocity(n, CONTEXT)).values())
    other = sum(flops.forward(model, flops.velocity(n, CONTEXT // 2)).values())
    copies = copies_read(programs)
    pairs = seen = 0
    for tokens in copies.values():
        seen += tokens
        pairs += tokens * (CONTEXT + seen)
    read = flops.Work(
        text=2 * len(copies),
        patches=copies.get(Kind.UND, 2) - 2,
        latents=copies.get(Kind.CLEAN, 2) - 2,
        pairs=pairs,
        labels=1,
        times=int(Kind.CLEAN in copies),
    )
    prefill = flops.Work(text=PROMPT, pairs=PROMPT * (PROMPT + 1) // 2, labels=1)
    written = sum(
        sum(flops.forward(model, flops.written_token(CONTEXT + i)).values())
        for i in range(int(turns["decode"]))
    )
    return {
        "prefill": batch * sum(flops.forward(model, prefill).values()),
        "decode": batch * written,
        "denoise": batch * steps * one,
        "guided": batch * steps * (one + other),
        "re-encode": batch * sum(flops.forward(model, read).values()),
    }


def untrained(painter: Painter, **model: Any) -> Painter:
    """The same with changes to the model's sizes and random weights: for timing alone."""
    config = dataclasses.replace(
        painter.config, model=dataclasses.replace(painter.config.model, **model)
    )
    return Painter(config, jax.jit(functional.build(config.model).init)(jax.random.key(0)))


def measure_pieces(
    painter: Painter,
    rounds: int,
    best: float,
    size: tuple[int, int],
    batches: Sequence[int] = BATCHES,
) -> list:
    """A row of numbers for each batch size.

    `step_of_peak` is of a step alone: what a call of `LONGER` times the steps takes longer; None
    where it took no longer.
    """
    steps = painter.config.sampler.denoise_steps
    found = []
    sampler = painter.config.sampler
    bound = {b: painter._bound(dataclasses.replace(sampler, batch=b), size) for b in batches}
    groups = {b: pieces(programs, painter, b, steps) for b, programs in bound.items()}
    for batch, programs in bound.items():
        more = pieces(programs, painter, batch, LONGER * steps)
        groups[batch] |= {f"longer {name}": more[name] for name in ("denoise", "guided")}
    compile_all(list(groups.values()))
    for batch, calls in groups.items():
        programs = bound[batch]
        calls["prefill"]()  # what the texts are written after, as in the rounds
        turns = {"decode": float(np.asarray(calls["decode"]().turns))}
        needed = _piece_flops(programs, batch, steps, turns)
        times = bench_timing.interleaved(calls, rounds)
        passes = {"denoise": steps, "guided": steps, "decode": turns["decode"]}
        alone: dict[str, dict[str, float | None]] = {}
        for name in ("denoise", "guided"):
            longer = times.pop(f"longer {name}").median - times[name].median
            # On a machine that is disturbed a longer call may take no longer.
            share = needed[name] * (LONGER - 1) / longer / best if longer > 0 else None
            alone[name] = {"step_of_peak": share and round(share, 4)}
        found.append({
            "batch": batch,
            **{
                name: t.summary(
                    ms_a_pass=round(1e3 * t.median / passes.get(name, 1), 4),
                    of_peak=round(needed[name] / t.median / best, 4),
                    **alone.get(name, {}),
                )
                for name, t in times.items()
            },
        })  # fmt: skip
    return found


def mixed_prompts(count: int, seed: int = 0) -> list[str]:
    """Prompts of every tag in turn, long and short."""
    tags = strokes_prompts.TAGS
    each = -(-count // len(tags))
    drawn = [strokes_prompts.held_out_requirements(tag, each, seed) for tag in tags]
    mixed = [found["prompt"] for group in zip(*drawn, strict=True) for found in group]
    return mixed[:count]


def crowded_prompts(count: int, seed: int = 0) -> list[str]:
    """Prompts of six objects, more than any that was learned from: their trajectories are long."""
    rng = np.random.default_rng(seed)
    objects = [
        f"a {color} {shape}" for color in strokes_scene.COLORS for shape in strokes_scene.SHAPES
    ]
    return [" and ".join(rng.choice(objects, 6, replace=False)) for _ in range(count)]


def serve(painter: Painter, prompts: Sequence[str], mode: str, **settings: Any) -> dict[str, Any]:
    """Paints a queue of prompts: what was compiled on the way, and how full the batches were."""
    usage, lengths = Usage(), []
    started = time.perf_counter()
    with bench_timing.compilations() as counter:
        for trajectory in painter.stream(prompts, mode=mode, usage=usage, **settings):
            lengths.append(len(trajectory.images))
    seconds = time.perf_counter() - started
    return {
        "prompts": len(prompts),
        "pictures": sum(lengths),
        "seconds": round(seconds, 2),
        "compilations": counter.count,
        **usage.summary(),
    }


def trajectory_growth(painter: Painter, rounds: int, most: int = 12) -> list[dict[str, Any]]:
    """What a batch of trajectories costs by its number of pictures, from the calls it is made of.

    Each picture is `WRITTEN` tokens of plan, the painting with guidance, the reading back and
    `WRITTEN` tokens of inspection, over all that came before. No painter of the Strokes world goes
    on for so long by itself.
    """
    batch, steps = painter.config.sampler.batch, painter.config.sampler.denoise_steps
    size = painter._default_size()
    copies = sum(copies_read(painter._bound(painter.config.sampler, size)).values())
    contexts = [PROMPT + n * (2 * WRITTEN + copies) for n in range(most + 1)]
    room = bucket(contexts.pop(), 1 << 30)
    sampler = dataclasses.replace(painter.config.sampler, max_context=room)
    programs = painter._bound(sampler, size)
    once = ("decode", "guided", "re-encode")
    groups: list[dict[Any, Callable]] = []
    for context in contexts:
        made = pieces(programs, painter, batch, steps, context)
        groups.append({(context, name): made[name] for name in once})
    compile_all(groups)
    calls: dict[Any, Callable] = {key: call for group in groups for key, call in group.items()}
    # A text may close before `WRITTEN` turns are over.
    turns = {c: float(np.asarray(calls[c, "decode"]().turns)) for c in contexts}
    times = bench_timing.interleaved(calls, rounds)
    found, spent = [], 0.0
    for number, context in enumerate(contexts, 1):
        parts = {name: times[context, name].median for name in once}
        parts["decode"] *= WRITTEN / turns[context]
        spent += sum(parts.values()) + parts["decode"]  # a plan and an inspection
        tokens = context + 2 * WRITTEN + copies
        cache = 8 * tokens * painter.config.model.num_layers
        cache *= painter.config.model.num_kv_heads * painter.config.model.head_dim
        found.append({
            "pictures": number,
            "ms": round(1e3 * spent, 2),
            "tokens": tokens,
            "cache_mb": round(batch * cache / 1e6, 2),
            **{name: round(1e3 * part, 3) for name, part in parts.items()},
        })  # fmt: skip
    return found


def one_shot_ratio(painter: Painter, rounds: int, steps: int = 50) -> dict[str, Any]:
    """Process paintings of 1 to 5 pictures beside one-shot pictures, in the same rounds.

    Both as the painter's settings say, one-shot with `steps` steps besides. A batch of prompts
    each: in process mode such that end in so many pictures, be they what was asked for or not.

    Returns:
      Times; by number of pictures, `whole`, the ratio of whole paintings to one-shot ones, and
      `pictures`, that of painting and reading back all pictures to painting a one-shot one. The
      latter are calls of full batches by themselves, without writing.
    """
    sampler: SamplerConfig = painter.config.sampler
    batch, size = sampler.batch, painter._default_size()
    words = [*mixed_prompts(24 * batch, seed=2), *crowded_prompts(24 * batch)]
    drawn: dict[int, list[str]] = {}
    for word, painted in zip(words, painter.paint(words), strict=True):
        drawn.setdefault(len(painted.images), []).append(word)
    drawn = {k: of[:batch] for k, of in sorted(drawn.items()) if len(of) >= batch}
    one_shot = {
        f"one_shot_{n}": functools.partial(
            painter.paint, words[:batch], mode="one_shot", one_shot_steps=n
        )
        for n in sorted({sampler.one_shot_steps, steps})
    }
    calls = {f"process_{k}": functools.partial(painter.paint, of) for k, of in drawn.items()}
    times = bench_timing.interleaved({**calls, **one_shot}, rounds)
    own = pieces(painter._bound(sampler, size), painter, batch, sampler.denoise_steps)
    parts = {
        "process": own["guided" if sampler.guidance != 1 else "denoise"],
        "read back": own["re-encode"],
        **{
            name: pieces(painter._bound(sampler, size), painter, batch, int(name.split("_")[-1]))[
                "guided" if sampler.one_shot_guidance != 1 else "denoise"
            ]
            for name in one_shot
        },
    }
    spent = bench_timing.interleaved(parts, rounds)
    a_picture = spent["process"].median + spent["read back"].median
    return {
        **{name: t.summary() for name, t in times.items()},
        "parts": {name: t.summary() for name, t in spent.items()},
        "ratios": {
            name: {
                k: {
                    "whole": round(times[f"process_{k}"].median / times[name].median, 3),
                    "pictures": round(k * a_picture / spent[name].median, 3),
                }
                for k in drawn
            }
            for name in one_shot
        },
    }


def measure_all(
    painter: Painter, rounds: int, dtypes: tuple[str, ...], prompts: int
) -> dict[str, Any]:
    """Every number of the suite."""
    model, size = painter.config.model, painter._default_size()
    n = (size[0] // painter._codec.side) * (size[1] // painter._codec.side)
    shapes = [(b * n, model.width, model.mlp_width) for b in (16, 64, 128)]
    shapes += [(b * n, model.mlp_width, model.width) for b in (16, 64, 128)]
    peak = bench_timing.peaks(shapes, dtypes)
    best = 1e9 * peak["gflops"]["float32"]
    words = mixed_prompts(prompts)
    pool, programs = jax.devices()[0].device_kind, painter._bound(painter.config.sampler, size)
    found: dict[str, Any] = {
        "device": pool,
        "peak": peak,
        "pieces": measure_pieces(painter, rounds, best, size),
        "wider": {
            name: measure_pieces(untrained(painter, **WIDTHS[name]), rounds, best, size, (16, 64))
            for name in ("width_256", "width_512")
        },
        "by_pictures": trajectory_growth(painter, max(1, rounds // 2)),
        "against_one_shot": one_shot_ratio(painter, rounds),
    }
    rows = _rows(painter.config.sampler.batch, CONTEXT)
    abstract = jax.eval_shape(lambda: programs.make_pool(painter.config.sampler.batch))
    at = course([flow.time_grid(10, 1.0)], painter.config.sampler.batch, 2.0)
    args = (programs, painter.weights, abstract, rows, True, at)
    found["denoise_memory"] = bench_timing.memory(Programs.denoise.lower(*args).compile())
    # As many: a trajectory long enough for the widest cache comes about once in several hundred.
    serve(painter, mixed_prompts(prompts, seed=1), "process")
    found["serving"] = serve(painter, words, "process")
    found["denoise_compile_seconds"] = bench_timing.compile_seconds(
        lambda: Programs.denoise.lower(*args)
    )
    found["peak_memory_mb"] = bench_timing.peak_memory_mb()
    return found
