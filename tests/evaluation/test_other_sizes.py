"""Models of other sizes than the stored fixture's, against a plain NumPy BAGEL.

`tests.parity.numpy_bagel` is itself compared with the stored arrays of the reference first.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from launch import check_parity
from process_gen.checkpoint import bagel, manager
from process_gen.core.configs import ModelConfig
from process_gen.core.encoder_sizes import VaeSizes, VitSizes
from process_gen.evaluation import parity
from process_gen.models.shapes import BAGEL
from tests.parity import make_fixtures, make_inference
from tests.parity.make_fixtures import LATENT, Split
from tests.parity.numpy_bagel import Bagel

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
# No two of these numbers agree by accident: heads in groups of 3, tokens of 1 x 1 and 3 x 3 cells,
# other grids for latents and patches, pictures reduced by 4 and by 1.
SIZES = {
    "three": ModelConfig(
        vocab_size=211, width=48, mlp_width=88, num_layers=2, num_heads=6, num_kv_heads=2,
        head_dim=8, rope_theta=5e3, norm_eps=1e-5, codec="flux", patch=3, codec_channels=5,
        latent_grid=5, und_encoder="siglip", und_patch=10, und_grid=7, time_features=40,
        prediction="velocity", layers="scan",
        vit=VitSizes(width=36, mlp_width=52, num_layers=1, num_heads=3, norm_eps=1e-5),
        vae=VaeSizes(channels=32, multipliers=(1, 2, 1), blocks=1, latent_channels=5, scale=0.7),
    ),
    "one": ModelConfig(
        vocab_size=97, width=60, mlp_width=44, num_layers=4, num_heads=5, num_kv_heads=1,
        head_dim=12, rope_theta=1e6, codec="flux", patch=1, codec_channels=8,
        latent_grid=11, und_encoder="siglip", und_patch=14, und_grid=3, time_features=256,
        prediction="velocity", layers="scan",
        vit=VitSizes(width=24, mlp_width=28, num_layers=3, num_heads=4),
        vae=VaeSizes(channels=32, multipliers=(1,), blocks=3, latent_channels=8, shift=-0.3),
    ),
}  # fmt: skip
VARIANTS = {
    "nocfg": (1.0, 1.0, (0.0, 1.0), 0.0, "global"),
    "cfg_global": (3.0, 1.5, (0.4, 1.0), 0.1, "global"),
    "cfg_channel": (2.0, 1.0, (0.2, 0.9), 0.0, "channel"),
    "think_cfg_text_channel": (4.0, 2.0, (0.0, 1.0), 0.0, "text_channel"),
}


def picture(rng, rows, columns, side):
    return rng.integers(0, 256, (rows * side, columns * side, 3), np.uint8)


def write_folder(folder, model, inference=False):
    make_fixtures.write_checkpoint(folder / "checkpoint", model)
    reference, rng = Bagel(folder / "checkpoint"), np.random.default_rng(1)
    side, und = model.latent_side, model.und_patch

    def text(count, **how):
        return Split("text", ids=rng.integers(0, model.vocab_size // 2, count).tolist(), **how)

    def latent(kind, rows, columns):
        return Split(kind, image=picture(rng, rows, columns, side))

    def seen(rows, columns):
        return Split("vit", image=picture(rng, rows, columns, und))

    label = reference.special["start_of_image"]
    samples = [
        [seen(3, 1), text(4, loss=True, extra_label=label), latent("noised", 2, 4), text(3)],
        [latent("vae", 5, 1), text(1), latent("noised", 1, 1), latent("vae", 3, 2), seen(2, 2)],
        [text(2, loss=True)],
    ]
    cases = {
        "c2_packed_train": make_fixtures.training(reference, samples, rng),
        "d_vit": make_fixtures.vit(
            reference, [picture(rng, 1, 3, und), picture(rng, 3, 2, und), picture(rng, 1, 1, und)]
        ),
        "e_vae": make_fixtures.vae(
            reference, [picture(rng, 2, 3, side), picture(rng, 4, 1, side)], rng
        ),
    }
    if inference:
        given = {
            "vit:0": seen(2, 3),
            "text:0": text(3),
            "vae:0": latent("vae", 1, 4),
            "text:1": text(5),
        }
        main = list(given)
        operations = {"main": main, "cfg_text": main[:3], "cfg_img": ["text:0", "text:1"]}
        cases["b_t2i_train"] = make_fixtures.training(
            reference, [[text(4), latent("noised", 3, 5)]], rng
        )
        cases["a_text"] = make_fixtures.training(
            reference, [[text(3), text(2, loss=True)], [text(6, loss=True)]], rng
        )
        cases["g_edit_infer"] = make_inference.inference(
            reference, given, operations, (2 * side, 5 * side), VARIANTS, 4, 6, rng
        )
        cases["f_t2i_infer"] = make_inference.inference(
            reference, {"text:0": text(4)}, {"main": ["text:0"], "cfg_text": [], "cfg_img": []},
            (3 * side, side), {k: v for k, v in VARIANTS.items() if "think" not in k}, 3, 0, rng,
        )  # fmt: skip
    for name, arrays in cases.items():
        make_fixtures.save(folder / f"{name}.npz", arrays)
    return {name: check_parity.CASES[name] for name in cases}


def bad(rows):
    return {row.array: (row.state, row.error) for row in rows if row.state != "ok"}


def test_the_numpy_model_is_the_reference():
    reference = Bagel(FIXTURES / "checkpoint")

    def error(got, wanted):
        return np.abs(got - wanted).max() / np.abs(wanted).max()

    case = parity.read_arrays(FIXTURES / "c2_packed_train.npz")
    gen = case["in.modality"] == LATENT
    hidden, _ = reference.run(
        case["out.inputs_embeds"], gen, case["in.packed_position_ids"], case["in.attention_mask"]
    )
    assert error(hidden, case["out.last_hidden"]) < 1e-5
    assert error(reference.logits(hidden[case["in.ce_loss_indexes"]]), case["out.ce_logits"]) < 1e-5
    assert (
        error(reference.velocity(hidden[case["in.mse_loss_indexes"]]), case["out.velocity"]) < 1e-5
    )
    x_t, ids = case["out.latent_noised"], case["in.packed_latent_position_ids"]
    wanted = case["out.inputs_embeds"][case["in.packed_vae_token_indexes"]]
    assert error(reference.latent_tokens(x_t, ids, case["out.timesteps"]), wanted) < 1e-5
    assert error(reference.latent_tokens(x_t, ids + 1, case["out.timesteps"]), wanted) > 1e-2
    case = parity.read_arrays(FIXTURES / "d_vit.npz")
    tokens, _, encoded, connected = reference.see(case["in.image_0"].astype(np.float64))
    for name, got in (("tokens", tokens), ("vit", encoded), ("connector", connected)):
        assert error(got, case[f"out.{name}_0"]) < 1e-5
    case = parity.read_arrays(FIXTURES / "e_vae.npz")
    mean, log_variance = reference.moments(case["in.image_1"].astype(np.float64))
    for name, got in (("mean", mean), ("logvar", log_variance)):
        assert error(got, case[f"out.{name}_1"]) < 1e-5
    decoded = reference.decode(case["in.random_latent_0"].astype(np.float64))
    assert error(decoded, case["out.decoded_random_0"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_parity_and_both_ways_at_other_sizes(name, tmp_path):
    model = SIZES[name]
    cases = write_folder(tmp_path, model)
    assert bad(parity.check_folder(tmp_path, cases)) == {}
    checkpoint = tmp_path / "checkpoint"
    config, notes = bagel.import_folder(checkpoint, tmp_path / "D", BAGEL, lambda *_: ("{}", "p"))
    assert (config.model, notes) == (model, [])
    bagel.export_folder(tmp_path / "D", tmp_path / "out")
    for file in ("ema.safetensors", "ae.safetensors"):
        there, back = load_file(checkpoint / file), load_file(tmp_path / "out" / file)
        assert there.keys() == back.keys()
        assert all(there[k].tobytes() == back[k].tobytes() for k in there)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"attention": "chunked", "layers": "unroll"}])
@pytest.mark.parametrize("name", SIZES)
def test_inference_at_other_sizes(name, how, tmp_path):
    cases = write_folder(tmp_path, SIZES[name], inference=True)
    with parity.chunks_of(8):
        rows = parity.check_folder(tmp_path, cases, **how)
    assert bad(rows) == {} and len(rows) > 150
    # Partner: one row of one expert's weights.
    file = tmp_path / "checkpoint" / "ema.safetensors"
    weights = load_file(file)
    weights["language_model.model.layers.1.mlp_moe_gen.up_proj.weight"][7] *= 1.5
    save_file(weights, file)
    found = bad(parity.check_folder(tmp_path, cases, **how))
    assert "out.nocfg.velocity" in found and "out.decode.ids" not in found


@pytest.mark.slow
def test_variants_of_a_folder(tmp_path):
    """bfloat16, an index of shards, no tables, no understanding encoder."""
    make_fixtures.write_checkpoint(tmp_path / "full", SIZES["one"])
    weights = load_file(tmp_path / "full" / "ema.safetensors")
    tables = [key for key in weights if key.endswith("pos_embed")]
    seen = [key for key in weights if key.startswith(("vit_", "connector."))]

    def variant(name, kept, dtype=np.float32, shards=1):
        folder = tmp_path / name
        folder.mkdir()
        for file in (tmp_path / "full").iterdir():
            if file.name != "ema.safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        parts = [sorted(kept)[i::shards] for i in range(shards)]
        names = [f"model-{i:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        for part, file in zip(parts, names, strict=True):
            save_file({k: weights[k].astype(dtype) for k in part}, folder / file)
        index = {k: file for part, file in zip(parts, names, strict=True) for k in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        config, _ = bagel.import_folder(folder, tmp_path / f"{name}-D", BAGEL, lambda *_: ("", "p"))
        bagel.export_folder(tmp_path / f"{name}-D", tmp_path / f"{name}-out")
        back = load_file(tmp_path / f"{name}-out" / "ema.safetensors")
        assert back.keys() == set(kept)
        assert all(back[k].tobytes() == weights[k].astype(dtype).tobytes() for k in kept)
        return config.model

    half = np.dtype(ml_dtypes.bfloat16)
    assert variant("sharded", weights, shards=3) == SIZES["one"]
    low = dataclasses.replace(SIZES["one"], dtype="bfloat16", param_dtype="bfloat16")
    assert variant("half", weights, half) == low
    without = [key for key in weights if key not in tables]
    assert variant("without tables", without) == SIZES["one"]
    blind = variant("blind", [key for key in weights if key not in seen], half, shards=2)
    assert blind.und_encoder == "none" and blind.latent_grid == 11
    assert manager.find(tmp_path / "blind-D")[2].data.grammar.context_images == "vae"
