"""What came of the trials of a sweep: a table for the terminal and for Markdown, and a figure."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text

from process_gen.report.summary import add_row
from process_gen.train.progress import duration


class Rate(NamedTuple):
    """A share of paintings with its interval, in [0, 1]."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Row:
    """A trial.

    Attributes:
      name: of the trial.
      about: what is varied.
      state: "done", "failed" or "to do".
      reason: of a failure.
      seconds: wall time; None where it has not been done.
      rates: scores by name.
    """

    name: str
    about: str
    state: str
    reason: str = ""
    seconds: float | None = None
    rates: Mapping[str, Rate] = dataclasses.field(default_factory=dict)


def rates(scores: Any) -> dict[str, Rate]:
    """The rates with intervals that stand under `overall` in the scores of a trial.

    Args:
      scores: what a trial left: a JSON value of any kind, None for nothing.
    """
    overall = scores.get("overall") if isinstance(scores, Mapping) else None
    found = {}
    for name, value in overall.items() if isinstance(overall, Mapping) else ():
        if isinstance(value, Mapping) and isinstance(value.get("rate"), int | float):
            found[name] = Rate(value["rate"], value["low"], value["high"])
        elif isinstance(value, int | float) and f"{name}_low" in overall:
            found[name] = Rate(value, overall[f"{name}_low"], overall[f"{name}_high"])
    return found


def measures(rows: Sequence[Row]) -> list[str]:
    """Names of all rates, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row.rates))


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and texts of the table."""
    names = measures(rows)
    heads = ["trial", "what", "state", "time", *(f"{name} %" for name in names)]
    lines = []
    for row in rows:
        spent = "" if row.seconds is None else duration(row.seconds)
        state = f"{row.state}: {row.reason}" if row.reason else row.state
        values = [_text(row.rates.get(name)) for name in names]
        lines.append([row.name, row.about, state, spent, *values])
    return heads, lines


def table(rows: Sequence[Row]) -> Table:
    """For the terminal."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads, lines = cells(rows)
    for place, head in enumerate(heads):
        made.add_column(Text(head), justify="left" if place < 3 else "right", no_wrap=place != 2)
    for line in lines:
        add_row(made, *line)
    return made


def markdown(rows: Sequence[Row]) -> str:
    """As a table of Markdown."""
    heads, lines = cells(rows)
    rule = ["---"] * 3 + ["---:"] * (len(heads) - 3)
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, rule, *body))


def figure(rows: Sequence[Row]) -> bytes | None:
    """A PNG with every score as a point in its interval; None where nothing was scored."""
    names = measures(rows)
    shown = [row for row in rows if row.rates]
    if not shown:
        return None
    size = (2.2 + 3.2 * len(names), 0.9 + 0.3 * len(shown))
    page = Figure(figsize=size, dpi=150, layout="constrained")
    axes = page.subplots(1, len(names), squeeze=False, sharey=True).ravel()
    for axis, name in zip(axes, names, strict=True):
        for place, row in enumerate(shown):
            if (rate := row.rates.get(name)) is not None:
                percent = [100 * value for value in rate]
                axis.plot(percent[1:], [place, place], color="#0969da", lw=1.5)
                axis.plot(percent[:1], [place], "o", color="#0969da", ms=5)
        axis.set_title(f"{name}, %", fontsize=9, loc="left", fontweight="bold")
        axis.set_yticks(range(len(shown)), [row.about or row.name for row in shown], fontsize=7)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, axis="x")
    axes[0].set_ylim(len(shown) - 0.5, -0.5)  # the first trial above; the axis is shared
    out = io.BytesIO()
    page.savefig(out, format="png")
    return out.getvalue()


def _text(rate: Rate | None) -> str:
    if rate is None:
        return ""
    value, low, high = (f"{100 * number:.1f}" for number in rate)
    return f"{value} [{low}, {high}]"
