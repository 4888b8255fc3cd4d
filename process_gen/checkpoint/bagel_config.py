"""The settings that a BAGEL folder implies: sizes from its tensors, the rest from its JSON files.

Released `config.json` files state sizes that the weights do not have (docs/bagel.md), so every size
is read from a tensor, and a file that says otherwise is only reported.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoint import json_values
from process_gen.checkpoint.name_map import TABLES
from process_gen.checkpoint.safetensors_io import TensorInfo
from process_gen.core.configs import ModelConfig, SamplerConfig
from process_gen.core.encoder_sizes import VaeSizes, VitSizes
from process_gen.core.errors import CheckpointError

_LLM = "language_model.model."
_VIT = "vit_model.vision_model."
_MAIN_FILE, _LLM_FILE, _VIT_FILE = "config.json", "llm_config.json", "vit_config.json"
_POSITIVE = functools.partial(json_values.number, above=0.0)
_COUNT = functools.partial(json_values.whole, least=1)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a folder's JSON files say.

    Attributes:
      main, llm, vit: contents of `config.json`, `llm_config.json` and `vit_config.json`; a newer
        `config.json` may hold the other two. What is used of them is of the right kind.
      vae: what `config.json` says of the autoencoder.
    """

    main: Mapping[str, Any]
    llm: Mapping[str, Any]
    vit: Mapping[str, Any]
    vae: Mapping[str, Any]


def read_settings(folder: epath.Path) -> Settings:
    """Reads the JSON files of a folder; absent ones are empty.

    Raises:
      CheckpointError: a file is damaged, or describes a model that this one is not.
    """
    main, main_where = _content(folder / _MAIN_FILE)
    llm, llm_where = _content(folder / _LLM_FILE, main, "llm_config", main_where)
    vit, vit_where = _content(folder / _VIT_FILE, main, "vit_config", main_where)
    if not llm:
        raise CheckpointError(
            f"{folder}: has no llm_config.json, which alone states the rotary base and the norms' "
            "epsilon"
        )
    # What would change the result without changing any shape.
    for content, where, key, only in (
        (llm, llm_where, "hidden_act", "silu"),
        (llm, llm_where, "rope_scaling", None),
        (llm, llm_where, "rope_parameters", None),
        (llm, llm_where, "use_sliding_window", False),
        (llm, llm_where, "tie_word_embeddings", False),
        (vit, vit_where, "hidden_act", "gelu_pytorch_tanh"),
        (vit, vit_where, "rope", False),
        (main, main_where, "connector_act", "gelu_pytorch_tanh"),
        (main, main_where, "interpolate_pos", False),
        (main, main_where, "vit_rope", False),
    ):
        if content.get(key, only) != only:
            raise CheckpointError(f"{where}: {key} is {content[key]!r}; only {only!r} is supported")
    for key in ("rope_theta", "rms_norm_eps"):  # no tensor says them, and a wrong one shows late
        _POSITIVE(llm, key, llm_where)
    stated = "vae" if main.get("vae") else "vae_config"
    vae = json_values.section(main, stated, main_where)
    json_values.section(main, "special_tokens", main_where)
    for content, where, key, take in (
        (main, main_where, "max_latent_size", _COUNT),
        (main, main_where, "timestep_shift", _POSITIVE),
        (main, main_where, "vit_select_layer", json_values.whole),
        (vae, f"{main_where}, {stated}", "scale_factor", _POSITIVE),
        (vae, f"{main_where}, {stated}", "shift_factor", json_values.number),
        (vit, vit_where, "num_attention_heads", _COUNT),
        (vit, vit_where, "num_hidden_layers", _COUNT),
        (vit, vit_where, "layer_norm_eps", _POSITIVE),
    ):
        if key in content:
            take(content, key, where)
    return Settings(main, llm, vit, vae)


def _content(
    file: epath.Path, main: Mapping[str, Any] | None = None, key: str = "", where: str = ""
) -> tuple[dict[str, Any], str]:
    """What a file says, or `config.json` in its place, and what messages call it."""
    own = json_values.read(file) if file.is_file() else {}
    held = {} if own or main is None else json_values.section(main, key, where)
    return (held, f"{where}, {key}") if held else (own, str(file))


class _Tensors:
    """Shapes of one set of files, with errors that name the file and the key."""

    def __init__(self, infos: Mapping[str, TensorInfo], where: str):
        self.infos = infos
        self.where = where

    def __contains__(self, key: str) -> bool:
        return key in self.infos

    def shape(self, key: str, dims: int) -> tuple[int, ...]:
        if key not in self.infos:
            raise CheckpointError(f"{self.where}: tensor {key} is missing")
        shape = self.infos[key].shape
        if len(shape) != dims or 0 in shape:
            raise CheckpointError(
                f"{self.where}: tensor {key} is {list(shape)}, expected {dims} sides"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many numbers `pattern` finds in keys; they count from 0, without a gap.

        The largest alone would not do: a tiny file may name a billionth layer.
        """
        found = {m.group(1): key for key in self.infos if (m := re.match(pattern, key))}
        wanted = [str(number) for number in range(len(found))]
        if left := sorted(found.keys() - set(wanted)):
            number = next(number for number in wanted if number not in found)
            raise CheckpointError(
                f"{self.where}: tensor {found[left[0]][:200]} is there, but none with {number} in "
                "the place of its number"
            )
        return len(found)

    def side(self, key: str) -> int:
        rows = self.shape(key, 2)[0]
        if math.isqrt(rows) ** 2 != rows:
            raise CheckpointError(f"{self.where}: tensor {key} has {rows} rows, no square number")
        return math.isqrt(rows)


def model_config(
    infos: Mapping[str, TensorInfo], vae: VaeSizes, settings: Settings, where: str
) -> tuple[ModelConfig, list[str]]:
    """The model of `ema.safetensors`.

    Args:
      infos: its tensors.
      vae: sizes of the autoencoder.
      settings: of the folder.
      where: the file, for messages.

    Returns:
      The model's settings, and a note for every size that a JSON file states otherwise.

    Raises:
      CheckpointError: a tensor that decides a size is missing or has another number of sides.
    """
    tensors = _Tensors(infos, where)
    layer = f"{_LLM}layers.0."
    vocab, width = tensors.shape(f"{_LLM}embed_tokens.weight", 2)
    head_dim = tensors.shape(f"{layer}self_attn.q_norm.weight", 1)[0]
    has_vit = any(key.startswith((_VIT, "connector.")) for key in infos)
    features = tensors.shape("vae2llm.weight", 2)[1]
    patch = math.isqrt(features // vae.latent_channels)
    if patch * patch * vae.latent_channels != features:
        raise CheckpointError(
            f"{where}: vae2llm takes {features} features, which are no square patch of "
            f"{vae.latent_channels} channels"
        )
    table = TABLES["latent_pos"]
    # Without the table any side does: rows of a larger one hold the same values for the same place.
    latent_grid = (
        tensors.side(table) if table in tensors else int(settings.main.get("max_latent_size", 64))
    )
    bf16 = infos[f"{_LLM}embed_tokens.weight"].dtype.itemsize == 2
    vit: dict[str, Any] = {"und_encoder": "none"}
    if has_vit:
        vit = _vit_sizes(tensors, settings)
    elif TABLES["vit_pos"] in tensors:
        vit["und_grid"] = tensors.side(TABLES["vit_pos"])
    config = ModelConfig(
        vocab_size=vocab,
        width=width,
        mlp_width=tensors.shape(f"{layer}mlp.up_proj.weight", 2)[0],
        num_layers=tensors.count(re.escape(_LLM) + r"layers\.(\d+)\."),
        num_heads=tensors.shape(f"{layer}self_attn.q_proj.weight", 2)[0] // head_dim,
        num_kv_heads=tensors.shape(f"{layer}self_attn.k_proj.weight", 2)[0] // head_dim,
        head_dim=head_dim,
        rope_theta=float(settings.llm["rope_theta"]),
        norm_eps=float(settings.llm["rms_norm_eps"]),
        qkv_bias=f"{layer}self_attn.q_proj.bias" in tensors,
        codec="flux",
        patch=patch,
        codec_channels=vae.latent_channels,
        latent_grid=latent_grid,
        time_features=tensors.shape("time_embedder.mlp.0.weight", 2)[1],
        prediction="velocity",
        dtype="bfloat16" if bf16 else "float32",
        param_dtype="bfloat16" if bf16 else "float32",
        layers="scan",
        vae=vae,
        **vit,
    )
    return config, _disagreements(config, settings)


def _vit_sizes(tensors: _Tensors, settings: Settings) -> dict[str, Any]:
    width, features = tensors.shape(f"{_VIT}embeddings.patch_embedding.weight", 2)
    patch = math.isqrt(features // 3)
    if patch * patch * 3 != features:
        raise CheckpointError(
            f"{tensors.where}: the patch embedding takes {features} numbers, which are no square "
            "of RGB pixels"
        )
    if "num_attention_heads" not in settings.vit:
        raise CheckpointError(
            f"{tensors.where}: vit_config.json must state num_attention_heads, which no tensor does"
        )
    return {
        "und_encoder": "siglip",
        "und_patch": patch,
        "und_grid": tensors.side(f"{_VIT}embeddings.position_embedding.weight"),
        "vit": VitSizes(
            width=width,
            mlp_width=tensors.shape(f"{_VIT}encoder.layers.0.mlp.fc1.weight", 2)[0],
            num_layers=tensors.count(re.escape(_VIT) + r"encoder\.layers\.(\d+)\."),
            num_heads=int(settings.vit["num_attention_heads"]),
            norm_eps=float(settings.vit.get("layer_norm_eps", 1e-6)),
        ),
    }


def _disagreements(config: ModelConfig, settings: Settings) -> list[str]:
    main, llm, vit = settings.main, settings.llm, settings.vit
    built = vit.get("num_hidden_layers", 0) + 1 + main.get("vit_select_layer", -2)
    stated = [
        ("llm_config.json: hidden_size", llm.get("hidden_size"), config.width),
        ("llm_config.json: intermediate_size", llm.get("intermediate_size"), config.mlp_width),
        ("llm_config.json: num_hidden_layers", llm.get("num_hidden_layers"), config.num_layers),
        ("llm_config.json: num_attention_heads", llm.get("num_attention_heads"), config.num_heads),
        (
            "llm_config.json: num_key_value_heads",
            llm.get("num_key_value_heads"),
            config.num_kv_heads,
        ),
        ("llm_config.json: vocab_size", llm.get("vocab_size"), config.vocab_size),
        ("config.json: max_latent_size", main.get("max_latent_size"), config.latent_grid),
        ("config.json: latent_patch_size", main.get("latent_patch_size"), config.patch),
    ]
    if config.und_encoder == "siglip":
        stated += [
            (
                "config.json: vit_max_num_patch_per_side",
                main.get("vit_max_num_patch_per_side"),
                config.und_grid,
            ),
            (
                "vit_config.json: layers up to the selected one",
                built if "num_hidden_layers" in vit else None,
                config.vit.num_layers,
            ),
        ]
    return [
        f"{name} says {said}, the tensors say {is_}; the tensors are right"
        for name, said, is_ in stated
        if said is not None and said != is_
    ]


def sampler_config(model: ModelConfig) -> SamplerConfig:
    """The release's settings for text-to-image, and room for a process of eight pictures."""
    texts, pictures, prompt = 512, 8, 1024
    # Of the understanding copy a quarter of the table's cells are used (`images.painted_copy`).
    picture = model.latent_grid**2 + model.und_grid**2 // 3 + 4
    return SamplerConfig(
        batch=1,
        denoise_steps=49,
        one_shot_steps=49,
        timestep_shift=3.0,
        guidance=4.0,
        one_shot_guidance=4.0,
        guidance_interval=(0.4, 1.0),
        renorm="global",
        temperature=0.0,
        max_text=texts,
        max_images=pictures,
        max_prompt=prompt,
        max_context=prompt + pictures * (picture + 2 * texts),
    )


def vae_sizes(infos: Mapping[str, TensorInfo], settings: Settings, where: str) -> VaeSizes:
    """The autoencoder of `ae.safetensors`; scale and shift come from `config.json` or the release.

    Raises:
      CheckpointError: a tensor that decides a size is missing.
    """
    tensors = _Tensors(infos, where)
    channels, colours = tensors.shape("encoder.conv_in.weight", 4)[:2]
    levels = tensors.count(r"encoder\.down\.(\d+)\.")
    widths = [tensors.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels)]
    return VaeSizes(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=tensors.count(r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=tensors.shape("decoder.conv_in.weight", 4)[1],
        picture_channels=colours,
        scale=float(settings.vae.get("scale_factor", VaeSizes.scale)),
        shift=float(settings.vae.get("shift_factor", VaeSizes.shift)),
    )


def stated_ids(settings: Settings) -> dict[str, int]:
    """Ids of the four special tokens by their names in `config.json`, where it states them."""
    ids = settings.main.get("special_tokens") or {}
    return {name: int(value) for name, value in ids.items() if isinstance(value, (int, np.integer))}
