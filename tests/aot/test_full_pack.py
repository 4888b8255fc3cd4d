"""The pack that programs are sized for: full, and one that the real mask and the real step take."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from configs import bagel_7b, strokes_tiny
from process_gen.aot.full_pack import full_pack
from process_gen.core.attention_mask import dense_mask
from process_gen.core.configs import Config, from_mapping
from process_gen.models import flops


def bagel() -> Config:
    return from_mapping(bagel_7b.get_config().to_dict())


def tiny(**grammar: object) -> Config:
    mapping = strokes_tiny.get_config("debug").to_dict()
    mapping["data"]["grammar"] |= grammar
    mapping["data"]["sources"] = ({"kind": "strokes", "size": 8},)
    mapping["data"]["window"] = 8
    return from_mapping(mapping)


def test_every_token_of_the_7b_pack_is_in_use():
    config = bagel()
    pack = full_pack(config, rows=2)
    assert pack.text.order.shape == (2, 2304) and pack.und.order.shape == (2, 12_416)
    assert pack.gen.order.shape == (2, 18_432)
    assert flops.useful_share(pack) == 1.0
    work = flops.of_batch(full_pack(config))
    assert work.targets == 18_432 // 2 and work.labels == 2304 and work.times == 9 + 1
    # A third of all pairs at most see each other, and more than a tenth do.
    tokens = 2304 + 12_416 + 18_432
    assert 0.1 < work.pairs / tokens**2 < 0.34
    assert pack.latent_BxGxP.shape[-1] == 2 * config.model.latent_features


def test_who_sees_whom():
    config = tiny(context_images="vae+vit")
    pack = full_pack(config)
    text, und, gen = pack.text, pack.und, pack.gen
    noised = np.asarray(pack.copy_BxG)[0] >= 0

    def sees(a, b) -> np.ndarray:
        return np.asarray(dense_mask(a.order, b.visible_from, b.visible_to))[0]

    assert np.array_equal(sees(gen, gen)[:, noised].any(1), noised)  # noised copies only themselves
    assert not sees(text, gen)[:, noised].any() and sees(text, gen)[:, ~noised].any()
    assert np.array_equal(sees(text, text), np.tril(sees(text, text)))
    own = np.asarray(pack.patch_image_BxV)[0]
    assert all(sees(und, und)[own == i][:, own == i].all() for i in set(own))


@pytest.mark.parametrize("kinds", ["vit", "vae", "vae+vit"])
def test_the_step_takes_it(kinds):
    """Shapes and types are those that the pipeline's batches have."""
    config = tiny(context_images=kinds)
    from process_gen.data import pipeline

    pack = full_pack(config, config.data.rows)
    real = next(pipeline.train_dataset(config, (0,), 1))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), pack) == jax.tree.map(
        lambda x: (x.shape, x.dtype), real
    )
    if kinds == "vae":  # all patches are padding in both
        for name in ("und", "patch_BxVxQ", "patch_id_BxV", "patch_image_BxV"):
            jax.tree.map(np.testing.assert_array_equal, getattr(pack, name), getattr(real, name))


@pytest.mark.parametrize("kinds", ["vit", "vae", "vae+vit"])
def test_there_may_be_no_patches(kinds):
    config = tiny(context_images=kinds)
    data = dataclasses.replace(config.data, und_len=0)
    pack = full_pack(dataclasses.replace(config, data=data))
    assert {x.shape for x in pack.und} == {(1, 0)} and pack.patch_BxVxQ.shape[1] == 0
    assert pack.gen.order.shape[1] == data.gen_len
