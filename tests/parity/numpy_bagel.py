"""BAGEL in plain NumPy, float64, written from its description and from nothing of this project.

It reads the official files, so that it stands for the reference at sizes of which there are no
stored outputs. Slow and short on purpose: a matrix for the mask, a loop for the layers, no cache.
Arrays have no batch axis: tokens are [S, D], pictures and latents [C, H, W].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file


def silu(x):
    return x / (1 + np.exp(-x))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def patchify(x, p):
    """[C, H, W] to [n, p * p * C], rows of patches, channel fastest."""
    c, h, w = x.shape
    return np.einsum("chpwq->hwpqc", x.reshape(c, h // p, p, w // p, p)).reshape(-1, p * p * c)


def unpatchify(tokens, p, rows, columns):
    cut = tokens.reshape(rows, columns, p, p, -1)
    return np.einsum("hwpqc->chpwq", cut).reshape(-1, rows * p, columns * p)


def sincos(side, width):
    """One row for every cell, the column's half first."""
    omega = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(side * side), side)
    parts = [f(at[:, None] * omega) for at in (column, row) for f in (np.sin, np.cos)]
    return np.concatenate(parts, 1)


def grid_ids(rows, columns, side):
    return (np.arange(rows)[:, None] * side + np.arange(columns)).ravel()


def conv(x, weight, bias, stride=1, pad=((1, 1), (1, 1))):
    k = weight.shape[-1]
    x = np.pad(x, ((0, 0), *pad)) if k > 1 else x
    height, width = ((side - k) // stride + 1 for side in x.shape[1:])
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for i in range(k):
        for j in range(k):
            window = x[:, i : i + stride * height : stride, j : j + stride * width : stride]
            out += np.einsum("oc,chw->ohw", weight[:, :, i, j], window)
    return out


class Bagel:
    """A folder in the official layout."""

    def __init__(self, folder: Path):
        stated = {n: json.loads((folder / f"{n}.json").read_text()) for n in
                  ("config", "llm_config", "vit_config")}  # fmt: skip
        self.main, self.llm, self.vit = stated.values()
        self.w = {k: v.astype(np.float64) for k, v in load_file(folder / "ema.safetensors").items()}
        self.a = {k: v.astype(np.float64) for k, v in load_file(folder / "ae.safetensors").items()}
        self.patch = self.main["latent_patch_size"]
        self.side = self.patch * self.main["vae"]["downsample"]
        self.grid, self.und_grid = (
            self.main["max_latent_size"],
            self.main["vit_max_num_patch_per_side"],
        )
        self.width = self.llm["hidden_size"]
        self.latent_table = sincos(self.grid, self.width)
        self.und_table = sincos(self.und_grid, self.width)
        self.special = self.main["special_tokens"]

    def linear(self, x, name):
        y = x @ self.w[f"{name}.weight"].T
        return y + self.w[f"{name}.bias"] if f"{name}.bias" in self.w else y

    # ---- the understanding encoder ---------------------------------------------------------------

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        y = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + self.vit["layer_norm_eps"])
        return y * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def see(self, image):
        """Patches, table ids, features of the encoder and behind the connector."""
        v = "vit_model.vision_model."
        p, heads = self.vit["patch_size"], self.vit["num_attention_heads"]
        tokens = patchify(image, p)
        ids = grid_ids(image.shape[1] // p, image.shape[2] // p, self.und_grid)
        x = self.linear(tokens, f"{v}embeddings.patch_embedding")
        x = x + self.w[f"{v}embeddings.position_embedding.weight"][ids]
        layers = self.vit["num_hidden_layers"] + 1 + self.main["vit_select_layer"]
        for i in range(layers):
            n = f"{v}encoder.layers.{i}."
            y = self.norm(x, f"{n}layer_norm1")
            q, k, values = (
                self.linear(y, f"{n}self_attn.{m}_proj").reshape(len(x), heads, -1) for m in "qkv"
            )
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            mixed = np.einsum("hqk,khd->qhd", softmax(scores), values).reshape(len(x), -1)
            x = x + self.linear(mixed, f"{n}self_attn.out_proj")
            y = gelu_tanh(self.linear(self.norm(x, f"{n}layer_norm2"), f"{n}mlp.fc1"))
            x = x + self.linear(y, f"{n}mlp.fc2")
        encoded = self.norm(x, f"{v}post_layernorm")
        y = gelu_tanh(self.linear(encoded, "connector.fc1"))
        return tokens, ids, encoded, self.linear(y, "connector.fc2")

    # ---- the autoencoder -------------------------------------------------------------------------

    def c(self, x, name, **how):
        return conv(x, self.a[f"{name}.weight"], self.a[f"{name}.bias"], **how)

    def group_norm(self, x, name):
        g = x.reshape(32, -1)
        g = (g - g.mean(1, keepdims=True)) / np.sqrt(g.var(1, keepdims=True) + 1e-6)
        weight, bias = (self.a[f"{name}.{n}"][:, None, None] for n in ("weight", "bias"))
        return g.reshape(x.shape) * weight + bias

    def block(self, x, name):
        h = self.c(silu(self.group_norm(x, f"{name}.norm1")), f"{name}.conv1")
        h = self.c(silu(self.group_norm(h, f"{name}.norm2")), f"{name}.conv2")
        return h + (
            self.c(x, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in self.a else x
        )

    def middle(self, x, name):
        x = self.block(x, f"{name}.block_1")
        h = self.group_norm(x, f"{name}.attn_1.norm")
        q, k, v = (self.c(h, f"{name}.attn_1.{n}").reshape(len(x), -1) for n in "qkv")
        mixed = v @ softmax(q.T @ k / np.sqrt(len(x))).T
        x = x + self.c(mixed.reshape(x.shape), f"{name}.attn_1.proj_out")
        return self.block(x, f"{name}.block_2")

    def moments(self, image):
        """Mean and log-variance [z, h, w] of a picture [3, H, W]."""
        vae = self.main["vae"]
        x = self.c(image, "encoder.conv_in")
        for i in range(len(vae["ch_mult"])):
            for j in range(vae["num_res_blocks"]):
                x = self.block(x, f"encoder.down.{i}.block.{j}")
            if i < len(vae["ch_mult"]) - 1:
                name = f"encoder.down.{i}.downsample.conv"
                x = self.c(x, name, stride=2, pad=((0, 1), (0, 1)))
        x = self.middle(x, "encoder.mid")
        x = self.c(silu(self.group_norm(x, "encoder.norm_out")), "encoder.conv_out")
        return np.split(x, 2)

    def scaled(self, z):
        return self.main["vae"]["scale_factor"] * (z - self.main["vae"]["shift_factor"])

    def encode(self, image):
        return self.scaled(self.moments(image)[0])

    def decode(self, latent):
        vae = self.main["vae"]
        x = self.c(latent / vae["scale_factor"] + vae["shift_factor"], "decoder.conv_in")
        x = self.middle(x, "decoder.mid")
        for i in reversed(range(len(vae["ch_mult"]))):
            for j in range(vae["num_res_blocks"] + 1):
                x = self.block(x, f"decoder.up.{i}.block.{j}")
            if i:
                x = self.c(x.repeat(2, 1).repeat(2, 2), f"decoder.up.{i}.upsample.conv")
        return self.c(silu(self.group_norm(x, "decoder.norm_out")), "decoder.conv_out")

    # ---- the language model ----------------------------------------------------------------------

    def time(self, t):
        features = self.w["time_embedder.mlp.0.weight"].shape[1] // 2
        angle = t[:, None] * np.exp(-np.log(10000) * np.arange(features) / features)
        x = np.concatenate([np.cos(angle), np.sin(angle)], 1)
        return self.linear(silu(self.linear(x, "time_embedder.mlp.0")), "time_embedder.mlp.2")

    def latent_tokens(self, x_t, ids, t):
        return self.linear(x_t, "vae2llm") + self.time(t) + self.latent_table[ids]

    def text_tokens(self, ids):
        return self.w["language_model.model.embed_tokens.weight"][ids]

    def rms(self, x, name):
        y = x / np.sqrt((x**2).mean(-1, keepdims=True) + self.llm["rms_norm_eps"])
        return y * self.w[f"{name}.weight"]

    def by_expert(self, x, gen, apply, name):
        """`apply(x, name)` with the weights that each token belongs to; `{}` is the expert."""
        und, other = (apply(x, name.format(suffix)) for suffix in ("", "_moe_gen"))
        return np.where(gen.reshape(-1, *[1] * (und.ndim - 1)), other, und)

    def rope(self, x, position):
        half = x.shape[-1] // 2
        angle = position[:, None] * self.llm["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def run(self, x, gen, position, mask):
        """Normed states [S, D], and the keys and values of every layer."""
        heads, kv = self.llm["num_attention_heads"], self.llm["num_key_value_heads"]
        cache = []
        for i in range(self.llm["num_hidden_layers"]):
            n = f"language_model.model.layers.{i}."
            y = self.by_expert(x, gen, self.rms, n + "input_layernorm{}")
            q, k, v = (
                self.by_expert(y, gen, self.linear, n + f"self_attn.{m}_proj{{}}") for m in "qkv"
            )
            q, k, v = (a.reshape(len(x), count, -1) for a, count in ((q, heads), (k, kv), (v, kv)))
            q = self.rope(self.by_expert(q, gen, self.rms, n + "self_attn.q_norm{}"), position)
            k = self.rope(self.by_expert(k, gen, self.rms, n + "self_attn.k_norm{}"), position)
            cache.append((k, v))
            k, v = (a.repeat(heads // kv, 1) for a in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
            weights = softmax(np.where(mask, scores, -np.inf))
            mixed = np.einsum("hqk,khd->qhd", weights, v).reshape(len(x), -1)
            x = x + self.by_expert(mixed, gen, self.linear, n + "self_attn.o_proj{}")
            y = self.by_expert(x, gen, self.rms, n + "post_attention_layernorm{}")
            gate = self.by_expert(y, gen, self.linear, n + "mlp{}.gate_proj")
            up = self.by_expert(y, gen, self.linear, n + "mlp{}.up_proj")
            x = x + self.by_expert(silu(gate) * up, gen, self.linear, n + "mlp{}.down_proj")
        return self.by_expert(x, gen, self.rms, "language_model.model.norm{}"), cache

    def logits(self, hidden):
        return self.linear(hidden, "language_model.lm_head")

    def velocity(self, hidden):
        return self.linear(hidden, "llm2vae")
