"""Several runs beside one another: rates, differences with intervals, costs, settings.

The first run is the baseline. Where two runs painted the same prompts and both were judged painting
by painting, their difference is taken pair by pair; otherwise between the two rates.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from process_gen.core.errors import DataError
from process_gen.evaluation import differences
from process_gen.evaluation.differences import Difference, Limits
from process_gen.evaluation.intervals import CONFIDENCE, mean_of_values, z_score
from process_gen.evaluation.judged import Judged
from process_gen.report.runs import Run, limits
from process_gen.report.summary import add_row, plain_table

OVERALL = "overall"
COSTS = {
    "steps": "steps",
    "pictures": "pictures",
    "nfe": "velocity evaluations",
    "seconds": "seconds",
}

Place = tuple[str, int]  # prompt, and how many times it was painted before


def places(judged: Sequence[Judged]) -> dict[Place, Judged]:
    """Paintings by what was asked for, so that those of two runs can be put side by side."""
    count: collections.Counter[str] = collections.Counter()
    found = {}
    for one in sorted(judged, key=lambda j: (j.index, j.sample)):
        found[one.prompt, count[one.prompt]] = one
        count[one.prompt] += 1
    return found


def compare(runs: Sequence[Run]) -> dict[str, Any]:
    """The comparison as a dict that `json.dumps` accepts.

    Keys: `baseline`; `confidence`; `runs`: for each `name`, `folder`, `suite`, `n` (judged
    paintings), `pairs` (with the baseline) and `made_by`; `measures`: for each `name` and `rows`: a
    `tag` ("overall" first), `runs` (name -> rate, low, high) and `differences` (name -> see
    `evaluation.differences.Difference`, and `clear`); `rates`: rows of the scores' other rates, in
    the same form; `costs`: rows of means a painting with differences; `settings`: name -> values
    by run, those that differ.

    Raises:
      DataError: fewer than two runs, two of one name, or runs of different suites.
    """
    names = [run.name for run in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise DataError(f"a comparison needs two runs of different names, got {', '.join(names)}")
    suites = {run.scores["suite"] for run in runs if "suite" in run.scores}
    if len(suites) > 1:
        raise DataError(f"the runs were scored by different suites: {', '.join(sorted(suites))}")
    by_place = {run.name: places(run.judged) for run in runs}
    first = by_place[names[0]]
    measures = list(dict.fromkeys(name for run in runs for name in _measures(run)))
    return {
        "baseline": names[0],
        "confidence": CONFIDENCE,
        "runs": [
            {
                "name": run.name,
                "folder": run.folder,
                "suite": run.scores.get("suite"),
                "n": len(run.judged),
                "pairs": len(first.keys() & by_place[run.name].keys()),
                "made_by": dict(run.made_by),
            }
            for run in runs
        ],
        "measures": [_measure(name, runs, by_place) for name in measures],
        "rates": _other_rates(runs),
        "costs": _costs(runs, by_place),
        "settings": different_settings(runs),
    }


def different_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What was set differently: name -> run -> value; None where a run does not say."""
    known = dict.fromkeys(name for run in runs for name in run.made_by)
    found = {name: {run.name: run.made_by.get(name) for run in runs} for name in known}
    return {n: v for n, v in found.items() if len({repr(value) for value in v.values()}) > 1}


# ---- measures ------------------------------------------------------------------------------------


def _measures(run: Run) -> list[str]:
    """What is judged of each painting, or stands under `overall` in the scores."""
    overall = run.scores.get(OVERALL)
    named = list(limits(overall)) if isinstance(overall, Mapping) else []
    return named or list(dict.fromkeys(name for one in run.judged for name in one.values))


def _measure(
    name: str, runs: Sequence[Run], by_place: Mapping[str, Mapping[Place, Judged]]
) -> dict[str, Any]:
    rates = {run.name: _rates(run, name) for run in runs}
    tags = dict.fromkeys(tag for found in rates.values() for tag in found)
    base = runs[0]
    rows = []
    for tag in sorted(tags, key=lambda t: t != OVERALL):
        row = {run: found[tag] for run, found in rates.items() if tag in found}
        moved = {}
        for run in runs[1:]:
            if base.name not in row or run.name not in row:
                continue
            found = _paired(name, tag, base, run, by_place, rates[base.name])
            moved[run.name] = found or differences.independent(row[base.name], row[run.name])
        rows.append(_row({"tag": tag}, row, moved))
    return {"name": name, "rows": rows}


def _rates(run: Run, measure: str) -> dict[str, Limits]:
    """Rates by tag and `overall`: of the scores, or else of the judged paintings."""
    if isinstance(run.scores.get("tags"), Mapping):
        found = {tag: limits(row).get(measure) for tag, row in run.scores["tags"].items()}
        found[OVERALL] = limits(run.scores[OVERALL]).get(measure)
        return {tag: rate for tag, rate in found.items() if rate is not None}
    groups: dict[str, list[float]] = collections.defaultdict(list)
    for one in run.judged:
        if measure in one.values:
            groups[one.tag].append(float(one.values[measure]))
    if not groups:
        return {}
    means = {tag: mean_of_values([values]) for tag, values in groups.items()}
    means[OVERALL] = mean_of_values(list(groups.values()))
    return {tag: Limits(m.rate, m.low, m.high) for tag, m in means.items() if m.rate is not None}


def _paired(
    measure: str,
    tag: str,
    a: Run,
    b: Run,
    by_place: Mapping[str, Mapping[Place, Judged]],
    rates: Mapping[str, Limits],
) -> Difference | None:
    """The difference pair by pair; None where not every painting has its counterpart."""
    groups: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    first, second = by_place[a.name], by_place[b.name]
    for place in first.keys() | second.keys():
        one = first.get(place) or second[place]
        if tag not in (OVERALL, one.tag):
            continue
        if place not in first or place not in second:
            return None
        values = first[place].values, second[place].values
        if measure not in values[0] or measure not in values[1]:
            return None
        groups[one.tag].append((float(values[0][measure]), float(values[1][measure])))
    if not groups or (tag == OVERALL and groups.keys() != rates.keys() - {OVERALL}):
        return None
    weights = a.scores.get("tag_weights") if tag == OVERALL else None
    if weights is not None and groups.keys() != weights.keys():
        return None
    return differences.paired(
        list(groups.values()), [weights[name] for name in groups] if weights else None
    )


def _row(
    head: Mapping[str, Any], rates: Mapping[str, Limits], moved: Mapping[str, Difference]
) -> dict[str, Any]:
    return {
        **head,
        "runs": {name: dataclasses.asdict(rate) for name, rate in rates.items()},
        "differences": {
            name: {**dataclasses.asdict(d), "clear": d.clear} for name, d in moved.items()
        },
    }


def _other_rates(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Rates of the scores outside tags and overall: of steps, inspections, the format."""
    found = {}
    for run in runs:
        rest = {k: v for k, v in run.scores.items() if k not in ("tags", OVERALL)}
        found[run.name] = limits(rest)
    rows = []
    for name in dict.fromkeys(name for rates in found.values() for name in rates):
        row = {run: rates[name] for run, rates in found.items() if name in rates}
        base = row.get(runs[0].name)
        moved = {}
        if base is not None:
            others = [run.name for run in runs[1:] if run.name in row]
            moved = {name: differences.independent(base, row[name]) for name in others}
        rows.append(_row({"name": name}, row, moved))
    return rows


# ---- costs ---------------------------------------------------------------------------------------


def _costs(
    runs: Sequence[Run], by_place: Mapping[str, Mapping[Place, Judged]]
) -> list[dict[str, Any]]:
    rows = []
    for name in COSTS:
        values = {run.name: [float(getattr(j, name)) for j in run.judged] for run in runs}
        means = {run: statistics.fmean(found) for run, found in values.items() if found}
        if not any(means.values()):
            continue
        moved = {}
        for run in runs[1:]:
            if runs[0].name in means and run.name in means:
                pairs = [
                    (float(getattr(one, name)), float(getattr(by_place[run.name][place], name)))
                    for place, one in by_place[runs[0].name].items()
                    if place in by_place[run.name]
                ]
                a, b = values[runs[0].name], values[run.name]
                moved[run.name] = _mean_difference(pairs, a, b)
        rows.append({"name": name, "runs": means, "differences": moved})
    return rows


def _mean_difference(
    pairs: Sequence[tuple[float, float]], a: Sequence[float], b: Sequence[float]
) -> dict[str, Any]:
    """Normal interval of the difference of means; of pairs where every painting has its own."""
    z = z_score(CONFIDENCE)
    if len(pairs) == len(a) == len(b):
        moves = [y - x for x, y in pairs]
        middle, error = statistics.fmean(moves), _error(moves)
    else:
        middle = statistics.fmean(b) - statistics.fmean(a)
        error = math.hypot(_error(a), _error(b))
    low, high = middle - z * error, middle + z * error
    clear = error > 0 and (low > 0 or high < 0)
    return {"difference": middle, "low": low, "high": high, "clear": clear}


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


# ---- terminal ------------------------------------------------------------------------------------


def show(comparison: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints it: for each measure the runs, and of two runs the tags; rates, costs, settings."""
    # Tables of two runs are wider than the 80 columns that rich takes a file to have.
    console = console or Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    for measure in comparison["measures"]:
        console.print(_summary_table(measure, comparison))
        if len(comparison["runs"]) == 2:
            console.print(_pair_table(measure["name"], "tag", measure["rows"], comparison))
    if comparison["rates"] and len(comparison["runs"]) == 2:
        console.print(_pair_table("other rates", "name", comparison["rates"], comparison))
    if comparison["costs"]:
        console.print(_cost_table(comparison))
    if comparison["settings"]:
        console.print(_settings_table(comparison))
    console.print("* the interval of the difference leaves out 0", markup=False)


def _summary_table(measure: Mapping[str, Any], comparison: Mapping[str, Any]) -> Table:
    row = next((row for row in measure["rows"] if row["tag"] == OVERALL), None)
    row = row or {"runs": {}, "differences": {}}
    table = plain_table(f"{measure['name']}, overall", "%", "difference")
    for run in comparison["runs"]:
        rate, moved = row["runs"].get(run["name"]), row["differences"].get(run["name"])
        add_row(table, run["name"], _rate(rate), _moved(moved))
    return table


def _pair_table(
    title: str, head: str, rows: Sequence[Mapping[str, Any]], comparison: Mapping[str, Any]
) -> Table:
    a, b = (run["name"] for run in comparison["runs"])
    table = plain_table(title, a, b, "difference", "better, worse")
    for row in rows:
        moved = row["differences"].get(b)
        pairs = f"{moved['better']}, {moved['worse']}" if moved and moved["pairs"] else ""
        cells = (_rate(row["runs"].get(a)), _rate(row["runs"].get(b)), _moved(moved), pairs)
        add_row(table, row[head], *cells, style="bold" if row[head] == OVERALL else None)
    return table


def _cost_table(comparison: Mapping[str, Any]) -> Table:
    names = [run["name"] for run in comparison["runs"]]
    table = plain_table("a painting", *names, *(f"{name} - {names[0]}" for name in names[1:]))
    for row in comparison["costs"]:
        cells = [f"{row['runs'][n]:.4g}" if n in row["runs"] else "-" for n in names]
        for name in names[1:]:
            moved = row["differences"].get(name)
            text = "-"
            if moved:
                mark = " *" if moved["clear"] else ""
                text = (
                    f"{moved['difference']:+.3g} [{moved['low']:+.3g}, {moved['high']:+.3g}]{mark}"
                )
            cells.append(text)
        add_row(table, COSTS[row["name"]], *cells)
    return table


def _settings_table(comparison: Mapping[str, Any]) -> Table:
    table = plain_table("settings that differ", *(run["name"] for run in comparison["runs"]))
    for name, values in comparison["settings"].items():
        add_row(table, name, *(_shorten(value) for value in values.values()))
    return table


def _shorten(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None:
        return "-"
    return f"{100 * rate['rate']:.1f} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def _moved(moved: Mapping[str, Any] | None) -> str:
    if moved is None:
        return ""
    mark = "*" if moved["clear"] else " "
    span = f"[{100 * moved['low']:+.1f}, {100 * moved['high']:+.1f}]"
    return f"{100 * moved['difference']:+.1f}{mark} {span}"
