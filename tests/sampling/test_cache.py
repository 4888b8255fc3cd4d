"""Caches stay where they are: what a compiled step copies, and what is written where."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core import flow_matching as flow
from process_gen.core.batch import Place
from process_gen.core.configs import from_mapping
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.kernels.interval_attention import KeyBlock, interval_attention
from process_gen.kernels.native_library import available
from process_gen.models import functional
from process_gen.sampling import cache
from process_gen.sampling.cache import Weights
from process_gen.sampling.calls import Begun, Rows, course
from process_gen.sampling.programs import Programs

TOKENIZER = load_tokenizer()
BATCH, SLOTS, LAYERS = 2, 1024, 3
MODEL = {
    "width": 32,
    "mlp_width": 40,
    "num_layers": LAYERS,
    "num_heads": 2,
    "num_kv_heads": 2,
    "head_dim": 32,
}


def programs_of(model, max_text=8):
    sampler = {"batch": BATCH, "max_text": max_text, "max_context": SLOTS}
    config = from_mapping({"model": model, "sampler": sampler})
    ids = token_ids(TOKENIZER)
    fns = functional.build(config.model)
    return Programs(fns, config, ids, TOKENIZER.vocab_size, config.sampler, (32, 32))


def rows(slots=SLOTS):
    zero = np.zeros(BATCH, np.int32)
    wide = np.zeros((BATCH, slots), np.int32)
    seeds = np.zeros((BATCH, 4), np.uint32)
    return Rows(zero, np.ones(BATCH, bool), zero, zero, zero, zero, zero, wide, wide, seeds)


def copied(text: str, entries: int, everywhere: bool = False) -> list[str]:
    """Instructions inside loops that write an array of so many entries or more."""
    loops = set(re.findall(r"\bbody=%?([\w.-]+)", text))
    found, inside = [], everywhere
    for line in text.splitlines():
        if (head := re.match(r"%?([\w.-]+) .*\{$", line)) and not line.startswith(" "):
            inside = everywhere or head.group(1) in loops
        made = re.match(r"\s+(?:ROOT )?\S+ = \w+\[([\d,]+)\]\S* ([\w-]+)\(", line)
        if not inside or made is None or made.group(2) in ("get-tuple-element", "parameter"):
            continue
        if np.prod([int(n) for n in made.group(1).split(",")]) >= entries:
            found.append(line.strip())
    return found


def shapes(programs):
    params = jax.eval_shape(programs.fns.init, jax.random.key(0))
    if programs.config.model.layers == "unroll":
        params = jax.eval_shape(functional.apart, params)
    pool = jax.eval_shape(lambda: programs.make_pool(2 * BATCH))
    return Weights(params, None), pool


# The compiler's own settings; tests/conftest.py has others.
AS_USERS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}
# Numbers of a layer's keys. Scores are 18 / 32 of that while painting, and fewer while writing.
KEYS = BATCH * 2 * 32 * SLOTS


def test_no_step_of_writing_copies_a_cache():
    programs = programs_of(MODEL)
    begun = Begun(np.zeros(BATCH, np.int32), np.zeros(BATCH, np.int32), np.int32(1))
    lowered = Programs.write_text.lower(programs, *shapes(programs), rows(), begun)
    compiled = lowered.compile(compiler_options=AS_USERS)
    assert copied(compiled.as_text(), KEYS // 2) == []
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes >= 4 * LAYERS * 2 * (2 * BATCH + 1) * KEYS // BATCH
    # The rows of the call are picked out once, and nothing else of that size is held.
    assert memory.temp_size_in_bytes < 1.5 * 4 * LAYERS * 2 * KEYS


def copied_notes(text: str) -> list[str]:
    return [x for x in copied(text, 1) if re.search(r"= f32\[2,2,(32,8|8,32)\]\S* copy\(", x)]


def test_no_step_of_writing_copies_its_notes():
    programs = programs_of({**MODEL, "layers": "unroll"})
    begun = Begun(np.zeros(BATCH, np.int32), np.zeros(BATCH, np.int32), np.int32(1))
    lowered = Programs.write_text.lower(programs, *shapes(programs), rows(), begun)
    assert copied_notes(lowered.compile(compiler_options=AS_USERS).as_text()) == []


@pytest.mark.parametrize("at_its_end", [False, True])
def test_a_turn_that_ends_by_noting_its_own_tokens_has_notes_copied(at_its_end):
    programs = programs_of({**MODEL, "layers": "unroll"})
    model, weights = programs.config.model, shapes(programs)[0]

    def run(params, token_B):
        def turn(i, carry):
            notes, newest, token_B = carry
            if not at_its_end:
                notes = cache.note(notes, i - 1, newest)
            order_B = jnp.full(BATCH, i)
            place = Place(*[order_B[:, None]] * 4)
            streams = programs._text_streams(token_B[:, None], place)
            out = programs.fns.forward(params, streams, [notes])
            newest = cache.Newest(out.k_LxBxSxKxDh, out.v_LxBxSxKxDh, order_B)
            if at_its_end:
                notes = cache.note(notes, i, newest)
            logits = programs.fns.logits(params, out.hidden_BxTxD[:, 0])
            return notes, newest, jnp.argmax(logits, -1).astype(jnp.int32)

        start = cache.make_notes(model, BATCH, 8), cache.nothing_new(model, BATCH), token_B
        return jax.lax.fori_loop(0, 8, turn, start)

    lowered = jax.jit(run).lower(weights.model, jax.ShapeDtypeStruct((BATCH,), jnp.int32))
    text = lowered.compile(compiler_options=AS_USERS).as_text()
    assert bool(copied_notes(text)) == at_its_end


def test_no_step_of_painting_copies_a_cache():
    programs = programs_of(MODEL)
    at = course([flow.time_grid(4, 1.0)], BATCH, 2.0)
    lowered = Programs.denoise.lower(programs, *shapes(programs), rows(), False, at)
    text = lowered.compile(compiler_options=AS_USERS).as_text()
    assert copied(text, KEYS) == []
    assert copied(text, KEYS // 2)  # the scores


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
def test_painting_copies_no_row_out_of_its_pool():
    """C++ reads them where they lie; any other attention has them picked out once."""
    at, found = course([flow.time_grid(4, 1.0)], BATCH, 2.0), {}
    for name in ("native", "rows"):
        programs = programs_of({**MODEL, "attention": name})
        lowered = Programs.denoise.lower(programs, *shapes(programs), rows(), False, at)
        found[name] = copied(lowered.compile(compiler_options=AS_USERS).as_text(), KEYS, True)
    assert found["native"] == [] and found["rows"]


def copied_pools(attention: str) -> list[str]:
    """Of the two programs that read a pool and write what they read into it, layer by layer."""
    calls = {
        "prefill": (np.zeros((BATCH, 16), np.int32), np.ones(BATCH, np.int32)),
        "read_picture": (np.zeros((BATCH, 32, 32, 3), np.uint8),),
    }
    programs, found = programs_of({**MODEL, "layers": "unroll", "attention": attention}), []
    for name, args in calls.items():
        lowered = getattr(Programs, name).lower(programs, *shapes(programs), rows(), *args)
        text = lowered.compile(compiler_options=AS_USERS).as_text()
        found += [name for x in copied(text, 2 * KEYS, True) if " copy(" in x]
    return found


@pytest.mark.parametrize("attention", ["native", "dense"])
def test_reading_copies_no_pool(attention, monkeypatch):
    if attention == "native" and not available():
        pytest.skip("needs a C++ compiler")
    assert copied_pools(attention) == []

    def in_no_order(pool, index_B, slot_BxS, out, context):
        return cache.write(pool, index_B, slot_BxS, out.k_LxBxSxKxDh, out.v_LxBxSxKxDh)

    monkeypatch.setattr(cache, "write_read", in_no_order)
    assert set(copied_pools(attention)) == {"prefill", "read_picture"}


@pytest.mark.skipif(not available(), reason="needs a C++ compiler")
@pytest.mark.parametrize("max_text", [8, 11])
def test_writing_picks_no_row_out_of_its_pool(max_text):
    """C++ reads them where they lie; any other attention has them picked out once a call."""
    begun = Begun(np.zeros(BATCH, np.int32), np.zeros(BATCH, np.int32), np.int32(1))
    found = {}
    for name in ("native", "rows"):
        programs = programs_of({**MODEL, "layers": "unroll", "attention": name}, max_text)
        lowered = Programs.write_text.lower(programs, *shapes(programs), rows(), begun)
        text = lowered.compile(compiler_options=AS_USERS).as_text()
        made = re.findall(r"= f32\[2,2,(?:32,1024|1024,32)\]", text)
        found[name], pools = len(made), [x for x in copied(text, 2 * KEYS, True) if " copy(" in x]
        assert pools == []
    assert found["native"] == 0 and found["rows"] >= 2 * LAYERS


def test_a_step_that_copies_one_is_noticed():
    """Keys in the layout of new tokens, which matrix products want turned round."""
    k = jnp.zeros((BATCH, SLOTS, 2, 32))
    order = jnp.zeros((BATCH, 4), jnp.int32)
    seen = jnp.zeros((BATCH, SLOTS), jnp.int32)

    def run(q, k):
        block = KeyBlock(k, k, seen, seen)
        return jax.lax.fori_loop(0, 5, lambda _, q: interval_attention(q, order, [block]), q)

    q = jnp.zeros((BATCH, 4, 2, 32))
    compiled = jax.jit(run).lower(q, k).compile(compiler_options=AS_USERS)
    assert copied(compiled.as_text(), KEYS)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_tokens_lie_where_they_were_written(layers):
    model = from_mapping({"model": {**MODEL, "layers": layers}}).model
    pool = cache.make_pool(model, 3, 6)
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, LAYERS, BATCH, 4, 2, 32)).astype(np.float32)
    index, slot = np.array([2, 0], np.int32), np.array([[1, 2, 3, 99], [5, 0, 99, 4]], np.int32)
    written = cache.write(pool, index, slot, k, v)
    everything = np.zeros((BATCH, 6), np.int32)
    (found,) = cache.read(written, index, everything, everything)
    assert found.k[0].shape[-3:] == (2, 32, 6) and found.v[0].shape[-3:] == (2, 6, 32)
    for layer in range(LAYERS):
        got_k, got_v = (
            np.asarray(x[0][layer] if layers == "scan" else x[layer]) for x in (found.k, found.v)
        )
        for row in range(BATCH):
            for token, place in enumerate(slot[row]):
                if place < 6:
                    np.testing.assert_array_equal(got_k[row, :, :, place], k[layer, row, token])
                    np.testing.assert_array_equal(got_v[row, :, place], v[layer, row, token])
        assert not got_k[0, :, :, [0, 4, 5]].any()
    assert cache.read(written, index, everything[:, :0], everything[:, :0]) == []
    wider = cache.grown(written, 2)
    np.testing.assert_array_equal(wider.k[0][..., :6], written.k[0])
    assert wider.v[0].shape[-2] == 8


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_notes_of_a_loop_are_kept(layers):
    model = from_mapping({"model": {**MODEL, "layers": layers}}).model
    rng = np.random.default_rng(0)
    k, v = rng.normal(size=(2, LAYERS, BATCH, 3, 2, 32)).astype(np.float32)
    notes = cache.make_notes(model, BATCH, 3)
    for turn in range(3):
        order = np.array([turn, turn if turn < 2 else -1], np.int32)
        one = slice(turn, turn + 1)
        newest = cache.Newest(k[:, :, one], v[:, :, one], order)
        notes = cache.note(notes, jnp.int32(turn), newest)
    seen = notes.visible_from_BxC <= notes.visible_to_BxC
    np.testing.assert_array_equal(seen, [[True] * 3, [True, True, False]])
    index, slot = np.array([0, 1], np.int32), np.array([[0, 1, 2], [0, 1, 99]], np.int32)
    kept = cache.keep(cache.make_pool(model, 2, 4), index, slot, notes)
    wanted = cache.write(cache.make_pool(model, 2, 4), index, slot, k, v)
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(a, b)
