"""The analytic count against the products in the traced model, and against XLA's own account."""

from __future__ import annotations

import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask
from process_gen.core.batch import PatchSizes, Place, lay_out, measure, pack, stack
from process_gen.core.configs import from_mapping
from process_gen.core.grammar import to_segments
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.models import flops, functional
from process_gen.models import products as products_lib
from process_gen.models.unified import Streams
from process_gen.strokes.plans import StrokesOptions, trajectory_at

ROWS, TEXT, PATCHES, LATENTS = 2, 24, 8, 16
TOKENS = TEXT + PATCHES + LATENTS
ALL_PAIRS = flops.Work(
    ROWS * TEXT,
    ROWS * PATCHES,
    ROWS * LATENTS,
    pairs=ROWS * TOKENS**2,
    patch_pairs=ROWS * PATCHES**2,
    labels=ROWS * TEXT,
    targets=ROWS * LATENTS,
    times=ROWS * LATENTS,
)


@pytest.fixture(autouse=True)
def products_by_xla(monkeypatch):
    """Those in C++ cannot be seen in a program."""
    monkeypatch.setattr(products_lib, "available", lambda: False)


def model_of(**changes):
    return from_mapping({"model": {"num_layers": 2, **changes}}).model


SIGLIP = {
    "und_encoder": "siglip",
    "vit": {"width": 32, "mlp_width": 48, "num_layers": 3, "num_heads": 2},
}


def products(jaxpr) -> int:
    """FLOPs of all `dot_general`s, those of loops as often as they run."""
    total = 0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            deep = math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
            total += 2 * deep * math.prod(eqn.outvars[0].aval.shape)
        inner = [p for p in jax.tree.leaves(eqn.params, is_leaf=lambda p: hasattr(p, "jaxpr"))]
        times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        for part in inner:
            if hasattr(part, "jaxpr"):
                total += times * products(part.jaxpr)
            elif hasattr(part, "eqns"):
                total += times * products(part)
    return total


def streams(model, noise) -> Streams:
    def place(count):
        order = jnp.zeros((ROWS, count), jnp.int32)
        return Place(order, order, order, order)

    def ids(count):
        return jnp.zeros((ROWS, count), jnp.int32)

    return Streams(
        *(place(n) for n in (TEXT, PATCHES, LATENTS)),
        token_BxT=ids(TEXT),
        patch_BxVxQ=jnp.zeros((ROWS, PATCHES, model.und_features)),
        patch_id_BxV=ids(PATCHES),
        latent_BxGxP=noise,
        latent_id_BxG=ids(LATENTS),
        t_BxG=jnp.zeros((ROWS, LATENTS)),
        patch_image_BxV=ids(PATCHES),
    )


def pass_of(model):
    fns = functional.build(model)
    params = jax.eval_shape(fns.init, jax.random.key(0))
    noise = jax.ShapeDtypeStruct((ROWS, LATENTS, model.latent_features), jnp.float32)

    def run(params, noise):
        out = fns.forward(params, streams(model, noise))
        return jnp.sum(fns.logits(params, out.hidden_BxTxD)) + jnp.sum(out.output_BxGxP)

    return run, params, noise


@pytest.mark.parametrize("changes", [{}, SIGLIP], ids=["patch", "siglip"])
def test_forward_counts_every_product(changes):
    model, work = model_of(**changes), ALL_PAIRS
    found = products(jax.make_jaxpr(pass_of(model)[0])(*pass_of(model)[1:]).jaxpr)
    assert sum(flops.forward(model, work).values()) == found
    fewer = sum(flops.forward(model, work._replace(labels=work.labels - 1)).values())
    assert fewer == found - 2 * model.width * model.vocab_size


def gradient_products(model) -> int:
    """Of a forward and a backward pass, by all weights that are trained."""
    run, params, noise = pass_of(model)

    def taken(params, noise):
        if not model.lora.rank:
            return jax.grad(run)(params, noise)
        flat, tree = jax.tree_util.tree_flatten_with_path(params)
        adapters = ["lora" in jax.tree_util.keystr(path) for path, _ in flat]

        def of_adapters(chosen):
            chosen = iter(chosen)
            leaves = [
                next(chosen) if ours else leaf
                for (_, leaf), ours in zip(flat, adapters, strict=True)
            ]
            return run(jax.tree.unflatten(tree, leaves), noise)

        return jax.grad(of_adapters)(
            [v for (_, v), ours in zip(flat, adapters, strict=True) if ours]
        )

    return products(jax.make_jaxpr(taken)(params, noise).jaxpr)


@pytest.mark.parametrize(
    "changes",
    [{}, SIGLIP, {"lora": {"rank": 4, "targets": ("q", "up")}}],
    ids=["patch", "siglip", "adapters"],
)
def test_backward_counts_every_product(changes):
    model = model_of(**changes)
    found = gradient_products(model)
    counted = flops.train(model, ALL_PAIRS)
    assert counted == found
    if model.lora.rank:
        assert counted < 0.75 * flops.train(model_of(), ALL_PAIRS)


@pytest.mark.parametrize(
    ("changes", "remat"),
    [
        (SIGLIP, "full"),
        (SIGLIP, "dots"),
        ({}, "attention"),  # dense attention has no output that it keeps
        ({}, "offload"),
        ({**SIGLIP, "freeze_und": True}, "full"),
        ({"lora": {"rank": 4, "targets": ("q", "up", "down")}}, "full"),
    ],
    ids=["full", "dots", "dense, attention", "dense, offload", "frozen", "adapters"],
)
def test_what_is_done_again_is_counted_and_no_more(changes, remat):
    model = model_of(**changes, remat=remat)
    more = gradient_products(model) - gradient_products(model_of(**changes))
    assert flops.recomputed(model, ALL_PAIRS) == more > 0
    assert flops.recomputed(model_of(**changes), ALL_PAIRS) == 0
    # `down` is not among it, and of a frozen expert less than half is.
    parts = flops.forward(model, ALL_PAIRS)
    assert more < sum(parts[name] for name in ("und", "gen", "attention", "encoder"))


def test_kept_attention_is_not_done_again():
    def again(remat, attention):
        return flops.recomputed(model_of(remat=remat, attention=attention), ALL_PAIRS)

    for attention in ("rows", "chunked", "pallas", "auto"):
        full, kept = again("full", attention), again("attention", attention)
        assert full - kept == flops.forward(model_of(), ALL_PAIRS)["attention"] > 0
        assert kept == again("offload", attention)
    assert again("attention", "dense") == again("offload", "dense") == again("full", "dense")


def test_xla_counts_the_same_and_what_comes_on_top():
    model = model_of(width=128, mlp_width=512, head_dim=32, layers="unroll")
    run, params, noise = pass_of(model)
    analysis = jax.jit(jax.value_and_grad(run)).lower(params, noise).cost_analysis()
    assert 1.0 < analysis["flops"] / flops.train(model, ALL_PAIRS) < 1.1


def test_pairs_are_those_of_the_mask():
    rng = np.random.default_rng(0)
    order = rng.integers(-1, 30, (3, 50))
    low = rng.integers(0, 30, (3, 70))
    high = low + rng.integers(-3, 9, low.shape)
    low[:, ::7], high[:, ::7] = NEVER, PAD_ORDER
    mask = dense_mask(order, low, high) & (order >= 0)[..., None]
    assert flops.visible_pairs(order, low, high) == mask.sum() > 0


def test_work_of_a_pack_leaves_padding_out():
    config = from_mapping({"data": {"grammar": {"context_images": "vae+vit", "noise_copies": 2}}})
    ids = token_ids(load_tokenizer())
    sizes = PatchSizes(8, 8, 4, 4)
    trajectory = trajectory_at(0, 1, StrokesOptions(misalignment=1.0, conflict=0.0, max_steps=3))
    segments = to_segments(trajectory, config.data.grammar)
    run, lengths = lay_out(segments, ids, sizes), measure(segments, ids, sizes)
    exact = stack([pack([run], lengths, sizes)])
    roomy = stack([pack([run], type(lengths)(*(2 * n for n in lengths)), sizes)])
    work = flops.of_batch(exact)
    assert flops.of_batch(roomy) == work
    assert work[:3] == lengths
    assert work.targets and work.targets % (2 * 16) == 0  # two noised copies of each target
    assert work.times == run.copies + 1
    assert work.patch_pairs == run.images * 16**2
    assert flops.useful_share(exact) == 1.0 and flops.useful_share(roomy) == 0.5
    assert flops.of_batch(stack([pack([run], lengths, sizes)] * 3)) == work * 3
    assert flops.of_batch(exact._replace(label_BxT=exact.label_BxT * 0)).labels > work.labels


def test_a_token_and_a_velocity_see_their_context():
    assert flops.written_token(10) == flops.Work(text=1, pairs=11, labels=1)
    work = flops.velocity(16, 10)
    assert work.pairs == 18 * 28 and work.times == 1


def test_no_jax_is_needed():
    code = "import sys; import process_gen.models.flops; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
