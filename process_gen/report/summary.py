"""What a run learned and how it paints, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from process_gen.report.curves import series


def show(
    *,
    scores: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    rates: Mapping[str, Mapping[str, Any]] | None = None,
    console: Console | None = None,
) -> None:
    """Prints what is given: first and last losses of a history, then scores and painting costs.

    Args:
      scores: what `evaluation.strokes.score` gives.
      rates: `evaluation.intervals.Rate` dicts by name.
      history: what `report.curves.read_history` gives.
      console: standard output unless given; plain text where that is no terminal.
    """
    console = console or Console(highlight=False)
    if history:
        console.print(loss_table(history))
    if scores:
        console.print(score_table(scores))
        if "process" in scores:
            console.print(process_line(scores["process"]), markup=False, soft_wrap=True)
    if rates:
        console.print(rate_table(rates))


def rate_table(rates: Mapping[str, Mapping[str, Any]]) -> Table:
    """A line a rate: percent, interval, and out of how many."""
    table = plain_table("rate", "%", "interval", "of")
    for name, rate in rates.items():
        add_row(table, name.replace("_", " "), *_cells({name: rate}, [name]), str(rate["n"]))
    return table


def loss_table(history: Sequence[Mapping[str, Any]]) -> Table:
    """A line a metric: first and last value of the training and of the held-out split."""
    table = plain_table("losses", "train first", "train last", "eval first", "eval last")
    for name, splits in series(history).items():
        cells = []
        for split in ("train", "eval"):
            points = splits.get(split)
            cells += [f"{points[0][1]:.4g}", f"{points[-1][1]:.4g}"] if points else ["", ""]
        add_row(table, name, *cells)
    return table


def score_table(scores: Mapping[str, Any]) -> Table:
    """A line a tag and `overall`: percent right under each verdict, with its interval."""
    names = list(scores["overall"])
    level = f"{100 * scores['confidence']:g}%"
    heads = [head for name in names for head in (name, f"{level} interval")]
    table = plain_table(scores["suite"], "n", *heads)
    for tag, row in scores["tags"].items():
        add_row(table, tag, str(row["n"]), *_cells(row, names))
    table.add_section()
    add_row(table, "overall", str(scores["n"]), *_cells(scores["overall"], names), style="bold")
    return table


def process_line(process: Mapping[str, Any]) -> str:
    """Endings, format validity, and the mean cost of a painting, in a line or two."""
    ends = ", ".join(f"{n} {reason}" for reason, n in process["finish_reasons"].items())
    costs = [
        f"{process[name]:.{digits}f} {unit}"
        for name, digits, unit in (
            ("images", 1, "pictures"),
            ("nfe", 0, "NFE"),
            ("seconds", 2, "s"),
        )
        if process[name] is not None
    ]
    valid = process["format_valid"]
    share = "-" if valid["rate"] is None else f"{100 * valid['rate']:.1f}%"
    return f"{ends}; format valid {share}; {', '.join(costs)} a painting"


def _cells(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    cells = []
    for name in names:
        rate = row[name]
        if rate["rate"] is None:
            cells += ["-", ""]
        else:
            limits = f"{100 * rate['low']:.1f} to {100 * rate['high']:.1f}"
            cells += [f"{100 * rate['rate']:.1f}", limits]
    return cells


def plain_table(first: str, *heads: str) -> Table:
    """A table without frames; the first column holds words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(Text(first))
    for head in heads:
        table.add_column(Text(head), justify="right", no_wrap=True)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """A line of a table, word for word: names that users give are no markup."""
    table.add_row(*map(Text, cells), style=style)
