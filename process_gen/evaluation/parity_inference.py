"""Parity cases of inference: contexts with a KV cache, text decoding, guided image generation.

Everything that computes is `sampling.contexts`, with which the modes of BAGEL are served.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.batch import table_ids
from process_gen.core.configs import SamplerConfig
from process_gen.core.patches import patchify, unpatchify
from process_gen.data.images import to_uint8
from process_gen.evaluation.parity import Arrays, Model
from process_gen.evaluation.parity_training import (
    LATENT,
    PATCH,
    TEXT,
    Computed,
    channels_first,
    pixels,
)
from process_gen.sampling import cache as caches
from process_gen.sampling.cache import Weights
from process_gen.sampling.contexts import (
    IMAGE_DROPPED,
    MAIN,
    TEXT_DROPPED,
    Branches,
    Contexts,
    guide,
)

CONTEXTS = {"main": MAIN, "cfg_text": TEXT_DROPPED, "cfg_img": IMAGE_DROPPED}


@dataclasses.dataclass
class Reader:
    """The three contexts, and a note of what was read into each.

    Attributes:
      model: the fixture's.
      contexts: the rows.
      tokens: by row, (token id or -1, modality, position) of what was added.
      splits: by row, (length, mode) of every segment.
    """

    model: Model
    contexts: Contexts
    tokens: list[list[tuple[int, int, int]]]
    splits: list[list[tuple[int, str]]]

    @classmethod
    def of(cls, model: Model) -> Reader:
        """Empty contexts."""
        rows = len(CONTEXTS)
        contexts = Contexts(model.contexts, Weights(model.params, None), rows)
        return cls(model, contexts, [[] for _ in range(rows)], [[] for _ in range(rows)])

    def fork(self) -> Reader:
        """A copy that grows by itself."""
        return dataclasses.replace(
            self,
            contexts=self.contexts.fork(),
            tokens=[list(row) for row in self.tokens],
            splits=[list(row) for row in self.splits],
        )

    def add_text(self, row: int, ids: Sequence[int]) -> Any:
        """Appends a causal run of tokens; returns its normed states, see `Contexts.add_text`."""
        start = int(self.contexts.position[row])
        self.tokens[row] += [(token, TEXT, start + i) for i, token in enumerate(ids)]
        return self.contexts.add_text([row], ids)

    def add_part(self, row: int, ids: Sequence[int]) -> None:
        """Appends a text between its boundary tokens."""
        part = [self.model.contexts.ids.bos, *ids, self.model.contexts.ids.eos]
        self.add_text(row, part)
        self.splits[row].append((len(part), "causal"))

    def add_picture(self, row: int, kind: str, tokens: np.ndarray, ids: np.ndarray) -> None:
        """Appends a clean picture with its boundary tokens: patches ("vit") or latents ("vae")."""
        at, latent = int(self.contexts.position[row]), kind == "vae"
        start, end = self.model.contexts.ids.image_start, self.model.contexts.ids.image_end
        body = [(-1, LATENT if latent else PATCH, at)] * len(ids)
        self.tokens[row] += [(start, TEXT, at), *body, (end, TEXT, at)]
        self.splits[row].append((len(ids) + 2, "full"))
        self.contexts.add_picture([row], tokens, ids, latent)


def inference(model: Model, x: Arrays) -> Computed:
    """Cases f, g and g2."""
    cfg = model.config
    computed: Computed = {}
    operations = {name: x[f"ops_{name}"].tolist() for name in CONTEXTS}
    pictures = _pictures(model, x, {op for ops in operations.values() for op in ops}, computed)
    height, width = x["image_shape"].tolist()
    grid = table_ids(height, width, cfg.patch * cfg.vae.downsample, cfg.latent_grid)
    reader = Reader.of(model)
    for name, row in CONTEXTS.items():
        for op in operations[name]:
            kind, number = op.split(":")
            if kind == "text":
                reader.add_part(row, x[f"text_{number}"].tolist())
            else:
                reader.add_picture(row, kind, *pictures[op])
        computed |= _describe(f"out.ctx_{name}", reader, row)
    used = slice(0, int(reader.contexts.length[MAIN]))
    k, v = caches.tokens(reader.contexts.pool, MAIN)
    computed["out.ctx_main.k"], computed["out.ctx_main.v"] = k[:, used], v[:, used]
    said: list[int] = []
    if "decode_steps" in x or x.names("out.decode."):
        said = _decode(reader.fork(), x.scalar("decode_steps"), computed)
    for variant in x["variants"].tolist():
        branches = reader
        if variant.startswith("think"):
            branches = reader.fork()
            branches.add_part(MAIN, said[1:])
            added = np.array(branches.tokens[MAIN][used.stop :], np.int32)
            computed[f"out.{variant}.appended_token_ids"] = added[:, 0]
            computed[f"out.{variant}.appended_position_ids"] = added[:, 2]
        _paint(branches, x, variant, grid, (height, width), computed)
    return {name: np.asarray(value) for name, value in computed.items()}


def _pictures(
    model: Model, x: Arrays, operations: set[str], computed: Computed
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Tokens and table ids of every picture that some context takes."""
    cfg, found = model.config, {}
    for op in sorted(operations):
        kind, number = op.split(":")
        if kind == "text":
            continue
        image = pixels(x, f"{kind}_image_{number}", computed)
        if kind == "vit":
            ids = table_ids(*image.shape[:2], cfg.und_patch, cfg.und_grid)
            found[op] = (patchify(image, cfg.und_patch), ids)
        else:
            latent = np.asarray(model.encode(jnp.asarray(image)[None]))[0]
            computed[f"out.latent_vae_image_{number}"] = channels_first(latent)
            side = cfg.patch * cfg.vae.downsample
            ids = table_ids(*image.shape[:2], side, cfg.latent_grid)
            found[op] = (patchify(latent, cfg.patch), ids)
    return found


def _describe(prefix: str, reader: Reader, row: int) -> Computed:
    tokens = np.array(reader.tokens[row], np.int32).reshape(-1, 3)
    modes = [mode for _, mode in reader.splits[row]]
    return {
        f"{prefix}.token_ids": tokens[:, 0],
        f"{prefix}.modality": tokens[:, 1],
        f"{prefix}.position_ids": tokens[:, 2],
        f"{prefix}.split_lens": np.array([n for n, _ in reader.splits[row]], np.int32),
        f"{prefix}.attn_modes": np.array(modes, dtype=np.str_),
        f"{prefix}.kv_len": np.int32(reader.contexts.length[row]),
        f"{prefix}.next_position": np.int32(reader.contexts.position[row]),
    }


def _decode(reader: Reader, steps: int, computed: Computed) -> list[int]:
    """Greedy decoding that does not stop; returns the tokens that were fed."""
    fed, positions, logits, following = [], [], [], []
    token = reader.model.contexts.ids.bos
    for _ in range(steps):
        fed.append(token)
        positions.append(int(reader.contexts.position[MAIN]))
        hidden = reader.add_text(MAIN, [token])
        logits.append(np.asarray(reader.model.logits(reader.model.params, hidden))[0, 0])
        token = int(logits[-1].argmax())
        following.append(token)
    computed |= {
        "out.decode.ids": np.array(fed, np.int32),
        "out.decode.positions": np.array(positions, np.int32),
        "out.decode.logits": np.stack(logits),
        "out.decode.next_ids": np.array(following, np.int32),
    }
    return fed


def _paint(
    reader: Reader,
    x: Arrays,
    variant: str,
    ids: np.ndarray,
    size: tuple[int, int],
    computed: Computed,
) -> None:
    """One picture under one setting of the guidance, step by step."""
    cfg = reader.model.config
    scales = [x.scalar(f"{variant}.cfg_{name}_scale") for name in ("text", "img")]
    low, high = x[f"{variant}.cfg_interval"].tolist()
    sampler = SamplerConfig(
        one_shot_guidance=scales[0],
        image_guidance=scales[1],
        renorm=str(x[f"{variant}.cfg_renorm_type"]),  # type: ignore[arg-type]
        renorm_min=x.scalar(f"{variant}.cfg_renorm_min"),
    )
    grid = flow.time_grid(x.scalar("num_timesteps") - 1, x.scalar("timestep_shift"))
    latents, used = [x["init_noise"]], []
    branches: list[list[np.ndarray]] = []
    contexts, weights = reader.contexts, Weights(reader.model.params, None)
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        runs = Branches(*(bool(low < now <= high and scale > 1.0) for scale in scales))
        rows = [MAIN, *np.flatnonzero(runs) + 1]
        v = reader.model.contexts.velocities(
            weights, contexts.pool, contexts.at(rows), latents[-1], ids, now
        )
        each = np.zeros((len(CONTEXTS), *latents[0].shape), np.float32)
        each[rows] = v
        branches.append([np.asarray(guide(v, runs, sampler)), *each])
        used.append(runs)
        latents.append(latents[-1] - branches[-1][0] * (now - then))
    prefix = f"out.{variant}"
    rows, columns = (side // (cfg.patch * cfg.vae.downsample) for side in size)
    latent = unpatchify(jnp.asarray(latents[-1])[None], cfg.patch, rows, columns)
    image = np.asarray(reader.model.decode(latent))[0]
    velocity, conditional, no_text, no_image = (
        np.stack(part) for part in zip(*branches, strict=True)
    )
    ran_text, ran_image = (np.array(part) for part in zip(*used, strict=True))
    computed |= {
        f"{prefix}.latents": np.stack(latents),
        f"{prefix}.cfg_text_used": ran_text,
        f"{prefix}.cfg_img_used": ran_image,
    }
    # With an image scale alone nothing is guided, and of a branch that never ran there is nothing
    # to say: a file may leave these out.
    alone = scales[0] <= 1.0 < scales[1]
    for name, value, optional in (
        ("timesteps", grid, alone),
        ("velocity", velocity, alone),
        ("image", channels_first(image), alone),
        ("image_uint8", to_uint8(image), alone),
        ("velocity_cond", conditional, alone or not (ran_text | ran_image).any()),
        ("velocity_cfg_text", no_text, alone or not ran_text.any()),
        ("velocity_cfg_img", no_image, alone or not ran_image.any()),
    ):
        if not optional or f"{prefix}.{name}" in x.all:
            computed[f"{prefix}.{name}"] = value
