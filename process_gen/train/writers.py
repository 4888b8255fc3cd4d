"""Where metrics go: the terminal, a JSON-lines file, TensorBoard, Weights & Biases."""

from __future__ import annotations

import functools
import html
import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from etils import epath

from process_gen.core.errors import ConfigError
from process_gen.train import terminal
from process_gen.train.metric_writer import MetricWriter, MultiWriter, by_split

_log = logging.getLogger("process_gen")


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
        remote = "://" in str(self._path)
        # Never half there: a process may be killed while it starts.
        first = self._path if remote else self._path.with_name(f"{self._path.name}.part")
        first.write_text("".join(line + "\n" for line in self._lines))
        if not remote:
            first.replace(self._path)
        self._waiting = b""  # what a full disk did not take
        # Unbuffered, so that it is known what was written.
        self._file = None if remote else open(self._path, "ab", buffering=0)  # noqa: SIM115

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds one line per split; a number that is not finite becomes null."""
        seconds = round(time.monotonic() - self._started, 3)
        for split, values in by_split(scalars).items():
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


class WandbWriter(MetricWriter):
    """A run of Weights & Biases, which a restart of the same working directory goes on with.

    `WANDB_MODE=offline` keeps everything on this machine, `wandb sync` sends it later.

    Args:
      workdir: of the run. Its last part names the run; `wandb_id.txt` in it keeps the run's id.
      project: of Weights & Biases.
    """

    def __init__(self, workdir: epath.PathLike, project: str) -> None:
        import wandb  # an extra

        self._wandb = wandb
        root = epath.Path(workdir)
        file = root / "wandb_id.txt"
        if not file.exists():
            root.mkdir(parents=True, exist_ok=True)
            file.write_text(uuid.uuid4().hex[:8])
        local = None if "://" in str(root) else str(root)
        self._run = wandb.init(
            project=project, name=root.name, id=file.read_text().strip(), resume="allow", dir=local
        )
        # An axis of our own: a restart repeats steps, which the service's counter does not allow.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Adds scalars."""
        self._run.log({"step": step, **{name: float(value) for name, value in scalars.items()}})

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Adds pictures; several of one name become a list."""
        if not images:
            return
        pictures = {
            name: [self._wandb.Image(one) for one in (image if image.ndim == 4 else image[None])]
            for name, image in images.items()
        }
        self._run.log({"step": step, **pictures})

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Adds texts, escaped."""
        if texts:
            pages = {name: self._wandb.Html(html.escape(text)) for name, text in texts.items()}
            self._run.log({"step": step, **pages})

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Adds the settings."""
        self._run.config.update(dict(hparams), allow_val_change=True)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()


def default_writer(workdir: epath.PathLike, restored_step: int, wandb: str = "") -> MetricWriter:
    """Terminal, `metrics.jsonl`, TensorBoard where tensorboardX is installed, and more on request.

    Args:
      workdir: of the run.
      restored_step: at which this process starts.
      wandb: project of Weights & Biases; "" for none.

    Raises:
      ConfigError: it is asked for and not installed.
    """
    root = epath.Path(workdir)
    found: list[MetricWriter] = [
        terminal.terminal_writer(),
        JsonlWriter(root / "metrics.jsonl", restored_step),
    ]
    try:
        found.append(TensorBoardWriter(root / "tensorboard", restored_step))
    except ImportError:
        print("tensorboardX is not installed: no TensorBoard files")
    if wandb:
        try:
            found.append(WandbWriter(root, wandb))
        except ImportError as error:
            raise ConfigError("--wandb needs the extra: pip install -e '.[wandb]'") from error
    return MultiWriter(found)
