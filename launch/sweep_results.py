"""What came of a sweep: tables, a figure, and a comparison of the trials that were scored."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from launch import compare
from launch.trials import COMPARISON, Trial
from process_gen.core.errors import DataError
from process_gen.report import trials as report
from process_gen.report.trials import Row

JSON, MARKDOWN, FIGURE = "results.json", "results.md", "results.png"

Results = Mapping[str, Mapping[str, Any] | None]


def rows(ordered: Sequence[Trial], results: Results, failed: Mapping[str, str]) -> list[Row]:
    """What became of every trial, for tables."""
    found = []
    for trial in ordered:
        result = results[trial.name]
        if result is None:
            reason = failed.get(trial.name, "")
            found.append(Row(trial.name, trial.about, "failed" if reason else "to do", reason))
        else:
            rates = report.rates(result["scores"])
            found.append(Row(trial.name, trial.about, "done", "", result["seconds"], rates))
    return found


def write(
    workdir: Path,
    ordered: Sequence[Trial],
    results: Results,
    failed: Mapping[str, str],
    command: str,
) -> None:
    """Prints the table of a sweep and writes everything beside its trials.

    Args:
      workdir: of the sweep.
      ordered: all trials.
      results: what each left, None for those that are not done.
      failed: reasons of failure by name.
      command: that wrote it, for the record.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    found = rows(ordered, results, failed)
    Console(highlight=False).print(report.table(found))
    kept = {"command": command, "trials": dict(results), "failed": dict(failed)}
    (workdir / JSON).write_text(json.dumps(kept, indent=1) + "\n")
    (workdir / MARKDOWN).write_text(report.markdown(found))
    if (picture := report.figure(found)) is not None:
        (workdir / FIGURE).write_bytes(picture)
    print(f"results: {workdir / MARKDOWN}")
    _compare(workdir, [trial for trial, row in zip(ordered, found, strict=True) if row.rates])


def _compare(workdir: Path, scored: Sequence[Trial]) -> None:
    """The comparison of `launch.compare`; the first trial is the baseline."""
    # A trial whose result is only on record has no paintings to put beside those of another.
    here = [t for t in scored if (workdir / t.name / t.scores).is_file()]
    if len(here) < 2:
        return
    runs = [(t.name, (workdir / t.name / t.scores).parent) for t in here]
    words = " ".join(f"{name}={path}" for name, path in runs)
    try:
        compare.compare(runs, workdir / COMPARISON, f"python -m launch.compare --runs {words}")
    except DataError as error:
        print(f"no comparison of the trials: {error}")
