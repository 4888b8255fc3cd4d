"""Cases of inference for `make_fixtures`: contexts, text, guided pictures, without any cache."""

from __future__ import annotations

import numpy as np

from tests.parity.make_fixtures import LATENT, TEXT, Sequence, Split, as_float
from tests.parity.numpy_bagel import Bagel, grid_ids, patchify, unpatchify


class Context:
    """A context for inference: its splits, and what stands at its tokens."""

    def __init__(self, bagel: Bagel, operations: list[str], given: dict[str, Split]):
        self.bagel, self.operations = bagel, list(operations)
        self.given = dict(given)

    def embedded(self, extra: list[int] = ()):  # type: ignore[assignment]
        """Tokens, gen flags, positions and mask, with single tokens of text appended."""
        b = self.bagel
        s = Sequence(b, [[self.given[op] for op in self.operations]])
        gen = np.concatenate([s.modality == LATENT, np.zeros(len(extra), bool)])
        x = np.zeros((len(s.rows), b.width))
        text = s.modality == TEXT
        x[text] = b.text_tokens(s.token[text])
        for split, at, n in s.images:
            image = as_float(split.image)
            if split.kind == "vit":
                _, ids, _, connected = b.see(image)
                x[at : at + n] = connected + b.und_table[ids]
            else:
                latent = b.encode(image)
                ids = grid_ids(*(side // b.patch for side in latent.shape[1:]), b.grid)
                x[at : at + n] = b.latent_tokens(patchify(latent, b.patch), ids, np.zeros(n))
        x = np.concatenate([x, b.text_tokens(np.array(extra, int))])
        n = len(s.rows)
        mask = np.tril(np.ones((len(x), len(x)), bool))
        if n:
            mask[:n, :n] = s.mask()
        position = np.concatenate([s.position, s.next_position + np.arange(len(extra))])
        return s, x, gen, position, mask

    def velocity(self, x_t: np.ndarray, ids: np.ndarray, t: float) -> np.ndarray:
        b = self.bagel
        s, x, gen, position, mask = self.embedded()
        pair = b.text_tokens(np.array([b.special["start_of_image"], b.special["end_of_image"]]))
        latents = b.latent_tokens(x_t, ids, np.full(len(ids), t))
        query = np.concatenate([pair[:1], latents, pair[1:]])
        whole = np.ones((len(x) + len(query),) * 2, bool)
        whole[: len(x), : len(x)] = mask
        whole[: len(x), len(x) :] = False
        is_gen = np.concatenate([gen, [False], np.ones(len(ids), bool), [False]])
        at = np.concatenate([position, np.full(len(query), s.next_position)])
        hidden, _ = b.run(np.concatenate([x, query]), is_gen, at, whole)
        return b.velocity(hidden[len(x) + 1 : -1])


def _limited(v, size, lowest, axes):
    ratio = size / (np.linalg.norm(v, axis=axes, keepdims=True) + 1e-8)
    return v * np.clip(ratio, lowest, 1.0)


def guided(c, u, i, a, b, renorm, lowest):
    """Section 4.5 of the specification; `u` and `i` are None where a branch does not run."""
    if u is None:
        return c
    axes = None if renorm == "global" else -1
    size = np.linalg.norm(c, axis=axes, keepdims=True)
    w = u + a * (c - u)
    if renorm == "text_channel":
        w = _limited(w, size, lowest, -1)
        return w if i is None else i + b * (w - i)
    w = w if i is None else i + b * (w - i)
    return _limited(w, size, lowest, axes)


def inference(
    bagel: Bagel, given: dict[str, Split], operations: dict[str, list[str]], size: tuple[int, int],
    variants: dict[str, tuple], steps: int, decode: int, rng: np.random.Generator,
) -> dict:  # fmt: skip
    """All arrays of cases f, g and g2.

    A variant is (text scale, image scale, interval, renorm_min, renorm)."""
    rows, columns = (side // bagel.side for side in size)
    ids = grid_ids(rows, columns, bagel.grid)
    start = rng.normal(size=(len(ids), _features(bagel)))
    out = {
        "in.image_shape": np.array(size),
        "in.num_timesteps": np.int32(steps + 1),
        "in.timestep_shift": np.float64(3.0),
        "in.init_noise": start,
        "in.variants": np.array(list(variants)),
    }
    for op, split in given.items():
        kind, number = op.split(":")
        if kind == "text":
            out[f"in.text_{number}"] = np.array(split.ids, np.int32)
        else:
            name = f"in.{kind}_image_{number}"
            out |= {name: as_float(split.image), f"{name}_uint8": split.image}
        if kind == "vae":
            out[f"out.latent_vae_image_{number}"] = bagel.encode(as_float(split.image))
    contexts = {name: Context(bagel, ops, given) for name, ops in operations.items()}
    for name, context in contexts.items():
        out[f"in.ops_{name}"] = np.array(context.operations, dtype=np.str_)
        s, x, gen, position, mask = context.embedded()
        out |= {
            f"out.ctx_{name}.token_ids": s.token,
            f"out.ctx_{name}.modality": s.modality,
            f"out.ctx_{name}.position_ids": s.position,
            f"out.ctx_{name}.split_lens": np.array([n for n, _ in s.lengths], np.int32),
            f"out.ctx_{name}.attn_modes": np.array([m for _, m in s.lengths], dtype=np.str_),
            f"out.ctx_{name}.kv_len": np.int32(len(s.rows)),
            f"out.ctx_{name}.next_position": np.int32(s.next_position),
        }
        if name == "main":
            _, cache = bagel.run(x, gen, position, mask)
            out["out.ctx_main.k"] = np.stack([k for k, _ in cache])
            out["out.ctx_main.v"] = np.stack([v for _, v in cache])
    said: list[int] = []
    if decode:
        said = _decode(bagel, contexts["main"], decode, out)
    for name, variant in variants.items():
        main = contexts["main"]
        if name.startswith("think"):
            thought = Split("text", ids=said[1:])
            main = Context(bagel, [*main.operations, "text:x"], {**given, "text:x": thought})
            before, after = (c.embedded()[0] for c in (contexts["main"], main))
            out[f"out.{name}.appended_token_ids"] = after.token[len(before.rows) :]
            out[f"out.{name}.appended_position_ids"] = after.position[len(before.rows) :]
        branches = (main, contexts["cfg_text"], contexts["cfg_img"])
        _paint(bagel, branches, name, variant, start, ids, (rows, columns), steps, out)
    return out


def _features(bagel: Bagel) -> int:
    return bagel.w["vae2llm.weight"].shape[1]


def _decode(bagel: Bagel, context: Context, steps: int, out: dict) -> list[int]:
    said = [bagel.special["bos_token_id"]]
    logits, positions = [], []
    for _ in range(steps):
        _, x, gen, position, mask = context.embedded(said)
        hidden, _ = bagel.run(x, gen, position, mask)
        logits.append(bagel.logits(hidden[-1]))
        positions.append(position[-1])
        said.append(int(logits[-1].argmax()))
    out |= {
        "in.decode_steps": np.int32(steps),
        "out.decode.ids": np.array(said[:-1]),
        "out.decode.next_ids": np.array(said[1:]),
        "out.decode.positions": np.array(positions),
        "out.decode.logits": np.stack(logits),
    }
    return said[:-1]


def _paint(bagel, branches, name, variant, start, ids, grid, steps, out) -> None:
    a, b, (low, high), lowest, renorm = variant
    tau = np.linspace(1, 0, steps + 1)
    times = 3.0 * tau / (1 + 2.0 * tau)
    x, found, used = [start], [], []
    for now, then in zip(times[:-1], times[1:], strict=True):
        on = low < now <= high
        runs = (True, on and a > 1, on and b > 1)
        c, u, i = (
            context.velocity(x[-1], ids, now) if run else None
            for context, run in zip(branches, runs, strict=True)
        )
        v = guided(c, u, i, a, b, renorm, lowest)
        none = np.zeros_like(c)
        found.append([v, c, none if u is None else u, none if i is None else i])
        used.append(runs[1:])
        x.append(x[-1] - v * (now - then))
    image = bagel.decode(unpatchify(x[-1], bagel.patch, *grid))
    velocity, *each = (np.stack(part) for part in zip(*found, strict=True))
    pixels = np.clip(image * 0.5 + 0.5, 0, 1) * 255
    out |= {
        f"in.{name}.cfg_text_scale": np.float64(a),
        f"in.{name}.cfg_img_scale": np.float64(b),
        f"in.{name}.cfg_interval": np.array([low, high]),
        f"in.{name}.cfg_renorm_min": np.float64(lowest),
        f"in.{name}.cfg_renorm_type": np.array(renorm),
        f"out.{name}.timesteps": times,
        f"out.{name}.latents": np.stack(x),
        f"out.{name}.velocity": velocity,
        f"out.{name}.cfg_text_used": np.array([u for u, _ in used]),
        f"out.{name}.cfg_img_used": np.array([u for _, u in used]),
        f"out.{name}.image": image,
        f"out.{name}.image_uint8": np.moveaxis(pixels, 0, -1).astype(np.uint8),
    }
    for part, array in zip(("cond", "cfg_text", "cfg_img"), each, strict=True):
        out[f"out.{name}.velocity_{part}"] = array
