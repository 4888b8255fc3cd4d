"""How many FLOPs a pass of the model needs, counted from sizes and tokens alone.

A multiply and an add are two FLOPs. What counts is what the result needs: tokens that are not
padding, pairs of a query and a key that it may see, logits of labelled tokens, the flow head of
targets. Only matrix products count, as is usual for a model FLOPs utilisation (PaLM, arXiv
2204.02311, appendix B); norms, rotations and exponentials come on top. What an implementation
computes beyond that (padding, hidden pairs, a forward pass done twice) is not useful work, and
makes the utilisation smaller.

No device and no jax is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from process_gen.core.batch import NO_COPY, NO_LABEL, PackedBatch
from process_gen.core.model_config import LoraConfig, ModelConfig


class Work(NamedTuple):
    """What passes through the model, summed over rows, padding left out.

    Attributes:
      text, patches, latents: tokens of the three parts; picture boundary tokens are text.
      pairs: pairs of a query and a key that it sees.
      patch_pairs: the same inside the understanding encoder, where only "siglip" has any.
      labels: text tokens whose logits are wanted.
      targets: latent tokens whose velocity is wanted.
      times: latent groups with a time of their own; the time's embedding is needed once for each.
    """

    text: int = 0
    patches: int = 0
    latents: int = 0
    pairs: int = 0
    patch_pairs: int = 0
    labels: int = 0
    targets: int = 0
    times: int = 0

    def __mul__(self, rows: object) -> Work:
        """The work of so many rows like this one."""
        if not isinstance(rows, int):
            return NotImplemented
        return Work(*(rows * count for count in self))


class _Map(NamedTuple):
    """A linear map: tokens that pass it, its sizes, and what is taken by its gradient.

    Attributes:
      by_input: whether the gradient by its input is taken, which the model's own inputs need not.
      by_weight: the same for its weight.
    """

    tokens: int
    inputs: int
    outputs: int
    by_input: bool = True
    by_weight: bool = True


def visible_pairs(
    order_BxSq: np.ndarray, visible_from_BxSk: np.ndarray, visible_to_BxSk: np.ndarray
) -> int:
    """Pairs that `core.attention_mask.may_attend` allows, without an array of all pairs."""
    total = 0
    for order, low, high in zip(order_BxSq, visible_from_BxSk, visible_to_BxSk, strict=True):
        ordered = np.sort(order[order >= 0])
        ends = np.searchsorted(ordered, high, "right") - np.searchsorted(ordered, low, "left")
        total += int(np.maximum(ends, 0).sum())
    return total


def of_batch(batch: PackedBatch) -> Work:
    """The work of a pass over packs, as the loss wants it."""
    order, low, high = (
        np.concatenate([np.asarray(place[i]) for place in (batch.text, batch.und, batch.gen)], 1)
        for i in range(3)
    )
    used = [int((np.asarray(p.order) >= 0).sum()) for p in (batch.text, batch.und, batch.gen)]
    used_BxG = np.asarray(batch.gen.order) >= 0
    noised_BxG = used_BxG & (np.asarray(batch.copy_BxG) != NO_COPY)
    times = patch_pairs = 0
    for images, copies, noised, gen in zip(
        np.asarray(batch.patch_image_BxV),
        np.asarray(batch.copy_BxG),
        noised_BxG,
        used_BxG,
        strict=True,
    ):
        counts = np.unique(images[images != NO_COPY], return_counts=True)[1]
        patch_pairs += int(np.square(counts.astype(np.int64)).sum())
        times += len(np.unique(copies[noised])) + bool((gen & ~noised).any())
    return Work(
        *used,
        pairs=visible_pairs(order, low, high),
        patch_pairs=patch_pairs,
        labels=int((np.asarray(batch.label_BxT) != NO_LABEL).sum()),
        targets=int((np.asarray(batch.target_stage_BxG) != NO_LABEL).sum()),
        times=times,
    )


def written_token(context: int) -> Work:
    """The work of writing one token that sees `context` earlier ones."""
    return Work(text=1, pairs=context + 1, labels=1)


def velocity(latents: int, context: int) -> Work:
    """The work of one velocity of a picture of so many latent tokens, of one guidance branch."""
    tokens = latents + 2
    pairs = tokens * (context + tokens)
    return Work(text=2, latents=latents, pairs=pairs, targets=latents, times=1)


def useful_share(batch: PackedBatch) -> float:
    """Tokens that are not padding over token slots."""
    places = (batch.text, batch.und, batch.gen)
    used = sum(int((np.asarray(place.order) >= 0).sum()) for place in places)
    return used / sum(np.asarray(place.order).size for place in places)


def _with_adapter(base: _Map, lora: LoraConfig | None) -> list[_Map]:
    if lora is None:
        return [base]
    down = _Map(base.tokens, base.inputs, lora.rank)
    return [base._replace(by_weight=False), down, _Map(base.tokens, lora.rank, base.outputs)]


def _expert(model: ModelConfig, name: str, tokens: int) -> dict[str, list[_Map]]:
    """Of one layer, by name."""
    d, heads, kv = (
        model.width,
        model.num_heads * model.head_dim,
        model.num_kv_heads * model.head_dim,
    )
    sizes = {
        "q": (d, heads),
        "k": (d, kv),
        "v": (d, kv),
        "o": (heads, d),
        "gate": (d, model.mlp_width),
        "up": (d, model.mlp_width),
        "down": (model.mlp_width, d),
    }
    frozen = name == "und" and model.freeze_und
    trained = not (frozen or model.lora.rank)
    adapters: Mapping[str, LoraConfig] = {} if frozen else model.lora.of(name)
    maps = {}
    for key, size in sizes.items():
        base = _Map(tokens, *size, by_input=not frozen, by_weight=trained)
        maps[key] = _with_adapter(base, adapters.get(key))
    return maps


def _layers(model: ModelConfig, name: str, tokens: int) -> list[_Map]:
    return sum(_expert(model, name, tokens).values(), []) * model.num_layers


def _encoder_trained(model: ModelConfig) -> bool:
    return not (model.freeze_und or model.lora.rank)


def _encoder_layer(model: ModelConfig, patches: int) -> list[_Map]:
    vit, trained = model.vit, _encoder_trained(model)
    return [
        *(_Map(patches, vit.width, vit.width, trained, trained) for _ in "qkvo"),
        _Map(patches, vit.width, vit.mlp_width, trained, trained),
        _Map(patches, vit.mlp_width, vit.width, trained, trained),
    ]


def _encoder(model: ModelConfig, patches: int) -> list[_Map]:
    if model.und_encoder == "none":
        return []
    trained = _encoder_trained(model)
    if model.und_encoder == "patch":
        return [_Map(patches, model.und_features, model.width, False, trained)]
    vit = model.vit
    return [
        _Map(patches, model.und_features, vit.width, False, trained),
        *(_encoder_layer(model, patches) * vit.num_layers),
        _Map(patches, vit.width, model.width, trained, trained),
        _Map(patches, model.width, model.width, trained, trained),
    ]


def _maps(model: ModelConfig, work: Work) -> dict[str, list[_Map]]:
    d, p, trained = model.width, model.latent_features, not model.lora.rank
    return {
        "und": _layers(model, "und", work.text + work.patches),
        "gen": _layers(model, "gen", work.latents),
        "encoder": _encoder(model, work.patches),
        "head": [_Map(work.labels, d, model.vocab_size, not model.freeze_und, trained)],
        "flow": [
            _Map(work.times, model.time_features, d, False, trained),
            _Map(work.times, d, d, trained, trained),
            _Map(work.latents, p, d, False, trained),
            _Map(work.targets, d, p, True, trained),
        ],
    }


def _products(maps: Iterable[_Map]) -> int:
    return sum(2 * m.tokens * m.inputs * m.outputs for m in maps)


def _encoder_attention(model: ModelConfig, work: Work) -> int:
    return 4 * work.patch_pairs * model.vit.width * model.vit.num_layers


def forward(model: ModelConfig, work: Work) -> dict[str, int]:
    """FLOPs of a forward pass by part; the sum of the values is the whole.

    The parts: "und" and "gen", the linear maps of the layers by expert; "attention", scores and
    weighted sums of all layers; "encoder", the understanding encoder; "head", the logits; "flow",
    what latent tokens enter and leave by. A picture's codec is not part of the model.
    """
    parts = {name: _products(maps) for name, maps in _maps(model, work).items()}
    if model.und_encoder == "siglip":
        parts["encoder"] += _encoder_attention(model, work)
    parts["attention"] = 4 * work.pairs * model.num_heads * model.head_dim * model.num_layers
    return parts


def backward(model: ModelConfig, work: Work) -> dict[str, int]:
    """FLOPs of the gradient by part, without the forward pass and anything computed again.

    Twice the forward pass, but for weights that are not trained (`lora`, `freeze_und`) and for the
    model's inputs. Frozen names of the optimiser are not looked at. With `freeze_und` or adapters
    the attention, and with adapters the first layer's inputs, are counted as if all were trained.
    """
    parts = {
        name: sum(2 * m.tokens * m.inputs * m.outputs * (m.by_input + m.by_weight) for m in maps)
        for name, maps in _maps(model, work).items()
    }
    if model.und_encoder == "siglip" and _encoder_trained(model):
        parts["encoder"] += 2 * _encoder_attention(model, work)
    parts["attention"] = 2 * forward(model, work)["attention"]
    return parts


def train(model: ModelConfig, work: Work) -> int:
    """FLOPs of a forward and a backward pass. The optimiser's update is not counted."""
    return sum(forward(model, work).values()) + sum(backward(model, work).values())


def recomputed(model: ModelConfig, work: Work) -> int:
    """FLOPs of the forward pass that the backward pass does again, by `model.remat`.

    The last product of a layer is only added to the residual stream, so no gradient needs it again.
    Of a frozen expert (`freeze_und`) the attention of the others needs queries, keys and values
    alone. "attention" and "offload" keep the attention's output with any `model.attention` but
    "dense"; rows so short that another one calls `dense` (`kernels.interval_attention`) are not
    told apart. What a kernel of attention does again within its backward pass is not counted.
    """
    again = 0
    if model.remat in ("full", "attention", "offload"):
        for name, tokens in (("und", work.text + work.patches), ("gen", work.latents)):
            maps = _expert(model, name, tokens)
            maps["down"] = maps["down"][1:-1]  # an adapter's first product stays
            if name == "und" and model.freeze_und:
                maps = {key: maps[key] for key in "qkv"}
            again += _products(sum(maps.values(), [])) * model.num_layers
    kept = model.remat in ("attention", "offload") and model.attention != "dense"
    if model.remat != "none" and not kept:
        again += forward(model, work)["attention"]
    if model.remat != "none" and model.und_encoder == "siglip" and _encoder_trained(model):
        layer = _encoder_layer(model, work.patches)[:-1]
        again += _products(layer) * model.vit.num_layers + _encoder_attention(model, work)
    return again
