"""The rows of a run by number: epochs' plans one after the other, and the packs that they name.

A row is a pure function of the config and its number, whoever builds it.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

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
from process_gen.data.augment import Augmented
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
from process_gen.data.stalls import Watch, Watched
from process_gen.data.stored_latents import attach, open_all
from process_gen.data.tokenizer import Tokenizer, load_tokenizer, token_ids

_ENDLESS = 1 << 40  # rows that the sequence claims to have
_KEPT_PLANS = 3  # workers read ahead over an epoch's border
_KEPT_REASONS = 20
_LOGGED_REASONS = 3

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


class Drawn(NamedTuple):
    """The trajectories of an epoch in order: ``int64[N]`` twice, and ``int32[N, 3]`` tokens."""

    source_N: np.ndarray
    index_N: np.ndarray
    length_Nx3: np.ndarray


class Order(NamedTuple):
    """A pack of a plan: its epoch and number, and the (source, index) of its trajectories."""

    epoch: int
    number: int
    items: list[tuple[int, int]]


class Built(NamedTuple):
    """A row or a batch, and in words what could not become a part of it."""

    pack: PackedBatch
    failed: tuple[str, ...]


def _augmented(config: Config, source: Source, own: SourceConfig, tokenizer: Tokenizer) -> Source:
    if not own.augment:
        return source
    made = Augmented(source, own.augment, lambda text: len(tokenizer.encode(text)))
    if made.repaints and config.data.stored_latents:
        raise ConfigError(
            f"source {own.kind!r}: augment={list(own.augment)} changes pictures whose latents were "
            "encoded ahead; set data.stored_latents=False"
        )
    return made


class Rows:
    """Every row of a run, by number; what grain's workers read.

    Rows are `PackedBatch`es without the batch axis. Safe to read from several threads.

    Attributes:
      sources: of the mixture, opened.
    """

    def __init__(
        self,
        config: Config,
        sources: Sequence[SourceConfig],
        split: Split,
        dropout: Dropout,
        ahead: bool = False,
        watch: Watch | None = None,
    ):
        """Opens the sources.

        Args:
          config: of the run.
          sources: the mixture.
          split: of it.
          dropout: of conditions.
          ahead: whether the next epoch is planned in the background while one is read.
          watch: takes notes of what is read.

        Raises:
          DataError: a source cannot be opened.
          ConfigError: the tokenizer has more ids than the model has embeddings.
        """
        data = config.data
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
        self._window, self._strict = data.window, data.strict
        self._weights = [source.weight for source in sources]
        self._watch = watch or Watch(0.0)
        self._names = [f"{source.kind} (source {i})" for i, source in enumerate(sources)]
        self.sources: list[Source] = []
        for own, name in zip(sources, self._names, strict=True):
            name = f"{name} {own.path}".rstrip()
            with self._watch.reading(name):
                opened = build_source(own, data.seed, split)
            if not opened.fresh:
                opened = Watched(opened, name, self._watch)
            self.sources.append(_augmented(config, opened, own, self._tokenizer))
        self._latents = open_all(config, sources) if data.stored_latents else []
        self._encoded = 2 * config.model.latent_features if data.stored_latents else 0
        self._plan_lock, self._skip_lock = threading.Lock(), threading.Lock()
        self._row_lock = threading.Lock()
        self._plans: collections.OrderedDict[int, Plan] = collections.OrderedDict()
        self._reasons: dict[int, list[str]] = {}  # epoch -> why records cannot be read
        self._first_row = {0: 0}  # epoch -> its first row, as far as known
        self._entered: set[int] = set()
        self._ahead = ahead
        self._counts: collections.Counter[str] = collections.Counter()
        self._examples: list[str] = []

    def __len__(self) -> int:
        """The sequence does not end."""
        return _ENDLESS

    def __repr__(self) -> str:
        """Short, since grain logs it."""
        return f"Rows({', '.join(self._names)})"

    # ---- plans -----------------------------------------------------------------------------------

    def lengths(self, epoch: int) -> Drawn:
        """The trajectories of an epoch and their lengths, measured or from disk."""
        counts = shares([len(source) for source in self.sources], self._weights)
        # Stored lengths serve every epoch, generated ones their own.
        spans = [
            (epoch * count, (epoch + 1) * count) if source.fresh else (0, len(source))
            for source, count in zip(self.sources, counts, strict=True)
        ]
        found = [
            cached_lengths(
                source, *span, self._grammar, self._tokenizer, self._sizes, self._pictures
            )
            for source, span in zip(self.sources, spans, strict=True)
        ]
        self._reasons[epoch] = [
            f"{name}, record {index}: {reason}"
            for name, measured in zip(self._names, found, strict=True)
            for index, reason in measured.reasons[:_KEPT_REASONS]
        ]
        source_N, index_N = draw(self.sources, self._weights, self._seed, epoch)
        length_Nx3 = np.empty((len(source_N), 3), np.int32)
        for number, (measured, (first, _)) in enumerate(zip(found, spans, strict=True)):
            mine_N = source_N == number
            length_Nx3[mine_N] = measured.length_Nx3[index_N[mine_N] - first]
        return Drawn(source_N, index_N, length_Nx3)

    def _make_plan(self, epoch: int) -> Plan:
        limits = (self._limits.text, self._limits.und, self._limits.gen)
        drawn = self.lengths(epoch)
        return make_plan(*drawn, limits, self._seed, epoch, self._window, self._key())

    def _key(self) -> str:
        settings = settings_key(self._grammar, self._tokenizer, self._sizes, self._pictures)
        return digest(settings, [(s.fingerprint, s.supervise) for s in self.sources])

    def plan(self, epoch: int) -> Plan:
        """The plan of an epoch; made when first asked for."""
        plan = self._plans.get(epoch)
        if plan is None:
            with self._plan_lock:  # others may go on reading the plans that there are
                plan = self._plans.get(epoch)
                if plan is None:
                    plan = self._plans[epoch] = self._make_plan(epoch)
                    while len(self._plans) > _KEPT_PLANS:
                        self._plans.popitem(last=False)
        return plan

    def reasons(self, epoch: int) -> list[str]:
        """Why records of a planned epoch cannot be used, the first of each source."""
        return self._reasons.get(epoch, [])

    def _count_planned(self, epoch: int, plan: Plan) -> None:
        self._entered.add(epoch)
        if self._ahead:
            threading.Thread(target=self._plan_ahead, args=(epoch + 1,), daemon=True).start()
        bad, long = len(plan.bad_Kx2), len(plan.too_long_Kx5)
        reasons = self.reasons(epoch)
        if bad and self._strict:
            raise DataError(
                f"{bad} records cannot be used; the first: {(reasons or ['?'])[0]} "
                "(data.strict=False leaves them out and counts them)"
            )
        with self._skip_lock:
            self._counts["too long"] += long
            self._counts["unreadable"] += bad
        logger.log(
            logging.WARNING if bad or long else logging.INFO, "epoch %d: %s", epoch, plan.summary()
        )
        for reason in reasons:
            self._example(reason)
        for number, index, *lengths in plan.too_long_Kx5[:_KEPT_REASONS].tolist():
            self._example(
                f"{self._names[number]}, record {index}: T, V, G = {lengths} exceed "
                f"{list(self._limits)}"
            )

    def _plan_ahead(self, epoch: int) -> None:
        try:
            self.plan(epoch)
        except ValueError:  # it comes again when the epoch is entered, where it can be heard
            logger.debug("epoch %d cannot be planned", epoch, exc_info=True)

    def locate(self, row: int) -> tuple[int, int]:
        """The (epoch, pack) of a row; plans the epochs up to it that are not known yet."""
        with self._row_lock:
            epoch = max(e for e, first in self._first_row.items() if first <= row)
            while row >= self._first_row[epoch] + len(plan := self.plan(epoch)):
                self._first_row[epoch + 1] = self._first_row[epoch] + len(plan)
                epoch += 1
            return epoch, row - self._first_row[epoch]

    def enter(self, row: int) -> None:
        """Counts what the epoch of a row leaves out, if it is the first of it to be used.

        Reading ahead does not count, so that the counts do not depend on how far it is.

        Raises:
          DataError: records of the epoch cannot be used, under `data.strict`.
        """
        epoch, _ = self.locate(row)
        if epoch not in self._entered:
            self._count_planned(epoch, self.plan(epoch))

    def first_row(self, epoch: int) -> int:
        """The first row of an epoch that `locate` has come across."""
        return self._first_row[epoch]

    def believe(self, epoch: int, first_row: int) -> None:
        """Takes an epoch's first row from a saved state, so that earlier epochs need no plan."""
        self._first_row = {0: 0, epoch: first_row}

    # ---- rows ------------------------------------------------------------------------------------

    def order(self, row: int) -> Order:
        """What a row is made of."""
        epoch, number = self.locate(int(row))
        return Order(epoch, number, self.plan(epoch)[number])

    def build(self, order: Order) -> Built:
        """Builds a row; trajectories that cannot be used are named and left out of it.

        Needs no plan, so that other processes can do it.

        Raises:
          DataError: there is one, under `data.strict`.
        """
        epoch, number, items = order
        # Each trajectory draws from its own stream, so that a skipped one changes no other.
        streams = np.random.default_rng([self._seed, 4, epoch, number]).spawn(len(items))
        runs: list[Run] = []
        failed: list[str] = []
        room = list(self._limits)
        for (source, index), rng in zip(items, streams, strict=True):
            try:
                run = self._build(source, index, rng)
                left = [a - b for a, b in zip(room, run.lengths, strict=True)]
                if min(left) < 0:
                    raise DataError(f"T, V, G = {tuple(run.lengths)} are more than was planned")
            except ValueError as error:  # ProcessGenError, and NumPy's about strange pictures
                place = f"{self._names[source]}, record {index} (epoch {epoch}, pack {number})"
                if self._strict:
                    raise DataError(f"{place}: {error}; data.strict=False goes on") from error
                failed.append(f"{place}: {error}")
                continue
            room = left
            runs.append(run)
        return Built(self.packed(runs), tuple(failed))

    def __getitem__(self, row: int) -> PackedBatch:
        """Builds a row and counts what is left out of it; see `build`."""
        self.enter(int(row))
        made, failed = self.build(self.order(row))
        self.count_failed(failed)
        return made

    def packed(self, runs: Sequence[Run]) -> PackedBatch:
        """A row of the given trajectories."""
        return pack(runs, self._limits, self._sizes, self._encoded)

    def _build(self, source: int, index: int, rng: np.random.Generator) -> Run:
        own = self.sources[source]
        if isinstance(own, Augmented):
            trajectory = own.drawn(index, rng.spawn(1)[0])  # dropout draws what it drew without
        else:
            trajectory = own[index]
        segments = to_segments(trajectory, self._grammar, own.supervise)
        if self._latents:
            with self._watch.reading(f"latents of {self._names[source]}, record {index}"):
                latents = self._latents[source][index]
            segments = attach(segments, trajectory, latents)
        segments = self._pictures(segments)
        return lay_out(segments, self._ids, self._sizes, dropout=self._dropout, rng=rng)

    # ---- what is left out ------------------------------------------------------------------------

    def count_failed(self, failed: Sequence[str]) -> None:
        """Counts what was left out of rows that are used."""
        with self._skip_lock:
            self._counts["failed"] += len(failed)
        for text in failed:
            self._example(text)

    def _example(self, text: str) -> None:
        with self._skip_lock:
            if len(self._examples) < _KEPT_REASONS:
                self._examples.append(text)
            if len(self._examples) <= _LOGGED_REASONS:
                logger.warning("left out: %s", text)

    def skipped(self) -> Skipped:
        """What was left out so far, by this process."""
        with self._skip_lock:
            counts = {name: count for name, count in self._counts.items() if count}
            return Skipped(counts, tuple(self._examples))

    @property
    def tokenizer(self) -> str:
        """The tokenizer's fingerprint."""
        return self._tokenizer.fingerprint


def stacked(rows: Sequence[Built]) -> Built:
    """Rows as a batch."""
    return Built(stack([row.pack for row in rows]), tuple(x for row in rows for x in row.failed))


def batch_builder(config: Config, dropout: Dropout) -> Callable[[Sequence[Order]], Built]:
    """Opens the training sources, in a worker process; gives what makes a batch."""
    watch = Watch(config.data.timeout)
    rows = watch.run(lambda: Rows(config, config.data.sources, "train", dropout, watch=watch))
    return lambda orders: watch.run(lambda: stacked([rows.build(order) for order in orders]))
