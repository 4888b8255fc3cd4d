"""Measures the memory that an import needs, on a synthetic checkpoint of the released widths.

    python tests/checkpoint/measure_import.py --layers=7 --folder=/somewhere/with/30GB

Writes 3.0 GB, and 0.93 GB a layer, of random bfloat16 weights in the official layout, imports them
in a process of its own, samples that process's anonymous memory, exports again, compares, and
deletes everything. Not a test: it takes minutes. The limit is twice the largest stacked array plus
1 GB.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from process_gen.checkpoint import name_map, safetensors_io
from process_gen.core.configs import ModelConfig
from process_gen.core.encoder_sizes import VaeSizes
from process_gen.models.shapes import BAGEL

BF16 = np.dtype(ml_dtypes.bfloat16)
RELEASED = ModelConfig(
    vocab_size=152064,
    width=3584,
    mlp_width=18944,
    num_heads=28,
    num_kv_heads=4,
    head_dim=128,
    codec="flux",
    patch=2,
    codec_channels=16,
    latent_grid=64,
    und_encoder="siglip",
    und_patch=14,
    und_grid=70,
    time_features=256,
    layers="scan",
)


def write_checkpoint(folder: Path, layers: int) -> int:
    """Writes the official files; returns the bytes of the largest stacked array."""
    model = dataclasses.replace(RELEASED, num_layers=layers)
    shapes = BAGEL.model(model)
    entries = name_map.model_entries(shapes)
    block = np.random.default_rng(0).standard_normal(1 << 24, np.float32).astype(BF16)
    with safetensors_io.write_file(
        folder / "ema.safetensors", {e.key: (e.shape, BF16) for e in entries}
    ) as writer:
        for number, e in enumerate(entries):
            writer.write(e.key, np.resize(np.roll(block, 997 * number), e.shape))
    sizes = VaeSizes(channels=32, multipliers=(1, 1, 1, 1))
    tensors = {e.key: np.zeros(e.shape, np.float32) for e in name_map.vae_entries(BAGEL.vae(sizes))}
    specs = {key: (array.shape, array.dtype) for key, array in tensors.items()}
    with safetensors_io.write_file(folder / "ae.safetensors", specs) as writer:
        for key, array in tensors.items():
            writer.write(key, array)
    ids = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
    special = {name: 151644 + i for i, name in enumerate(ids)}
    for name, content in {
        "config": {"special_tokens": special},
        "llm_config": {"rope_theta": 1e6, "rms_norm_eps": 1e-6},
        "vit_config": {"num_attention_heads": 16},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return max(int(np.prod(leaf.shape)) * 2 for leaf in name_map.flatten(shapes).values())


def run(command: list[str]) -> tuple[int, float]:
    """Runs a command; returns its peak anonymous memory in bytes and its seconds."""
    start, peak = time.time(), 0
    process = subprocess.Popen([sys.executable, "-m", *command], env={**os.environ})
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = [line.split() for line in status.splitlines() if line.startswith("RssAnon")]
        peak = max([peak, *(int(parts[1]) << 10 for parts in found)])
        time.sleep(0.02)
    if process.wait():
        raise SystemExit(f"{command[0]} failed")
    return peak, time.time() - start


def main() -> None:
    """Measures and prints; the exit status says whether the limit held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--folder", default=None)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        source, imported, exported = root / "source", root / "imported", root / "exported"
        source.mkdir()
        largest = write_checkpoint(source, arguments.layers)
        size = (source / "ema.safetensors").stat().st_size
        print(f"{size / 1e9:.2f} GB of weights, largest stacked array {largest / 1e9:.2f} GB")
        peak, seconds = run(
            ["launch.import_bagel", f"--source={source}", f"--output={imported}"]
            + ["--tokenizer=bytes"]
        )
        limit = 2 * largest + 10**9
        print(f"import: {peak / 1e9:.2f} GB of {limit / 1e9:.2f} GB allowed, {seconds:.0f} s")
        original = source / "ema.safetensors"
        back, seconds = run(
            ["launch.export_bagel", f"--checkpoint={imported}", f"--output={exported}"]
        )
        same = subprocess.call(["cmp", str(original), str(exported / "ema.safetensors")]) == 0
        print(
            f"export: {back / 1e9:.2f} GB, {seconds:.0f} s, {'same bytes' if same else 'DIFFERS'}"
        )
        if peak > limit or not same:
            raise SystemExit(1)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
