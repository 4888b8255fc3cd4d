"""Put runs beside one another: scores, differences with intervals, costs, settings, paintings.

    python -m launch.compare --runs runs/a/eval runs/b/eval --out=comparison

--runs A B [C ...]    output folders of launch.evaluate or launch.sample, folders that hold one (a
                      sweep's trial), scores.json files, or what launch.sweep --record kept; the
                      first is the baseline. NAME=PATH gives one a name of its own
--out=DIR             folder (comparison); --overwrite replaces an earlier comparison in it
--show=N              prompts with paintings side by side on the page (200)
--json                print one JSON object as the last line

Prints tables; writes compare.html and compare.json (the object that --json prints). Paintings of
the same prompts are compared pair by pair. docs/report.md explains the intervals.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from etils import epath

from launch import common
from process_gen.core.errors import ConfigError
from process_gen.report import comparison
from process_gen.report.comparison_page import write_comparison
from process_gen.report.runs import read_run

RESULT, PAGE = "compare.json", "compare.html"


def words(argv: Sequence[str]) -> list[str]:
    """A command line in which `--runs A B` stands as `--runs=A --runs=B`, which absl reads."""
    found: list[str] = []
    taking = False
    for word in argv:
        if word in ("--runs", "-runs"):
            taking = True
        elif taking and not word.startswith("-"):
            found.append(f"--runs={word}")
        else:
            taking = False
            found.append(word)
    return found


def named(runs: Sequence[str]) -> list[tuple[str, str]]:
    """(name, path) of each run; paths without a name are called by what tells them apart.

    Raises:
      ConfigError: fewer than two runs, or two of one name.
    """
    if len(runs) < 2:
        raise ConfigError("--runs wants at least two runs: --runs A B; --help shows an example")
    pairs = []
    for run in runs:
        name, equals, path = run.partition("=")
        given = bool(equals and name and path) and not epath.Path(run).exists()
        pairs.append((name, path) if given else ("", run))
    short = iter(_short_names([path for name, path in pairs if not name]))
    found = [(name or next(short), path) for name, path in pairs]
    names = [name for name, _ in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two runs are called {twice[0]!r}; name them: --runs NAME=PATH")
    return found


def _short_names(paths: Sequence[str]) -> list[str]:
    """Each path without the folders that all of them begin and end with."""
    parts = [os.path.normpath(path).split(os.sep) for path in paths]
    while all(len(p) > 1 for p in parts) and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while all(len(p) > 1 for p in parts) and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts]


def compare(
    runs: Sequence[tuple[str, str | os.PathLike[str]]],
    out: str | os.PathLike[str],
    command: str = "",
    show: int = 200,
) -> dict[str, Any]:
    """Reads runs, prints their comparison and writes it into a folder, which is made.

    Args:
      runs: name and path of each, the baseline first.
      out: folder; files of the same name are overwritten.
      command: for the record.
      show: prompts with paintings on the page, at most.

    Returns:
      The comparison, see `report.comparison.compare`.

    Raises:
      DataError: a run cannot be read, or they cannot be compared.
    """
    read = [read_run(path, name) for name, path in runs]
    found = {**comparison.compare(read), "command": command, "commit": common.git_hash()}
    folder = epath.Path(out)
    write_comparison(folder / PAGE, found, read, show=show)
    (folder / RESULT).write_text(json.dumps(found) + "\n")
    comparison.show(found)
    return found


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    flags.DEFINE_multi_string("runs", [], "runs to compare", flag_values=values)
    flags.DEFINE_string("out", "comparison", "folder to write", flag_values=values)
    flags.DEFINE_integer("show", 200, "prompts on the page", 0, flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "replace an earlier one", flag_values=values)
    flags.DEFINE_boolean("json", False, "print a JSON object", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Compares and prints."""
    runs = named(values.runs)
    out = epath.Path(common.required(values, "out"))
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={out} is a file, not a folder")
    if (out / RESULT).exists() and not values.overwrite:
        raise ConfigError(f"--out={out} already holds {RESULT}; choose another, or --overwrite")
    found = compare(runs, out, common.command(values, "launch.compare"), values.show)
    print(f"comparison: {out / RESULT}")
    print(f"page: {out / PAGE}")
    if values.json:
        print(json.dumps(found))


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "", words(sys.argv))
