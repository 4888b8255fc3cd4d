"""The work of the PyTorch reference's benchmark: sizes of configs/bagel_cpu.json, random weights.

* train: forward and backward over two samples of 332 tokens each, ``text (CE) | noised picture
  (MSE) | clean picture | understanding picture | text (CE) | noised picture (MSE)``, texts of 34
  tokens with their boundaries, pictures of 64 tokens and two boundary tokens; the understanding
  encoder runs inside and is trained, latents are given, nothing is updated, each layer has
  weights of its own (`functional.apart`), as on the other side, and the compiler has the trainer's
  options;
* denoise: a picture of 64 latent tokens in 20 Euler steps over a context of 64 text tokens; reading
  the text and decoding the latents are not inside;
* guided: the same with text guidance 4 and image guidance 1.5 at each step: three passes, the text
  branch without a context, the image branch with the text's;
* decode: 32 greedy tokens after 64, one a step.
"""

from __future__ import annotations

import contextlib
import functools
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from launch import bench_timing
from process_gen.core import flow_matching as flow
from process_gen.core.batch import (
    NO_LABEL,
    PackedBatch,
    PatchSizes,
    TokenIds,
    lay_out,
    measure,
    pack,
    stack,
)
from process_gen.core.configs import Config, SamplerConfig, from_mapping
from process_gen.core.errors import ConfigError
from process_gen.core.grammar import Kind, Part, Segment
from process_gen.models import flops, functional
from process_gen.sampling.cache import Weights
from process_gen.sampling.contexts import Branches, ContextPrograms, Contexts
from process_gen.sampling.painter import arranged
from process_gen.train import step
from process_gen.train.loop import compiler_options

SIZES = Path(__file__).resolve().parents[1] / "configs" / "bagel_cpu.json"
TEXT, STEPS, WRITTEN, SIDE, UND_SIDE = 64, 20, 32, 128, 112
# As in the reference's own timing: a call to warm up, on either side.
WARM = 1


def read_config(**model: Any) -> Config:
    """The sizes of the file, with changes to the model's section."""
    said = json.loads(SIZES.read_text(encoding="utf-8"))
    main, llm, vit, vae = (
        said["config"],
        said["llm_config"],
        said["vit_config"],
        said["config"]["vae"],
    )
    sizes = {
        "vocab_size": llm["vocab_size"],
        "width": llm["hidden_size"],
        "mlp_width": llm["intermediate_size"],
        "num_layers": llm["num_hidden_layers"],
        "num_heads": llm["num_attention_heads"],
        "num_kv_heads": llm["num_key_value_heads"],
        "head_dim": llm["hidden_size"] // llm["num_attention_heads"],
        "rope_theta": llm["rope_theta"],
        "norm_eps": llm["rms_norm_eps"],
        "codec": "flux",
        "patch": main["latent_patch_size"],
        "codec_channels": vae["z_channels"],
        "latent_grid": main["max_latent_size"],
        "und_encoder": "siglip",
        "und_patch": vit["patch_size"],
        "und_grid": main["vit_max_num_patch_per_side"],
        "time_features": 256,
        "prediction": "velocity",
        "attention": "auto",
        "vit": {
            "width": vit["hidden_size"],
            "mlp_width": vit["intermediate_size"],
            "num_layers": vit["num_hidden_layers"] + 1 + main["vit_select_layer"],
            "num_heads": vit["num_attention_heads"],
            "norm_eps": vit["layer_norm_eps"],
        },
        "vae": {
            "channels": vae["ch"],
            "multipliers": vae["ch_mult"],
            "blocks": vae["num_res_blocks"],
            "latent_channels": vae["z_channels"],
            "scale": vae["scale_factor"],
            "shift": vae["shift_factor"],
        },
    }
    return from_mapping({"model": {**sizes, **model}})


def token_ids() -> TokenIds:
    """Special tokens of the file; a text is a list of numbers in decimal."""
    ids = json.loads(SIZES.read_text(encoding="utf-8"))["config"]["special_tokens"]
    return TokenIds(
        encode=lambda text: [int(word) for word in text.split()],
        bos=ids["bos_token_id"],
        eos=ids["eos_token_id"],
        image_start=ids["start_of_image"],
        image_end=ids["end_of_image"],
        end_of_text=ids["eos_token_id"],
        specials=frozenset(ids.values()),
    )


def train_batch(config: Config, rng: np.random.Generator) -> PackedBatch:
    """Two rows, a sample each."""
    model, ids = config.model, token_ids()
    sizes = PatchSizes(model.latent_side, model.und_patch, model.latent_grid, model.und_grid)
    rows = []
    for _ in range(2):
        words = [" ".join(map(str, rng.integers(0, 4000, 32))) for _ in range(2)]
        picture = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        small = rng.integers(0, 256, (UND_SIDE, UND_SIDE, 3), np.uint8)
        side = SIDE // model.latent_side
        latents = rng.normal(size=(2, side, side, model.latent_features)).astype(np.float32)
        noised = {"kind": Kind.NOISED, "image": picture, "loss": True}
        segments = [
            Segment(Kind.TEXT, Part.PLAN, text=words[0], loss=True),
            Segment(part=Part.SKETCH, encoded=latents[0], **noised),
            Segment(Kind.CLEAN, Part.SKETCH, image=picture, encoded=latents[0]),
            Segment(Kind.UND, Part.SKETCH, image=small),
            Segment(Kind.TEXT, Part.PLAN, text=words[1], loss=True),
            Segment(part=Part.SKETCH, encoded=latents[1], **noised),
        ]
        run, lengths = lay_out(segments, ids, sizes), measure(segments, ids, sizes)
        rows.append(pack([run], lengths, sizes, encoded=model.latent_features))
    return stack(rows)


class _Given:
    """Latents that are stored as they are."""

    def features(self, stored: int) -> int:
        return stored

    def draw(self, key: jax.Array, shape: tuple[int, ...]) -> None:
        del key, shape

    def x0(self, stored_BxGxS: jax.Array, draw_BxGxP: jax.Array | None) -> jax.Array:
        del draw_BxGxP
        return stored_BxGxS


class Work(NamedTuple):
    """Calls to be timed, their FLOPs, and the compiled programs among them."""

    calls: Mapping[str, Callable[[], Any]]
    flops: Mapping[str, int]
    compiled: Mapping[str, Any]
    lower: Mapping[str, Callable[[], Any]]
    parameters: int


def build(config: Config, seed: int = 0) -> Work:
    """Everything compiled and ready."""
    fns = functional.build(config.model)
    params = jax.jit(fns.init)(jax.random.key(seed))
    if config.model.layers == "unroll":
        params = functional.apart(params)
    rng = np.random.default_rng(seed)
    batch = jax.device_put(train_batch(config, rng))
    draws = step.draw(jax.random.key(1), batch, _Given())

    def loss(params: Any, batch: PackedBatch, draws: step.Draws) -> jax.Array:
        found = step.elementwise_losses(fns, params, batch, draws, config, _Given())
        ce, mse = found.ce_BxT, jnp.where(found.mse_stage_BxG >= 0, found.mse_BxG, 0.0)
        return ce.sum() / (batch.label_BxT != NO_LABEL).sum() + mse.mean()

    options = compiler_options(jax.default_backend())
    train = jax.jit(jax.value_and_grad(loss), compiler_options=options)
    forward = jax.jit(loss)
    given = (params, batch, draws)

    ids = token_ids()
    programs = ContextPrograms(fns, config, ids, config.model.vocab_size)
    weights = Weights(arranged(config, params), None)
    contexts = Contexts(programs, weights, 2, slots=TEXT)
    tokens = rng.integers(0, 4000, TEXT).tolist()
    contexts.add_text([0], tokens)
    n = (SIDE // config.model.latent_side) ** 2
    eps = jnp.asarray(rng.normal(size=(n, config.model.latent_features)), jnp.float32)
    side, grid_side = SIDE // config.model.latent_side, config.model.latent_grid
    place = (np.arange(side)[:, None] * grid_side + np.arange(side)).astype(np.int32).ravel()
    grid = flow.time_grid(STEPS, 3.0)
    base = SamplerConfig(one_shot_guidance=4.0, image_guidance=1.5, renorm="global")

    def paint(rows: list[int], branches: Branches) -> Callable[[], Any]:
        at = contexts.at(rows)
        args = (weights, contexts.pool, at, eps, place, grid, branches, base)
        return lambda: programs.denoise(*args)

    def write() -> Any:
        at = contexts.at([0])
        seed_4 = np.zeros(4, np.uint32)
        return programs.write_text(weights, contexts.pool, at, seed_4, 0.0, 1.0, WRITTEN)

    def read() -> Any:
        fresh = Contexts(programs, weights, 1, slots=TEXT)
        return fresh.add_text([0], tokens)

    one = flops.velocity(n, TEXT)
    work = flops.of_batch(jax.device_get(batch))
    forward_flops = sum(flops.forward(config.model, work).values())
    denoise = STEPS * sum(flops.forward(config.model, one).values())
    bare = STEPS * sum(flops.forward(config.model, flops.velocity(n, 0)).values())
    written = sum(
        sum(flops.forward(config.model, flops.written_token(TEXT + i)).values())
        for i in range(WRITTEN)
    )
    pairs = TEXT * (TEXT + 1) // 2
    prefill = sum(flops.forward(config.model, flops.Work(text=TEXT, pairs=pairs)).values())
    return Work(
        calls={
            "train": lambda: train(*given),
            "forward": lambda: forward(*given),
            "denoise": paint([0], Branches(False, False)),
            "guided": paint([0, 1, 0], Branches(True, True)),
            "decode": write,
            "prefill": read,
        },
        flops={
            "train": flops.train(config.model, work),
            "forward": forward_flops,
            "denoise": denoise,
            "guided": 2 * denoise + bare,
            "decode": written,
            "prefill": prefill,
        },
        compiled={"train": train.lower(*given).compile()},
        lower={"train": lambda: train.lower(*given)},
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    )


def words(command: str) -> list[str]:
    """The words of a reference's command line.

    Raises:
      ConfigError: it does not begin with a program that is there.
    """
    try:
        found = shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"--reference={command!r} cannot be read: {error}") from error
    if not found or not shutil.which(found[0]):
        name = repr(found[0]) if found else "it is empty"
        raise ConfigError(f"--reference={command!r} begins with no program that is there: {name}")
    return found


class Reference:
    """Another program that does the same work: one call for each line that names it.

    `tests/parity/time_reference.py` is one. It answers every line with a line when it is done.

    Args:
      command: a command line.

    Raises:
      ConfigError: see `words`.
    """

    def __init__(self, command: str):
        self._command = command
        self._process = subprocess.Popen(
            words(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name: str) -> None:
        """Has a piece of work done.

        Raises:
          ConfigError: the program has ended; what it said is on the standard error.
        """
        given, answers = self._process.stdin, self._process.stdout
        assert given and answers
        with contextlib.suppress(BrokenPipeError):  # it has no answer then
            print(name, file=given, flush=True)
        if not answers.readline():
            code = self._process.wait()
            raise ConfigError(f"--reference: {self._command!r} ended with {code} at {name!r}")

    def close(self) -> None:
        """Ends the program."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()


def beside(
    calls: Mapping[str, Callable[[], Any]], reference: Reference
) -> dict[str, Callable[[], Any]]:
    """Each call followed by the same work of the reference."""
    found: dict[str, Callable[[], Any]] = {}
    for name, call in calls.items():
        found[name] = call
        found[f"reference {name}"] = functools.partial(reference.run, name)
    return found


def measure_all(
    rounds: int, dtypes: tuple[str, ...] = ("float32",), reference: str = ""
) -> dict[str, Any]:
    """Every number of the suite.

    Args:
      rounds: times that each call is measured.
      dtypes: of the peak.
      reference: command of a `Reference`, which does the same calls in turn with ours; its ratios
        are its medians over ours.

    Raises:
      ConfigError: the command names no program, or the program ends too early.
    """
    if reference:
        words(reference)
    config = read_config()
    work = build(config)
    model = config.model
    und, gen = 280, 384
    shapes = [(und, model.width, model.mlp_width), (gen, model.width, model.mlp_width)]
    shapes += [(gen, model.mlp_width, model.width), (gen, model.width, 512)]
    if reference:
        other = Reference(reference)
        found = bench_timing.interleaved(beside(work.calls, other), rounds, WARM)
        other.close()
    else:
        found = bench_timing.interleaved(work.calls, rounds, WARM)
    ours = {name: found[name] for name in work.calls}
    theirs = {name: found[key] for name in ours if (key := f"reference {name}") in found}
    again = bench_timing.peaks(shapes, dtypes)
    best = 1e9 * again["gflops"]["float32"]
    return {
        "sizes": SIZES.name,
        "parameters": work.parameters,
        "peak": again,
        "work": {
            name: times.summary(
                gflop=round(work.flops[name] / 1e9, 3),
                gflops=round(work.flops[name] / times.median / 1e9, 2),
                of_peak=round(work.flops[name] / times.median / best, 4),
            )
            for name, times in ours.items()
        },
        "reference": {
            name: times.summary(ratio=round(times.median / ours[name].median, 3))
            for name, times in theirs.items()
        },
        "train_memory": bench_timing.memory(work.compiled["train"]),
        "train_compile_seconds": bench_timing.compile_seconds(work.lower["train"]),
        "peak_memory_mb": bench_timing.peak_memory_mb(),
    }
