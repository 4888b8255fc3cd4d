"""Planned packing: which trajectories share a pack, decided ahead of reading them.

A plan is a pure function of what is read (sources, mixture), how it is written (grammar, tokenizer,
patch sizes), the pack's shape (T, V, G), a seed and an epoch. Lengths are measured once, from
outlines of the trajectories, and kept on disk. They are upper bounds: random choices made later
(dropout) only move tokens, never add any.

Two steps: `draw` says which trajectories make up an epoch and in what order; `make_plan` puts them
into packs (`fitting.fit`), one window of the order at a time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from process_gen.core.batch import PatchSizes, measure, table_ids
from process_gen.core.configs import GrammarConfig, to_mapping
from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.grammar import Kind, Segment, to_segments
from process_gen.data.fitting import fit, stream_fills
from process_gen.data.pictures import AS_THEY_ARE, Pictures
from process_gen.data.sources import Source
from process_gen.data.tokenizer import Tokenizer, token_ids

CACHE_VERSION = 2
BAD = -1
_KEPT_REASONS = 100
_KEPT_FILES = 512  # in the cache; the oldest are removed
# Modules here that say which trajectory an index means, what it holds and how long that is.
_DECIDING = (
    "augment",
    "builders",
    "images",
    "packing",
    "pictures",
    "rows",
    "sources",
    "tfds_builders",
    "tokenizer",
)

logger = logging.getLogger(__name__)


# ---- lengths -------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Lengths of a run of trajectories.

    Attributes:
      length_Nx3: int32 tokens in T, V and G; a row of `BAD` where the record cannot be used.
      reasons: (index, reason) of the first bad records.
    """

    length_Nx3: np.ndarray
    reasons: list[tuple[int, str]]


def _check_pictures(
    segments: Sequence[Segment], sizes: PatchSizes, fitting: set[tuple[Kind, int, int]]
) -> None:
    """Refuses pictures that patches or the position table do not fit; `fitting` remembers sizes."""
    for segment in segments:
        if segment.image is None:
            continue
        height, width = segment.image.shape[:2]
        if (key := (segment.kind, height, width)) in fitting:
            continue
        und = segment.kind is Kind.UND
        side = sizes.und if und else sizes.latent
        if height % side or width % side:
            raise DataError(f"a picture of {height}x{width} px, no multiple of {side} px patches")
        table_ids(height, width, side, sizes.und_grid if und else sizes.latent_grid)
        fitting.add(key)


def measure_source(
    source: Source,
    start: int,
    stop: int,
    grammar: GrammarConfig,
    tokenizer: Tokenizer,
    sizes: PatchSizes,
    pictures: Pictures = AS_THEY_ARE,
) -> Measured:
    """Measures the trajectories ``start..stop`` of a source; see `cached_lengths`."""
    length_Nx3 = np.full((stop - start, 3), BAD, np.int32)
    reasons: list[tuple[int, str]] = []
    fitting: set[tuple[Kind, int, int]] = set()
    ids = token_ids(tokenizer)
    for index in range(start, stop):
        try:
            segments = to_segments(source.outline(index), grammar, source.supervise)
            segments = pictures(segments, blank=True)
            _check_pictures(segments, sizes, fitting)
            length_Nx3[index - start] = measure(segments, ids, sizes)
        except ProcessGenError as error:
            reasons.append((index, str(error)))
    return Measured(length_Nx3, reasons[:_KEPT_REASONS])


def cache_dir() -> Path:
    """Where lengths are kept: ``${XDG_CACHE_HOME:-~/.cache}/process_gen/plans``."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "process_gen" / "plans"


def digest(*parts: Any) -> str:
    """16 hex digits over JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def settings_key(
    grammar: GrammarConfig,
    tokenizer: Tokenizer,
    sizes: PatchSizes,
    pictures: Pictures = AS_THEY_ARE,
) -> str:
    """Hash of what decides a trajectory's lengths besides the trajectory itself."""
    shape = {k: v for k, v in to_mapping(grammar).items() if not k.endswith("dropout")}
    resized = [] if pictures == AS_THEY_ARE else [dataclasses.asdict(pictures)]
    return digest(shape, tokenizer.fingerprint, dataclasses.asdict(sizes), *resized)


def _code_key() -> str:
    """Hash of the code that decides lengths: the cache of an edited checkout is never believed."""
    package = Path(__file__).parent.parent
    files = [*(package / "core").glob("*.py"), *(package / "strokes").glob("*.py")]
    files += [package / "data" / f"{name}.py" for name in _DECIDING]
    return digest([hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(files)])


def _read_cache(path: Path, count: int) -> Measured | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            length_Nx3 = stored["length_Nx3"]
            reasons = [(int(i), str(why)) for i, why in json.loads(str(stored["reasons"]))]
        if length_Nx3.shape != (count, 3) or length_Nx3.dtype != np.int32:
            raise ValueError(f"shape {length_Nx3.shape}, type {length_Nx3.dtype}")
        return Measured(length_Nx3, reasons)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        logger.warning("the length cache %s is damaged (%s); it is built again", path, error)
        return None


def _write_cache(path: Path, measured: Measured) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            np.savez(file, length_Nx3=measured.length_Nx3, reasons=json.dumps(measured.reasons))
        os.replace(file.name, path)
        files = sorted(path.parent.glob("*.npz"), key=lambda x: x.stat().st_mtime)
        for old in files[:-_KEPT_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:  # A read-only home costs time, not the run.
        logger.warning("cannot keep lengths in %s: %s", path.parent, error)


def cached_lengths(
    source: Source,
    start: int,
    stop: int,
    grammar: GrammarConfig,
    tokenizer: Tokenizer,
    sizes: PatchSizes,
    pictures: Pictures = AS_THEY_ARE,
) -> Measured:
    """Lengths of the trajectories ``start..stop`` of a source, from disk when they were measured.

    A damaged cache file is rebuilt, with a warning. Stored records that could not be used are
    looked at again, for they may have been repaired.
    """
    settings = settings_key(grammar, tokenizer, sizes, pictures)
    where = (source.fingerprint, source.supervise, start, stop)
    path = cache_dir() / f"{digest(CACHE_VERSION, _code_key(), settings, *where)}.npz"

    def measure(first: int, last: int) -> Measured:
        return measure_source(source, first, last, grammar, tokenizer, sizes, pictures)

    kept = _read_cache(path, stop - start)
    measured = kept
    if measured is None:
        measured = measure(start, stop)
    elif not source.fresh and (bad := np.flatnonzero(measured.length_Nx3[:, 0] == BAD)).size:
        measured = Measured(measured.length_Nx3.copy(), [])
        for one in bad.tolist():
            again = measure(start + one, start + one + 1)
            measured.length_Nx3[one] = again.length_Nx3[0]
            measured.reasons.extend(again.reasons)
        measured = measured._replace(reasons=measured.reasons[:_KEPT_REASONS])
    if kept is None or not np.array_equal(kept.length_Nx3, measured.length_Nx3):
        _write_cache(path, measured)
    return measured


# ---- the mixture ---------------------------------------------------------------------------------


class Sized(Protocol):
    """The part of a source that `draw` looks at."""

    fresh: bool

    def __len__(self) -> int:
        """Trajectories an epoch."""
        ...


def shares(sizes: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Trajectories of each source in an epoch: as many as all sources hold, split by weight.

    Rounding gives the largest remainders one more; every source gets at least one.
    """
    total, weight = sum(sizes), sum(weights)
    exact = [total * w / weight for w in weights]
    counts = [int(x) for x in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return [max(count, 1) for count in counts]


def draw(
    sources: Sequence[Sized], weights: Sequence[float], seed: int, epoch: int
) -> tuple[np.ndarray, np.ndarray]:
    """The trajectories of an epoch in order: ``(source_N, index_N)``, int64.

    A generated source (`fresh`) goes on where the last epoch ended. A stored one is read in a new
    random order each time it has been read through, at its own pace: no record comes a second time
    before all others came once.
    """
    counts = shares([len(source) for source in sources], weights)
    runs = []
    for number, (source, count) in enumerate(zip(sources, counts, strict=True)):
        at_N = np.arange(epoch * count, (epoch + 1) * count)
        if not source.fresh:
            size = len(source)
            for turn in np.unique(at_N // size):
                here_N = at_N // size == turn
                order_N = np.random.default_rng([seed, 1, number, int(turn)]).permutation(size)
                at_N[here_N] = order_N[at_N[here_N] % size]
        runs.append(np.stack([np.full(count, number), at_N]))
    both_2xN = np.concatenate(runs, axis=1).astype(np.int64)
    mixed_N = np.random.default_rng([seed, 2, epoch]).permutation(both_2xN.shape[1])
    both_2xN = both_2xN[:, mixed_N]
    return both_2xN[0], both_2xN[1]


# ---- the plan ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Which trajectories make up each pack of an epoch.

    Attributes:
      source_N, index_N: int64, the trajectories, pack after pack.
      start_P: int64[packs + 1], where each pack begins in them.
      fill: used fraction of T, V and G over all packs.
      stream_fill: of the und stream, T and V together, and of the gen stream.
      too_long_Kx5: int64 rows (source, index, T, V, G) that fit no pack.
      bad_Kx2: int64 rows (source, index) that could not be measured.
      hash: of the arrays, the limits and `key`.
    """

    source_N: np.ndarray
    index_N: np.ndarray
    start_P: np.ndarray
    fill: tuple[float, float, float]
    stream_fill: tuple[float, float]
    too_long_Kx5: np.ndarray
    bad_Kx2: np.ndarray
    hash: str

    def __len__(self) -> int:
        """Number of packs."""
        return len(self.start_P) - 1

    def __getitem__(self, pack: int) -> list[tuple[int, int]]:
        """The (source, index) pairs of a pack."""
        rows = slice(int(self.start_P[pack]), int(self.start_P[pack + 1]))
        pairs = zip(self.source_N[rows].tolist(), self.index_N[rows].tolist(), strict=True)
        return list(pairs)

    def summary(self) -> str:
        """One line: packs, fill, and what was left out."""
        text, und, gen = (f"{100 * x:.1f}" for x in self.fill)
        line = f"{len(self.index_N)} trajectories in {len(self)} packs, filled T {text} %"
        line += f", V {und} %, G {gen} %, the und stream {100 * self.stream_fill[0]:.1f} %"
        for name, left in (("too long", self.too_long_Kx5), ("unreadable", self.bad_Kx2)):
            if len(left):
                line += f"; {len(left)} {name}, not used"
        return line


def make_plan(
    source_N: np.ndarray,
    index_N: np.ndarray,
    length_Nx3: np.ndarray,
    limits: tuple[int, int, int],
    seed: int,
    epoch: int,
    window: int = 2048,
    key: str = "",
) -> Plan:
    """Puts an epoch's trajectories into packs.

    Args:
      source_N, index_N: from `draw`.
      length_Nx3: their tokens in T, V and G; `BAD` rows are left out.
      limits: T, V and G of a pack.
      seed, epoch: of the fit, and of the order of packs within a window.
      window: trajectories packed together; packs are shuffled inside it.
      key: hash of what the indices mean, part of the plan's hash.

    Raises:
      DataError: nothing fits.
    """
    limit_3 = np.asarray(limits, np.int64)
    length_Nx3 = length_Nx3.astype(np.int64)
    bad_N = (length_Nx3 < 0).any(axis=1)
    long_N = (length_Nx3 > limit_3).any(axis=1) & ~bad_N
    used = np.flatnonzero(~bad_N & ~long_N)
    if not len(used):
        largest = length_Nx3.max(axis=0).tolist() if len(length_Nx3) else "none"
        raise DataError(
            f"no trajectory fits a pack of T, V, G = {limits}: {int(long_N.sum())} are too long "
            f"(longest {largest}), {int(bad_N.sum())} unreadable; raise data.text_len, "
            "data.und_len or data.gen_len"
        )
    packs: list[np.ndarray] = []
    for number, first in enumerate(range(0, len(used), window)):
        rows = used[first : first + window]
        rng = np.random.default_rng([seed, 5, epoch, number])
        made = [rows[pack] for pack in fit(length_Nx3[rows], limits, rng)]
        order = np.random.default_rng([seed, 3, epoch, number]).permutation(len(made))
        packs += [made[i] for i in order]
    item_N = np.concatenate(packs)
    start_P = np.concatenate([[0], np.cumsum([len(pack) for pack in packs])]).astype(np.int64)
    used_3 = length_Nx3[item_N].sum(axis=0)
    fill = tuple(float(x) for x in used_3 / np.maximum(limit_3 * len(packs), 1))
    planned = source_N[item_N].astype(np.int64), index_N[item_N].astype(np.int64)
    both_Nx2 = np.stack([source_N, index_N], axis=1).astype(np.int64)
    hashed = hashlib.sha256(digest(key, list(limits), seed, epoch).encode())
    for array in (*planned, start_P):
        hashed.update(np.ascontiguousarray(array, "<i8").tobytes())
    return Plan(
        source_N=planned[0],
        index_N=planned[1],
        start_P=start_P,
        fill=(fill[0], fill[1], fill[2]),
        stream_fill=stream_fills(length_Nx3[item_N], limits, len(packs)),
        too_long_Kx5=np.concatenate([both_Nx2, length_Nx3], axis=1)[long_N],
        bad_Kx2=both_Nx2[bad_N],
        hash=hashed.hexdigest()[:16],
    )
