"""From a config to batches: plans of epochs chained into one random-access sequence of rows.

Row r of the run is a pack of some epoch's plan; batch b is the rows ``[b * rows, (b + 1) * rows)``,
of which a process builds those that its devices hold. All of it is a pure function of the config
and r, so resuming costs one integer and holds when the number of processes or of threads changes.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import grain
import numpy as np

from process_gen.core.batch import (
    Dropout,
    Lengths,
    PackedBatch,
    PatchSizes,
    Run,
    lay_out,
    pack,
    stack,
)
from process_gen.core.configs import Config, SourceConfig
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.grammar import to_segments
from process_gen.data.packing import (
    Plan,
    cached_lengths,
    digest,
    draw,
    make_plan,
    settings_key,
    shares,
)
from process_gen.data.pictures import picture_rule
from process_gen.data.sources import Source, Split, build_source
from process_gen.data.stored_latents import attach, open_all
from process_gen.data.tokenizer import load_tokenizer, token_ids

STATE_VERSION = 1
_ENDLESS = 1 << 40  # rows that the sequence claims to have
_KEPT_PLANS = 3  # workers read ahead over an epoch's border
_KEPT_REASONS = 20
_LOGGED_REASONS = 3
_THREADS = 2  # building a batch is mostly NumPy and Rust outside the interpreter's lock

logger = logging.getLogger(__name__)


def patch_sizes(config: Config) -> PatchSizes:
    """How the model of a config cuts pictures."""
    model = config.model
    return PatchSizes(
        latent=model.latent_side,
        und=model.und_patch,
        latent_grid=model.latent_grid,
        und_grid=model.und_grid,
    )


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Trajectories that were planned or drawn but left out.

    Attributes:
      counts: how many, by reason: "too long", "unreadable" (found while measuring) and "failed"
        (found while a pack was built).
      examples: the first ones in words.
    """

    counts: Mapping[str, int]
    examples: Sequence[str]


class Rows:
    """Every row of a run, by number; what grain's workers read.

    Rows are `PackedBatch`es without the batch axis. Safe to read from several threads.
    """

    def __init__(
        self, config: Config, sources: Sequence[SourceConfig], split: Split, dropout: Dropout
    ):
        """Opens the sources.

        Raises:
          DataError: a source cannot be opened.
          ConfigError: the tokenizer has more ids than the model has embeddings.
        """
        data = config.data
        if data.seed < 0:
            raise ConfigError(f"data.seed must be >= 0, got {data.seed}")
        self._seed = data.seed if split == "train" else 0
        self._grammar, self._sizes, self._dropout = data.grammar, patch_sizes(config), dropout
        self._pictures = picture_rule(config)
        self._tokenizer = load_tokenizer(data.tokenizer)
        if self._tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"model.vocab_size is {config.model.vocab_size}, but the tokenizer has "
                f"{self._tokenizer.vocab_size} ids"
            )
        self._ids = token_ids(self._tokenizer)
        self._limits = Lengths(data.text_len, data.und_len, data.gen_len)
        self._window = data.window
        self._weights = [source.weight for source in sources]
        self._sources: list[Source] = [build_source(s, data.seed, split) for s in sources]
        self._latents = open_all(config, sources) if data.stored_latents else []
        self._encoded = 2 * config.model.latent_features if data.stored_latents else 0
        self._names = [f"{source.kind} (source {i})" for i, source in enumerate(sources)]
        self._plan_lock, self._skip_lock = threading.Lock(), threading.Lock()
        self._row_lock = threading.Lock()
        self._plans: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._first_row = {0: 0}  # epoch -> its first row, as far as known
        self._counts: collections.Counter[str] = collections.Counter()
        self._examples: list[str] = []
        self._reported: set[int] = set()

    def __len__(self) -> int:
        """The sequence does not end."""
        return _ENDLESS

    def __repr__(self) -> str:
        """Short, since grain logs it."""
        return f"Rows({', '.join(self._names)})"

    def _make_plan(self, epoch: int) -> Plan:
        source_N, index_N = draw(self._sources, self._weights, self._seed, epoch)
        length_Nx3 = np.empty((len(source_N), 3), np.int32)
        counts = shares([len(source) for source in self._sources], self._weights)
        for number, (source, count) in enumerate(zip(self._sources, counts, strict=True)):
            # Stored lengths serve every epoch, generated ones their own.
            first = epoch * count if source.fresh else 0
            stop = first + count if source.fresh else len(source)
            measured = cached_lengths(
                source,
                first,
                stop,
                self._grammar,
                self._tokenizer,
                self._sizes,
                self._pictures,
            )
            mine_N = source_N == number
            length_Nx3[mine_N] = measured.length_Nx3[index_N[mine_N] - first]
            if epoch not in self._reported:
                for index, reason in measured.reasons[:_KEPT_REASONS]:
                    self._example(f"{self._names[number]}, record {index}: {reason}")
        plan = make_plan(
            source_N,
            index_N,
            length_Nx3,
            self._limits,
            seed=self._seed,
            epoch=epoch,
            window=self._window,
            key=self._key(),
        )
        if epoch not in self._reported:
            self._reported.add(epoch)
            self._report(epoch, plan)
        return plan

    def _key(self) -> str:
        settings = settings_key(self._grammar, self._tokenizer, self._sizes, self._pictures)
        return digest(settings, [(s.fingerprint, s.supervise) for s in self._sources])

    def _report(self, epoch: int, plan: Plan) -> None:
        with self._skip_lock:
            self._counts["too long"] += len(plan.too_long_Kx5)
            self._counts["unreadable"] += len(plan.bad_Kx2)
        level = logging.WARNING if len(plan.too_long_Kx5) + len(plan.bad_Kx2) else logging.INFO
        logger.log(level, "epoch %d: %s", epoch, plan.summary())
        for number, index, *lengths in plan.too_long_Kx5[:_KEPT_REASONS].tolist():
            self._example(
                f"{self._names[number]}, record {index}: T, V, G = {lengths} exceed "
                f"{list(self._limits)}"
            )

    def _example(self, text: str) -> None:
        with self._skip_lock:
            if len(self._examples) < _KEPT_REASONS:
                self._examples.append(text)
            if len(self._examples) <= _LOGGED_REASONS:
                logger.warning("left out: %s", text)

    @property
    def tokenizer(self) -> str:
        """The tokenizer's fingerprint."""
        return self._tokenizer.fingerprint

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch; made when first asked for."""
        with self._plan_lock:
            if epoch not in self._plans:
                self._plans[epoch] = self._make_plan(epoch)
                while len(self._plans) > _KEPT_PLANS:
                    self._plans.popitem(last=False)
            return self._plans[epoch]

    def locate(self, row: int) -> tuple[int, int]:
        """The (epoch, pack) of a row; plans the epochs up to it that are not known yet."""
        with self._row_lock:
            epoch = max(e for e, first in self._first_row.items() if first <= row)
            while row >= self._first_row[epoch] + len(plan := self.plan(epoch)):
                self._first_row[epoch + 1] = self._first_row[epoch] + len(plan)
                epoch += 1
            return epoch, row - self._first_row[epoch]

    def first_row(self, epoch: int) -> int:
        """The first row of an epoch that `locate` has come across."""
        return self._first_row[epoch]

    def believe(self, epoch: int, first_row: int) -> None:
        """Takes an epoch's first row from a saved state, so that earlier epochs need no plan."""
        self._first_row = {0: 0, epoch: first_row}

    def __getitem__(self, row: int) -> PackedBatch:
        """Builds a row; trajectories that cannot be used are counted and left out of it."""
        epoch, number = self.locate(int(row))
        items = self.plan(epoch)[number]
        # Each trajectory draws from its own stream, so that a skipped one changes no other.
        streams = np.random.default_rng([self._seed, 4, epoch, number]).spawn(len(items))
        runs: list[Run] = []
        room = list(self._limits)
        for (source, index), rng in zip(items, streams, strict=True):
            try:
                run = self._build(source, index, rng)
                left = [a - b for a, b in zip(room, run.lengths, strict=True)]
                if min(left) < 0:
                    raise DataError(f"T, V, G = {tuple(run.lengths)} are more than was planned")
            except ValueError as error:  # ProcessGenError, and NumPy's about strange pictures
                with self._skip_lock:
                    self._counts["failed"] += 1
                self._example(
                    f"{self._names[source]}, record {index} (epoch {epoch}, pack {number}): {error}"
                )
                continue
            room = left
            runs.append(run)
        return self.packed(runs)

    def packed(self, runs: Sequence[Run]) -> PackedBatch:
        """A row of the given trajectories."""
        return pack(runs, self._limits, self._sizes, self._encoded)

    def _build(self, source: int, index: int, rng: np.random.Generator) -> Run:
        own = self._sources[source]
        trajectory = own[index]
        segments = to_segments(trajectory, self._grammar, own.supervise)
        if self._latents:
            segments = attach(segments, trajectory, self._latents[source][index])
        segments = self._pictures(segments)
        return lay_out(segments, self._ids, self._sizes, dropout=self._dropout, rng=rng)

    def skipped(self) -> Skipped:
        """What was left out so far, by this process."""
        with self._skip_lock:
            counts = {name: count for name, count in self._counts.items() if count}
            return Skipped(counts, tuple(self._examples))


class _OwnRows:
    """Of the rows of a run, those that this process builds: the same places of every batch."""

    def __init__(self, rows: Rows, mine: Sequence[int], per_batch: int):
        self._rows, self._mine, self._per_batch = rows, mine, per_batch

    def __len__(self) -> int:
        return len(self._rows) // self._per_batch * len(self._mine)

    def __getitem__(self, number: int) -> PackedBatch:
        batch, place = divmod(int(number), len(self._mine))
        return self._rows[batch * self._per_batch + self._mine[place]]

    def __repr__(self) -> str:
        return repr(self._rows)


def _own_rows(rows: int, blocks: Sequence[int], count: int) -> list[int]:
    """Places in a batch of `rows` that this process fills.

    Raises:
      ConfigError: `rows` cannot be cut into `count` equal blocks.
    """
    if rows % count:
        raise ConfigError(
            f"data.rows ({rows}) must be a multiple of the number of devices or processes that "
            f"see different rows ({count})"
        )
    each = rows // count
    return [row for block in blocks for row in range(block * each, (block + 1) * each)]


class TrainIterator:
    """Endless batches of this process, with a state that a checkpoint can hold."""

    def __init__(self, config: Config, blocks: Sequence[int] = (0,), count: int = 1):
        """See `train_dataset`."""
        rows = config.data.rows
        mine = _own_rows(rows, blocks, count)
        grammar = config.data.grammar
        dropout = Dropout(
            text=grammar.text_dropout,
            prompt=grammar.prompt_dropout,
            vae=grammar.vae_dropout,
            vit=grammar.vit_dropout,
            delete=grammar.deletion_dropout,
        )
        self._rows_per_batch = rows
        self._prefetch = config.data.prefetch
        self._rows = Rows(config, config.data.sources, "train", dropout)
        own = grain.MapDataset.source(_OwnRows(self._rows, mine, rows))
        self._batches = own.batch(len(mine), batch_fn=stack)
        self._next = 0
        self._iterator: Any = None

    def _restart(self) -> Any:
        options = grain.ReadOptions(
            num_threads=_THREADS if self._prefetch else 0,
            prefetch_buffer_size=self._prefetch,
        )
        left = self._batches[self._next :] if self._next else self._batches
        return iter(left.to_iter_dataset(options))

    def __iter__(self) -> TrainIterator:
        """Itself."""
        return self

    def __next__(self) -> PackedBatch:
        """The next batch, NumPy arrays of ``[local rows, ...]``."""
        if self._iterator is None:
            self._iterator = self._restart()
        batch = next(self._iterator)
        self._next += 1
        return batch

    @property
    def plan_hash(self) -> str:
        """Hash of the plan that the next batch begins in."""
        epoch, _ = self._rows.locate(self._next * self._rows_per_batch)
        return self._rows.plan(epoch).hash

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in, from 0."""
        return self._rows.locate(self._next * self._rows_per_batch)[0]

    @property
    def skipped(self) -> Skipped:
        """What this process left out so far."""
        return self._rows.skipped()

    def plan(self, epoch: int = 0) -> Plan:
        """The plan of an epoch."""
        return self._rows.plan(epoch)

    def get_state(self) -> dict[str, Any]:
        """A small JSON object; the same on every process."""
        epoch = self.epoch
        return {
            "version": STATE_VERSION,
            "next_batch": self._next,
            "rows": self._rows_per_batch,
            "epoch": epoch,
            "epoch_first_row": self._rows.first_row(epoch),
            "plan_hash": self._rows.plan(epoch).hash,
            "tokenizer": self._rows.tokenizer,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes on where `get_state` was called, on any number of processes.

        Raises:
          DataError: the state was written for other data or other settings.
        """
        try:
            values = [int(state[key]) for key in ("version", "next_batch", "rows", "epoch")]
            first_row, saved = int(state["epoch_first_row"]), str(state["plan_hash"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"the data state {state!r} is damaged: {error!r}") from error
        version, next_batch, rows, epoch = values
        if version != STATE_VERSION:
            raise DataError(f"the data state has version {version}, wanted {STATE_VERSION}")
        if rows != self._rows_per_batch:
            raise DataError(
                f"the data state counts batches of {rows} rows, data.rows is "
                f"{self._rows_per_batch}; keep data.rows to resume"
            )
        # The plan's hash covers the tokenizer as well, but would not say which of its causes it is.
        if (wanted := state.get("tokenizer", self._rows.tokenizer)) != self._rows.tokenizer:
            raise DataError(
                f"the run was trained with tokenizer {wanted}, data.tokenizer is now "
                f"{self._rows.tokenizer}; set data.tokenizer to the file it was trained with"
            )
        if (now := self._rows.plan(epoch).hash) != saved:
            raise DataError(
                f"the packing plan of epoch {epoch} is {now}, the checkpoint was written with "
                f"{saved}: sources, options, grammar, tokenizer, pack shape, seed or the data's "
                "code changed; resume with the old ones or start a new run"
            )
        if not 0 <= next_batch * rows - first_row < len(self._rows.plan(epoch)):
            raise DataError(
                f"the data state {state!r} is damaged: its batch lies outside its epoch"
            )
        self._rows.believe(epoch, first_row)
        self._next, self._iterator = next_batch, None


def train_dataset(config: Config, blocks: Sequence[int] = (0,), count: int = 1) -> TrainIterator:
    """Endless training batches.

    Args:
      config: `data` says what to read, `model` how pictures are cut.
      blocks, count: a batch is cut into `count` equal blocks of consecutive rows, of which this
        process builds `blocks` (`sharding.rules.row_blocks`). Global batches do not depend on it.

    Raises:
      DataError: a source cannot be opened.
      ConfigError: `data.rows` does not divide among the blocks; the vocabulary is too small.
    """
    return TrainIterator(config, blocks, count)


def eval_batches(config: Config, blocks: Sequence[int] = (0,), count: int = 1) -> list[PackedBatch]:
    """The fixed held-out split: `data.eval_rows` packs of `data.eval_sources`, without dropout.

    The packs depend on the eval sources, the pack shape and the grammar, never on `data.seed`. The
    last batch is filled up with empty rows. Empty when there are no eval sources.

    Raises:
      DataError: a source cannot be opened.
      ConfigError: `data.rows` does not divide among the blocks.
    """
    data = config.data
    mine = _own_rows(data.rows, blocks, count)
    if not data.eval_sources or not data.eval_rows:
        return []
    rows = Rows(config, data.eval_sources, "eval", Dropout())
    wanted = min(data.eval_rows, len(rows.plan(0)))
    empty = rows.packed([])
    batches = []
    for first in range(0, wanted, data.rows):
        numbers = [first + row for row in mine]
        batches.append(stack([rows[n] if n < wanted else empty for n in numbers]))
    return batches
