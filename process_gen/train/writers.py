"""Where metrics go: the terminal, a JSON-lines file, TensorBoard.

The classes have the methods of clu's `MetricWriter` that a run uses, so that either can stand in
for the other; clu's own module imports TensorFlow, these do not. A scalar's name is "split/name".
"""

from __future__ import annotations

import functools
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

import numpy as np
from etils import epath

from process_gen.train import progress

_log = logging.getLogger("process_gen")


class MetricWriter:
    """Takes everything and keeps nothing; the others override what they can show."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [N, H, W, 3] or [H, W, 3]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes short texts."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings, once."""

    def flush(self) -> None:
        """Makes everything written so far visible."""

    def close(self) -> None:
        """Flushes, and frees what is open."""


class LoggingWriter(MetricWriter):
    """One line of plain text per call and split, so that a saved log reads well."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Prints one line per split."""
        for split, values in _by_split(scalars).items():
            self._print(progress.line(step, split, values))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Prints each text after its name."""
        for name, text in texts.items():
            self._print(f"{name} {step}: {text}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream or sys.stdout, flush=True)


class JsonlWriter(MetricWriter):
    """`metrics.jsonl`: one object per call and split, `{"step", "split", "seconds", ...}`.

    `seconds` is training time; it goes on where a resumed run stopped.

    Args:
      path: of the file, local or remote (a remote file is written anew at each flush).
      restored_step: step at which this process starts; lines beyond it, which a later part of the
        run wrote before it was cut off, are dropped.
    """

    def __init__(self, path: epath.PathLike, restored_step: int = 0) -> None:
        self._path = epath.Path(path)
        self._lines: list[str] = []
        seconds = 0.0
        if restored_step and self._path.exists():
            for text in self._path.read_text().splitlines():
                try:
                    entry = json.loads(text)
                except json.JSONDecodeError:  # the line that was being written
                    continue
                if entry["step"] <= restored_step:
                    self._lines.append(text)
                    seconds = max(seconds, entry["seconds"])
        self._started = time.monotonic() - seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(line + "\n" for line in self._lines))
        remote = "://" in str(self._path)
        self._waiting = b""  # what a full disk did not take
        # Unbuffered, so that it is known what was written.
        self._file = None if remote else open(self._path, "ab", buffering=0)  # noqa: SIM115

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line per split; a number that is not finite becomes null."""
        seconds = round(time.monotonic() - self._started, 3)
        for split, values in _by_split(scalars).items():
            numbers = {k: float(v) if np.isfinite(v) else None for k, v in values.items()}
            entry = {"step": step, "split": split, "seconds": seconds, **numbers}
            text = json.dumps(entry)
            if self._file is None:
                self._lines.append(text)
            else:
                self._waiting += f"{text}\n".encode()

    def flush(self) -> None:
        """Makes everything written so far visible.

        What a local disk does not take, because it is full, waits for the next call.
        """
        if self._file is None:
            self._path.write_text("".join(line + "\n" for line in self._lines))
            return
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            _log.warning("%s could not be written (%s); its lines wait", self._path, error)

    def close(self) -> None:
        """Flushes and closes the file."""
        self.flush()
        if self._file is not None:
            self._file.close()


class TensorBoardWriter(MetricWriter):
    """TensorBoard event files, through tensorboardX.

    Args:
      logdir: folder of the event files.
      restored_step: what was written beyond it is hidden.
    """

    def __init__(self, logdir: epath.PathLike, restored_step: int = 0) -> None:
        import tensorboardX  # an extra: runs without it use the other writers

        purge = restored_step + 1 if restored_step else None
        self._writer = tensorboardX.SummaryWriter(str(logdir), purge_step=purge)
        self._dead = False

    def _try(self, call: Callable[[], Any]) -> None:
        """Writes, unless that failed once, such as for a full disk.

        tensorboardX's thread ends with its first error. What it is given then waits in a short
        queue, and soon the run would wait as well.
        """
        files: Any = self._writer.file_writer
        worker = files.event_writer._worker
        try:
            if worker is not None and not worker.is_alive():
                raise OSError("its thread has ended")
            if not self._dead:
                call()
        except OSError as error:
            if not self._dead:
                _log.warning("TensorBoard files cannot be written any more (%s)", error)
            self._dead = True

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars."""
        for name, value in scalars.items():
            self._try(functools.partial(self._writer.add_scalar, name, float(value), step))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures, several of one name side by side."""
        for name, image in images.items():
            batch = image if image.ndim == 4 else image[None]
            add = functools.partial(self._writer.add_images, dataformats="NHWC")
            self._try(functools.partial(add, name, batch, step))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts, which TensorBoard reads as Markdown."""
        for name, text in texts.items():
            self._try(functools.partial(self._writer.add_text, name, text, step))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Adds the settings as one JSON text."""
        text = json.dumps(hparams, indent=2, default=str)
        self._try(functools.partial(self._writer.add_text, "config", f"```json\n{text}\n```", 0))

    def flush(self) -> None:
        """Makes everything written so far visible."""
        self._try(self._writer.flush)

    def close(self) -> None:
        """Closes the file."""
        self._try(self._writer.close)


class MultiWriter(MetricWriter):
    """Passes everything on to several writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers to all."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures to all."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts to all."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings to all."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Flushes all."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


def default_writer(workdir: epath.PathLike, restored_step: int) -> MetricWriter:
    """Terminal, `metrics.jsonl`, and TensorBoard where tensorboardX is installed."""
    root = epath.Path(workdir)
    writers: list[MetricWriter] = [
        LoggingWriter(),
        JsonlWriter(root / "metrics.jsonl", restored_step),
    ]
    try:
        writers.append(TensorBoardWriter(root / "tensorboard", restored_step))
    except ImportError:
        print("tensorboardX is not installed: no TensorBoard files")
    return MultiWriter(writers)


def _by_split(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Scalars grouped by what stands before the first slash of their names."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in scalars.items():
        split, _, rest = name.partition("/")
        if not rest:
            split, rest = "", name
        groups.setdefault(split, {})[rest] = value
    return groups
