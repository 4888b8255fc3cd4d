"""Parity cases of the encoders, of the training forward pass and of its gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoint import name_map
from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import dense_mask
from process_gen.core.batch import NO_LABEL, Place, table_ids
from process_gen.core.patches import patchify
from process_gen.data.images import normalise
from process_gen.evaluation.parity import Arrays, Model
from process_gen.losses.flow import velocity_error
from process_gen.losses.text import cross_entropy, item_weights
from process_gen.models.layers import sincos_table
from process_gen.models.unified import Streams
from process_gen.models.vae import sample_latent

TEXT, PATCH, LATENT = 0, 1, 2
Computed = dict[str, np.ndarray]


def channels_last(array: np.ndarray) -> np.ndarray:
    """[..., C, H, W] to [..., H, W, C]."""
    return np.moveaxis(array, -3, -1)


def channels_first(array: Any) -> np.ndarray:
    """[..., H, W, C] to [..., C, H, W]."""
    return np.moveaxis(np.asarray(array), -1, -3)


def pixels(x: Arrays, name: str, computed: Computed) -> np.ndarray:
    """The normalised picture `name`, [H, W, 3]; its stored normalisation is checked."""
    image = normalise(x[f"{name}_uint8"])
    computed[f"in.{name}"] = channels_first(image)
    return channels_last(x[name])


class Layout(NamedTuple):
    """Where the tokens of a flattened sequence stand.

    Attributes:
      place: mask integers and positions, ``int32[S]``.
      modality: TEXT, PATCH or LATENT of each token.
    """

    place: Place
    modality: np.ndarray


def lay_out(x: Arrays) -> Layout:
    """Orders, intervals and positions from the lengths and modes of all splits."""
    splits = zip(x["split_lens"].tolist(), x["attn_modes"].tolist(), strict=True)
    modality = x["modality"]
    rows: list[tuple[int, int, int, int]] = []
    order = 0
    for count in x["splits_per_sample"].tolist():
        first, position = len(rows), 0
        for _ in range(count):
            length, mode = next(splits)
            if mode == "causal":
                rows += [(order + i, order + i, -2, position + i) for i in range(length)]
                order, position = order + length, position + length
            else:
                end = order if mode == "noise" else -2
                rows += [(order, order, end, position)] * length
                order, position = order + 1, position + (mode != "noise")
        # -2 stands for the last order of the sample.
        rows[first:] = [(o, f, order - 1 if t == -2 else t, p) for o, f, t, p in rows[first:]]
    return Layout(Place(*np.array(rows, np.int32).T), modality)


def training(model: Model, x: Arrays) -> Computed:
    """Cases a, b, c and c2: one packed forward pass with its losses."""
    computed, streams, targets = _inputs(model, x)

    @jax.jit
    def run(params: Any, streams: Streams) -> tuple[Any, Any, jax.Array]:
        outputs = model.fns.forward(params, streams)
        return (
            outputs,
            model.fns.trace(params, streams),
            model.fns.logits(params, outputs.hidden_BxTxD),
        )

    outputs, trace, logits = run(model.params, streams)
    where = targets.where
    for name, und, gen in (
        ("inputs_embeds", trace.und_in_BxUxD, trace.gen_in_BxGxD),
        ("last_hidden", trace.und_out_BxUxD, trace.gen_out_BxGxD),
    ):
        joined = np.concatenate([np.asarray(und)[0], np.asarray(gen)[0]])
        computed[f"out.{name}"] = joined[np.argsort(where, kind="stable")]
    losses = []
    if targets.label is not None:
        at = np.searchsorted(targets.text_at, x["ce_loss_indexes"])
        picked = logits[0, at]
        ce = cross_entropy(picked[None], jnp.asarray(x["packed_label_ids"])[None])[0]
        weights = _text_weights(model, x)
        computed["in.ce_loss_weights"] = weights
        computed |= {
            "out.ce_logits": picked,
            "out.ce": ce,
            "out.ce_sum": ce.sum(),
            "out.ce_mean": ce.mean(),
            "out.ce_reweighted": (weights * ce).sum() / weights.sum(),
        }
        losses.append(ce.mean())
    if targets.noised is not None:
        at = targets.noised
        velocity, wanted = outputs.output_BxGxP[0, at], targets.velocity[at]
        per_token = velocity_error(velocity, wanted)
        computed |= {
            "out.velocity": velocity,
            "out.velocity_target": wanted,
            "out.mse": jnp.square(velocity - wanted),
            "out.mse_per_token": per_token,
            "out.mse_mean": per_token.mean(),
        }
        losses.append(per_token.mean())
    computed["out.loss"] = sum(losses)
    return {name: np.asarray(value) for name, value in computed.items()}


def _text_weights(model: Model, x: Arrays) -> np.ndarray:
    """The weights of `ce_loss_reweighting` at the places with a label."""
    at, token_ids = x["ce_loss_indexes"], x["token_ids"]
    label = np.full(len(token_ids), NO_LABEL, np.int32)
    label[at] = x["packed_label_ids"]
    special = token_ids == model.contexts.ids.eos
    return np.asarray(item_weights(jnp.asarray(label)[None], jnp.asarray(special)[None]))[0, at]


class _Targets(NamedTuple):
    """What the losses need beside the streams.

    Attributes:
      text_at: places of text tokens in the flattened sequence, rising.
      where: places of text, patch and latent tokens, in the streams' order.
      label: ``int32[1, T]`` with -1 where there is no loss, or None without a text loss.
      noised: latent tokens that carry the flow loss, or None.
      velocity: target of every latent token, or None.
    """

    text_at: np.ndarray
    where: np.ndarray
    label: jax.Array | None
    noised: np.ndarray | None
    velocity: Any


def _inputs(model: Model, x: Arrays) -> tuple[Computed, Streams, _Targets]:
    """The streams of a stored pack, and every input that can be derived, to be compared."""
    computed: Computed = {}
    place, modality = lay_out(x)
    computed["in.attention_mask"] = dense_mask(*place[:3])
    computed["in.packed_position_ids"] = place.position
    computed["in.sequence_length"] = np.int32(len(modality))
    ends = np.cumsum(x["splits_per_sample"])
    per_sample = np.split(x["split_lens"], ends[:-1])
    computed["in.sample_lens"] = np.array([part.sum() for part in per_sample], np.int32)

    text_at = x["packed_text_indexes"]
    token_ids = np.full(len(modality), -1, np.int32)
    token_ids[text_at] = x["packed_text_ids"]
    computed["in.token_ids"] = token_ids
    kinds = np.full(len(modality), -1, np.int32)
    kinds[text_at] = TEXT

    patches, patch_ids, patch_image, patch_at = _patches(model, x, computed)
    kinds[patch_at] = PATCH
    x_t, latent_ids, t, latent_at, targets = _latents(model, x, computed)
    kinds[latent_at] = LATENT
    computed["in.modality"] = kinds

    def part(at: np.ndarray) -> Place:
        return Place(*(jnp.asarray(field[at])[None] for field in place))

    streams = Streams(
        text=part(text_at),
        und=part(patch_at),
        gen=part(latent_at),
        token_BxT=jnp.asarray(x["packed_text_ids"])[None],
        patch_BxVxQ=jnp.asarray(patches)[None],
        patch_id_BxV=jnp.asarray(patch_ids)[None],
        latent_BxGxP=jnp.asarray(x_t)[None],
        latent_id_BxG=jnp.asarray(latent_ids)[None],
        t_BxG=jnp.asarray(t)[None],
        patch_image_BxV=jnp.asarray(patch_image)[None],
    )
    label = None
    if "ce_loss_indexes" in x:
        labels = np.full(len(modality), -1, np.int32)
        labels[x["ce_loss_indexes"]] = x["packed_label_ids"]
        label = jnp.asarray(labels[text_at])[None]
    where = np.concatenate([text_at, patch_at, latent_at])
    return computed, streams, _Targets(text_at, where, label, *targets)


def _patches(model: Model, x: Arrays, computed: Computed) -> tuple[np.ndarray, ...]:
    """Pixels, table ids, image numbers and places of the ViT tokens."""
    cfg = model.config
    none = np.zeros(0, np.int32)
    if not np.any(x["modality"] == PATCH):
        return np.zeros((0, cfg.und_features), np.float32), none, none, none
    lengths = x["vit_token_seqlens"]
    cut, ids = [], []
    for k in range(len(lengths)):
        image = pixels(x, f"vit_image_{k}", computed)
        cut.append(patchify(image, cfg.und_patch))
        ids.append(table_ids(*image.shape[:2], cfg.und_patch, cfg.und_grid))
    computed["in.packed_vit_tokens"] = np.concatenate(cut)
    computed["in.packed_vit_position_ids"] = np.concatenate(ids)
    computed["in.vit_token_seqlens"] = np.array([len(c) for c in cut], np.int32)
    numbers = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    return (
        x["packed_vit_tokens"],
        x["packed_vit_position_ids"],
        numbers,
        x["packed_vit_token_indexes"],
    )


def _latents(model: Model, x: Arrays, computed: Computed) -> tuple[Any, ...]:
    """x_t, table ids, t and places of the latent tokens, and (noised tokens, velocity target)."""
    cfg = model.config
    none = np.zeros(0, np.int32)
    if not np.any(x["modality"] == LATENT):
        empty = np.zeros((0, cfg.latent_features), np.float32)
        return empty, none, np.zeros(0, np.float32), none, (None, None)
    grids = x["patchified_vae_latent_shapes"]
    side = cfg.patch * cfg.vae.downsample
    padded = np.zeros_like(channels_last(x["padded_images"]))
    shapes, clean, ids = [], [], []
    for k, (rows, columns) in enumerate(grids.tolist()):
        image = pixels(x, f"vae_image_{k}", computed)
        height, width = image.shape[:2]
        padded[k, :height, :width] = image
        shapes.append((height // side, width // side))
        ids.append(table_ids(height, width, side, cfg.latent_grid))
        latent = channels_last(x["padded_latent"][k])
        clean.append(patchify(latent[: rows * cfg.patch, : columns * cfg.patch], cfg.patch))
    computed["in.padded_images"] = channels_first(padded)
    encoded = model.encode(jnp.asarray(channels_last(x["padded_images"])))
    computed["in.padded_latent"] = channels_first(encoded)
    computed["in.patchified_vae_latent_shapes"] = np.array(shapes, np.int32)
    computed["in.packed_latent_position_ids"] = np.concatenate(ids)
    x0 = np.concatenate(clean)
    raw = jnp.asarray(x["packed_timesteps_raw"])
    t = flow.logit_normal_time(raw, 0.0, 1.0, x.scalar("timestep_shift"))
    x_t = flow.interpolate(jnp.asarray(x0), jnp.asarray(x["noise"]), t[:, None])
    computed |= {
        "out.timesteps": np.asarray(t),
        "out.latent_clean": x0,
        "out.latent_noised": np.asarray(x_t),
    }
    at = x["packed_vae_token_indexes"]
    noised = None
    if np.isfinite(x["packed_timesteps_raw"]).any():
        noised = np.searchsorted(at, x["mse_loss_indexes"])
        computed["in.mse_loss_indexes"] = at[np.asarray(t) > 0]
    velocity = flow.velocity_target(jnp.asarray(x0), jnp.asarray(x["noise"]))
    return x_t, x["packed_latent_position_ids"], t, at, (noised, velocity)


def gradients(model: Model, x: Arrays) -> Computed:
    """Cases h: gradients of the loss, in the official layout."""
    x["case"]  # Used by whoever chose the inputs.
    fns = model.frozen_fns if x.scalar("freeze_und") else model.fns
    _, streams, targets = _inputs(model, x)

    def loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        outputs = fns.forward(params, streams)
        ce = mse = jnp.float32(0.0)
        if targets.label is not None:
            each = cross_entropy(fns.logits(params, outputs.hidden_BxTxD), targets.label)
            ce = each.sum() / (targets.label >= 0).sum()
        if targets.noised is not None:
            error = velocity_error(outputs.output_BxGxP[0], targets.velocity)
            mse = error[targets.noised].mean()
        return ce + mse, (ce, mse)

    (total, (ce, mse)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(model.params)
    flat = name_map.flatten(grads)
    official = {}
    for entry in name_map.model_entries(grads):
        array = np.asarray(flat[entry.path])
        array = array if entry.layer is None else array[entry.layer]
        official[entry.key] = name_map.to_official(array, entry.layout)
    tables = set(name_map.TABLES.values())
    norms = {key: float(np.linalg.norm(g)) for key, g in official.items()}
    norms |= dict.fromkeys(tables, 0.0)
    computed: Computed = {"out.loss": total, "out.ce_mean": ce, "out.mse_mean": mse}
    names = _ordered(x, "out.param_names", list(norms))
    computed["out.param_names"] = np.array(names)
    computed["out.param_has_grad"] = np.array([name not in tables for name in names])
    computed["out.param_grad_norms"] = np.array([norms[name] for name in names], np.float32)
    groups: dict[str, float] = {}
    for name, norm in norms.items():
        groups[group(name)] = groups.get(group(name), 0.0) + norm**2
    names = _ordered(x, "out.group_names", sorted(groups))
    computed["out.group_names"] = np.array(names)
    computed["out.group_grad_norms"] = np.sqrt([groups[n] for n in names]).astype(np.float32)
    whole = np.sqrt(sum(groups.values()))
    computed["out.total_grad_norm"] = np.float32(whole)
    computed["out.clip_coef_max_norm_1"] = np.float32(min(1.0, 1.0 / (whole + 1e-6)))
    stored = x.names("out.grad.")
    for name in stored:
        key = name.removeprefix("out.grad.")
        if key in official:
            computed[name] = official[key]
    if not stored:
        computed["out.grad.*"] = np.float32(0.0)
    return {name: np.asarray(value) for name, value in computed.items()}


def _ordered(x: Arrays, name: str, ours: list[str]) -> list[str]:
    """Our names in the file's order where they are the same set, else in our own."""
    theirs = x.all[name].tolist() if name in x.all else []
    return theirs if sorted(theirs) == sorted(ours) else ours


def group(key: str) -> str:
    """The group of a parameter, see the fixture format."""
    if not key.startswith("language_model.model."):
        return "lm_head" if "lm_head" in key else key.split(".")[0]
    if "embed_tokens" in key:
        return "embed_tokens"
    expert = "gen" if "moe_gen" in key else "und"
    if "norm" in key:
        return f"llm_{expert}_norm"
    return f"llm_{expert}_{'attn' if 'self_attn' in key else 'mlp'}"


def vit(model: Model, x: Arrays) -> Computed:
    """Case d: the understanding encoder, image by image and packed."""
    cfg = model.config
    computed: Computed = {}
    patches, ids, numbers = [], [], []
    for k in range(x.scalar("num_images")):
        image = pixels(x, f"image_{k}", computed)
        patches.append(patchify(image, cfg.und_patch))
        ids.append(table_ids(*image.shape[:2], cfg.und_patch, cfg.und_grid))
        numbers.append(np.full(len(ids[-1]), k, np.int32))
        computed[f"out.tokens_{k}"] = patches[-1]
        computed[f"out.position_ids_{k}"] = ids[-1]
    table = sincos_table(cfg.und_grid, cfg.width)
    encode = jax.jit(model.fns.understand)
    packed = tuple(jnp.asarray(np.concatenate(part))[None] for part in (patches, ids, numbers))
    _, joined = encode(model.params, *packed)
    computed["out.features_packed"] = joined[0] + table[packed[1][0]]
    for k, parts in enumerate(zip(patches, ids, numbers, strict=True)):
        alone = tuple(jnp.asarray(part)[None] for part in parts)
        encoded, connected = encode(model.params, *alone)
        computed[f"out.vit_{k}"] = encoded[0]
        computed[f"out.connector_{k}"] = connected[0]
        computed[f"out.features_{k}"] = connected[0] + table[ids[k]]
    computed["out.vit_pos_embed_table"] = table
    return {name: np.asarray(value) for name, value in computed.items()}


def vae(model: Model, x: Arrays) -> Computed:
    """Case e: the autoencoder, both ways."""
    computed: Computed = {}
    for k in range(x.scalar("num_images")):
        image = jnp.asarray(pixels(x, f"image_{k}", computed))[None]
        mean, log_variance = model.moments(image)
        noise = jnp.asarray(channels_last(x[f"eps_{k}"]))[None]
        latent = sample_latent(mean, log_variance, None, model.config.vae)
        random = jnp.asarray(channels_last(x[f"random_latent_{k}"]))[None]
        for name, value in {
            "mean": mean,
            "logvar": log_variance,
            "latent": latent,
            "latent_sampled": sample_latent(mean, log_variance, noise, model.config.vae),
            "decoded": model.decode(latent),
            "decoded_random": model.decode(random),
        }.items():
            computed[f"out.{name}_{k}"] = channels_first(value[0])
    padded = model.encode(jnp.asarray(channels_last(x["padded_images"])))
    computed["out.latent_padded_batch"] = channels_first(padded)
    return computed
