"""Builds a trajectory folder shard by shard: resumable, parallel, and the same bytes every time.

A recipe turns item numbers into trajectories. Its items are cut into shards of consecutive ones,
and a shard is the unit of work: it is made under another name, flushed to disk and renamed, and so
is its *receipt*, a JSON file beside it. What has a receipt is done. A build that was killed at any
moment is continued by the same call; when all receipts are there, they become the manifest.

    folder/
      build.json                                 what is being made, while it is being made
      trajectories-00003-of-00020.array_record   a shard that is done
      trajectories-00003-of-00020.json           its receipt, until the manifest is written
      manifest.json                              written last

The bytes depend on the recipe and the number of shards only, never on workers, machines or kills.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from etils import epath

from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Trajectory, validate
from process_gen.curation.shard_files import publish, scratch_folder, write_json
from process_gen.data.builders import open_shard, shard_entry, shard_name, to_line

KEPT_SKIPS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Record:
    """A trajectory that came of an item."""

    item: int
    trajectory: Trajectory


@dataclasses.dataclass(frozen=True)
class Skip:
    """An item, or a part of one, that gave no trajectory.

    Attributes:
      reason: what is counted, the same for all skips of a kind.
      detail: of this one.
    """

    item: int
    reason: str
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class Passed:
    """So many more items are through, whatever came of them; for the progress line."""

    items: int


Made = Record | Skip | Passed | Counter[str]  # counters are summed over all shards


class Recipe(Protocol):
    """Turns items into trajectories."""

    @property
    def supervise(self) -> Supervise:
        """What carries a loss, for all its trajectories."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """JSON values that decide, together with an item's number, what comes of it."""
        ...

    def __len__(self) -> int:
        """Number of items."""
        ...

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Makes the items ``start..stop``, in order; a pure function of the two.

        All that is `Passed` adds up to ``stop - start``.
        """
        ...


class Measure(Protocol):
    """Counts tokens."""

    def __call__(self, trajectory: Trajectory, supervise: Supervise) -> tuple[int, int, int]:
        """T, V and G of a trajectory; a `ProcessGenError` where it cannot be trained on."""
        ...


@dataclasses.dataclass(frozen=True)
class Job:
    """What is to be built. Everything in it can be pickled, for workers make their own recipe.

    Attributes:
      recipe: makes the recipe.
      measure: makes the measure of lengths.
      identity: of the recipe, the lengths and the versions; a build goes on only as the same one.
      items, shards: how many.
      supervise: of the recipe.
      about: further fields of the manifest.
      strict: whether a skip is an error.
    """

    recipe: Callable[[], Recipe]
    measure: Callable[[], Measure]
    identity: Mapping[str, Any]
    items: int
    shards: int
    supervise: Supervise
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    strict: bool = False

    def __post_init__(self) -> None:
        """Checks sizes."""
        if self.shards < 1 or self.items < 1:
            raise DataError(f"cannot build {self.items} items in {self.shards} shards")

    def make_recipe(self) -> Recipe:
        """The recipe, which must be the one that `identity` names.

        Raises:
          DataError: it has become another one, as where a run has saved a newer checkpoint.
        """
        recipe = self.recipe()
        meant, found = (plain(x) for x in (self.identity.get("recipe"), recipe.identity))
        if meant is not None and found != meant:
            raise DataError(
                f"the recipe is not the one that this build was begun with: it was {meant}, now it "
                f"is {found}; where it names the latest checkpoint of a run, name its step"
            )
        return recipe

    def bounds(self, shard: int) -> tuple[int, int]:
        """The items ``start..stop`` of a shard."""
        return shard * self.items // self.shards, (shard + 1) * self.items // self.shards


def plain(value: Any) -> Any:
    """What JSON makes of a value, to be compared with what was read from a file."""
    return json.loads(json.dumps(value))


def receipt_name(job: Job, shard: int) -> str:
    """File name of a shard's receipt."""
    return shard_name(shard, job.shards).removesuffix(".array_record") + ".json"


def make_shard(
    job: Job,
    recipe: Recipe,
    measure: Measure,
    folder: str,
    shard: int,
    tick: Callable[[int], None] = lambda items: None,
) -> dict[str, Any]:
    """Makes one shard and its receipt, which is returned.

    Args:
      job, folder: see `build`.
      recipe, measure: made by the job.
      shard: its number.
      tick: told how many items are through; what it raises ends the work and leaves nothing.

    Raises:
      DataError: something was skipped, and the job is strict.
    """
    start, stop = job.bounds(shard)
    skips: list[Skip] = []
    tally: Counter[str] = Counter()
    lengths: list[tuple[int, int, int]] = []
    with scratch_folder(folder) as scratch:
        path = scratch / shard_name(shard, job.shards)
        writer = open_shard(path)
        try:
            for made in recipe.make(start, stop):
                if isinstance(made, Passed):
                    tick(made.items)
                    continue
                if isinstance(made, Counter):
                    tally.update(made)
                    continue
                if isinstance(made, Record):
                    made = _store(made, writer, measure, job.supervise, lengths)
                if made is not None:
                    if job.strict:
                        raise DataError(f"item {made.item}: {made.reason}: {made.detail}")
                    skips.append(made)
        finally:
            writer.close()
        receipt = {
            "shard": shard_entry(path, len(lengths)),
            "skipped": dict(sorted(Counter(skip.reason for skip in skips).items())),
            "skips": [dataclasses.asdict(skip) for skip in skips[:KEPT_SKIPS]],
            "tally": dict(sorted(tally.items())),
            "lengths": lengths,
        }
        publish(path, epath.Path(folder) / path.name)
    write_json(folder, receipt_name(job, shard), receipt)
    return receipt


def _store(
    record: Record,
    writer: Any,
    measure: Measure,
    supervise: Supervise,
    lengths: list[tuple[int, int, int]],
) -> Skip | None:
    try:
        validate(record.trajectory)
        line = to_line(record.trajectory)
        length = measure(record.trajectory, supervise)
    except ProcessGenError as error:
        return Skip(record.item, "a trajectory that cannot be used", str(error))
    writer.write(line)
    lengths.append(length)
    return None
