"""Starting without BAGEL: a Qwen2 or Qwen2.5 folder becomes both experts of a new model.

Every und weight is copied into its gen twin; norms of queries and keys, which Qwen2 does not have,
start at one; everything around the language model is drawn by the model's own initialisation, whose
flow head is zero. The result is the same kind of working directory as an imported BAGEL, and is
exported in the official layout like one.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from process_gen.checkpoint import (
    bagel,
    integrity,
    json_values,
    manager,
    name_map,
    remote,
    safetensors_io,
    streaming,
)
from process_gen.core.configs import Config, ModelConfig
from process_gen.core.errors import CheckpointError

_PREFIX = "language_model."


def import_folder(
    source: epath.PathLike,
    output: epath.PathLike,
    base: Config,
    shapes: bagel.Shapes,
    draw: Callable[[ModelConfig, frozenset[str]], Mapping[str, np.ndarray]],
    tokenizer: Callable[[int], tuple[str, str]],
    vae: epath.PathLike | None = None,
) -> Config:
    """Reads a Qwen2 folder into a new working directory.

    Args:
      source: folder with `config.json` and `model.safetensors` or its sharded index.
      output: a folder that does not exist yet; it appears only when everything is in it.
      base: settings; those of the language model are replaced by the source's.
      shapes: of the models.
      draw: settings and paths to newly drawn weights at these paths.
      tokenizer: embedding rows to the text of a `tokenizer.json` and its fingerprint.
      vae: the autoencoder's file, needed with `model.codec="flux"`.

    Returns:
      The stored settings.

    Raises:
      CheckpointError: the source is damaged or no Qwen2 model; missing and unknown tensors are
        named. Nothing is left behind.
    """
    source = epath.Path(source)
    if epath.Path(output).exists():
        raise CheckpointError(f"{output}: exists already; choose a new folder")
    if (base.model.codec == "flux") != (vae is not None):
        raise CheckpointError(
            f"model.codec is {base.model.codec!r}: the autoencoder's file belongs to 'flux' only"
        )
    stated = _config(source)
    with safetensors_io.open_folder(source, ("model",)) as reader:
        model = _model(base.model, reader, stated, source)
        flat = name_map.flatten(shapes.model(model))
        grouped = {
            path: name_map.by_path(name_map.model_entries(name_map.unflatten({path: leaf})))[path]
            for path, leaf in flat.items()
            if _is_language(path)
        }
        plan = _plan(grouped, reader, stated, source)
        tokenizer_json, fingerprint = tokenizer(model.vocab_size)
        with remote.new_folder(output, last="config.json") as part:
            official = part / bagel.OFFICIAL
            official.mkdir(parents=True)
            bagel.write_frozen(official, model, shapes, vae)
            _write_settings(official, model, stated)
            (official / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            integrity.record(epath.Path(official))
            (part / "tokenizer.json").write_text(tokenizer_json, encoding="utf-8")
            file = str(manager.absolute(output) / "tokenizer.json")
            data = dataclasses.replace(base.data, tokenizer=file)
            config = dataclasses.replace(base, model=model, data=data)
            drawn = draw(model, frozenset(set(flat) - set(plan)))
            arrays = _arrays(grouped, plan, reader, drawn, model, part)
            facts = {"tokenizer": fingerprint, "imported": {"qwen": source.name}}
            streaming.write(part, config, arrays, facts)
    return config


def _is_language(path: str) -> bool:
    return path.startswith(("layers/", "final_norm/", "embed/", "lm_head/"))


def _config(source: epath.Path) -> dict[str, Any]:
    file = source / "config.json"
    stated = json_values.read(file)
    for key, allowed in (
        ("model_type", ("qwen2", "qwen3")),
        ("hidden_act", ("silu",)),
        ("rope_scaling", (None,)),
        ("rope_parameters", (None,)),
        ("use_sliding_window", (False,)),
    ):
        if stated.get(key, allowed[0]) not in allowed:
            raise CheckpointError(f"{file}: {key} is {stated[key]!r}; supported is {allowed[0]!r}")
    json_values.whole(stated, "num_attention_heads", str(file), least=1)
    for key in ("rope_theta", "rms_norm_eps"):
        json_values.number(stated, key, str(file), above=0.0)
    return stated


def _model(
    base: ModelConfig,
    reader: safetensors_io.Reader,
    stated: Mapping[str, Any],
    source: epath.Path,
) -> ModelConfig:
    def shape(key: str) -> tuple[int, ...]:
        if key not in reader.infos:
            raise CheckpointError(f"{source}: tensor {key} is missing; is this a Qwen2 model?")
        found = reader.infos[key].shape
        if len(found) != 2 or 0 in found:
            raise CheckpointError(f"{source}: tensor {key} is {list(found)}, expected 2 sides")
        return found

    vocab, width = shape("model.embed_tokens.weight")
    heads = int(stated["num_attention_heads"])
    rows = shape("model.layers.0.self_attn.q_proj.weight")[0]
    head_dim = rows // heads
    if head_dim * heads != rows:
        raise CheckpointError(
            f"{source / 'config.json'}: num_attention_heads is {heads}, which the {rows} rows of "
            "the queries' weights are no multiple of"
        )
    layers = {key.split(".")[2] for key in reader.infos if key.startswith("model.layers.")}
    bf16 = reader.infos["model.embed_tokens.weight"].dtype.itemsize == 2
    return dataclasses.replace(
        base,
        vocab_size=vocab,
        width=width,
        mlp_width=shape("model.layers.0.mlp.up_proj.weight")[0],
        num_layers=len(layers),
        num_heads=heads,
        num_kv_heads=shape("model.layers.0.self_attn.k_proj.weight")[0] // head_dim,
        head_dim=head_dim,
        rope_theta=float(stated["rope_theta"]),
        norm_eps=float(stated["rms_norm_eps"]),
        qkv_bias="model.layers.0.self_attn.q_proj.bias" in reader.infos,
        param_dtype="bfloat16" if bf16 else "float32",
        dtype="bfloat16" if bf16 else "float32",
    )


def _plan(
    grouped: Mapping[str, list[name_map.Entry]],
    reader: safetensors_io.Reader,
    stated: Mapping[str, Any],
    source: epath.Path,
) -> dict[str, list[str] | None]:
    """For each of our arrays the source's tensors, layers in order; None for norms set to one."""
    held = {k: i.shape for k, i in reader.infos.items() if not k.endswith("rotary_emb.inv_freq")}
    tied = bool(stated.get("tie_word_embeddings")) and "lm_head.weight" not in held
    plan: dict[str, list[str] | None] = {}
    wanted = []
    for path, entries in grouped.items():
        keys = [e.key.removeprefix(_PREFIX).replace("_moe_gen", "") for e in entries]
        if tied and path == "lm_head/kernel":
            keys = ["model.embed_tokens.weight"]
        if path.endswith(("q_norm/scale", "k_norm/scale")) and keys[0] not in held:
            plan[path] = None
            continue
        plan[path] = keys
        wanted += [dataclasses.replace(e, key=key) for e, key in zip(entries, keys, strict=True)]
    name_map.check(wanted, held, str(source))
    return plan


def _arrays(
    grouped: Mapping[str, list[name_map.Entry]],
    plan: Mapping[str, list[str] | None],
    reader: safetensors_io.Reader,
    drawn: Mapping[str, np.ndarray],
    model: ModelConfig,
    scratch: Path,
) -> Iterator[tuple[str, np.ndarray]]:
    dtype = safetensors_io.DTYPES["BF16" if model.param_dtype == "bfloat16" else "F32"]
    for path, keys in plan.items():
        entries = grouped[path]
        if keys is None:
            yield path, np.ones((len(entries), *entries[0].shape), dtype)
            continue
        copies = [dataclasses.replace(e, key=k) for e, k in zip(entries, keys, strict=True)]
        yield from bagel.stacked({path: copies}, reader, scratch)
    for path, array in drawn.items():
        yield path, np.asarray(array).astype(dtype)


def _write_settings(official: Path, model: ModelConfig, stated: Mapping[str, Any]) -> None:
    """The JSON files that an official folder has, so that the export is complete."""
    vit = {
        "model_type": "siglip_vision_model",
        "hidden_size": model.vit.width,
        "intermediate_size": model.vit.mlp_width,
        # One more than there are: the reference builds all but the last.
        "num_hidden_layers": model.vit.num_layers + 1,
        "num_attention_heads": model.vit.num_heads,
        "patch_size": model.und_patch,
        "image_size": model.und_patch * model.und_grid,
    }
    main = {
        "model_type": "bagel",
        "latent_patch_size": model.patch,
        "max_latent_size": model.latent_grid,
        "vit_max_num_patch_per_side": model.und_grid,
        "vae": {"scale_factor": model.vae.scale, "shift_factor": model.vae.shift},
    }
    llm = {**stated, "qk_norm": True, "tie_word_embeddings": False, "model_type": "qwen2"}
    files = {"config": main, "llm_config": llm}
    if model.und_encoder == "siglip":
        files["vit_config"] = vit
    for name, content in files.items():
        (official / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
