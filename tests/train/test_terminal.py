"""Tests of what a run shows in the terminal."""

from __future__ import annotations

import io
import sys

import pytest
from rich.console import Console

from process_gen.train import terminal

SCALARS = {
    "train/loss": 1.25,
    "train/plan_ce": 0.5,
    "train/sketch_mse": 0.125,
    "train/steps_per_second": 6.5,
    "train/eta_seconds": 3725.0,
    "train/total_steps": 400.0,
    "train/learning_rate": 0.006,
    "train/grad_norm": 0.7,
    "train/grad_norm/und": 0.6,
    "train/fill/text": 0.91,
    "train/skipped_too_long": 3.0,
}


@pytest.fixture
def screen():
    return Console(file=io.StringIO(), force_terminal=True, width=100, height=40)


def shown(console: Console, writer: terminal.TerminalWriter) -> str:
    with console.capture() as capture:
        console.print(writer.view())
    return capture.get()


def test_rate_time_left_and_every_stage(screen):
    writer = terminal.TerminalWriter(screen)
    writer.write_scalars(100, SCALARS)
    writer.write_scalars(100, {"eval/loss": 1.5, "eval/plan_ce": 0.75})
    text = shown(screen, writer)
    for word in ("step 100/400", "25.0 %", "6.50 steps/s", "ETA 1h02m", "learning rate 0.006"):
        assert word in text
    lines = [line.split() for line in text.splitlines()]
    assert ["plan_ce", "0.5", "0.75"] in lines and ["sketch_mse", "0.125"] in lines
    assert "packs full: text 91 %" in text and "left out: 3" in text
    assert "inspect_ce" not in text and "grad_norm/und" not in text
    writer.close()


def test_validation_stays_above_the_view(screen):
    writer = terminal.TerminalWriter(screen)
    writer.write_scalars(100, SCALARS)
    writer.write_scalars(100, {"eval/loss": 1.5})
    writer.write_scalars(110, SCALARS | {"train/loss": 1.125})
    writer.write_texts(110, {"note": "[bold]as it is[/bold]"})
    writer.close()
    written = screen.file.getvalue()
    assert "eval  100  loss 1.5" in written and "note 110: [bold]as it is[/bold]" in written
    assert written.rindex("1.125") > written.index("eval  100")
    assert written.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize("is_terminal", [True, False])
def test_plain_lines_where_there_is_no_terminal(monkeypatch, is_terminal):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    writer = terminal.terminal_writer()
    writer.write_scalars(100, SCALARS)
    writer.close()
    text = stream.getvalue()
    if is_terminal:
        assert "step 100/400" in text and "\x1b[" in text
    else:
        assert text == (
            "train 100/400  6.50 steps/s  ETA 1h02m  loss 1.25  plan_ce 0.5  sketch_mse 0.125  "
            "grad_norm 0.7  learning_rate 0.006  skipped_too_long 3\n"
        )
