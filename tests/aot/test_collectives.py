"""Counting what devices exchange, on small texts in the forms that compilers write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from process_gen.aot.collectives import Exchange, exchanges

ROOT = Path(__file__).resolve().parents[2]

# The constant, not the name of the loop, says how often it turns.
LOOP = """HloModule jit_step, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  ROOT %add = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (input: bf16[64,8]) -> bf16[16,8] {
  %all-reduce.7 = bf16[64,8]{1,0} all-reduce(%input), channel_id=5, replica_groups={{0,1,2,3}}, to_apply=%sum
  ROOT %cut = bf16[16,8]{1,0} dynamic-slice(%all-reduce.7, %i, %zero), dynamic_slice_sizes={16,8}
}

%piece (p: bf16[8,8]) -> bf16[32,8] {
  ROOT %all-gather.3 = bf16[32,8]{1,0} all-gather(%p), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, frontend_attributes={chain_id="9"}
}

%other_piece (p: bf16[8,8]) -> bf16[32,8] {
  ROOT %all-gather.4 = bf16[32,8]{1,0} all-gather(%p), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, frontend_attributes={chain_id="9"}
}

%condition (carry: (s32[], bf16[8,8])) -> pred[] {
  %turns = s32[]{:T(128)} constant(28)
  %i = s32[] get-tuple-element(%carry), index=0
  ROOT %less = pred[] compare(%i, %turns), direction=LT
}

%body (carry: (s32[], bf16[8,8])) -> (s32[], bf16[8,8]) {
  %start = bf16[32,8]{1,0} fusion(%x), kind=kCustom, calls=%piece
  %done = bf16[32,8]{1,0} fusion(%start), kind=kCustom, calls=%other_piece
  %scattered = bf16[16,8]{1,0} fusion(%y), kind=kCustom, calls=%all-reduce-scatter.1
}

ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {
  %all-reduce.1 = f32[100]{0} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  %while.1 = (s32[], bf16[8,8]) while(%carry), condition=%condition, body=%body
  %permute = (f32[10]{0}, f32[10]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
}
"""  # noqa: E501


def test_loops_pieces_and_groups():
    found = exchanges(LOOP)
    assert found == {
        # 28 turns of 32 x 8 numbers, of which three quarters come from others; one of two pieces.
        "all-gather": Exchange(28, 28 * 32 * 8 * 2 * 3 // 4),
        "all-reduce": Exchange(1, 2 * 400 * 3 // 4),
        "reduce-scatter": Exchange(28, 28 * 64 * 8 * 2 * 3 // 4),
        "collective-permute": Exchange(1, 40),
    }


def test_another_constant_gives_other_counts():
    assert exchanges(LOOP.replace("constant(28)", "constant(7)"))["all-gather"].count == 7
    stated = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert exchanges(stated)["all-gather"].count == 3


def test_another_chain_is_another_collective():
    two = LOOP.replace(
        "all-gather.4 = bf16[32,8]{1,0} all-gather(%p), channel_id=2",
        "all-gather.4 = bf16[32,8]{1,0} all-gather(%p), channel_id=4",
    )
    assert exchanges(two)["all-gather"].count == 56


def test_results_of_asynchronous_ones_hold_their_operands():
    """In the form of XLA's GPU compiler."""
    groups = "replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, to_apply=%sum"
    for result, numbers in (
        ("((bf16[64,8]{1,0}), bf16[16,8]{1,0})", 16 * 8),
        ("((bf16[64,8]{1,0}, f32[8]{0}), (bf16[16,8]{1,0}, f32[2]{0}))", 16 * 8 + 2 * 2),
    ):
        line = f"  %rs = {result} reduce-scatter-start(%x), channel_id=9, {groups}\n  %permute = "
        found = exchanges(LOOP.replace("%all-reduce-scatter.1\n}", "%piece\n}").replace(
            "  %permute = ", line
        ))  # fmt: skip
        assert found["reduce-scatter"] == Exchange(1, numbers * 2 * 3)


def test_a_loop_whose_turns_are_an_argument_turns_as_often_as_is_said():
    argument = LOOP.replace("constant(28)", "get-tuple-element(%carry), index=2")
    for turns in (1, 50):
        found = exchanges(argument, turns)
        assert found["all-gather"] == Exchange(turns, turns * 32 * 8 * 2 * 3 // 4)
        assert found["all-reduce"].count == found["collective-permute"].count == 1
    assert exchanges(LOOP, turns=50) == exchanges(LOOP)


@pytest.mark.parametrize(
    "form", ["branch_computations={{%{}, %{}}}", "true_computation=%{}, false_computation=%{}"]
)
def test_of_two_branches_the_one_that_sends_least_counts(form):
    def found(*names: str) -> dict[str, Exchange]:
        call = f"conditional(%i, %x, %x), {form.format(*names)}"
        text = LOOP.replace("while(%carry), condition=%condition, body=%body", call)
        return exchanges(text)

    scattered = Exchange(1, 64 * 8 * 2 * 3 // 4)
    for names in (("body", "all-reduce-scatter.1"), ("all-reduce-scatter.1", "body")):
        assert "all-gather" not in found(*names)
        assert found(*names)["reduce-scatter"] == scattered
    both = found("body", "body")
    assert both["reduce-scatter"] == scattered and both["all-gather"].count == 1


PROGRAM = """
import json
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from process_gen.aot.collectives import exchanges

mesh = jax.make_mesh((4,), ("x",), axis_types=(AxisType.Auto,))
cut, whole = NamedSharding(mesh, P(None, "x")), NamedSharding(mesh, P())

def layers(weights, x):
    def layer(x, w):
        w = jax.lax.with_sharding_constraint(w, NamedSharding(mesh, P(None)))
        return jnp.tanh(x @ w), None
    return jax.lax.scan(layer, x, weights)[0]

def steps(weights, x, count):
    return jax.lax.fori_loop(0, count, lambda i, x: layers(weights, x), x)

def text(run, *arguments):
    jitted = jax.jit(run, out_shardings=NamedSharding(mesh, P("x")))
    return jitted.lower(*arguments).compile().as_text()

weights = jax.ShapeDtypeStruct((6, 64, 32 * 2), jnp.float32, sharding=cut)
x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=NamedSharding(mesh, P("x")))
count = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
once, often = text(layers, weights, x), text(steps, weights, x, count)
print(json.dumps([exchanges(once), exchanges(often, turns=5), exchanges(often)]))
"""


@pytest.mark.multidevice
def test_a_scanned_layer_gathers_its_weight_at_every_turn():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    once = {"all-gather": [6, 6 * 64 * 64 * 4 * 3 // 4]}
    five = {"all-gather": [30, 30 * 64 * 64 * 4 * 3 // 4]}
    assert json.loads(done.stdout.splitlines()[-1]) == [once, five, once]
