"""Recipes by name, and the job that a config describes. JAX is loaded where a model is needed.

`data.sources` names what to make: one of `RECIPES`, or any mixture of the sources that a run could
train on, which is then stored.
"""

from __future__ import annotations

import functools
import importlib.metadata
import platform
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from process_gen.core.batch import PatchSizes
from process_gen.core.configs import Config, DataConfig, to_mapping
from process_gen.core.errors import DataError, ProcessGenError
from process_gen.core.grammar import Supervise
from process_gen.core.trajectory import Trajectory
from process_gen.curation.alignment import Alignment
from process_gen.curation.engine import Job, Made, Measure, Passed, Recipe, Record, Skip
from process_gen.curation.multi_turn import MultiTurn
from process_gen.curation.self_sampling import SelfSampling
from process_gen.data.packing import draw, measure_source, settings_key
from process_gen.data.pictures import picture_rule
from process_gen.data.sources import KINDS, Source, build_source
from process_gen.data.tokenizer import load_tokenizer

_PACKAGES = ("process_gen", "array_record", "numpy", "pillow")
_SHARD = 1000  # items of a shard, where nobody says how many shards there shall be
_PAINTED_SHARD = 200  # the same where a model paints them: what a kill costs at most


def _alignment(options: Mapping[str, Any], size: int, seed: int) -> Recipe:
    if "checkpoint" in options:
        return SelfSampling("alignment", options, size, seed)
    return Alignment(options, size, seed)


RECIPES: dict[str, Callable[[Mapping[str, Any], int, int], Recipe]] = {
    "multi_turn": MultiTurn,
    "alignment": _alignment,
    "conflict": functools.partial(SelfSampling, "conflict"),
    "own_sketches": functools.partial(SelfSampling, "both"),
}


class Mixture:
    """An epoch of the sources of a run, in the order in which it is drawn, to be stored."""

    def __init__(self, data: DataConfig):
        """Opens the sources.

        Raises:
          DataError: they are supervised differently, or one cannot be opened.
        """
        self._sources: list[Source] = [build_source(s, data.seed) for s in data.sources]
        roles: set[Supervise] = {source.supervise for source in self._sources}
        if len(roles) > 1:
            raise DataError(
                "data.sources mixes sources that are supervised differently "
                f"({', '.join(sorted(roles))}); write each to a folder of its own"
            )
        self._supervise: Supervise = next(iter(roles))
        weights = [s.weight for s in data.sources]
        self._source_N, self._index_N = draw(self._sources, weights, data.seed, 0)
        self.identity = {
            "kind": "mixture",
            "sources": [source.fingerprint for source in self._sources],
            "weights": weights,
            "sizes": [len(source) for source in self._sources],
            "seed": data.seed,
        }

    @property
    def supervise(self) -> Supervise:
        """What carries a loss."""
        return self._supervise

    def __len__(self) -> int:
        """Trajectories of an epoch."""
        return len(self._source_N)

    def make(self, start: int, stop: int) -> Iterator[Made]:
        """Reads or generates them."""
        for item in range(start, stop):
            source = self._sources[int(self._source_N[item])]
            try:
                yield Record(item, source[int(self._index_N[item])])
            except ProcessGenError as error:
                yield Skip(item, "a record that cannot be read", str(error))
            yield Passed(1)


def build_recipe(data: DataConfig) -> Recipe:
    """What `data.sources` names.

    Raises:
      DataError: an unknown name, a recipe beside something else.
      ConfigError: wrong options.
    """
    named = [source for source in data.sources if source.kind in RECIPES]
    if not named:
        unknown = next((s.kind for s in data.sources if s.kind not in KINDS), None)
        if unknown is not None:
            known = ", ".join([*RECIPES, *KINDS])
            raise DataError(f"unknown data source {unknown!r}; known: {known}")
        return Mixture(data)
    if len(data.sources) > 1:
        raise DataError(
            f"data.sources names the recipe {named[0].kind!r} beside others; write each to a "
            "folder of its own and mix them when training"
        )
    (source,) = named
    return RECIPES[source.kind](source.options, source.size, data.seed)


class _One:
    """A single trajectory as a source, to be measured."""

    fingerprint, fresh = "", False

    def __init__(self, trajectory: Trajectory, supervise: Supervise):
        self.trajectory = trajectory
        self.supervise: Supervise = supervise

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Trajectory:
        return self.trajectory

    def outline(self, index: int) -> Trajectory:
        return self.trajectory


class Lengths:
    """Counts tokens as a run with this config would; see `engine.Measure`."""

    def __init__(self, config: Config):
        """Loads the tokenizer."""
        model = config.model
        self.tokenizer = load_tokenizer(config.data.tokenizer)
        self._grammar = config.data.grammar
        self._sizes = PatchSizes(
            latent=model.latent_side,
            und=model.und_patch,
            latent_grid=model.latent_grid,
            und_grid=model.und_grid,
        )
        self._pictures = picture_rule(config)
        self.key = settings_key(self._grammar, self.tokenizer, self._sizes, self._pictures)

    def __call__(self, trajectory: Trajectory, supervise: Supervise) -> tuple[int, int, int]:
        """T, V and G of a trajectory.

        Raises:
          DataError: it cannot be trained on.
        """
        measured = measure_source(
            _One(trajectory, supervise),
            0,
            1,
            self._grammar,
            self.tokenizer,
            self._sizes,
            self._pictures,
        )
        if measured.reasons:
            raise DataError(measured.reasons[0][1])
        text, und, gen = measured.length_Nx3[0].tolist()
        return text, und, gen


def make_job(config: Config, *, limit: int = 0, shards: int = 0, strict: bool = False) -> Job:
    """The job that a config describes.

    Args:
      config: `data.sources` and `data.seed` say what to make, `model` and `data.grammar` how
        lengths are measured.
      limit: items to make; 0 makes all.
      shards: 0 chooses.
      strict: see `engine.Job`.

    Raises:
      DataError, ConfigError, CheckpointError: something in the config is wrong.
    """
    recipe: Recipe = build_recipe(config.data)
    lengths = Lengths(config)
    items = min(limit, len(recipe)) if limit else len(recipe)
    largest = _PAINTED_SHARD if isinstance(recipe, SelfSampling) else _SHARD
    shards = shards or -(-items // largest)
    identity = {
        "recipe": recipe.identity,
        "items": items,
        "shards": shards,
        "lengths": lengths.key,
        "strict": strict,
        "versions": {
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            "python": platform.python_version(),
        },
    }
    make_measure: Callable[[], Measure] = functools.partial(Lengths, config)
    return Job(
        recipe=functools.partial(build_recipe, config.data),
        measure=make_measure,
        identity=identity,
        items=items,
        shards=shards,
        supervise=recipe.supervise,
        about={"data": to_mapping(config.data), "tokenizer": lengths.tokenizer.fingerprint},
        strict=strict,
    )
