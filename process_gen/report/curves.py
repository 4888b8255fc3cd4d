"""Loss curves of a run: the history file, curves as inline SVG and as PNG.

A training run writes `metrics.jsonl`, one object a line: `step`, `split` ("train" or "eval"),
`seconds`, and numbers by name. Drawn are `loss`, the per-stage losses (`*_ce` in nats a token,
`*_mse` in velocity units) and scores that end in `exact` or `geneval`.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from process_gen.core.errors import DataError
from process_gen.report.environment import environment

SPLITS = ("train", "eval")
POINTS = 400  # of one line; a longer history is thinned by averaging neighbours

WIDTH, HEIGHT = 320, 190
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 26, 24
VIEW = {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": RIGHT,
    "top": TOP,
    "bottom": BOTTOM,
}

Record = Mapping[str, Any]
Point = tuple[float, float]


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl` into one record a (step, split), sorted by step.

    A resumed run repeats steps: what was written later wins. A last line that is cut off (the run
    was killed, or is still writing) is dropped.

    Raises:
      DataError: no such file, or a line that is not an object with `step` and `split`.
    """
    file = epath.Path(path)
    if not file.exists():
        raise DataError(f"no training history at {path}")
    merged: dict[tuple[int, str], dict[str, Any]] = {}
    text = file.read_text()
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines) and not text.endswith("\n"):
                break
            raise DataError(f"{path}, line {number}: not JSON ({error})") from error
        known = isinstance(record, dict) and isinstance(record.get("step"), int)
        if not known or not isinstance(record.get("split"), str):
            raise DataError(f"{path}, line {number}: wanted an object with 'step' and 'split'")
        merged.setdefault((record["step"], record["split"]), {}).update(record)
    return [merged[key] for key in sorted(merged)]


def series(history: Sequence[Record]) -> dict[str, dict[str, list[Point]]]:
    """The curves worth drawing: name -> split -> (step, value), finite values only."""
    names = dict.fromkeys(name for record in history for name in record if _drawn(name))
    order = sorted(names, key=lambda n: (n != "loss", n.endswith(("exact", "geneval"))))
    found: dict[str, dict[str, list[Point]]] = {}
    for name in order:
        splits = {
            split: [
                (float(r["step"]), float(r[name]))
                for r in history
                if r.get("split") == split and _finite(r.get(name))
            ]
            for split in SPLITS
        }
        splits = {split: points for split, points in splits.items() if points}
        if splits:
            found[name] = splits
    return found


def curves(history: Sequence[Record], format: str = "svg") -> str | bytes:
    """Draws the history as small multiples.

    Args:
      history: records as `read_history` gives them.
      format: "svg", a self-contained picture that follows the reader's colour scheme, or "png".

    Returns:
      `str` for SVG, `bytes` for PNG.

    Raises:
      DataError: nothing to draw, or another format.
    """
    found = series(history)
    if not found:
        raise DataError("the history holds no losses to draw")
    if format == "png":
        return _png(found)
    if format != "svg":
        raise DataError(f"format must be 'svg' or 'png', got {format!r}")
    env = environment()
    style = Markup(env.get_template("curves.css").render())
    return env.get_template("curves.j2").render(charts=charts(history), size=VIEW, style=style)


# ---- SVG -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chart:
    """One small multiple, ready to be drawn: paths and ticks in the units of its view box.

    Attributes:
      name: of the metric.
      logarithmic: whether the value axis is.
      lines: (split, path data, last value as text, the path's points).
      x_ticks, y_ticks: (place, label).
    """

    name: str
    logarithmic: bool
    lines: tuple[tuple[str, str, str, tuple[Point, ...]], ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]


def charts(history: Sequence[Record]) -> list[Chart]:
    """The small multiples of a history; empty where there is nothing to draw."""
    return [_chart(name, splits) for name, splits in series(history).items()]


def compared(
    histories: Sequence[Sequence[Record]], names: Sequence[str]
) -> tuple[list[Chart], dict[str, str]]:
    """Small multiples with a line a run: its held-out values where it has some, else those of
    training.

    Returns:
      The charts, and what each line's class stands for; up to 6 lines have colours of their own.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    # The class of a line, and so its colour; more runs than colours take them again.
    lines = [f"run-{i % 6}{' again' * (i // 6)}" for i in range(len(names))]
    for i, history in enumerate(histories):
        for name, splits in series(history).items():
            found.setdefault(name, {})[lines[i]] = splits.get("eval") or splits["train"]
    made = [_chart(name, drawn) for name, drawn in found.items()]
    return made, dict(zip(lines, names, strict=True))


def _chart(name: str, splits: Mapping[str, Sequence[Point]]) -> Chart:
    values = [y for points in splits.values() for _, y in points]
    last = max(x for points in splits.values() for x, _ in points)
    low, high = min(values), max(values)
    logarithmic = _logarithmic(low, high)
    if high == low:
        low, high = low - 0.5, high + 0.5

    def across(x: float) -> float:
        return round(LEFT + x / max(last, 1.0) * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        if logarithmic:
            share = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low))
        else:
            share = (y - low) / (high - low)
        return round(TOP + (1 - share) * (HEIGHT - TOP - BOTTOM), 1)

    lines = []
    for split, points in splits.items():
        drawn = tuple((across(x), down(y)) for x, y in _thin(points))
        path = "M" + "L".join(f"{x} {y}" for x, y in drawn)
        lines.append((split, path, f"{points[-1][1]:.3g}", drawn))
    ticks = _locator(low, high, logarithmic).tick_values(low, high)
    steps = MaxNLocator(nbins=4, integer=True).tick_values(0, last)
    return Chart(
        name,
        logarithmic,
        tuple(lines),
        tuple((across(x), _short(x)) for x in steps if 0 <= x <= last),
        tuple((down(y), f"{y:.3g}") for y in ticks if low <= y <= high),
    )


def _logarithmic(low: float, high: float) -> bool:
    """Losses that fall over a decade show their end only on a logarithmic axis."""
    return low > 0 and high / low > 8


def _locator(low: float, high: float, logarithmic: bool) -> Locator:
    if not logarithmic:
        return MaxNLocator(nbins=4)
    return LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 60 else (1.0,))


def _thin(points: Sequence[Point]) -> list[Point]:
    """At most `POINTS` points, each the mean of its neighbours; the last is kept as it is."""
    width = math.ceil(len(points) / POINTS)
    if width == 1:
        return list(points)
    groups = [points[i : i + width] for i in range(0, len(points) - 1, width)]
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def _short(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"


# ---- PNG -----------------------------------------------------------------------------------------


def _png(found: Mapping[str, Mapping[str, Sequence[Point]]]) -> bytes:
    across = min(3, len(found))
    down = math.ceil(len(found) / across)
    figure = Figure(figsize=(3.6 * across, 2.5 * down), dpi=150, layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).ravel()
    for axis, (name, splits) in zip(axes, found.items(), strict=False):
        values = [y for points in splits.values() for _, y in points]
        for split, points in splits.items():
            colour, width = ("#0969da", 1.2) if split == "train" else ("#cf5c00", 1.8)
            axis.plot(*zip(*_thin(points), strict=True), color=colour, lw=width, label=split)
        low, high = min(values), max(values)
        if _logarithmic(low, high):
            axis.set_yscale("log")
            axis.minorticks_off()
        axis.yaxis.set_major_locator(_locator(low, high, _logarithmic(low, high)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set_title(name, fontsize=9, loc="left", fontweight="bold")
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7, frameon=False)
    for axis in axes[len(found) :]:
        axis.set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png")
    return out.getvalue()


def _drawn(name: str) -> bool:
    if "/" in name:  # details of another number
        return False
    return name == "loss" or name.endswith(("_ce", "_mse", "exact", "geneval"))


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
