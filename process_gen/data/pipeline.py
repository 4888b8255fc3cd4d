"""From a config to batches: plans of epochs chained into one random-access sequence of rows.

Row r of the run is a pack of some epoch's plan; batch b is the rows ``[b * rows, (b + 1) * rows)``,
of which a process builds those that its devices hold. All of it is a pure function of the config
and r, so resuming costs one integer and holds when the number of processes, of worker processes or
of threads changes.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain

from process_gen.core.batch import Dropout, PackedBatch, stack
from process_gen.core.configs import Config
from process_gen.core.errors import ConfigError, DataError, LostDataError
from process_gen.data.packing import Plan
from process_gen.data.rows import Built, Order, Rows, Skipped, batch_builder, stacked
from process_gen.data.stalls import Watch
from process_gen.data.workers import Workers

STATE_VERSION = 1
# Batches in a row without anything that can be used, and trajectories in them, that end a run: more
# than a moment's outage, and than a few bad records that lie side by side.
_LOST_BATCHES, _LOST_ITEMS = 3, 8
_THREADS = 2  # building a batch is mostly NumPy and Rust outside the interpreter's lock


class _OwnRows:
    """Of the rows of a run, those that this process builds: the same places of every batch."""

    def __init__(self, rows: Rows, mine: Sequence[int], per_batch: int):
        self._rows, self._mine, self._per_batch = rows, mine, per_batch

    def __len__(self) -> int:
        return len(self._rows) // self._per_batch * len(self._mine)

    def order(self, index: int) -> Order:
        """What a row is made of."""
        batch, place = divmod(int(index), len(self._mine))
        return self._rows.order(batch * self._per_batch + self._mine[place])

    def __getitem__(self, index: int) -> Built:
        return self._rows.build(self.order(index))

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
        self._prefetch, self._workers = config.data.prefetch, config.data.workers
        self._config, self._dropout, self._mine = config, dropout, mine
        self._watch = watch = Watch(config.data.timeout)
        self._rows = watch.run(
            lambda: Rows(config, config.data.sources, "train", dropout, ahead=True, watch=watch)
        )
        self._own = _OwnRows(self._rows, mine, rows)
        self._batches = grain.MapDataset.source(self._own).batch(len(mine), batch_fn=stacked)
        self._next = 0
        self._taken: collections.Counter[int] = collections.Counter()  # trajectories, by source
        self._lost = (0, 0)  # batches, and trajectories in them, since one that could be used
        self._iterator: Any = None

    def _orders(self) -> Iterator[list[Order]]:
        each = len(self._mine)
        for batch in itertools.count(self._next):
            yield [self._own.order(batch * each + place) for place in range(each)]

    def _restart(self) -> Any:
        if self._workers:
            arguments = (self._config, self._dropout)
            return Workers(self._workers, batch_builder, arguments, self._orders(), self._prefetch)
        left = self._batches[self._next :] if self._next else self._batches
        threads = _THREADS if self._prefetch else 0
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=self._prefetch)
        return iter(left.to_iter_dataset(options))

    def __iter__(self) -> TrainIterator:
        """Itself."""
        return self

    def __next__(self) -> PackedBatch:
        """The next batch, NumPy arrays of ``[local rows, ...]``.

        Raises:
          DataError: a record cannot be used, under `data.strict`; a worker died.
          LostDataError: nothing at all can be read any more.
          StalledError: a source does not answer within `data.timeout`.
        """
        return self._watch.run(self._advance)

    def _advance(self) -> PackedBatch:
        self._rows.enter(self._next * self._rows_per_batch)
        if self._iterator is None:
            self._iterator = self._restart()
        batch, failed = next(self._iterator)
        each = len(self._mine)
        before = self._taken.total()
        for place in range(self._next * each, (self._next + 1) * each):
            self._taken.update(source for source, _ in self._own.order(place).items)
        self._next += 1
        self._rows.count_failed(failed)
        self._refuse_nothing(self._taken.total() - before, failed)
        return batch

    def _refuse_nothing(self, planned: int, failed: Sequence[str]) -> None:
        """Ends a run whose data is gone; else it would go on to its end on empty packs."""
        batches, items = self._lost
        batches, items = (batches + 1, items + planned) if len(failed) == planned else (0, 0)
        self._lost = batches, items
        if batches >= _LOST_BATCHES and items >= _LOST_ITEMS:
            raise LostDataError(
                f"none of the last {items} planned trajectories could be used, which "
                f"leaves nothing to train on; the last: {failed[-1]}. Look at where the data is "
                "stored, and whether this process may still read it. Started again, the run goes "
                "on from its last checkpoint"
            )

    def close(self) -> None:
        """Ends worker processes; the next batch starts them again."""
        if isinstance(self._iterator, Workers):
            self._iterator.close()
        self._iterator = None

    @property
    def plan_hash(self) -> str:
        """Hash of the plan that the next batch begins in."""
        epoch, _ = self._rows.locate(self._next * self._rows_per_batch)
        return self._rows.plan(epoch).hash

    @property
    def plan_facts(self) -> str:
        """That plan in words, the same on every process that will build the same packs.

        Raises:
          StalledError: a source does not answer within `data.timeout`, while it is measured.
        """

        def facts() -> str:
            epoch = self.epoch
            plan = self._rows.plan(epoch)
            first = self._rows.first_row(epoch)
            return f"plan {plan.hash} of epoch {epoch} from row {first} on ({plan.summary()})"

        return self._watch.run(facts)

    @property
    def epoch(self) -> int:
        """The epoch that the next batch begins in, from 0."""
        return self._rows.locate(self._next * self._rows_per_batch)[0]

    @property
    def skipped(self) -> Skipped:
        """What this process left out so far, of epochs begun and batches taken."""
        return self._rows.skipped()

    def counters(self) -> dict[str, float]:
        """What this process read since it started, for the log of a run.

        `data/epoch`, `data/trajectories` (planned ones of the batches taken), `data/share_KIND` of
        each source among them, and the counts of `skipped`: "skipped_too_long" and so on.
        """
        total = self._taken.total()
        kinds = [source.kind for source in self._config.data.sources]
        shares = {
            f"data/share_{kind}" + (f"_{i}" if kinds.count(kind) > 1 else ""): self._taken[i]
            / total
            for i, kind in enumerate(kinds)
            if total
        }
        read = {"data/epoch": float(self.epoch), "data/trajectories": float(total), **shares}
        counts = self.skipped.counts
        return read | {f"skipped_{name.replace(' ', '_')}": float(n) for name, n in counts.items()}

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
          LostDataError: perhaps only since records cannot be read now.
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
            lost = len(self._rows.plan(epoch).bad_Kx2) > 0
            raise (LostDataError if lost else DataError)(
                f"the packing plan of epoch {epoch} is {now}, the checkpoint was written with "
                f"{saved}: sources, options, grammar, tokenizer, pack shape, seed or the data's "
                "code changed; resume with the old ones or start a new run. Or records could be "
                f"read then and cannot be now, or the other way round ({self._unreadable(epoch)}): "
                "if a read failed for a moment, start again; if records were mended or lost since, "
                "put the old ones back, or start a new run with train.init_from"
            )
        if not 0 <= next_batch * rows - first_row < len(self._rows.plan(epoch)):
            raise DataError(
                f"the data state {state!r} is damaged: its batch lies outside its epoch"
            )
        self.close()
        self._rows.believe(epoch, first_row)
        self._next, self._lost = next_batch, (0, 0)

    def _unreadable(self, epoch: int) -> str:
        count, reasons = len(self._rows.plan(epoch).bad_Kx2), self._rows.reasons(epoch)
        first = f", the first: {reasons[0]}" if reasons else ""
        return f"now {count} cannot be read{first}"


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
    watch = Watch(data.timeout)

    def build() -> list[PackedBatch]:
        rows = Rows(config, data.eval_sources, "eval", Dropout(), watch=watch)
        wanted = min(data.eval_rows, len(rows.plan(0)))
        empty = rows.packed([])
        batches = []
        for first in range(0, wanted, data.rows):
            numbers = [first + row for row in mine]
            batches.append(stack([rows[n] if n < wanted else empty for n in numbers]))
        return batches

    return watch.run(build)
