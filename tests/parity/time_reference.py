"""The official PyTorch code of BAGEL, timed on the work of `launch.benchmark --suite=bagel_cpu`.

    python -m launch.benchmark --suite=bagel_cpu --rounds=7 \
        --reference="TORCH_PYTHON tests/parity/time_reference.py CLONE"

TORCH_PYTHON is an interpreter with torch (CPU), transformers 4.49, einops, numpy, Pillow and tqdm,
in an environment of its own; CLONE is a clone of github.com/ByteDance-Seed/Bagel. The benchmark
starts this program and asks for one call after another, so that both are measured in turn.

The clone is not changed. Three things of it cannot run on a CPU and are replaced in a copy: the
casts of attention to bfloat16 (float32 stays, as on our side), the choice of a CUDA attention
kernel, and `flash_attn`, in whose place stands torch's own attention.

For each line on standard input, the name of a piece of work, it does one call and writes a line.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import shutil
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIZES = Path(__file__).resolve().parents[2] / "configs" / "bagel_cpu.json"
TEXT, PATCHES, STEPS, WRITTEN = 64, 64, 20, 32
SPLITS = ((34, "causal"), (66, "noise"), (66, "full"), (66, "full"), (34, "causal"), (66, "noise"))


def flash_attn_varlen_func(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_k: Any,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = False,
) -> Any:
    """Attention of sequences that lie one after the other, ``[tokens, heads, features]``."""
    del max_seqlen_q, max_seqlen_k
    ends = zip(cu_seqlens_q.tolist(), cu_seqlens_k.tolist(), strict=True)
    parts, (begin_q, begin_k) = [], next(ends)
    for end_q, end_k in ends:
        rows = (q[begin_q:end_q], k[begin_k:end_k], v[begin_k:end_k])
        queries, keys, values = (x.transpose(0, 1)[None] for x in rows)
        mask = None
        if causal and end_q - begin_q > 1:
            seen, new = end_k - begin_k, end_q - begin_q
            mask = torch.ones(new, seen, dtype=torch.bool).tril(seen - new)
        found = torch.nn.functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, enable_gqa=True
        )
        parts.append(found[0].transpose(0, 1))
        begin_q, begin_k = end_q, end_k
    return torch.cat(parts)


def import_reference(clone: Path, folder: Path) -> None:
    """Makes the copy that runs on a CPU and puts it on the path."""
    for part in ("modeling", "data"):
        shutil.copytree(clone / part, folder / part)
    for name in ("qwen2_navit.py", "siglip_navit.py"):
        path = folder / "modeling" / "bagel" / name
        text = path.read_text(encoding="utf-8").replace("torch.bfloat16", "torch.float32")
        every = "[SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]"
        path.write_text(text.replace("[SDPBackend.EFFICIENT_ATTENTION]", every), encoding="utf-8")
    flash = types.ModuleType("flash_attn")
    flash.__spec__ = importlib.machinery.ModuleSpec("flash_attn", None)  # transformers asks for it
    flash.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    sys.modules["flash_attn"] = flash
    sys.path.insert(0, str(folder))


def build_model() -> tuple[Any, dict[str, int]]:
    """The model at the sizes of the file, random weights."""
    from modeling.bagel.bagel import Bagel, BagelConfig
    from modeling.bagel.qwen2_navit import Qwen2Config, Qwen2ForCausalLM
    from modeling.bagel.siglip_navit import SiglipVisionConfig, SiglipVisionModel

    said = json.loads(SIZES.read_text(encoding="utf-8"))
    main, vit = said["config"], dict(said["vit_config"])
    llm_config = Qwen2Config(**said["llm_config"], attn_implementation="eager")
    vit["num_hidden_layers"] += 1 + main["vit_select_layer"]
    vit_config = SiglipVisionConfig(**vit)
    config = BagelConfig(
        llm_config=llm_config,
        vit_config=vit_config,
        vae_config=types.SimpleNamespace(
            downsample=main["vae"]["downsample"], z_channels=main["vae"]["z_channels"]
        ),
        latent_patch_size=main["latent_patch_size"],
        max_latent_size=main["max_latent_size"],
        vit_max_num_patch_per_side=main["vit_max_num_patch_per_side"],
        connector_act=main["connector_act"],
        timestep_shift=main["timestep_shift"],
    )
    torch.manual_seed(main["seed"])
    model = Bagel(Qwen2ForCausalLM(llm_config), SiglipVisionModel(vit_config), config)
    model.vit_model.vision_model.embeddings.convert_conv2d_to_linear(vit_config)
    torch.nn.init.normal_(model.llm2vae.weight, std=0.02)
    return model.float(), main["special_tokens"]


def train_inputs(model: Any, ids: dict[str, int]) -> dict[str, Any]:
    """Two samples of text, noised, clean and understanding picture, text, noised picture."""
    from data.data_utils import (
        get_flattened_position_ids_extrapolate,
        prepare_attention_mask_per_sample,
    )

    text, text_at, position, labels, label_at = [], [], [], [], []
    vae_at, vit_at, times, mse_at = [], [], [], []
    begin, place = 0, 0
    for _ in range(2):
        place = 0
        for number, (length, kind) in enumerate(SPLITS):
            if kind == "causal":
                words = [ids["bos_token_id"], *torch.randint(0, 4000, (length - 2,)).tolist()]
                words.append(ids["eos_token_id"])
                text += words
                text_at += range(begin, begin + length)
                labels += words[1:]
                label_at += range(begin, begin + length - 1)
                position += range(place, place + length)
                place += length
            else:
                text += [ids["start_of_image"], ids["end_of_image"]]
                text_at += [begin, begin + length - 1]
                inside = list(range(begin + 1, begin + length - 1))
                position += [place] * length
                if kind == "noise":
                    mse_at += inside
                    times += [float(torch.randn(()))] * PATCHES
                elif number == 2:
                    times += [float("-inf")] * PATCHES
                (vit_at if number == 3 else vae_at).extend(inside)
                # A noised picture and its clean copies share a place.
                place += kind != "noise" or number == 5
            begin += length
    length = sum(length for length, _ in SPLITS)
    mask = prepare_attention_mask_per_sample([n for n, _ in SPLITS], [kind for _, kind in SPLITS])
    latent_position = get_flattened_position_ids_extrapolate(128, 128, 16, model.max_latent_size)
    vit_position = get_flattened_position_ids_extrapolate(
        112, 112, model.vit_patch_size, model.vit_max_num_patch_per_side
    )
    clean = [torch.randn(16, 16, 16) for _ in range(6)]
    return {
        "sequence_length": begin,
        "packed_text_ids": torch.tensor(text),
        "packed_text_indexes": torch.tensor(text_at),
        "sample_lens": [length, length],
        "packed_position_ids": torch.tensor(position),
        "nested_attention_masks": [mask, mask],
        "ce_loss_indexes": torch.tensor(label_at),
        "packed_label_ids": torch.tensor(labels),
        "packed_vit_tokens": torch.randn(2 * PATCHES, 3 * model.vit_patch_size**2),
        "packed_vit_token_indexes": torch.tensor(vit_at),
        "packed_vit_position_ids": vit_position.repeat(2),
        "vit_token_seqlens": torch.tensor([PATCHES, PATCHES], dtype=torch.int),
        "padded_latent": torch.stack(clean),
        "patchified_vae_latent_shapes": [(8, 8)] * 6,
        "packed_latent_position_ids": latent_position.repeat(6),
        "packed_vae_token_indexes": torch.tensor(vae_at),
        "packed_timesteps": torch.tensor(times),
        "mse_loss_indexes": torch.tensor(mse_at),
    }


def build_work(model: Any, ids: dict[str, int]) -> dict[str, Callable[[], Any]]:
    """The calls, by the names that the suite gives them."""
    from modeling.bagel.qwen2_navit import NaiveCache

    inputs = train_inputs(model, ids)
    layers = model.config.llm_config.num_hidden_layers
    words = torch.randint(0, 4000, (TEXT - 2,)).tolist()
    tokenizer = types.SimpleNamespace(encode=lambda text: words)

    def loss() -> Any:
        model.train()
        found = model(**inputs)
        return found["ce"].mean() + found["mse"].mean()

    def train() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    def forward() -> None:
        with torch.no_grad():
            loss()

    def prefill() -> Any:
        model.eval()
        given, lengths, ropes = model.prepare_prompts([0], [0], [""], tokenizer, ids)
        return model.forward_cache_update_text(NaiveCache(layers), **given), lengths, ropes

    cache, lengths, ropes = prefill()
    shape = [(128, 128)]
    latent = model.prepare_vae_latent(lengths, ropes, shape, ids)
    empty = model.prepare_vae_latent_cfg([0], [0], shape)
    same = model.prepare_vae_latent_cfg(lengths, ropes, shape)

    def branch(name: str, given: dict[str, Any], past: Any) -> dict[str, Any]:
        given = {key.removeprefix("cfg_"): value for key, value in given.items()}
        return {f"{name}_{key}": value for key, value in given.items()} | {
            f"{name}_past_key_values": past
        }

    shared = {"past_key_values": cache, "num_timesteps": STEPS + 1, "timestep_shift": 3.0}
    guidance = {
        **branch("cfg_text", empty, NaiveCache(layers)),
        **branch("cfg_img", same, cache),
        "cfg_text_scale": 4.0,
        "cfg_img_scale": 1.5,
    }

    def denoise() -> None:
        model.eval()
        model.generate_image(**latent, **shared)

    def guided() -> None:
        model.eval()
        model.generate_image(**latent, **shared, **guidance)

    def decode() -> None:
        model.eval()
        start = model.prepare_start_tokens(lengths, ropes, ids)
        past = NaiveCache(layers)
        past.key_cache, past.value_cache = dict(cache.key_cache), dict(cache.value_cache)
        model.generate_text(past, **start, max_length=WRITTEN, end_token_id=-1)

    return {
        "train": train,
        "forward": forward,
        "denoise": denoise,
        "guided": guided,
        "decode": decode,
        "prefill": prefill,
    }


def main() -> None:
    """Serves calls until the input ends."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as folder:
        import_reference(Path(sys.argv[1]), Path(folder))
        import modeling.bagel.bagel as reference

        reference.tqdm = lambda steps, **_: steps
        work = build_work(*build_model())
        for line in sys.stdin:
            work[line.strip()]()
            print("done", flush=True)


if __name__ == "__main__":
    main()
