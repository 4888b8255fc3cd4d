"""Comparing what this project computes with stored arrays of the reference implementation.

A folder of fixtures holds a checkpoint and one `.npz` file a case; `in.` arrays are inputs, `out.`
arrays are expected. A case is a function of the loaded model and its inputs that computes every
expected array. Nothing may be left over: an array that the case asks for and the file lacks is
*missing*, one that the file has and the case neither used nor computed is *unknown*.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from process_gen.checkpoint import bagel, bagel_config
from process_gen.core.batch import TokenIds
from process_gen.core.configs import Config, ModelConfig
from process_gen.core.errors import DataError
from process_gen.kernels.chunked import chunked
from process_gen.kernels.interval_attention import IMPLEMENTATIONS
from process_gen.kernels.per_shard import per_shard
from process_gen.models.functional import ModelFns, build
from process_gen.models.shapes import BAGEL
from process_gen.models.vae import functions as vae_functions
from process_gen.sampling.contexts import ContextPrograms

# Errors are relative to the array's largest absolute value.
TOLERANCE = 5e-5
GRADIENT_TOLERANCE = 1e-3


class Missing(Exception):
    """A case asked for an array that its file does not have."""


class Arrays:
    """The arrays of one case, which remember what was asked for."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Args: arrays by their full names."""
        self.all = dict(arrays)
        self.used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return f"in.{name}" in self.all

    def __getitem__(self, name: str) -> np.ndarray:
        """The input of that name, without its prefix."""
        full = f"in.{name}"
        if full not in self.all:
            raise Missing(full)
        self.used.add(full)
        return self.all[full]

    def scalar(self, name: str) -> Any:
        """A scalar input as a plain Python value."""
        return self[name].item()

    def names(self, prefix: str) -> list[str]:
        """Full names of the arrays that start so."""
        return [name for name in self.all if name.startswith(prefix)]


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded fixture checkpoint.

    Attributes:
      config, fns, params: of the model; `frozen_fns` is the same with the und expert frozen.
      contexts, logits: of `fns`, jitted, so that cases share what is compiled.
      encode: pictures [N, Y, X, 3] and noise or None to latents; `moments` gives mean and
        log-variance; `decode` goes back.
    """

    config: ModelConfig
    fns: ModelFns
    frozen_fns: ModelFns
    params: Any
    contexts: ContextPrograms
    logits: Callable[..., jax.Array]
    encode: Callable[..., jax.Array]
    moments: Callable[..., tuple[jax.Array, jax.Array]]
    decode: Callable[..., jax.Array]


Case = Callable[[Model, Arrays], dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Row:
    """One compared array.

    Attributes:
      case, array: names.
      error: largest error over the largest absolute value; inf where shape or kind differ.
      limit: what is allowed; 0 asks for equality.
      state: "ok", "differs", "missing" (in the file) or "unknown" (to the case).
    """

    case: str
    array: str
    error: float | None
    limit: float | None
    state: str


def load_model(folder: Path, **how: Any) -> Model:
    """Loads `folder/checkpoint`.

    Args:
      folder: of fixtures.
      how: settings of `ModelConfig` that say how the model is run, such as `attention`.

    Raises:
      CheckpointError: it is damaged or does not fit.
    """
    checkpoint = folder / "checkpoint"
    stored, params, vae_params = bagel.load_folder(checkpoint, BAGEL)
    config = dataclasses.replace(stored, dtype="float32", param_dtype="float32", **how)
    moments, encode, decode = vae_functions(config.vae)
    fns = build(config)
    ids = bagel_config.stated_ids(bagel_config.read_settings(checkpoint))
    names = ("bos_token_id", "eos_token_id", "start_of_image", "end_of_image")
    numbers = [ids[name] for name in names]
    tokens = TokenIds(lambda text: (), *numbers, end_of_text=-1, specials=frozenset(numbers))
    return Model(
        config=config,
        fns=fns,
        frozen_fns=build(dataclasses.replace(config, freeze_und=True)),
        params=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params),
        contexts=ContextPrograms(fns, Config(model=config), tokens, config.vocab_size),
        logits=jax.jit(fns.logits),
        encode=lambda *args: encode(vae_params, *args),
        moments=lambda *args: moments(vae_params, *args),
        decode=lambda *args: decode(vae_params, *args),
    )


def compare(case: str, name: str, got: np.ndarray, wanted: np.ndarray) -> Row:
    """Compares one array; the kind of its type decides how."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    gradient = name.startswith(("out.grad", "out.param_grad", "out.group_grad"))
    gradient |= name in ("out.total_grad_norm", "out.clip_coef_max_norm_1")
    limit = 0.0
    if wanted.dtype.kind == "f":
        limit = GRADIENT_TOLERANCE if gradient else TOLERANCE
    elif wanted.dtype == np.uint8:
        limit = 1.0
    kinds = {"i": "i", "u": "i"}
    same_kind = kinds.get(got.dtype.kind, got.dtype.kind) == kinds.get(
        wanted.dtype.kind, wanted.dtype.kind
    )
    if got.shape != wanted.shape or not same_kind:
        error = float("inf")
    elif wanted.dtype.kind == "f":
        scale = float(np.abs(wanted).max(initial=0.0)) or 1.0
        error = float(np.abs(got.astype(np.float64) - wanted).max(initial=0.0)) / scale
    elif wanted.dtype == np.uint8:
        error = float(np.abs(got.astype(int) - wanted.astype(int)).max(initial=0))
    else:
        error = float(np.any(got != wanted))
    # A nan compares false with everything.
    return Row(case, name, error, limit, "ok" if error <= limit else "differs")


def check_case(name: str, case: Case, model: Model, arrays: Mapping[str, np.ndarray]) -> list[Row]:
    """Runs one case and accounts for every array of its file."""
    inputs = Arrays(arrays)
    try:
        computed = case(model, inputs)
    except Missing as missing:
        return [Row(name, str(missing), None, None, "missing")]
    rows = []
    for array, value in computed.items():
        if array in arrays:
            rows.append(compare(name, array, value, arrays[array]))
        else:
            rows.append(Row(name, array, None, None, "missing"))
    unknown = set(arrays) - set(computed) - inputs.used
    return rows + [Row(name, array, None, None, "unknown") for array in sorted(unknown)]


@contextlib.contextmanager
def chunks_of(side: int) -> Iterator[None]:
    """Within the block, chunked attention walks over chunks of `side` tokens.

    A fixture's sequences are shorter than one chunk is otherwise, and nothing would be walked over.
    """
    before = IMPLEMENTATIONS["chunked"]
    IMPLEMENTATIONS["chunked"] = per_shard(functools.partial(chunked, chunk=side))
    try:
        yield
    finally:
        IMPLEMENTATIONS["chunked"] = before


def check_folder(
    folder: Path, cases: Mapping[str, Case], *, only: bool = False, **how: Any
) -> list[Row]:
    """Runs every case of a folder; a case without a file, or a file without a case, is reported.

    Args:
      folder: with `checkpoint/` and one `.npz` file a case.
      cases: by the names of their files.
      only: whether files of other cases are to be passed over in silence.
      how: see `load_model`.

    Raises:
      CheckpointError, DataError: the folder or a file in it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    files = {file.stem: file for file in sorted(folder.glob("*.npz"))}
    model = load_model(folder, **how)
    rows = [Row(name, "*", None, None, "missing") for name in cases if name not in files]
    loaded = {name: read_arrays(file) for name, file in files.items()}
    with jax.default_matmul_precision("highest"):
        for name, arrays in loaded.items():
            if name not in cases and only:
                continue
            if name not in cases:
                rows.append(Row(name, "*", None, None, "unknown"))
                continue
            if "in.case" in arrays:
                # Gradients are taken of another case, whose inputs stand in that case's own file.
                other = str(arrays["in.case"])
                if other not in loaded:
                    rows.append(Row(name, f"{other}.npz", None, None, "missing"))
                    continue
                rows += _check_gradients(name, cases[name], model, arrays, loaded[other])
            else:
                rows += check_case(name, cases[name], model, arrays)
    return rows


def _check_gradients(
    name: str,
    case: Case,
    model: Model,
    arrays: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
) -> list[Row]:
    borrowed = {key: value for key, value in other.items() if key.startswith("in.")}
    rows = check_case(name, case, model, {**borrowed, **arrays})
    # What the case did not use of the other file is accounted for there.
    return [row for row in rows if row.state != "unknown" or row.array in arrays]


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file.

    Raises:
      DataError: it is damaged, or holds objects (which are pickles and never loaded).
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own.
        raise DataError(f"{file}: cannot be read ({error})") from error
