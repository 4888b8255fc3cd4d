"""The HTML page of a comparison: score tables, curves, and the same prompts' paintings by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from process_gen.core.errors import DataError
from process_gen.evaluation.judged import Judged
from process_gen.report.comparison import COSTS, OVERALL, Place, places
from process_gen.report.curves import VIEW, compared
from process_gen.report.html import (
    SORTS,
    facets,
    flatten,
    item,
    largest_side,
    side,
    verdict_facets,
    write_page,
)
from process_gen.report.runs import Run
from process_gen.sampling import records


def write_comparison(
    path: str | os.PathLike[str],
    comparison: Mapping[str, Any],
    runs: Sequence[Run],
    *,
    title: str = "Comparison",
    show: int = 200,
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file, local or remote; its folder is made.
      comparison: what `report.comparison.compare` gives for `runs`.
      runs: the baseline first.
      title: heading of the page.
      show: prompts with paintings, at most: those first on which the runs differ.

    Raises:
      DataError: a painting was judged that the run's records do not hold; nothing was written. Or a
        painting cannot be read.
    """
    by_place = [places(run.judged) if run.records is not None else {} for run in runs]
    shown, note = chosen(by_place, show)
    lines = [_lines(run, own, shown) for run, own in zip(runs, by_place, strict=True)]
    judged = [[own[place] for own in by_place if place in own] for place in shown]
    pictures = sum(one.pictures + 1 for row in judged for one in row)
    outcomes = [outcome([own.get(place) for own in by_place], runs) for place in shown]
    known = dict.fromkeys(name for own in outcomes for name in own)
    curves, labels = compared([run.history for run in runs], [run.name for run in runs])
    names = [run.name for run in runs]
    write_page(
        path,
        "compare.html",
        title=title,
        lead=_lead(comparison),
        note=note,
        runs=comparison["runs"],
        confidence=comparison["confidence"],
        measures=comparison["measures"],
        scale=_reach([*(m["rows"] for m in comparison["measures"]), comparison["rates"]]),
        other=comparison["rates"],
        costs=_cost_rows(comparison, names),
        charts=curves,
        labels=labels,
        size=VIEW,
        different=_setting_rows(comparison["settings"], names),
        everything=_setting_rows(_all_settings(runs), names),
        facets=[
            ("outcome", "outcome", [(name, name) for name in known]),
            *facets(
                [own[0].tag for own in judged],
                [[facet for one in own for facet in verdict_facets(one.values)] for own in judged],
                [[one.steps for one in own if one.steps] for own in judged],
                [[one.finish_reason for one in own] for own in judged],
            ),
        ],
        sorts=SORTS,
        paintings=_items(runs, by_place, lines, shown, outcomes, largest_side(pictures)),
    )


def chosen(by_place: Sequence[Mapping[Place, Judged]], show: int) -> tuple[list[Place], str]:
    """The prompts to show, in the order of painting, and a sentence that says which they are."""
    everything = list(dict.fromkeys(place for own in by_place for place in own))
    if len(everything) <= show:
        return everything, ""
    differ = [place for place in everything if _differ([own.get(place) for own in by_place])]
    kept = set(list(dict.fromkeys([*differ, *everything]))[:show])
    note = f"{show} of {len(everything)} prompts: "
    if len(differ) > show:
        note += f"the first of the {len(differ)} on which the runs differ."
    else:
        note += f"all {len(differ)} on which the runs differ, and the first of the others."
    return [place for place in everything if place in kept], note


def _differ(judged: Sequence[Judged | None]) -> bool:
    values = [dict(one.values) if one is not None else None for one in judged]
    return any(value != values[0] for value in values)


def outcome(judged: Sequence[Judged | None], runs: Sequence[Run]) -> list[str]:
    """Who got the prompt right, by each verdict: "exact: only b", "exact: all", "exact: none"."""
    found = []
    for name in dict.fromkeys(name for one in judged if one for name in one.values):
        values = [one.values.get(name) if one else None for one in judged]
        if not all(isinstance(value, bool) for value in values):
            continue
        right = [run.name for run, value in zip(runs, values, strict=True) if value]
        who = {0: "none", len(runs): "all"}.get(len(right), f"only {', '.join(right)}")
        found.append(f"{name}: {who}".replace("|", "/"))
    return found


def _items(
    runs: Sequence[Run],
    by_place: Sequence[Mapping[Place, Judged]],
    lines: Sequence[Mapping[tuple[int, int], Mapping[str, Any]]],
    shown: Sequence[Place],
    outcomes: Sequence[Sequence[str]],
    largest: int,
) -> Iterator[dict[str, Any]]:
    """One prompt at a time: only its own pictures are in memory."""
    for order, place in enumerate(shown):
        sides = []
        for run, own, found in zip(runs, by_place, lines, strict=True):
            trajectory = None
            if place in own and run.records is not None:
                record = found[own[place].index, own[place].sample]
                trajectory = records.load(record, run.records.parent)
            sides.append(
                side(run.name, trajectory, own[place].values if trajectory else {}, largest)
            )
        yield item(order, sides, outcome="|".join(outcomes[order]))


def _lines(
    run: Run, own: Mapping[Place, Judged], shown: Sequence[Place]
) -> dict[tuple[int, int], dict[str, Any]]:
    """The records of the paintings to show, by index and sample."""
    if run.records is None:
        return {}
    wanted = {(own[place].index, own[place].sample) for place in shown if place in own}
    found = {
        place: record
        for record in records.lines(run.records)
        if (place := (record["index"], record["sample"])) in wanted
    }
    if missing := sorted(wanted - found.keys()):
        index, sample = missing[0]
        raise DataError(
            f"{run.records}: holds no painting {index}, sample {sample}, which was judged "
            f"({len(missing)} missing); score the folder again with launch.evaluate"
        )
    return found


# ---- tables --------------------------------------------------------------------------------------


def _lead(comparison: Mapping[str, Any]) -> str:
    suites = [run["suite"] for run in comparison["runs"] if run["suite"]]
    text = f"{len(comparison['runs'])} runs"
    if suites:
        text += f" of the suite {suites[0]}"
    text += f"; the baseline is {comparison['baseline']}"
    # Prompts in common are not enough: where one of them is missing, rates are compared.
    pairs = {run["name"]: 0 for run in comparison["runs"][1:]}
    for row in (row for m in comparison["measures"] for row in m["rows"] if row["tag"] == OVERALL):
        for name, moved in row["differences"].items():
            pairs[name] = max(pairs[name], moved["pairs"])
    if told := [f"{name} {n}" for name, n in pairs.items() if n]:
        text += f"; paintings of the same prompts, compared pair by pair: {', '.join(told)}"
    return f"{text}."


def _reach(tables: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """The largest distance from 0 that the drawn intervals show, at least 5 points."""
    moved = [d for rows in tables for row in rows for d in row["differences"].values()]
    return max([0.05, *(max(abs(d["low"]), abs(d["high"])) for d in moved)])


def _cost_rows(comparison: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    if not comparison["costs"]:
        return []
    rows = [["", *names, *(f"{name} − {names[0]}" for name in names[1:])]]
    for row in comparison["costs"]:
        cells = [f"{row['runs'][n]:.4g}" if n in row["runs"] else "–" for n in names]
        for name in names[1:]:
            d = row["differences"].get(name)
            cells.append(
                f"{d['difference']:+.3g} ({d['low']:+.3g} to {d['high']:+.3g})" if d else "–"
            )
        rows.append([COSTS[row["name"]], *cells])
    return rows


def _all_settings(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    flat = {run.name: dict(flatten(run.made_by)) for run in runs}
    known = dict.fromkeys(name for own in flat.values() for name in own)
    return {name: {run: own.get(name) for run, own in flat.items()} for name in known}


def _setting_rows(
    settings: Mapping[str, Mapping[str, Any]], names: Sequence[str]
) -> list[list[str]]:
    rows = [["setting", *names]]
    for name, values in settings.items():
        rows.append([name, *("–" if values[run] is None else str(values[run]) for run in names)])
    return rows
