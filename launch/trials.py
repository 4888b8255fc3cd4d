"""What a sweep consists of: trials, each a few commands in a folder of its own.

A sweep file (configs/sweeps/) has a function `get_sweep()` that returns a list of `Trial`s. Words
of a command may hold `{here}`, the trial's own folder, and `{NAME}`, that of another trial, which
must then be named in `needs`:

    train = ("launch.train", "--config=configs/strokes_tiny.py", "--workdir={here}/run")
    paint = ("launch.sample", "--checkpoint={base}/run", "--prompts=mine.txt", "--out={here}/out")
    return [Trial("base", (train,)), Trial("mine", (paint,), needs=("base",))]

`product`, `zipped` and `sampled` make the overrides of many trials out of a few lines, and
`of_overrides` the trials that train and score with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from process_gen.core.errors import ConfigError

HERE = "here"
COMPARISON = "comparison"  # the sweep's own folder, beside those of its trials
_NAME = re.compile(r"[a-z][a-z0-9_]*")

Overrides = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One cell of a study.

    Attributes:
      name: lower case, digits and underscores, not "here" or "comparison"; its folder is called so.
      commands: run one after the other, each the words after `python -m`. A command that finds its
        own earlier work must go on from it, since an interrupted trial is run again from its first
        command; `launch.train` does, and `launch.evaluate` with --overwrite does it over.
      needs: trials that must have succeeded before.
      scores: a JSON file in the trial's folder that becomes its result; empty for a trial that only
        makes something for others.
      also: other JSON files of the trial's folder that are kept with it.
      about: what is varied, in a few words, for the table.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    needs: tuple[str, ...] = ()
    scores: str = ""
    also: tuple[str, ...] = ()
    about: str = ""

    def words(self, workdir: Path) -> list[list[str]]:
        """The commands with folders put in."""
        folders = {name: str(workdir / name) for name in self.needs}
        folders[HERE] = str(workdir / self.name)
        return [[word.format_map(folders) for word in command] for command in self.commands]

    def digest(self) -> str:
        """Hash of what is run; `about` does not count."""
        text = json.dumps([self.name, self.commands, self.needs, self.scores, self.also])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(path: str) -> list[Trial]:
    """The trials of a sweep file, each after those that it needs, otherwise in the file's order.

    Raises:
      ConfigError: no such file, or it cannot be run; a name twice, unknown, malformed or taken by
        the sweep; a folder that is used but not needed; a lone brace; trials that need each other.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"sweep file {path} does not exist")
    spec = importlib.util.spec_from_file_location("sweep", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        trials = list(module.get_sweep())
    except Exception as error:  # whatever a sweep file, which is a program, may raise
        raise ConfigError(
            f"sweep file {path} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    return in_order(trials)


def in_order(trials: Sequence[Trial]) -> list[Trial]:
    """Checks trials and puts each behind those that it needs; see `load`."""
    known: dict[str, Trial] = {}
    for trial in trials:
        if not _NAME.fullmatch(trial.name):
            raise ConfigError(f"trial name {trial.name!r}: use lower case, digits and underscores")
        if trial.name in (HERE, COMPARISON):
            raise ConfigError(f"trial name {trial.name!r} has a meaning of its own; use another")
        if trial.name in known:
            raise ConfigError(f"two trials are called {trial.name!r}")
        known[trial.name] = trial
    for trial in trials:
        _check(trial, known)
    ordered: dict[str, Trial] = {}
    while len(ordered) < len(known):
        ready = [t for t in trials if t.name not in ordered and all(n in ordered for n in t.needs)]
        if not ready:
            stuck = ", ".join(t.name for t in trials if t.name not in ordered)
            raise ConfigError(f"trials need each other: {stuck}")
        ordered[ready[0].name] = ready[0]
    return list(ordered.values())


def _check(trial: Trial, known: Mapping[str, Trial]) -> None:
    if not trial.commands or not all(trial.commands):
        raise ConfigError(f"trial {trial.name!r} has no command, or an empty one")
    for name in trial.needs:
        if name not in known:
            raise ConfigError(f"trial {trial.name!r} needs {name!r}, which is not in the sweep")
    for word in itertools.chain.from_iterable(trial.commands):
        try:
            parts = list(string.Formatter().parse(word))
        except ValueError as error:
            raise ConfigError(
                f"trial {trial.name!r}: {word!r} cannot be read ({error}); braces that are no "
                "folder are written twice, {{ and }}"
            ) from error
        for _, field, form, conversion in parts:
            if field is None:
                continue
            if form or conversion:
                raise ConfigError(
                    f"trial {trial.name!r}: {{{field}}} in {word!r} has more in its braces than "
                    "the name of a folder"
                )
            if field not in (HERE, *trial.needs):
                raise ConfigError(
                    f"trial {trial.name!r}: {{{field}}} in {word!r} is neither {{{HERE}}} nor one "
                    f"of its needs ({', '.join(trial.needs) or 'none'})"
                )


# ---- many trials from a few lines ----------------------------------------------------------------


def sweep(key: str, values: Iterable[Any]) -> list[Overrides]:
    """One override a value: ``sweep("optimizer.learning_rate", [1e-3, 3e-3])``."""
    return [{key: value} for value in values]


def product(*axes: Sequence[Overrides]) -> list[Overrides]:
    """Every combination."""
    return [_merged(parts) for parts in itertools.product(*axes)]


def zipped(*axes: Sequence[Overrides]) -> list[Overrides]:
    """Side by side.

    Raises:
      ConfigError: the axes differ in length.
    """
    if len({len(axis) for axis in axes}) > 1:
        raise ConfigError(f"zipped axes have lengths {', '.join(str(len(a)) for a in axes)}")
    return [_merged(parts) for parts in zip(*axes, strict=True)]


def sampled(axes: Mapping[str, Sequence[Any]], num: int, seed: int) -> list[Overrides]:
    """`num` independent draws, each key uniform over its values; the same for a seed."""
    rng = np.random.default_rng(seed)
    return [
        {key: values[int(rng.integers(len(values)))] for key, values in axes.items()}
        for _ in range(num)
    ]


def flags(overrides: Overrides) -> tuple[str, ...]:
    """Overrides as words of a command line."""
    return tuple(f"--config.{key}={value}" for key, value in overrides.items())


def of_overrides(
    config: str, overrides: Sequence[Overrides], evaluate: Sequence[str] = ("--suite=strokes",)
) -> list[Trial]:
    """A trial a set of overrides: trains with it, then scores what was trained.

    Args:
      config: file, and argument, of `launch.train --config`.
      overrides: of `product` and its kin.
      evaluate: further words for `launch.evaluate`; none at all trains only.

    Returns:
      Trials "t0", "t1", ..., with what is varied as `about`.
    """
    width, made = len(str(max(len(overrides) - 1, 0))), []
    varied = {k for one in overrides for k in one if any(o.get(k) != one[k] for o in overrides)}
    for number, one in enumerate(overrides):
        words = [word.replace("{", "{{").replace("}", "}}") for word in flags(one)]
        commands = [("launch.train", f"--config={config}", "--workdir={here}/run", *words)]
        if evaluate:
            where = ("--checkpoint={here}/run", "--out={here}/scores", "--overwrite")
            commands.append(("launch.evaluate", *where, *evaluate))
        about = " ".join(f"{k.rpartition('.')[2]}={v}" for k, v in one.items() if k in varied)
        scores = "scores/scores.json" if evaluate else ""
        made.append(Trial(f"t{number:0{width}}", tuple(commands), scores=scores, about=about))
    return made


def _merged(parts: Iterable[Overrides]) -> Overrides:
    merged: dict[str, Any] = {}
    for part in parts:
        if twice := sorted(merged.keys() & part.keys()):
            raise ConfigError(f"two axes set {', '.join(twice)}")
        merged |= part
    return merged
