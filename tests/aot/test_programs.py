"""What is known of the programs of painting before they are compiled."""

from __future__ import annotations

import dataclasses
import math
import types

import jax
import pytest
from jax.sharding import AbstractMesh

from configs import strokes_tiny
from process_gen.aot import account, programs
from process_gen.aot.chips import CHIPS
from process_gen.aot.placement import Placement
from process_gen.core.configs import Config, MeshConfig, from_mapping
from process_gen.core.errors import ConfigError
from process_gen.models import flops
from process_gen.sharding.mesh import MESH_AXES, make_mesh

SAMPLER = {"batch": 3, "denoise_steps": 10, "guidance": 2.0, "max_text": 7, "max_context": 64}


def config_of(**sampler: object) -> Config:
    mapping = strokes_tiny.get_config("debug").to_dict()
    mapping["sampler"] |= SAMPLER | sampler
    return from_mapping(mapping)


def built(name: str, config: Config) -> programs.Program:
    return programs.PROGRAMS[name](config, make_mesh(MeshConfig(), jax.devices()[:1]))


def weights_bytes(program: programs.Program, *names: str) -> int:
    """Of the weights below the names, in the computation's type, float32."""
    leaves = jax.tree_util.tree_leaves_with_path(program.parts["parameters"].model)
    paths = [(jax.tree_util.keystr(p, simple=True, separator="/"), x) for p, x in leaves]
    for name in names:
        assert any(path.startswith(f"{name}/") for path, _ in paths), name
    return sum(
        4 * math.prod(x.shape)
        for path, x in paths
        if any(path.startswith(f"{name}/") for name in names)
    )


def cache_bytes(config: Config) -> int:
    """Keys and values of the rows of a call."""
    model, sampler = config.model, config.sampler
    numbers = 2 * model.num_layers * model.num_kv_heads * model.head_dim
    return 4 * numbers * sampler.batch * sampler.max_context


def test_writing_reads_the_understanding_expert_its_rows_and_the_head():
    config = config_of()
    program = built("decode", config)
    read = weights_bytes(program, "layers/und", "final_norm/und", "lm_head")
    assert program.traffic == 7 * (read + cache_bytes(config))
    assert weights_bytes(program, "layers/und") < weights_bytes(program, "layers")
    # Whatever there is beside it, for pictures.
    other = dataclasses.replace(config.model, und_encoder="none")
    assert built("decode", dataclasses.replace(config, model=other)).traffic == program.traffic


def test_painting_reads_both_experts_and_no_head():
    config = config_of()
    program = built("denoise", config)
    names = ("layers", "final_norm", "time_in", "time_out", "latent_in", "latent_out")
    assert program.traffic == 10 * (weights_bytes(program, *names) + cache_bytes(config))


@pytest.mark.parametrize(
    ("sampler", "evaluations", "guided"),
    [
        ({}, 10, 10),
        ({"guidance": 1.0}, 10, 0),
        ({"guidance_interval": (0.45, 1.0)}, 10, 6),  # 1, 0.9, ... 0.5
        ({"guidance_interval": (0.0, 0.55)}, 10, 5),  # 0.5, ... 0.1
        ({"guidance_every": 4}, 10, 3),
        ({"guidance_interval": (0.45, 1.0), "guidance_every": 4}, 10, 2),
        ({"solver": "heun"}, 19, 19),
        # 1, then 0.9 to 0.5 twice
        ({"solver": "heun", "guidance_interval": (0.45, 1.0)}, 19, 11),
        ({"timestep_shift": 3.0, "guidance_interval": (0.45, 1.0)}, 10, 8),
        ({"process_shift": 3.0, "guidance_interval": (0.45, 1.0)}, 10, 8),
        # 0.5 and 0.2: what counts is where guidance acts.
        ({"guidance_interval": (0.0, 0.55), "guidance_every": 3}, 10, 2),
    ],
)
def test_painting_is_guided_where_the_sampler_guides(sampler, evaluations, guided):
    config = config_of(**sampler)
    program = built("denoise", config)
    one = flops.velocity(4 * 4, 64)
    branches = 3 * (evaluations + guided)
    assert program.model_flops == sum(flops.forward(config.model, one * branches).values())
    assert program.traffic == built("denoise", config_of()).traffic * evaluations // 10
    # Heun's loop has two evaluations a turn, and one comes after it.
    assert program.turns == (9 if evaluations == 19 else 10)


@pytest.mark.parametrize("name", ["denoise", "decode", "train"])
def test_heads_that_a_mesh_does_not_divide_are_refused(name):
    mesh = AbstractMesh((1, 1, 2, 1), MESH_AXES)
    with pytest.raises(
        ConfigError, match="model.num_kv_heads=1 cannot be dealt to mesh.tensor = 2"
    ):
        programs.PROGRAMS[name](config_of(), mesh)


LOOP = """
%turn (x: bf16[8]) -> bf16[32] {
  ROOT %g = bf16[32]{0} all-gather(%x), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%more (x: bf16[8]) -> pred[] {
  ROOT %less = pred[] compare(%i, %steps), direction=LT
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %loop = bf16[8] while(%x), condition=%more, body=%turn
}
"""


def test_an_account_counts_all_turns(monkeypatch):
    """Whatever is lowered, this text is what the compiler says."""
    monkeypatch.setattr(account.placement, "place", lambda lowered: Placement(0, 0, LOOP))
    monkeypatch.setattr(account.importlib.metadata, "version", lambda name: "0")
    jitted = types.SimpleNamespace(lower=lambda *arguments: None)
    program = programs.Program(jitted, (), {}, 1, 0, 1)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    for turns in (1, 10):
        again = program._replace(turns=turns)
        found, _ = account.take(again, CHIPS["v5e"], mesh, codegen=False)
        assert found.exchanges["all-gather"] == (turns, turns * 32 * 2 * 3 // 4)
