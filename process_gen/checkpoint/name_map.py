"""Which tensor of the official BAGEL files is which array of ours.

The table is driven by our own parameter tree, whose shapes therefore decide which official keys,
with which shapes, a checkpoint must hold. Torch stores a linear map as (out, in) and a convolution
as (out, in, rows, columns); ours are (in, out) and (rows, columns, in, out). Layers are stacked in
our tree along a leading axis and numbered in the official keys.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from process_gen.core.errors import CheckpointError

Layout = Literal["same", "linear", "conv", "pointwise"]

# Our path -> official key. "{layer}" is a stacked layer's number, "{gen}" the suffix of the
# generation expert's modules; our path has "und" or "gen" in place of the "E".
_LAYER = "language_model.model.layers.{layer}."
_VIT = "vit_model.vision_model."
_VIT_LAYER = _VIT + "encoder.layers.{layer}."
_MODEL: dict[str, str] = {
    "embed/table": "language_model.model.embed_tokens.weight",
    "lm_head/kernel": "language_model.lm_head.weight",
    "final_norm/E/scale": "language_model.model.norm{gen}.weight",
    "layers/E/attention/o/kernel": _LAYER + "self_attn.o_proj{gen}.weight",
    "layers/E/input_norm/scale": _LAYER + "input_layernorm{gen}.weight",
    "layers/E/post_norm/scale": _LAYER + "post_attention_layernorm{gen}.weight",
    "und_encoder/patch_in/kernel": _VIT + "embeddings.patch_embedding.weight",
    "und_encoder/patch_in/bias": _VIT + "embeddings.patch_embedding.bias",
    "und_encoder/position": _VIT + "embeddings.position_embedding.weight",
    "und_encoder/post_norm/scale": _VIT + "post_layernorm.weight",
    "und_encoder/post_norm/bias": _VIT + "post_layernorm.bias",
}
for _name in "qkv":
    _ours = f"layers/E/attention/{_name}/"
    _MODEL[_ours + "kernel"] = _LAYER + f"self_attn.{_name}_proj{{gen}}.weight"
    _MODEL[_ours + "bias"] = _LAYER + f"self_attn.{_name}_proj{{gen}}.bias"
for _name in "qk":
    _MODEL[f"layers/E/attention/{_name}_norm/scale"] = (
        _LAYER + f"self_attn.{_name}_norm{{gen}}.weight"
    )
for _name in ("gate", "up", "down"):
    _MODEL[f"layers/E/mlp/{_name}/kernel"] = _LAYER + f"mlp{{gen}}.{_name}_proj.weight"
for _ours, _theirs in {
    "latent_in": "vae2llm",
    "latent_out": "llm2vae",
    "time_in": "time_embedder.mlp.0",
    "time_out": "time_embedder.mlp.2",
    "connector/hidden": "connector.fc1",
    "connector/out": "connector.fc2",
    "und_encoder/layers/mlp/hidden": _VIT_LAYER + "mlp.fc1",
    "und_encoder/layers/mlp/out": _VIT_LAYER + "mlp.fc2",
    "und_encoder/layers/attention/q": _VIT_LAYER + "self_attn.q_proj",
    "und_encoder/layers/attention/k": _VIT_LAYER + "self_attn.k_proj",
    "und_encoder/layers/attention/v": _VIT_LAYER + "self_attn.v_proj",
    "und_encoder/layers/attention/o": _VIT_LAYER + "self_attn.out_proj",
}.items():
    _MODEL[f"{_ours}/kernel"] = f"{_theirs}.weight"
    _MODEL[f"{_ours}/bias"] = f"{_theirs}.bias"
for _ours, _theirs in {"norm1": "layer_norm1", "norm2": "layer_norm2"}.items():
    _MODEL[f"und_encoder/layers/{_ours}/scale"] = f"{_VIT_LAYER}{_theirs}.weight"
    _MODEL[f"und_encoder/layers/{_ours}/bias"] = f"{_VIT_LAYER}{_theirs}.bias"

# The frozen sin-cos tables, recomputed by the model. Our name -> official key.
TABLES = {
    "latent_pos": "latent_pos_embed.pos_embed",
    "vit_pos": "vit_pos_embed.pos_embed",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor and its place in our tree.

    Attributes:
      key: the official key.
      path: of the array in our tree, slashes between its keys.
      layer: the index along the array's leading axis, or None where the array is the tensor.
      layout: how the official array is turned into ours.
      shape: of the official tensor.
    """

    key: str
    path: str
    layer: int | None
    layout: Layout
    shape: tuple[int, ...]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested dicts by path, slashes between keys, in the order of the keys."""
    flat = {}
    for key in sorted(tree):
        value = tree[key]
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}/"))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def official_shape(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    """The shape of the official tensor whose array in our layout has `shape`."""
    if layout == "linear":
        return shape[::-1]
    if layout == "conv":
        return shape[3], shape[2], shape[0], shape[1]
    return (shape[1], shape[0], 1, 1) if layout == "pointwise" else shape


def from_official(array: np.ndarray, layout: Layout) -> np.ndarray:
    """Turns an official tensor into our layout, as a view."""
    if layout == "linear":
        return array.T
    if layout == "conv":
        return array.transpose(2, 3, 1, 0)
    return array[:, :, 0, 0].T if layout == "pointwise" else array


def to_official(array: np.ndarray, layout: Layout) -> np.ndarray:
    """The inverse of `from_official`, as a view."""
    if layout == "linear":
        return array.T
    if layout == "conv":
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None] if layout == "pointwise" else array


def model_entries(params: Mapping[str, Any]) -> list[Entry]:
    """The tensors of `ema.safetensors` that belong to a parameter tree, tables left out.

    Args:
      params: nested dicts whose leaves have a `shape`.

    Raises:
      CheckpointError: an array has no counterpart in a BAGEL checkpoint.
    """
    entries = []
    for path, leaf in flatten(params).items():
        pattern = re.sub(r"^(layers|final_norm)/(und|gen)/", r"\1/E/", path)
        if pattern not in _MODEL:
            raise CheckpointError(f"parameter {path} has no counterpart in a BAGEL checkpoint")
        gen = "_moe_gen" if re.match(r"(layers|final_norm)/gen/", path) else ""
        template = _MODEL[pattern]
        layout: Layout = "linear" if path.endswith("/kernel") else "same"
        shape = tuple(leaf.shape)
        if "{layer}" in template:
            for layer in range(shape[0]):
                key = template.format(layer=layer, gen=gen)
                entries.append(Entry(key, path, layer, layout, official_shape(shape[1:], layout)))
        else:
            key = template.format(gen=gen)
            entries.append(Entry(key, path, None, layout, official_shape(shape, layout)))
    return entries


def vae_entries(params: Mapping[str, Any]) -> list[Entry]:
    """The tensors of `ae.safetensors` that belong to the autoencoder's parameter tree."""
    entries = []
    for path, leaf in flatten(params).items():
        *modules, last = path.split("/")
        side = "downsample" if modules[0] == "encoder" else "upsample"
        key = ".".join(modules)
        # Our "down_1/block_0" is their "down.1.block.0"; "mid/block_1" has the same name in both.
        if modules[1] != "mid":
            key = re.sub(r"\b(down|up|block)_(\d)", r"\1.\2", key)
        key = re.sub(r"(?<=\d)\.conv$", f".{side}.conv", key)
        shape = tuple(leaf.shape)
        layout: Layout = "same"
        if last == "kernel":
            layout = "conv" if len(shape) == 4 else "pointwise"
        name = "bias" if last == "bias" else "weight"
        entries.append(Entry(f"{key}.{name}", path, None, layout, official_shape(shape, layout)))
    return entries


def check(entries: Iterable[Entry], held: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Accounts for both sides: every tensor held is wanted, every one wanted is held, shapes agree.

    Args:
      entries: what the model wants.
      held: shape of every tensor that the files hold, without the position tables.
      where: the files, for the message.

    Raises:
      CheckpointError: lists the missing, the unknown and the misshapen tensors, all of them counted
        and the first few of each named.
    """
    wanted = {entry.key: entry.shape for entry in entries}
    complaints = [
        _some("missing", [key for key in wanted if key not in held]),
        _some("unknown", [key for key in held if key not in wanted]),
        _some(
            "of another shape",
            [
                f"{key} (is {list(held[key])}, should be {list(shape)})"
                for key, shape in wanted.items()
                if key in held and tuple(held[key]) != tuple(shape)
            ],
        ),
    ]
    text = "; ".join(filter(None, complaints))
    if text:
        raise CheckpointError(f"{where}: the tensors do not fit the model: {text}")


def _some(what: str, keys: list[str], most: int = 8) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return f"{len(keys)} {what}: {', '.join(sorted(keys)[:most])}{more}"


def by_path(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """Entries of each of our arrays, layers in order."""
    grouped: dict[str, list[Entry]] = {}
    for entry in entries:
        grouped.setdefault(entry.path, []).append(entry)
    return grouped


def check_table(name: str, stored: np.ndarray, computed: np.ndarray, where: str) -> None:
    """Compares a stored position table with the one that the model computes.

    The released file holds the tables rounded to bfloat16 and the reference's trainer recomputes
    them, so anything beyond a rounding means other conventions, and pictures of noise.

    Args:
      name: the official key.
      stored: [cells, D] in any float type.
      computed: [cells, D] in float32.
      where: the file, for the message.

    Raises:
      CheckpointError: an element differs by more than the stored type's rounding, or 1e-6.
    """
    if stored.shape != computed.shape:
        raise CheckpointError(
            f"{where}: tensor {name} is {list(stored.shape)}, the model's {list(computed.shape)}"
        )
    # Half of the spacing of bfloat16 below one; all entries lie in [-1, 1].
    allowed = 1e-6 if stored.dtype.itemsize >= 4 else 2.0**-9 + 1e-6
    error = float(np.abs(stored.astype(np.float32) - computed).max(initial=0.0))
    if not error <= allowed:
        raise CheckpointError(
            f"{where}: tensor {name} is not the sine-cosine table (off by {error:.3g}); the "
            "checkpoint follows other conventions than this model"
        )
