"""Parity cases of inference: contexts with a KV cache, text decoding, guided image generation.

Every piece is the one that sampling uses: `forward` with a cache, the time grid, the guidance. A
context is built segment by segment, as when an interleaved prompt is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.core import flow_matching as flow
from process_gen.core.attention_mask import NEVER, PAD_ORDER
from process_gen.core.batch import Place, table_ids
from process_gen.core.configs import ModelConfig
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
from process_gen.models.transformer import Cache
from process_gen.models.unified import Streams

CONTEXTS = ("main", "cfg_text", "cfg_img")


@dataclasses.dataclass
class Context:
    """A cache on the host, with the tokens that it holds.

    Attributes:
      k, v: ``float32[L, C, K, Dh]``; the first `length` slots are in use.
      visible_from: ``int32[C]``; every token stays visible to all that follows.
      order, position: of the next token.
      tokens: rows (token id or -1, modality, position) of what was added.
      splits: (length, mode) of every segment.
    """

    k: np.ndarray
    v: np.ndarray
    visible_from: np.ndarray
    order: int = 0
    position: int = 0
    tokens: list[tuple[int, int, int]] = dataclasses.field(default_factory=list)
    splits: list[tuple[int, str]] = dataclasses.field(default_factory=list)

    @property
    def length(self) -> int:
        """Slots in use."""
        return len(self.tokens)

    def copy(self) -> Context:
        """A context that may grow by itself."""
        return dataclasses.replace(
            self,
            k=self.k.copy(),
            v=self.v.copy(),
            visible_from=self.visible_from.copy(),
            tokens=list(self.tokens),
            splits=list(self.splits),
        )

    def cache(self) -> Cache:
        """For `forward`; slots not in use have an empty interval."""
        used = np.arange(len(self.visible_from)) < self.length
        visible_to = np.where(used, NEVER - 1, PAD_ORDER).astype(np.int32)
        return Cache(
            jnp.asarray(self.k)[:, None],
            jnp.asarray(self.v)[:, None],
            jnp.asarray(self.visible_from)[None],
            jnp.asarray(visible_to)[None],
        )


class Reader:
    """Reads segments into contexts; all programs have fixed shapes, so each compiles once."""

    def __init__(self, model: Model, sizes: tuple[int, int, int, int]):
        """Args: sizes are the most text, patch and latent tokens of a segment, and the slots."""
        self.model = model
        self.sizes = sizes

    def empty(self) -> Context:
        """A context without tokens."""
        cfg, slots = self.model.config, self.sizes[3]
        shape = (cfg.num_layers, slots, cfg.num_kv_heads, cfg.head_dim)
        never = np.full(slots, NEVER, np.int32)
        return Context(np.zeros(shape, np.float32), np.zeros(shape, np.float32), never)

    def add_text(self, context: Context, ids: list[int]) -> Any:
        """Appends a causal run of tokens; returns the model's outputs."""
        n = len(ids)
        orders = np.arange(context.order, context.order + n)
        positions = np.arange(context.position, context.position + n)
        room = 1 if n == 1 else self.sizes[0]
        sizes = (room, 0, 0) if n == 1 else self.sizes[:3]
        streams = _streams(self.model.config, sizes, text=(ids, orders, positions))
        outputs = self.model.forward(self.model.params, streams, context.cache())
        added = [(i, TEXT, int(p)) for i, p in zip(ids, positions, strict=True)]
        self._append(context, outputs, list(range(n)), orders, added)
        context.order, context.position = context.order + n, context.position + n
        return outputs

    def add_image(self, context: Context, kind: str, tokens: np.ndarray, ids: np.ndarray) -> None:
        """Appends a clean picture with its boundary tokens: patches ("vit") or latents ("vae")."""
        n = len(tokens)
        streams = self._image_streams(context, self.sizes[:3], kind, tokens, ids, 0.0)
        outputs = self.model.forward(self.model.params, streams, context.cache())
        first = self.sizes[0] + (self.sizes[1] if kind == "vae" else 0)
        slots = [0, *range(first, first + n), 1]
        modality = PATCH if kind == "vit" else LATENT
        start, end = self._boundaries()
        p = context.position
        added = [(start, TEXT, p), *[(-1, modality, p)] * n, (end, TEXT, p)]
        self._append(context, outputs, slots, np.full(n + 2, context.order), added)
        context.splits.append((n + 2, "full"))
        context.order, context.position = context.order + 1, context.position + 1

    def velocity(self, context: Context, x: np.ndarray, ids: np.ndarray, t: float) -> np.ndarray:
        """The flow head's output for a noised picture; nothing is written."""
        sizes = (2, 0, self.sizes[2])
        streams = self._image_streams(context, sizes, "vae", x, ids, t)
        outputs = self.model.forward(self.model.params, streams, context.cache())
        return np.asarray(outputs.output_BxGxP)[0, : len(x)]

    def _boundaries(self) -> tuple[int, int]:
        return self.model.ids["start_of_image"], self.model.ids["end_of_image"]

    def _image_streams(
        self,
        context: Context,
        sizes: tuple[int, ...],
        kind: str,
        tokens: np.ndarray,
        ids: np.ndarray,
        t: float,
    ) -> Streams:
        def spread(count: int, value: int) -> np.ndarray:
            return np.full(count, value)

        n = len(tokens)
        text = (list(self._boundaries()), spread(2, context.order), spread(2, context.position))
        image = (tokens, ids, spread(n, context.order), spread(n, context.position), t)
        return _streams(self.model.config, sizes, text=text, **{kind: image})

    def _append(
        self,
        context: Context,
        outputs: Any,
        slots: list[int],
        orders: np.ndarray,
        added: list[tuple[int, int, int]],
    ) -> None:
        at = slice(context.length, context.length + len(slots))
        context.k[:, at] = np.asarray(outputs.k_LxBxSxKxDh)[:, 0, slots]
        context.v[:, at] = np.asarray(outputs.v_LxBxSxKxDh)[:, 0, slots]
        context.visible_from[at] = orders
        context.tokens += added


def _streams(
    cfg: ModelConfig,
    sizes: tuple[int, ...],
    *,
    text: tuple,
    vit: tuple | None = None,
    vae: tuple | None = None,
) -> Streams:
    """One segment in padded streams; every token is seen from its own order on."""

    def fill(values: Any, size: int, padding: float, dtype: Any = np.int32) -> jax.Array:
        values = np.asarray(values, dtype)
        out = np.full((size, *values.shape[1:]), padding, dtype)
        out[: len(values)] = values
        return jnp.asarray(out)[None]

    def place(orders: Any, positions: Any, size: int) -> Place:
        visible_to = np.full(len(orders), NEVER - 1)
        return Place(
            fill(orders, size, PAD_ORDER),
            fill(orders, size, NEVER),
            fill(visible_to, size, PAD_ORDER),
            fill(positions, size, 0),
        )

    def image(part: tuple | None, features: int) -> tuple:
        none = np.zeros(0, np.int32)
        return part or (np.zeros((0, features), np.float32), none, none, none, 0.0)

    patches, patch_ids, patch_orders, patch_positions, _ = image(vit, cfg.und_features)
    latents, latent_ids, latent_orders, latent_positions, t = image(vae, cfg.latent_features)
    ids, orders, positions = text
    return Streams(
        text=place(orders, positions, sizes[0]),
        und=place(patch_orders, patch_positions, sizes[1]),
        gen=place(latent_orders, latent_positions, sizes[2]),
        token_BxT=fill(ids, sizes[0], 0),
        patch_BxVxQ=fill(patches, sizes[1], 0, np.float32),
        patch_id_BxV=fill(patch_ids, sizes[1], 0),
        latent_BxGxP=fill(latents, sizes[2], 0, np.float32),
        latent_id_BxG=fill(latent_ids, sizes[2], 0),
        t_BxG=jnp.full((1, sizes[2]), t, jnp.float32),
        patch_image_BxV=fill(np.zeros(len(patches)), sizes[1], PAD_ORDER),
    )


def inference(model: Model, x: Arrays) -> Computed:
    """Cases f, g and g2."""
    cfg = model.config
    computed: Computed = {}
    operations = {name: x[f"ops_{name}"].tolist() for name in CONTEXTS}
    pictures = _pictures(model, x, {op for ops in operations.values() for op in ops}, computed)
    height, width = x["image_shape"].tolist()
    grid = table_ids(height, width, cfg.patch * cfg.vae.downsample, cfg.latent_grid)
    reader = Reader(model, _sizes(model, x, operations, pictures, len(grid)))
    contexts = {}
    for name, ops in operations.items():
        context = contexts[name] = reader.empty()
        for op in ops:
            kind, number = op.split(":")
            if kind == "text":
                _add_part(reader, context, x[f"text_{number}"].tolist())
            else:
                reader.add_image(context, kind, *pictures[op])
        computed |= _describe(f"out.ctx_{name}", context)
    main = contexts["main"]
    computed["out.ctx_main.k"] = main.k[:, : main.length]
    computed["out.ctx_main.v"] = main.v[:, : main.length]
    said: list[int] = []
    if "decode_steps" in x or x.names("out.decode."):
        said = _decode(reader, main.copy(), x.scalar("decode_steps"), computed)
    for variant in x["variants"].tolist():
        branches = dict(contexts)
        if variant.startswith("think"):
            branches["main"] = main.copy()
            before = main.length
            _add_part(reader, branches["main"], said[1:])
            added = np.array(branches["main"].tokens[before:], np.int32)
            computed[f"out.{variant}.appended_token_ids"] = added[:, 0]
            computed[f"out.{variant}.appended_position_ids"] = added[:, 2]
        _paint(reader, branches, x, variant, grid, (height, width), computed)
    return {name: np.asarray(value) for name, value in computed.items()}


def _add_part(reader: Reader, context: Context, ids: list[int]) -> None:
    ids = [reader.model.ids["bos_token_id"], *ids, reader.model.ids["eos_token_id"]]
    reader.add_text(context, ids)
    context.splits.append((len(ids), "causal"))


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


def _sizes(
    model: Model,
    x: Arrays,
    operations: Mapping[str, list[str]],
    pictures: Mapping[str, tuple[np.ndarray, np.ndarray]],
    latents: int,
) -> tuple[int, int, int, int]:
    steps = x.scalar("decode_steps") if "decode_steps" in x else 0

    def length(op: str) -> int:
        kind, number = op.split(":")
        return 2 + (len(x[f"text_{number}"]) if kind == "text" else len(pictures[op][0]))

    ops = [op for name in CONTEXTS for op in operations[name]]
    texts = [length(op) for op in ops if op.startswith("text")]
    patches = [length(op) - 2 for op in ops if op.startswith("vit")]
    images = [length(op) - 2 for op in ops if op.startswith("vae")]
    slots = max(sum(map(length, operations[name])) for name in CONTEXTS) + steps + 2
    most = (
        max([steps + 2, *texts]),
        max(patches, default=0),
        max([latents, *images]),
        slots,
    )
    # Rounded up, several cases share their programs: compiling is most of the time.
    text, und, gen, slots = (max(1, -(-n // 64)) * 64 for n in most)
    return text, und if model.config.und_encoder != "none" else 0, gen, slots


def _describe(prefix: str, context: Context) -> Computed:
    tokens = np.array(context.tokens, np.int32).reshape(-1, 3)
    modes = [mode for _, mode in context.splits]
    return {
        f"{prefix}.token_ids": tokens[:, 0],
        f"{prefix}.modality": tokens[:, 1],
        f"{prefix}.position_ids": tokens[:, 2],
        f"{prefix}.split_lens": np.array([n for n, _ in context.splits], np.int32),
        f"{prefix}.attn_modes": np.array(modes, dtype=np.str_),
        f"{prefix}.kv_len": np.int32(context.length),
        f"{prefix}.next_position": np.int32(context.position),
    }


def _decode(reader: Reader, context: Context, steps: int, computed: Computed) -> list[int]:
    """Greedy decoding that does not stop; returns the tokens that were fed."""
    fed, positions, logits, following = [], [], [], []
    token = reader.model.ids["bos_token_id"]
    for _ in range(steps):
        fed.append(token)
        positions.append(context.position)
        outputs = reader.add_text(context, [token])
        logits.append(
            np.asarray(reader.model.logits(reader.model.params, outputs.hidden_BxTxD))[0, 0]
        )
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
    contexts: Mapping[str, Context],
    x: Arrays,
    variant: str,
    ids: np.ndarray,
    size: tuple[int, int],
    computed: Computed,
) -> None:
    """One picture under one setting of the guidance."""
    cfg = reader.model.config
    scales = [x.scalar(f"{variant}.cfg_{name}_scale") for name in ("text", "img")]
    low, high = x[f"{variant}.cfg_interval"].tolist()
    renorm = str(x[f"{variant}.cfg_renorm_type"])
    renorm_min = x.scalar(f"{variant}.cfg_renorm_min")
    grid = flow.time_grid(x.scalar("num_timesteps") - 1, x.scalar("timestep_shift"))
    latents, used = [x["init_noise"]], []
    branches: list[list[np.ndarray]] = []
    for now, then in zip(grid[:-1], grid[1:], strict=True):
        guided = low < now <= high
        runs = [bool(guided and scale > 1.0) for scale in scales]
        each = [reader.velocity(contexts["main"], latents[-1], ids, now)]
        for name, run in zip(CONTEXTS[1:], runs, strict=True):
            zero = np.zeros_like(each[0])
            each.append(reader.velocity(contexts[name], latents[-1], ids, now) if run else zero)
        v = flow.guide(
            *(
                jnp.asarray(e)[None] if r else None
                for e, r in zip(each, [True, *runs], strict=True)
            ),
            text_scale=scales[0],
            image_scale=scales[1],
            renorm=renorm,
            renorm_min=renorm_min,
        )
        branches.append([np.asarray(v)[0], *each])
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
