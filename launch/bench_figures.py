"""What the suites of `launch.benchmark` measured, as pictures for people."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from process_gen.core.errors import ConfigError


def _front(found: Mapping[str, Any]) -> Figure:
    """Accuracy with its interval against velocity evaluations, a line a family; one axis a mode."""
    modes = dict.fromkeys(row["mode"] for row in found["rows"])
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots(1, len(modes), squeeze=False)[0]
    colors = colormaps["tab20"]
    for axis, mode in zip(axes, modes, strict=True):
        families: dict[str, list[Mapping[str, Any]]] = {}
        for row in found["rows"]:
            if row["mode"] == mode:
                families.setdefault(row["family"], []).append(row)
        for place, (family, rows) in enumerate(families.items()):
            rows = sorted(rows, key=lambda row: row["evaluations_a_painting"])
            rates = [100 * row["exact"]["rate"] for row in rows]
            below = [y - 100 * row["exact"]["low"] for y, row in zip(rates, rows, strict=True)]
            above = [100 * row["exact"]["high"] - y for y, row in zip(rates, rows, strict=True)]
            # Most families have members of equal cost, which would lie on top of each other.
            aside = 1.012 ** (place - len(families) / 2)
            x = [aside * row["evaluations_a_painting"] for row in rows]
            color = colors(place % colors.N)
            style = {"fmt": "o-", "capsize": 2, "lw": 1, "ms": 4, "color": color}
            axis.errorbar(x, rates, (below, above), label=family, **style)
        axis.set_xscale("log")
        ticks = sorted({round(row["evaluations_a_painting"]) for row in sum(families.values(), [])})
        axis.set_xticks(ticks, [str(n) for n in ticks])
        axis.set_xticks([], minor=True)
        axis.set(title=mode, xlabel="velocity evaluations a painting", ylabel="exact, %")
        axis.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


def _line(axis: Axes, x: list[float], y: list[float], title: str, across: str, up: str) -> None:
    axis.plot(x, y, "o-", lw=1, ms=4)
    # The straight line through 0 and the last point: what is linear lies on it.
    axis.plot([0, x[-1]], [0, y[-1]], ":", lw=1, color="grey")
    axis.set(title=title, xlabel=across, ylabel=up, xlim=(0, None), ylim=(0, None))


def _sample(found: Mapping[str, Any]) -> Figure:
    """Seconds and memory against pictures, seconds against the batch."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    (time, cache), (denoise, read) = figure.subplots(2, 2)
    rows = found["by_pictures"]
    pictures = [float(row["pictures"]) for row in rows]
    _line(time, pictures, [row["ms"] for row in rows], "a batch, text included", "pictures", "ms")
    held = [row["cache_mb"] for row in rows]
    _line(cache, pictures, held, "keys and values of the batch", "pictures", "MB")
    batches = [float(row["batch"]) for row in found["pieces"]]
    for axis, name in ((denoise, "guided"), (read, "re-encode")):
        spent = [row[name]["ms_a_pass"] for row in found["pieces"]]
        _line(axis, batches, spent, f"{name}, one pass", "batch", "ms")
    return figure


def _train(found: Mapping[str, Any]) -> Figure:
    """Seconds and memory against the length of packs, their number falling in step."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    time, memory = figure.subplots(1, 2)
    rows = found["by_pack_length"]
    tokens = [float(sum(row["tokens"].values())) for row in rows]
    steps = [row["step"]["ms"] for row in rows]
    _line(time, tokens, steps, "a training step", "tokens of a pack", "ms")
    held = [row["memory"]["temporary_mb"] for row in rows]
    _line(memory, tokens, held, "temporaries", "tokens of a pack", "MB")
    return figure


FIGURES: Mapping[str, Callable[[Mapping[str, Any]], Figure]] = {
    "steps": _front,
    "sample": _sample,
    "train": _train,
}


def check(suite: str) -> None:
    """Makes sure that a suite has a figure, before it is measured.

    Raises:
      ConfigError: nothing is drawn of it.
    """
    if suite not in FIGURES:
        raise ConfigError(f"--figure: suite {suite} has none; {', '.join(FIGURES)} have")


def write(found: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws the numbers of a suite as PNG.

    Raises:
      ConfigError: nothing is drawn of this suite.
    """
    check(found["suite"])
    with epath.Path(path).open("wb") as file:
        FIGURES[found["suite"]](found).savefig(file, format="png", dpi=110)
