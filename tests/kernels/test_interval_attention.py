from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask
from process_gen.core.configs import MeshConfig
from process_gen.kernels import interval_attention as lib
from process_gen.kernels.by_row import by_row
from process_gen.kernels.interval_attention import (
    IMPLEMENTATIONS,
    CachedKeys,
    KeyBlock,
    chunked,
    dense,
    interval_attention,
)
from process_gen.kernels.native import native
from process_gen.kernels.native_library import compiler
from process_gen.sharding import rules
from process_gen.sharding.mesh import make_mesh

B, SQ, H, KV, DH = 2, 21, 4, 2, 8
SIZES = (17, 1, 26)  # three blocks of keys: 44, no multiple of a chunk of 16
DENSE = jax.jit(dense)
CHUNKED = jax.jit(functools.partial(chunked, chunk=16))
ROWS = jax.jit(functools.partial(by_row, block=8))
NATIVE = jax.jit(native)
IN_BLOCKS = (CHUNKED, ROWS, NATIVE) if compiler() else (CHUNKED, ROWS)
ALL = (DENSE, *IN_BLOCKS)


def random_rows(seed, q_heads=H, kv_heads=KV, sizes=SIZES, sq=SQ, dh=DH):
    """Random queries, orders and key blocks; some queries and some keys are padding."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    order = rng.integers(0, 30, (B, sq))
    order[:, -2:] = PAD_ORDER
    blocks = []
    for size in sizes:
        start = rng.integers(0, 25, (B, size))
        end = start + rng.integers(0, 12, (B, size))
        padding = rng.random((B, size)) < 0.15
        start, end = np.where(padding, NEVER, start), np.where(padding, PAD_ORDER, end)
        blocks.append(
            KeyBlock(
                normal(B, size, kv_heads, dh),
                normal(B, size, kv_heads, dh),
                jnp.asarray(start, jnp.int32),
                jnp.asarray(end, jnp.int32),
            )
        )
    return normal(B, sq, q_heads, dh), jnp.asarray(order, jnp.int32), tuple(blocks)


def by_hand(q, order, blocks):
    """A loop over rows, heads and queries in float64."""
    q, order = np.asarray(q, np.float64), np.asarray(order)
    k, v, start, end = (
        np.concatenate([np.asarray(block[i]) for block in blocks], 1) for i in range(4)
    )
    out = np.zeros(q.shape)
    group = q.shape[2] // k.shape[2]
    for b, s, h in np.ndindex(*q.shape[:3]):
        seen = [j for j in range(k.shape[1]) if start[b, j] <= order[b, s] <= end[b, j]]
        if not seen:
            continue
        score = np.array([q[b, s, h] @ k[b, j, h // group] for j in seen]) / math.sqrt(q.shape[3])
        weight = np.exp(score - score.max())
        weight /= weight.sum()
        out[b, s, h] = sum(w * v[b, j, h // group] for w, j in zip(weight, seen, strict=True))
    return out


def seen_keys(order, blocks):
    return np.concatenate(
        [np.asarray(dense_mask(order, x.visible_from_BxS, x.visible_to_BxS)) for x in blocks], 2
    ).sum(2)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(attention, q, order, blocks, weight):
    """The output, and gradients of a random function of it by q and all keys and values."""

    def scalar(q, kv):
        mixed = [
            block._replace(k_BxSxKxDh=k, v_BxSxKxDh=v)
            for block, (k, v) in zip(blocks, kv, strict=True)
        ]
        out = attention(q, order, mixed)
        return jnp.sum(jnp.sin(out) * weight), out

    kv = [(block.k_BxSxKxDh, block.v_BxSxKxDh) for block in blocks]
    gradients, out = jax.grad(scalar, argnums=(0, 1), has_aux=True)(q, kv)
    return out, gradients


def both(attention, rows):
    q, order, blocks = rows
    weight = jnp.asarray(np.random.default_rng(1).normal(size=q.shape), jnp.float32)
    return value_and_gradients(attention, q, order, blocks, weight)


def without_end(rows):
    """Drops the `visible_to` term of the mask."""
    q, order, blocks = rows
    return q, order, tuple(x._replace(visible_to_BxS=x.visible_to_BxS * 0 + NEVER) for x in blocks)


def without_beginning(rows):
    """Drops the `visible_from` term of the mask."""
    q, order, blocks = rows
    return q, order, tuple(x._replace(visible_from_BxS=x.visible_from_BxS * 0 - 1) for x in blocks)


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in pairs)


@pytest.mark.parametrize("attention", ALL)
def test_a_loop_gives_the_same(attention):
    rows = random_rows(0)
    out = np.asarray(attention(*rows))
    np.testing.assert_allclose(out, by_hand(*rows), atol=1e-5)
    for mutant in (without_end, without_beginning):
        assert np.abs(out - by_hand(*mutant(rows))).max() > 0.1


@pytest.mark.parametrize("attention", IN_BLOCKS)
@pytest.mark.parametrize("seed", range(20))
def test_in_blocks_equals_dense_with_gradients(seed, attention):
    rows = random_rows(seed)
    expected = both(DENSE, rows)
    assert difference(both(attention, rows), expected) < 1e-5
    for mutant in (without_end, without_beginning):
        (out, gradients), (true_out, true_gradients) = both(attention, mutant(rows)), expected
        assert difference(out, true_out) > 0.1
        assert difference(gradients, true_gradients) > 0.1


@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 2), (3, 1)])
def test_every_grouping_of_heads(heads, kv_heads):
    rows = random_rows(3, heads, kv_heads)
    expected = by_hand(*rows)
    for attention in ALL:
        np.testing.assert_allclose(np.asarray(attention(*rows)), expected, atol=1e-5)
    if 1 < kv_heads < heads:  # another order of groups is another function
        q, order, blocks = rows
        flipped = tuple(
            x._replace(k_BxSxKxDh=x.k_BxSxKxDh[:, :, ::-1], v_BxSxKxDh=x.v_BxSxKxDh[:, :, ::-1])
            for x in blocks
        )
        assert np.abs(np.asarray(DENSE(q, order, flipped)) - expected).max() > 0.1


@pytest.mark.parametrize("attention", ALL)
def test_how_keys_are_split_into_blocks_does_not_matter(attention):
    q, order, blocks = random_rows(4, sizes=(22, 22))
    one = KeyBlock(*(jnp.concatenate(parts, 1) for parts in zip(*blocks, strict=True)))
    split = attention(q, order, blocks)
    assert difference(split, attention(q, order, [one])) < 1e-5
    assert difference(split, attention(q, order, blocks[::-1])) < 1e-5
    mixed_up = [blocks[0], blocks[1]._replace(v_BxSxKxDh=blocks[0].v_BxSxKxDh)]
    assert difference(split, attention(q, order, mixed_up)) > 0.1


@pytest.mark.parametrize("attention", ALL)
def test_a_query_that_sees_nothing_gives_zero_and_has_no_gradient(attention):
    q, order, blocks = random_rows(5)
    order = order.at[0, 3].set(1000)
    nothing = seen_keys(order, blocks) == 0
    assert nothing[:, -2:].all() and nothing[0, 3] and 0 < nothing.sum() < nothing.size / 2
    out, (dq, dkv) = both(attention, (q, order, blocks))
    assert np.all(np.asarray(out)[nothing] == 0) and np.all(np.asarray(dq)[nothing] == 0)
    seeing = ~nothing & (seen_keys(order, blocks) > 1)
    assert np.all(np.abs(np.asarray(out)[seeing]).max((-1, -2)) > 0)
    assert np.all(np.abs(np.asarray(dq)[seeing]).max((-1, -2)) > 0)
    for x, (dk, dv) in zip(blocks, dkv, strict=True):
        assert np.isfinite(dk).all() and np.isfinite(dv).all()
        padding = np.asarray(x.visible_from_BxS) == NEVER
        assert np.all(np.asarray(dk)[padding] == 0) and np.all(np.asarray(dv)[padding] == 0)
    # Where all queries see nothing, nothing flows.
    out, gradients = both(attention, (q, order * 0 + PAD_ORDER, blocks))
    assert all(not np.asarray(x).any() for x in jax.tree.leaves((out, gradients)))


@pytest.mark.parametrize("attention", ALL)
def test_hidden_keys_may_hold_anything(attention):
    """Cache slots that nobody may see yet hold whatever was there before."""
    q, order, blocks = random_rows(6)

    def spoil(x, hidden):
        junk = jnp.where(hidden[:, :, None, None], 1e6, 0.0)
        return x._replace(k_BxSxKxDh=x.k_BxSxKxDh + junk, v_BxSxKxDh=x.v_BxSxKxDh + junk)

    hidden = [x.visible_from_BxS == NEVER for x in blocks]
    spoiled = [spoil(x, h) for x, h in zip(blocks, hidden, strict=True)]
    assert difference(attention(q, order, spoiled), attention(q, order, blocks)) == 0
    seen = [spoil(x, ~h) for x, h in zip(blocks, hidden, strict=True)]
    assert difference(attention(q, order, seen), attention(q, order, blocks)) > 1


def test_large_scores_do_not_overflow():
    q, order, blocks = random_rows(7)
    for attention in ALL:
        out = attention(q * 1e4, order, blocks)
        assert bool(jnp.isfinite(out).all())
    for attention in IN_BLOCKS:
        assert difference(DENSE(q * 1e4, order, blocks), attention(q * 1e4, order, blocks)) < 1e-5


def test_bfloat16_stays_close():
    rows = random_rows(8)
    expected = DENSE(*rows)
    q, order, blocks = jax.tree.map(
        lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, rows
    )
    for attention in ALL:
        out = attention(q, order, blocks)
        assert out.dtype == jnp.bfloat16
        assert 1e-5 < difference(out.astype(jnp.float32), expected) < 0.05


def largest_array(function, *arguments):
    """Elements of the largest array in the program, whatever loop or branch it lies in."""
    sizes = [0]

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            sizes.extend(math.prod(v.aval.shape) for v in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(function)(*arguments).jaxpr)
    return max(sizes)


def test_blocks_hold_no_array_of_all_pairs():
    sq, sk, heads, dh = 96, 208, 2, 4
    q, order, blocks = random_rows(9, heads, 1, (200, sk - 200), sq, dh)
    weight = jnp.ones(q.shape)
    pairs = B * sq * sk
    for gradients in (False, True):
        size = {}
        for name, attention in (
            ("dense", dense),
            ("chunked", functools.partial(chunked, chunk=32)),
            ("rows", functools.partial(by_row, block=32)),
        ):
            if gradients:
                program = functools.partial(value_and_gradients.__wrapped__, attention)
                size[name] = largest_array(program, q, order, blocks, weight)
            else:
                size[name] = largest_array(attention, q, order, blocks)
        assert size["dense"] >= pairs
        assert size["chunked"] < pairs and size["rows"] < pairs


def test_the_interface_picks_the_implementation():
    assert set(IMPLEMENTATIONS) == {
        "dense",
        "rows",
        "native",
        "chunked",
        "pallas",
        "triton",
        "auto",
    }
    rows = random_rows(10)
    pick = jax.jit(interval_attention, static_argnums=3)
    for name in IMPLEMENTATIONS:
        if name == "native" and not compiler():
            continue
        assert difference(pick(*rows, name), DENSE(*rows)) < 1e-5
    with pytest.raises(KeyError):
        interval_attention(*rows, "flash")


@pytest.mark.parametrize(
    ("name", "queries", "turned"),
    [("rows", 21, 2), ("native", 21, 0), ("chunked", 15, 2), ("triton", 15, 2)],
)
def test_a_cache_is_read_as_it_lies(name, queries, turned):
    if name == "native" and not compiler():
        pytest.skip("needs a C++ compiler")
    q, order, (cache, *blocks) = random_rows(11, sizes=(64, 1, 26), sq=queries)
    k, v = cache.k_BxSxKxDh.transpose(0, 2, 3, 1), cache.v_BxSxKxDh.swapaxes(1, 2)
    cached = CachedKeys(k, v, cache.visible_from_BxS, cache.visible_to_BxS)
    expected = DENSE(q, order, (cache, *blocks))
    program = jax.jit(lambda *x: interval_attention(*x, name))
    assert difference(program(q, order, (cached, *blocks)), expected) < 1e-5
    assert difference(program(q, order, (cached._replace(v_BxKxCxDh=-v), *blocks)), expected) > 0.1
    # Nothing is turned round but, by `dense`, the queries and their outcome.
    text = program.lower(q, order, (cached, *blocks)).as_text()
    assert "stablehlo.while" not in text and text.count("stablehlo.transpose") == turned


def test_few_queries_are_not_sorted():
    q, order, blocks = random_rows(12)
    for block, sorted_ in ((8, True), (11, False)):
        program = jax.jit(functools.partial(by_row, block=block))
        assert ("stablehlo.sort" in program.lower(q, order, blocks).as_text()) == sorted_


@pytest.mark.parametrize(
    ("platform", "compiled", "name"),
    [("gpu", True, "triton"), ("tpu", False, "pallas"), ("cpu", True, "native"),
     ("cpu", False, "rows"), ("other", True, "chunked")],
)  # fmt: skip
def test_auto_is_what_the_platform_does_best(platform, compiled, name, monkeypatch):
    monkeypatch.setattr(rules, "platform", lambda: platform)
    monkeypatch.setattr(lib, "available", lambda: compiled)
    assert lib.chosen("auto") == name and lib.chosen("dense") == "dense"
    seen = []
    monkeypatch.setitem(IMPLEMENTATIONS, name, lambda q, *_: seen.append(1) or q)
    interval_attention(*random_rows(0), "auto")
    assert seen


@pytest.mark.parametrize(("platform", "chosen"), [("tpu", "pallas"), ("cpu", "native")])
def test_auto_follows_the_devices_of_the_mesh(platform, chosen, monkeypatch):
    """Those are asked that the program is made for, not those that are here."""
    monkeypatch.setattr(lib, "available", lambda: True)
    seen = []
    for name in ("pallas", "native"):
        implementation = functools.partial(lambda n, q, *_: seen.append(n) or q, name)
        monkeypatch.setitem(IMPLEMENTATIONS, name, implementation)
    q, order, blocks = random_rows(0)
    if platform == "cpu":
        devices = jax.devices()[:1]
    else:
        pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra [tpu]")
        from process_gen.aot.topology import describe

        devices = describe("v5e:2x2").devices
    with jax.set_mesh(make_mesh(MeshConfig(), devices)):
        jax.jit(lambda *x: interval_attention(*x, "auto")).trace(q, order, blocks)
    assert seen == [chosen]
