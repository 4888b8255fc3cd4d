"""A run in the terminal: one view that is renewed in place, or plain lines where there is none."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TextIO

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from process_gen.train import progress
from process_gen.train.metric_writer import MetricWriter, by_split


def terminal_writer() -> MetricWriter:
    """A `TerminalWriter` where standard output is a terminal; `LoggingWriter` into files, pipes."""
    console = Console(highlight=False)
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        return TerminalWriter(console)
    return LoggingWriter()


class LoggingWriter(MetricWriter):
    """One line of plain text per call and split, so that a saved log reads well."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Prints one line per split."""
        for split, values in by_split(scalars).items():
            self._print(progress.line(step, split, values))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Prints each text after its name."""
        for name, text in texts.items():
            self._print(f"{name} {step}: {text}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class TerminalWriter(MetricWriter):
    """Progress, rate, time left and the newest losses of every stage, beside the held-out ones.

    Lines of validation and of hooks stay readable above the view, and so does what else is printed.

    Args:
      console: where to draw.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._newest: dict[str, dict[str, float]] = {}
        self._step = 0
        self._live: Live | None = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the newest numbers; of a split other than "train" also as a line that stays."""
        self._step = step
        for split, values in by_split(scalars).items():
            self._newest.setdefault(split, {}).update(values)
            if split == "train":
                self._newest[split] = dict(values)  # a stage that did not occur has no loss
            else:
                self._console.print(Text(progress.line(step, split, values)), soft_wrap=True)
        if self._live is None and "train" in self._newest:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        if self._live is not None:
            self._live.update(self.view(), refresh=True)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Prints each text after its name."""
        for name, text in texts.items():
            self._console.print(Text(f"{name} {step}: {text}"), soft_wrap=True)

    def close(self) -> None:
        """Leaves the last view where it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def view(self) -> RenderableType:
        """What is shown now."""
        train = self._newest.get("train", {})
        total = max(train.get("total_steps", 0.0), 1.0)
        head = Table.grid(padding=(0, 2))
        head.add_row(
            Text(f"step {self._step}/{total:.0f}"),
            ProgressBar(total, min(self._step, total), width=30),
            Text(f"{100 * min(self._step / total, 1.0):.1f} %"),
            Text(f"{train.get('steps_per_second', 0.0):.2f} steps/s"),
            Text(f"ETA {progress.duration(train.get('eta_seconds', 0.0))}"),
        )
        return Group(head, self._losses(), Text(_rest(train), style="dim"))

    def _losses(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("loss")
        splits = [split for split in ("train", "eval") if split in self._newest]
        for split in splits:
            table.add_column(split, justify="right", min_width=9)
        for name in progress.LOSSES:
            cells = [self._newest[split].get(name) for split in splits]
            if any(cell is not None for cell in cells):
                table.add_row(name, *("" if cell is None else f"{cell:.4g}" for cell in cells))
        return table


def _rest(train: Mapping[str, float]) -> str:
    """How the optimiser and the packs are doing, and what was left out."""
    parts = [
        f"{words} {train[name]:.3g}"
        for name, words in (
            ("learning_rate", "learning rate"),
            ("grad_norm", "gradient norm"),
            ("update_norm", "update norm"),
            ("data/epoch", "epoch"),
        )
        if name in train
    ]
    fill = [
        f"{name} {100 * train[f'fill/{name}']:.0f} %"
        for name in ("text", "und", "gen")
        if f"fill/{name}" in train
    ]
    skipped = sum(value for name, value in train.items() if name.startswith("skipped_"))
    if fill:
        parts.append(f"packs full: {', '.join(fill)}")
    if skipped:
        parts.append(f"left out: {skipped:.0f}")
    return "  ".join(parts)
