"""What attention costs: compiled memory by length, blocks visited in real packs, seconds on a CPU.

    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/kernels/measure_attention.py memory --chips=v5e,v6e
    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/kernels/measure_attention.py visits
    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/kernels/measure_attention.py draw --out=visits.png
    PYTHONPATH=. JAX_PLATFORMS=cpu python tests/kernels/measure_attention.py seconds
    PYTHONPATH=. JAX_PLATFORMS=cuda python tests/kernels/measure_attention.py tiles

`memory` needs the TPU compiler (``pip install -e '.[tpu]'``) and no TPU. Not a test: some compile
for minutes. docs/attention.md holds the tables.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.metadata
import logging
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.aot.full_pack import full_pack
from process_gen.core.attention_mask import dense_mask
from process_gen.core.batch import Place
from process_gen.core.configs import from_mapping
from process_gen.kernels import flash_gpu
from process_gen.kernels.block_visits import visited_blocks
from process_gen.kernels.chunked import chunked
from process_gen.kernels.dense import dense
from process_gen.kernels.key_block import KeyBlock
from process_gen.models.flops import visible_pairs
from tests.kernels.packs import real_places
from tests.kernels.programs import Sizes, compiled, tpu_devices

LENGTHS = (8192, 16384, 32768, 65536)


def versions() -> str:
    names = ("jax", "jaxlib", "libtpu")
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def memory(chips: list[str], implementations: list[str], lengths: list[int]) -> None:
    """Temporary bytes of output and gradients of one layer of the 7B model, one row, one chip."""
    print(f"{versions()}; MB of temporary memory, forward | forward and backward\n")
    print("| S | " + " | ".join(f"`{i}`, {c}" for i in implementations for c in chips) + " |")
    print("| --- |" + " --- |" * len(chips) * len(implementations), flush=True)
    for length in lengths:
        cells = []
        for implementation in implementations:
            for chip in chips:
                sizes = [
                    compiled(implementation, Sizes(length), tpu_devices(chip), backward=backward)
                    .memory_analysis()
                    .temp_size_in_bytes
                    / 1e6
                    for backward in (False, True)
                ]
                cells.append(f"{sizes[0]:,.0f} | {sizes[1]:,.0f}".replace(" | ", " / "))
        print(f"| {length:,} | " + " | ".join(cells) + " |", flush=True)


def share_of_pairs(place: Place) -> float:
    """Of all pairs of tokens, those in which the query sees the key."""
    length = place.order.shape[1]
    rows = (
        dense_mask(place.order[:, i : i + 512], place.visible_from, place.visible_to).sum()
        for i in range(0, length, 512)
    )
    return float(sum(rows)) / place.order.shape[0] / length**2


CASES = {
    "strokes_tiny": ("strokes_tiny", {}, (16, 32, 64)),
    "bagel_7b": ("bagel_7b", {}, (128, 256, 512, 1024)),
    "bagel_7b, T 2,048 and V 12,800": (
        "bagel_7b",
        {"text_len": 2048, "und_len": 12_800},
        (128, 256, 512, 1024),
    ),
}


def visits(rows: int = 4) -> None:
    """Blocks visited in the first packs, a row of the table for each size of block."""
    print("| packs of | S | pairs that see | block | visited | of | share |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, (config, data, blocks) in CASES.items():
        place = real_places(config, rows, **data)
        pairs = share_of_pairs(place)
        for block in blocks:
            visited = np.asarray(visited_blocks(*place[:3], block, block))
            one = visited.sum((1, 2)).mean()
            print(
                f"| {name} | {place.order.shape[1]:,} | {pairs:.1%} | {block} | {one:,.0f} | "
                f"{visited[0].size:,} | {visited.mean():.1%} |"
            )


def draw(out: Path) -> None:
    """One pack of each size: grey where a block is visited, darker the more of it is seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(9, 4.9), constrained_layout=True)
    for axis, (config, data, block) in zip(
        both,
        (("strokes_tiny", {}, 16), ("bagel_7b", {"text_len": 2048, "und_len": 12_800}, 512)),
        strict=True,
    ):
        place = real_places(config, 1, **data)
        length = place.order.shape[1]
        visited = np.asarray(visited_blocks(*place[:3], block, block))[0]
        side = len(visited)
        seen = np.zeros((side, side))
        for i in range(side):
            part = slice(i * block, (i + 1) * block)
            mask = np.asarray(
                dense_mask(place.order[:, part], place.visible_from, place.visible_to)
            )[0]
            padded = np.pad(mask.sum(0), (0, side * block - length))
            seen[i] = padded.reshape(side, block).sum(1) / block**2
        axis.imshow(np.where(visited, 0.25 + 0.75 * seen, 0.0), cmap="Greys", vmin=0, vmax=1)
        axis.set_title(
            f"{config}: {visited.sum():,} of {visited.size:,} blocks of {block}", fontsize=10
        )
        axis.set_xlabel("keys")
        axis.set_ylabel("queries")
        names = ("text_len", "und_len", "gen_len")
        lengths = [data.get(name) or _setting(config, name) for name in names]
        edges = np.cumsum([0, *lengths]) / block
        middles = (edges[:-1] + edges[1:]) / 2 - 0.5
        for edge in edges[1:-1]:
            axis.axhline(edge - 0.5, color="tab:red", linewidth=0.6)
            axis.axvline(edge - 0.5, color="tab:red", linewidth=0.6)
        axis.set_xticks(middles, ("text", "und", "gen"))
        axis.set_yticks(middles, ("text", "und", "gen"))
    figure.savefig(out, dpi=110)


def _setting(config: str, name: str) -> int:
    module = importlib.import_module(f"configs.{config}")
    return module.get_config().data[name]


def seconds(length: int, rounds: int) -> None:
    """Output and gradients of one row of trajectories at 512 px, 4 query and 2 key heads of 128."""
    scale = length / 33_280
    lengths = {
        key: round(size * scale / 128) * 128
        for key, size in (("text_len", 4096), ("und_len", 11_776), ("gen_len", 17_408))
    }
    place = real_places("bagel_7b", 1, size=200, **lengths)
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.normal(size=(*place.order.shape, n, 128)), jnp.float32) for n in (4, 2, 2)
    )
    integers = [jnp.asarray(x) for x in place[:3]]
    print(f"S = {place.order.shape[1]:,}; {share_of_pairs(place):.1%} of the pairs see")
    candidates = {"dense": dense} if length <= 4096 else {}
    for chunk in (256, 512, 1024):
        candidates[f"chunked {chunk}"] = functools.partial(chunked, chunk=chunk)

    def program(attention):
        def scalar(q, k, v, order, start, end):
            return jnp.sum(jnp.sin(attention(q, order, (KeyBlock(k, v, start, end),))))

        return jax.jit(jax.grad(scalar, argnums=(0, 1, 2))).lower(q, k, v, *integers).compile()

    programs = {name: program(attention) for name, attention in candidates.items()}
    found: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            started = time.perf_counter()
            jax.block_until_ready(run(q, k, v, *integers))
            found[name].append(time.perf_counter() - started)
    for name, run in programs.items():
        temporary = run.memory_analysis().temp_size_in_bytes / 1e6
        median = statistics.median(found[name])
        print(f"| {name} | {median:.2f} s | {temporary:,.0f} MB |")


TILES = {
    "forward": (
        (128, 64, 8, 3), (128, 64, 4, 3), (128, 128, 8, 2), (128, 128, 8, 3), (64, 64, 4, 3),
        (128, 32, 4, 4), (128, 64, 8, 2), (128, 64, 8, 4),
    ),
    "queries": (
        (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3), (128, 32, 4, 3),
        (128, 128, 8, 2), (128, 32, 8, 3),
    ),
    "keys": (
        (64, 64, 4, 2), (64, 64, 4, 3), (64, 128, 8, 2), (64, 128, 8, 3), (32, 128, 4, 3),
        (32, 128, 8, 3), (128, 128, 8, 2), (32, 64, 4, 3),
    ),
}  # fmt: skip


def tiles(rounds: int) -> None:
    """Each GPU kernel of one layer of the 7B model over a full pack, by its tile."""
    config = from_mapping(importlib.import_module("configs.bagel_7b").get_config().to_dict())
    pack = full_pack(config)
    order, start, end = (
        jnp.asarray(np.concatenate([place[i] for place in (pack.text, pack.und, pack.gen)], 1))
        for i in range(3)
    )
    pairs = visible_pairs(*(np.asarray(x) for x in (order, start, end)))
    product = 2 * pairs * 28 * 128
    q, k, v, d_out = (
        jax.random.normal(jax.random.key(i), (*order.shape, n, 128), jnp.bfloat16)
        for i, n in enumerate((28, 4, 4, 28))
    )
    block, scale, dtype = KeyBlock(k, v, start, end), 128**-0.5, jnp.dtype(jnp.bfloat16)

    def forward(tile, q, block, *_):
        return flash_gpu.forward_block(q, order, block, tile, scale, dtype)

    def backward(name, tile, q, block, outcome):
        chosen = flash_gpu.TILES._replace(**{name: tile})
        dq, *d_keys = flash_gpu.backward_block(q, order, block, outcome, chosen, scale, dtype)
        return dq if name == "queries" else d_keys

    out, lse = jax.jit(functools.partial(forward, flash_gpu.TILES.forward))(q, block)
    delta = (d_out.astype(jnp.float32) * out).sum(-1).swapaxes(1, 2)
    given = (q, block, flash_gpu.Outcome(d_out, lse, delta))
    kinds = {
        "forward": (2, forward),
        "queries": (3, functools.partial(backward, "queries")),
        "keys": (4, functools.partial(backward, "keys")),
    }
    print("| kernel | block_q, block_k, warps, stages | ms | useful TFLOP/s |")
    print("| --- | --- | --- | --- |")
    for kind, candidates in TILES.items():
        products, run = kinds[kind]
        for candidate in candidates:
            tile = flash_gpu.Tile(*candidate)
            try:
                program = jax.jit(functools.partial(run, tile)).lower(*given).compile()
            except Exception as error:  # too much shared memory, say
                print(f"| {kind} | {candidate} | {str(error)[:80]!r} | |", flush=True)
                continue
            found = []
            for _ in range(rounds + 1):
                started = time.perf_counter()
                jax.block_until_ready(program(*given))
                found.append(time.perf_counter() - started)
            median = statistics.median(found[1:])
            rate = products * product / median / 1e12
            print(f"| {kind} | {candidate} | {1e3 * median:.2f} | {rate:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("memory", "visits", "draw", "seconds", "tiles"))
    parser.add_argument("--chips", default="v5e")
    parser.add_argument("--implementations", default="pallas,chunked")
    parser.add_argument("--lengths", default=",".join(map(str, LENGTHS)))
    parser.add_argument("--length", type=int, default=8192, help="of `seconds`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("attention_visits.png"))
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.what == "memory":
        lengths = [int(length) for length in given.lengths.split(",")]
        memory(given.chips.split(","), given.implementations.split(","), lengths)
    elif given.what == "visits":
        visits()
    elif given.what == "draw":
        draw(given.out)
    elif given.what == "tiles":
        tiles(given.rounds)
    else:
        seconds(given.length, given.rounds)


if __name__ == "__main__":
    main()
