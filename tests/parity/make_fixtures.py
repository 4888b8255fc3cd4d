"""Writes a folder of fixtures at any sizes: random weights, and what `numpy_bagel` makes of them.

The format is that of `fixtures/`, without the gradients' cases.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from process_gen.checkpoint import name_map
from process_gen.core.configs import ModelConfig
from process_gen.models.shapes import BAGEL
from tests.parity.numpy_bagel import Bagel, grid_ids, patchify, sincos

TEXT, PATCH, LATENT = 0, 1, 2


def write_checkpoint(folder: Path, model: ModelConfig, seed: int = 0) -> None:
    """Random weights of a model's sizes in the official layout."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)

    def drawn(entry) -> np.ndarray:
        if "norm" in entry.key and entry.key.endswith("weight"):
            return rng.normal(1, 0.2, entry.shape).astype(np.float32)
        fan = np.prod(entry.shape[1:]) if len(entry.shape) > 1 else 25
        return (rng.normal(size=entry.shape) / np.sqrt(fan)).astype(np.float32)

    weights = {e.key: drawn(e) for e in name_map.model_entries(BAGEL.model(model))}
    weights["vit_pos_embed.pos_embed"] = sincos(model.und_grid, model.width).astype(np.float32)
    weights["latent_pos_embed.pos_embed"] = sincos(model.latent_grid, model.width).astype(
        np.float32
    )
    save_file(weights, folder / "ema.safetensors")
    vae = {e.key: drawn(e) for e in name_map.vae_entries(BAGEL.vae(model.vae))}
    save_file(vae, folder / "ae.safetensors")
    top = model.vocab_size
    ids = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
    main = {
        "model_type": "bagel",
        "latent_patch_size": model.patch,
        "vit_select_layer": -2,
        "special_tokens": {name: top - 1 - 2 * i for i, name in enumerate(ids)},
        "vae": {
            "downsample": model.vae.downsample,
            "ch": model.vae.channels,
            "ch_mult": list(model.vae.multipliers),
            "num_res_blocks": model.vae.blocks,
            "z_channels": model.vae.latent_channels,
            "scale_factor": model.vae.scale,
            "shift_factor": model.vae.shift,
        },
        "max_latent_size": model.latent_grid,
        "vit_max_num_patch_per_side": model.und_grid,
        "timestep_shift": 2.5,
    }
    llm = {
        "hidden_size": model.width,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope_theta,
        "vocab_size": top,
    }
    vit = {
        "num_hidden_layers": model.vit.num_layers + 1,
        "num_attention_heads": model.vit.num_heads,
        "patch_size": model.und_patch,
        "layer_norm_eps": model.vit.norm_eps,
    }
    for name, content in {"config": main, "llm_config": llm, "vit_config": vit}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] to [3, H, W] in [-1, 1]."""
    return (np.moveaxis(image, -1, 0) / 255 - 0.5) / 0.5


@dataclasses.dataclass
class Split:
    """A run of tokens that share an attention mode."""

    kind: str  # text, vit, vae, noised
    ids: list[int] | None = None
    image: np.ndarray | None = None
    loss: bool = False
    extra_label: int | None = None

    @property
    def mode(self) -> str:
        return {"text": "causal", "noised": "noise"}.get(self.kind, "full")


class Sequence:
    """Splits of several samples, token by token."""

    def __init__(self, bagel: Bagel, samples: list[list[Split]]):
        names = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
        bos, eos, start, end = (bagel.special[n] for n in names)
        self.rows = []  # sample, split, mode, position, modality, token
        self.labels = {}  # place -> (token, weight)
        self.lengths, self.images = [], []
        split_number = 0
        for number, splits in enumerate(samples):
            position = 0
            for split in splits:
                first = len(self.rows)

                def add(token, modality, at, split=split, number=number, n=split_number):
                    self.rows.append((number, n, split.mode, at, modality, token))

                if split.kind == "text":
                    tokens = [bos, *split.ids, eos]
                    for i, token in enumerate(tokens):
                        add(token, TEXT, position + i)
                    if split.loss:
                        weight = (len(split.ids) + 1) ** -0.5
                        for i, token in enumerate(tokens[1:]):
                            self.labels[first + i] = (token, weight)
                    if split.extra_label is not None:
                        self.labels[first + len(tokens) - 1] = (split.extra_label, 1.0)
                    position += len(tokens)
                else:
                    side = bagel.vit["patch_size"] if split.kind == "vit" else bagel.side
                    count = (split.image.shape[0] // side) * (split.image.shape[1] // side)
                    add(start, TEXT, position)
                    for _ in range(count):
                        add(-1, PATCH if split.kind == "vit" else LATENT, position)
                    add(end, TEXT, position)
                    position += split.kind != "noised"
                    self.images.append((split, first + 1, count))
                self.lengths.append((len(self.rows) - first, split.mode))
                split_number += 1
        self.next_position = position
        columns = list(zip(*self.rows, strict=True)) if self.rows else [[]] * 6
        self.sample, self.split, self.mode = (np.array(c) for c in columns[:3])
        self.position, self.modality, self.token = (np.array(c, np.int32) for c in columns[3:])

    def mask(self) -> np.ndarray:
        """[query, key], by the three predicates of the specification."""
        n = len(self.rows)
        q, k = np.arange(n)[:, None], np.arange(n)[None]
        together = self.split[:, None] == self.split[None]
        both_ways = together & np.isin(self.mode, ("full", "noise"))[None]
        hidden = (self.mode == "noise")[None] & ~together
        return (self.sample[:, None] == self.sample[None]) & ((k <= q) | both_ways) & ~hidden


def training(bagel: Bagel, samples: list[list[Split]], rng: np.random.Generator) -> dict:
    """All arrays of a training case."""
    s = Sequence(bagel, samples)
    text = np.flatnonzero(s.modality == TEXT)
    x = np.zeros((len(s.rows), bagel.width))
    x[text] = bagel.text_tokens(s.token[text])
    mask = s.mask()
    out = {
        "in.sequence_length": np.int32(len(s.rows)),
        "in.sample_lens": np.bincount(s.sample).astype(np.int32),
        "in.split_lens": np.array([n for n, _ in s.lengths], np.int32),
        "in.attn_modes": np.array([m for _, m in s.lengths]),
        "in.splits_per_sample": np.array([len(x) for x in samples], np.int32),
        "in.attention_mask": mask,
        "in.packed_text_ids": s.token[text],
        "in.packed_text_indexes": text,
        "in.packed_position_ids": s.position,
        "in.modality": s.modality,
        "in.token_ids": s.token,
    }
    _see_all(bagel, s, x, out)
    noised, target = _latents(bagel, s, x, out, rng)
    hidden, _ = bagel.run(x, s.modality == LATENT, s.position, mask)
    out |= {"out.inputs_embeds": x, "out.last_hidden": hidden}
    losses = []
    if s.labels:
        at = np.array(sorted(s.labels))
        label, weight = (np.array(c) for c in zip(*(s.labels[i] for i in at), strict=True))
        logits = bagel.logits(hidden[at])
        top = logits.max(-1)
        norm = top + np.log(np.exp(logits - top[:, None]).sum(-1))
        ce = norm - logits[np.arange(len(at)), label]
        out |= {
            "in.ce_loss_indexes": at,
            "in.packed_label_ids": label,
            "in.ce_loss_weights": weight,
            "out.ce_logits": logits,
            "out.ce": ce,
            "out.ce_sum": ce.sum(),
            "out.ce_mean": ce.mean(),
            "out.ce_reweighted": (weight * ce).sum() / weight.sum(),
        }
        losses.append(ce.mean())
    if len(noised):
        velocity = bagel.velocity(hidden[noised])
        mse = (velocity - target) ** 2
        out |= {
            "in.mse_loss_indexes": noised,
            "out.velocity": velocity,
            "out.velocity_target": target,
            "out.mse": mse,
            "out.mse_per_token": mse.mean(-1),
            "out.mse_mean": mse.mean(),
        }
        losses.append(mse.mean())
    return out | {"out.loss": sum(losses)}


def _see_all(bagel: Bagel, s: Sequence, x: np.ndarray, out: dict) -> None:
    found = [(split, at, n) for split, at, n in s.images if split.kind == "vit"]
    tokens, ids = [], []
    for k, (split, at, n) in enumerate(found):
        image = as_float(split.image)
        out |= {f"in.vit_image_{k}": image, f"in.vit_image_{k}_uint8": split.image}
        patches, table_ids, _, connected = bagel.see(image)
        x[at : at + n] = connected + bagel.und_table[table_ids]
        tokens.append(patches)
        ids.append(table_ids)
    if found:
        places = [at + np.arange(n) for _, at, n in found]
        out |= {
            "in.packed_vit_tokens": np.concatenate(tokens),
            "in.packed_vit_position_ids": np.concatenate(ids),
            "in.packed_vit_token_indexes": np.concatenate(places),
            "in.vit_token_seqlens": np.array([n for _, _, n in found]),
        }


def _latents(
    bagel: Bagel, s: Sequence, x: np.ndarray, out: dict, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    found = [(split, at, n) for split, at, n in s.images if split.kind != "vit"]
    if not found:
        return np.zeros(0, int), np.zeros(0)
    sides = np.array([split.image.shape[:2] for split, _, _ in found])
    padded = np.zeros((len(found), 3, *sides.max(0)))
    grids, clean, ids, raw, places, noised = [], [], [], [], [], []
    for k, (split, at, n) in enumerate(found):
        image = as_float(split.image)
        out |= {f"in.vae_image_{k}": image, f"in.vae_image_{k}_uint8": split.image}
        padded[k, :, : image.shape[1], : image.shape[2]] = image
        grids.append(sides[k] // bagel.side)
        ids.append(grid_ids(*grids[-1], bagel.grid))
        raw += [rng.normal() if split.kind == "noised" else -np.inf] * n
        places.append(at + np.arange(n))
        noised += places[-1].tolist() if split.kind == "noised" else []
    latent = np.stack([bagel.encode(image) for image in padded])
    for k, (rows, columns) in enumerate(grids):
        clean.append(
            patchify(latent[k, :, : rows * bagel.patch, : columns * bagel.patch], bagel.patch)
        )
    x0, at, raw = np.concatenate(clean), np.concatenate(places), np.array(raw)
    noise = rng.normal(size=x0.shape)
    shift = bagel.main["timestep_shift"]
    t = 1 / (1 + np.exp(-raw))
    t = shift * t / (1 + (shift - 1) * t)
    x_t = (1 - t[:, None]) * x0 + t[:, None] * noise
    x[at] = bagel.latent_tokens(x_t, np.concatenate(ids), t)
    out |= {
        "in.padded_images": padded,
        "in.padded_latent": latent,
        "in.patchified_vae_latent_shapes": np.array(grids),
        "in.packed_latent_position_ids": np.concatenate(ids),
        "in.packed_vae_token_indexes": at,
        "in.packed_timesteps_raw": raw,
        "in.noise": noise,
        "in.timestep_shift": np.float64(shift),
        "out.timesteps": t,
        "out.latent_clean": x0,
        "out.latent_noised": x_t,
    }
    return np.array(noised, int), (noise - x0)[np.isin(at, noised)]


def vit(bagel: Bagel, images: list[np.ndarray]) -> dict:
    """All arrays of case d."""
    out = {"in.num_images": np.int32(len(images)), "out.vit_pos_embed_table": bagel.und_table}
    features = []
    for k, image in enumerate(images):
        tokens, ids, encoded, connected = bagel.see(as_float(image))
        features.append(connected + bagel.und_table[ids])
        out |= {
            f"in.image_{k}": as_float(image),
            f"in.image_{k}_uint8": image,
            f"out.tokens_{k}": tokens,
            f"out.position_ids_{k}": ids,
            f"out.vit_{k}": encoded,
            f"out.connector_{k}": connected,
            f"out.features_{k}": features[-1],
        }
    return out | {"out.features_packed": np.concatenate(features)}


def vae(bagel: Bagel, images: list[np.ndarray], rng: np.random.Generator) -> dict:
    """All arrays of case e."""
    padded = np.zeros((len(images), 3, *np.max([i.shape[:2] for i in images], 0)))
    out = {"in.num_images": np.int32(len(images))}
    for k, image in enumerate(images):
        pixels = as_float(image)
        padded[k, :, : pixels.shape[1], : pixels.shape[2]] = pixels
        mean, log_variance = bagel.moments(pixels)
        eps, random = rng.normal(size=(2, *mean.shape))
        out |= {
            f"in.image_{k}": pixels,
            f"in.image_{k}_uint8": image,
            f"in.eps_{k}": eps,
            f"in.random_latent_{k}": random,
            f"out.mean_{k}": mean,
            f"out.logvar_{k}": log_variance,
            f"out.latent_{k}": bagel.scaled(mean),
            f"out.latent_sampled_{k}": bagel.scaled(mean + np.exp(log_variance / 2) * eps),
            f"out.decoded_{k}": bagel.decode(bagel.scaled(mean)),
            f"out.decoded_random_{k}": bagel.decode(random),
        }
    latents = np.stack([bagel.encode(image) for image in padded])
    return out | {"in.padded_images": padded, "out.latent_padded_batch": latents}


def save(file: Path, arrays: dict) -> None:
    """Stores integers as int32 and floats as float32, settings excepted."""
    kept = {}
    for name, value in arrays.items():
        array = np.asarray(value)
        if array.dtype.kind == "i":
            array = array.astype(np.int32)
        elif array.dtype.kind == "f" and not ("cfg_" in name and name.startswith("in.")):
            array = array.astype(np.float32)
        kept[name] = array
    np.savez(file, **kept)
