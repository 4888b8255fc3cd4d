"""The programs of training and of painting as they are compiled: with shapes instead of arrays.

The functions describe; no mesh is in force while they run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from process_gen.aot.full_pack import full_pack
from process_gen.core import axes
from process_gen.core import flow_matching as flow
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models import flops, functional
from process_gen.models.shapes import vae_shapes
from process_gen.sampling.cache import Pool, Weights, make_pool
from process_gen.sampling.calls import Begun, Course, Rows, course
from process_gen.sampling.programs import Programs
from process_gen.sharding import rules
from process_gen.train import latents, loop, optimizer, step
from process_gen.train import state as state_lib


class Program(NamedTuple):
    """What is to be compiled, and what is known of it beforehand.

    Attributes:
      jitted: of `jax.jit`. It keeps arguments that it does not read, such as the head while a
        picture is painted: they lie in the memory all the same.
      arguments: of it; arrays are `jax.ShapeDtypeStruct`s with shardings.
      parts: the arguments that lie in a device's memory, by name.
      model_flops: of one run on all devices, padding and what is computed again left out.
      recomputed_flops: what is computed again.
      traffic: bytes that must cross a chip's memory in one run: at every pass the weights that it
        reads, in the type of the computation and cut by `tensor` alone, and the caches of its rows;
        a training state once in and once out.
      turns: of the loop whose number of turns is an argument, so that no text states it.
    """

    jitted: Any
    arguments: tuple
    parts: Mapping[str, Any]
    model_flops: int
    recomputed_flops: int
    traffic: int
    turns: int = 1


def train(config: Config, mesh: Mesh) -> Program:
    """The step of `launch.train` on full packs.

    Raises:
      ConfigError: the batch or the heads cannot be dealt to the mesh.
    """
    rules.check_rows(config.data.rows, mesh)
    rules.check_lengths(config.data, mesh)
    rules.check_heads(config.model, mesh)
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    state = state_lib.abstract_state(fns, rule, config.train.steps, mesh)
    pack, rows = full_pack(config), config.data.rows
    batch = jax.tree.map(lambda x: _tokens((rows, *x.shape[1:]), x.dtype, mesh), pack)
    run = step.make_train_step(fns, rule, schedule, config, latents.of_model(config.model))
    work = flops.of_batch(pack) * rows
    again = flops.recomputed(config.model, work)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(
        loop.jit_step(run, state),
        (state, batch, key),
        {
            "parameters": state.params,
            "optimizer": state.opt_state,
            "ema": state.ema,
            "batch": batch,
        },
        model_flops=flops.train(config.model, work),
        recomputed_flops=again,
        traffic=(2 + (again > 0)) * _in_use(state.params, config, mesh) + 2 * shard_bytes(state),
    )


def denoise(config: Config, mesh: Mesh) -> Program:
    """Painting of one picture a row, guided by text, over full caches; weights are spread.

    See `sampling.programs.Programs.denoise`.

    Raises:
      ConfigError: the heads cannot be dealt to the mesh, or the tokenizer has more tokens than
        the model.
    """
    programs, weights, pool, rows = _painting(config, mesh)
    sampler, model = config.sampler, config.model
    guided = sampler.guidance != 1.0
    own = sampler.process_shift
    grid = flow.time_grid(sampler.denoise_steps, sampler.timestep_shift if own is None else own)
    times = flow.evaluation_times(grid, sampler.solver)
    acts = int(flow.guided_at(times, sampler.guidance_interval).sum())
    fresh = -(-acts // sampler.guidance_every)
    side = programs.size[0] // programs.codec.side
    one = flops.velocity(side * side, sampler.max_context)
    work = one * (sampler.batch * (len(times) + guided * fresh))
    # A picture's boundary tokens pass the und expert; of the table they are two rows.
    unread = ("embed", "lm_head", "und_encoder", "connector")
    read = {name: part for name, part in weights.model.items() if name not in unread}

    at = course([grid] * sampler.batch, sampler.batch, sampler.guidance)
    whole = rules.replicated(mesh)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), at)

    def run(weights: Weights, pool: Pool, rows: Rows, course: Course) -> Any:
        return programs.denoise(weights, pool, rows, guided, course)

    return Program(
        jax.jit(run, keep_unused=True),
        (weights, pool, rows, abstract),
        {"parameters": weights, "cache": pool},
        model_flops=sum(flops.forward(model, work).values()),
        recomputed_flops=0,
        traffic=len(times) * _of_a_pass(read, pool, config, mesh),
        turns=sampler.denoise_steps - (sampler.solver == "heun"),  # whose last step is no turn
    )


def decode(config: Config, mesh: Mesh) -> Program:
    """Writing of a text of `sampler.max_text` tokens a row over full caches; weights are spread.

    See `sampling.programs.Programs.write_text`.

    Raises:
      ConfigError: the heads cannot be dealt to the mesh, or the tokenizer has more tokens than
        the model.
    """
    programs, weights, pool, rows = _painting(config, mesh)
    sampler = config.sampler
    work = flops.written_token(sampler.max_context) * (sampler.batch * sampler.max_text)
    # Text passes the und expert alone, and of the table each token is one row.
    read = {
        "layers": weights.model["layers"]["und"],
        "norm": weights.model["final_norm"]["und"],
        "head": weights.model["lm_head"],
    }
    whole = rules.replicated(mesh)
    number = jax.ShapeDtypeStruct((sampler.batch,), np.int32, sharding=whole)
    patience = jax.ShapeDtypeStruct((), np.int32, sharding=whole)
    return Program(
        jax.jit(programs.write_text, donate_argnums=1, keep_unused=True),
        (weights, pool, rows, Begun(number, number, patience)),
        {"parameters": weights, "cache": pool},
        model_flops=sum(flops.forward(config.model, work).values()),
        recomputed_flops=0,
        traffic=sampler.max_text * _of_a_pass(read, pool, config, mesh),
    )


PROGRAMS: Mapping[str, Callable[[Config, Mesh], Program]] = {
    "train": train,
    "denoise": denoise,
    "decode": decode,
}


def _painting(config: Config, mesh: Mesh) -> tuple[Programs, Weights, Pool, Rows]:
    model, sampler = config.model, config.sampler
    rules.check_heads(model, mesh)
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.vocab_size > model.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, model.vocab_size={model.vocab_size}"
        )
    fns = functional.build(model)
    side = config.data.image_size or model.latent_grid * model.latent_side
    programs = Programs(
        fns, config, token_ids(tokenizer), tokenizer.vocab_size, sampler, (side, side)
    )
    shapes = jax.eval_shape(lambda: fns.init(jax.random.key(0)))
    spread = rules.logical_to_sharding(fns.logical_axes, mesh, shapes)
    weights = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), shapes, spread
    )
    whole = rules.replicated(mesh)
    vae = None
    if model.codec == "flux":
        vae = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), vae_shapes(model.vae)
        )
    batch, slots = sampler.batch, sampler.max_context

    def by_head(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        spec = rules.partition_spec((*[None] * (x.ndim - 3), axes.KV_HEADS))
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    pool = jax.tree.map(by_head, jax.eval_shape(lambda: make_pool(model, batch + 1, slots)))

    def integers(*shape: int, dtype: Any = np.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype, sharding=whole)

    rows = Rows(
        index_B=integers(),
        active_B=integers(dtype=np.bool_),
        length_B=integers(),
        order_B=integers(),
        position_B=integers(),
        slot_order_B=integers(),
        slot_position_B=integers(),
        visible_from_BxC=integers(slots),
        visible_to_BxC=integers(slots),
        seed_Bx4=integers(4, dtype=np.uint32),
    )
    return programs, Weights(weights, vae), pool, rows


def _tokens(shape: tuple[int, ...], dtype: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rules.token_sharding(shape, mesh))


def _in_use(weights: Any, config: Config, mesh: Mesh) -> int:
    """Bytes of all weights as a device uses them, one layer at a time."""
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(weights))
    pieces = math.prod(mesh.shape[name] for name in rules.RULES[axes.HEADS])
    return count * jnp.dtype(config.model.dtype).itemsize // pieces


def _of_a_pass(read: Any, pool: Pool, config: Config, mesh: Mesh) -> int:
    """Bytes of weights, and of the pool without its scratch row, which no full call reads."""
    rows = config.sampler.batch
    return _in_use(read, config, mesh) + shard_bytes(pool) * rows // (rows + 1)


def shard_bytes(tree: Any) -> int:
    """Bytes of a tree on one device, without what it keeps in its host's memory."""
    leaves = [x for x in jax.tree.leaves(tree) if hasattr(x, "sharding")]
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in leaves
        if x.sharding.memory_kind != "pinned_host"
    )
