"""Paint prompts with a trained model.

    python -m launch.sample --checkpoint=runs/tiny --prompt="a red circle left of a blue star"

--checkpoint=DIR      a run's working directory, or one checkpoint in it
--step=STEP           latest (default), best, or a number, of a working directory
--weights=ema|params  averaged weights (default) or the plain ones
--prompt=TEXT         what to paint; may be given several times
--prompts=FILE        instead: plain text, a prompt a line, or metadata JSONL
--mode=MODE           process (default) or one_shot; --one_shot is short for --mode=one_shot
--num=K               paintings a prompt (1)
--seed=S              the same seed gives the same pictures (0)
--size=HxW            pixels; by default the largest square that the model knows
--set=KEY=VALUE       a setting of the sampler: --set=guidance=2 --set=temperature=0
--out=DIR             folder (painted); --overwrite replaces an earlier run's files in it
--show=N              paintings on the report, from the first on (200)
--json                print one JSON object as the last line

Writes pictures, report.html and trajectories.jsonl, which docs/sampling.md describes. Ctrl-C keeps
what is painted. The modes think, edit and understand, and --image, come with BAGEL checkpoints.
"""

from __future__ import annotations

import ast
import collections
import contextlib
import dataclasses
import json
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

import process_gen
from launch import common
from process_gen.core.configs import SamplerConfig
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.settings import build
from process_gen.core.trajectory import MODES, Trajectory
from process_gen.evaluation.strokes import verdicts
from process_gen.report.curves import read_history
from process_gen.report.figures import filmstrip
from process_gen.report.html import write_report
from process_gen.sampling import painter as painter_lib
from process_gen.sampling import prompt_file, records
from process_gen.strokes import oracle
from process_gen.strokes.scene import SIZE
from process_gen.train.progress import duration

REPORT, SCORES, STRIPS = "report.html", "scores.json", "strips"
STRIP_COUNT = 16  # paintings that get a strip of their own
STRIP_WIDTH = 128  # pixels of the strip for one of its pictures, at least
FILES = (records.FINISHED, records.PART, REPORT, SCORES)
FOLDERS = (records.PICTURES, records.STEPS, STRIPS)
TRAIN = "python -m launch.train --config=configs/strokes_tiny.py --workdir=runs/tiny"


@dataclasses.dataclass
class Painted:
    """What came of a request.

    Attributes:
      trajectories: those that were asked to be kept, prompt-major.
      asked: paintings that were asked for.
      reasons: `finish_reason` -> count.
      refused: (index, reason) of prompts that could not be read.
      pictures, nfe: sums over all paintings.
      seconds: wall time, compilation included.
      stopped: whether it was interrupted.
    """

    asked: int
    trajectories: list[Trajectory] = dataclasses.field(default_factory=list)
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    pictures: int = 0
    nfe: int = 0
    seconds: float = 0.0
    stopped: bool = False

    def add(self, trajectory: Trajectory, keep: bool) -> None:
        """Counts one more."""
        reason = trajectory.finish_reason or "none"
        self.reasons[reason] += 1
        self.pictures += len(trajectory.images)
        if trajectory.sampled is not None:
            self.nfe += trajectory.sampled.nfe
            if reason == "refused" and trajectory.sampled.sample == 0:
                self.refused.append((trajectory.sampled.index, trajectory.text or ""))
        if keep:
            self.trajectories.append(trajectory)

    @property
    def count(self) -> int:
        """Paintings so far."""
        return self.reasons.total()

    def summary(self) -> dict[str, Any]:
        """Counts and rates, as a dict that `json.dumps` accepts."""
        return {
            "paintings": self.count,
            "finish_reasons": dict(self.reasons.most_common()),
            "pictures": self.pictures,
            "nfe": self.nfe,
            "seconds": round(self.seconds, 3),
            "pictures_per_second": round(self.pictures / max(self.seconds, 1e-9), 3),
        }


def paint(
    painter: painter_lib.Painter,
    prompts: Sequence[str | Mapping[str, Any]],
    out: epath.Path,
    *,
    mode: str,
    seed: int,
    num: int = 1,
    size: tuple[int, int] | None = None,
    settings: Mapping[str, Any],
    keep: int | None = None,
) -> Painted:
    """Paints into a folder, with a line of progress on stderr; Ctrl-C ends it in order.

    Args:
      painter: weights and settings.
      prompts: words or mappings with a "prompt".
      out: folder, see `make_room`.
      mode, seed, num, size, settings: see `sampling.painter.Painter.paint`.
      keep: how many of the paintings to hold in memory, from the first on; None is all.

    Raises:
      ConfigError: a setting is wrong; nothing was written.
    """
    done = Painted(len(prompts) * num)
    progress = _Progress(done)
    with _finish_on_interrupt() as interrupted:

        def stop() -> bool:
            progress.show()
            return interrupted()

        stream = painter.stream(
            prompts, mode=mode, seed=seed, num=num, size=size, stop=stop, **settings
        )
        clear(out)
        with records.Recorder(out) as recorder:
            for trajectory in stream:
                recorder.add(trajectory)
                assert trajectory.sampled is not None
                place = trajectory.sampled.index * num + trajectory.sampled.sample
                done.add(trajectory, keep is None or place < keep)
        done.stopped = interrupted()
    done.seconds = progress.finish()
    done.trajectories.sort(key=_place)
    done.refused.sort()
    return done


def _place(trajectory: Trajectory) -> tuple[int, int]:
    assert trajectory.sampled is not None
    return trajectory.sampled.index, trajectory.sampled.sample


class _Progress:
    """Paintings done, their rate and the time that is left: one line on a terminal, else a few."""

    def __init__(self, done: Painted):
        self._done, self._started = done, time.monotonic()
        self._live = sys.stderr.isatty()
        self._every = 0.2 if self._live else 10.0
        self._shown = self._started

    def show(self) -> None:
        """Prints when the last line is old enough."""
        if time.monotonic() - self._shown >= self._every:
            self._print("\r" if self._live else "\n")

    def finish(self) -> float:
        """Prints the last line; returns the seconds since the start."""
        self._print("\n")
        return time.monotonic() - self._started

    def _print(self, end: str) -> None:
        self._shown = time.monotonic()
        count, asked = self._done.count, self._done.asked
        passed = self._shown - self._started
        text = f"painted {count}/{asked}  {duration(passed)}"
        if count:
            left = (asked - count) * passed / count
            text += f"  {count / passed:.2f} paintings/s  ETA {duration(left)}"
        print(f"{text:<64}", end=end, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _finish_on_interrupt() -> Iterator[Callable[[], bool]]:
    """While inside, the first Ctrl-C only sets a flag, which the yielded function reads."""
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may handle signals
        return
    before = signal.getsignal(signal.SIGINT)

    def handle(number: int, _: Any) -> None:
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the output folder ---------------------------------------------------------------------------


def make_room(folder: str, overwrite: bool) -> epath.Path:
    """Makes sure that paintings may be written into a folder; writes and removes nothing.

    Files that are not this command's are no hindrance.

    Raises:
      ConfigError: it is no folder, or holds an earlier run's files and `overwrite` is false.
    """
    out = epath.Path(folder)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={folder} is a file, not a folder")
    found = next((name for name in (*FILES, *FOLDERS) if (out / name).exists()), None)
    if found and not overwrite:
        raise ConfigError(
            f"--out={folder} already holds {found}; choose another folder, or replace an earlier "
            "run's files with --overwrite"
        )
    return out


def clear(out: epath.Path) -> None:
    """Makes the folder, without the files that an earlier run wrote; others stay.

    Raises:
      ConfigError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out={out} cannot be made: {error.strerror or error}") from error
    for name in FILES:
        (out / name).unlink(missing_ok=True)
    for folder in FOLDERS:
        if (out / folder).is_dir():
            for file in (out / folder).iterdir():
                if records.PICTURE_NAME.fullmatch(file.name):
                    file.unlink()


def write_strips(out: epath.Path, trajectories: Sequence[Trajectory]) -> None:
    """Draws each painting as one PNG."""
    (out / STRIPS).mkdir(parents=True, exist_ok=True)
    for trajectory in trajectories:
        assert trajectory.sampled is not None
        widest = max((image.shape[1] for image in trajectory.images), default=STRIP_WIDTH)
        strip = filmstrip(
            trajectory, max(1, STRIP_WIDTH // widest), verdicts=strokes_verdicts(trajectory)
        )
        with (out / STRIPS / f"{records.stem(trajectory.sampled)}.png").open("wb") as file:
            strip.save(file, format="PNG")


def strokes_verdicts(trajectory: Trajectory) -> dict[str, bool] | None:
    """What the oracle says; None without a requirement that it knows, or in another size."""
    image = trajectory.final_image
    if image is not None and image.shape[:2] != (SIZE, SIZE):
        return None
    return verdicts(trajectory, oracle.judge)


# ---- flags ---------------------------------------------------------------------------------------


def define_painting_flags(values: flags.FlagValues) -> None:
    """Defines the flags that every command that paints has."""
    text, switch = flags.DEFINE_string, flags.DEFINE_boolean
    text("checkpoint", None, "working directory or checkpoint", flag_values=values)
    text("step", "latest", "which checkpoint", flag_values=values)
    text("prompts", None, "file of prompts", flag_values=values)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "which weights", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of prompts and noise", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE of the sampler", flag_values=values)
    switch("one_shot", False, "paint at once", flag_values=values)
    switch("overwrite", False, "replace an earlier run's files", flag_values=values)
    switch("json", False, "print a JSON object", flag_values=values)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    define_painting_flags(values)
    flags.DEFINE_multi_string("prompt", [], "what to paint", flag_values=values)
    flags.DEFINE_enum("mode", None, list(MODES), "how to paint", flag_values=values)
    flags.DEFINE_string("size", None, "HxW in pixels", flag_values=values)
    flags.DEFINE_string("image", None, "picture to edit or understand", flag_values=values)
    flags.DEFINE_integer("num", 1, "paintings a prompt", 1, flag_values=values)
    flags.DEFINE_integer("show", 200, "paintings on the report", 0, flag_values=values)
    flags.DEFINE_string("out", "painted", "folder to write", flag_values=values)


def load_painter(values: flags.FlagValues) -> painter_lib.Painter:
    """The painter that the flags name.

    Raises:
      ConfigError: there is no `--checkpoint`.
      CheckpointError: nothing usable is there.
    """
    if not values.checkpoint:
        raise ConfigError(f"--checkpoint=DIR is missing; train a painter with: {TRAIN}")
    step = int(values.step) if values.step.isdecimal() else values.step
    if isinstance(step, str) and step not in ("latest", "best"):
        raise ConfigError(f"--step is latest, best or a number, got {step!r}")
    common.enable_compilation_cache()
    return process_gen.load(values.checkpoint, weights=values.weights, step=step)


def sampler_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Settings out of KEY=VALUE texts; a value is a Python literal, or else a word.

    Raises:
      ConfigError: a text without "=".
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--set={pair} is not KEY=VALUE, for example --set=guidance=2")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found[key] = value
    return found


def _mode(values: flags.FlagValues) -> str:
    mode = values.mode or ("one_shot" if values.one_shot else "process")
    if values.one_shot and mode != "one_shot":
        raise ConfigError(f"--one_shot and --mode={mode} contradict each other")
    if mode not in painter_lib.MODES:
        raise ConfigError(
            f"--mode={mode}: the checkpoint's model does not serve it yet, only "
            f"{' and '.join(painter_lib.MODES)}; it comes with BAGEL checkpoints"
        )
    if values.image:
        raise ConfigError(
            "--image: the checkpoint's model paints from prompts only; editing and understanding "
            "come with BAGEL checkpoints"
        )
    return mode


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None:
        raise ConfigError(f"--size is HxW in pixels, for example 32x32; got {text!r}")
    return int(match[1]), int(match[2])


def provenance(
    painter: painter_lib.Painter, *, mode: str, seed: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Which weights painted, and how: nested plain values, for reports and `--json`.

    Raises:
      ConfigError: a setting is unknown or out of range.
    """
    own = dataclasses.asdict(painter.config.sampler)
    sampler = dataclasses.asdict(build(SamplerConfig, {**own, **settings}, "sampler"))
    return {
        "checkpoint": painter.meta.get("path"),
        "step": painter.meta.get("step"),
        "weights": painter.meta.get("weights"),
        "mode": mode,
        "seed": seed,
        "dtype": painter.config.model.dtype,
        "device": jax.devices()[0].device_kind,
        "sampler": sampler,
    }


def as_json(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`provenance` as the commands print it: the sampler's part is called `settings`."""
    rest = {name: value for name, value in made_by.items() if name != "sampler"}
    return {**rest, "settings": made_by["sampler"]}


def history(painter: painter_lib.Painter) -> list[dict[str, Any]]:
    """The training history beside the checkpoint; empty where there is none that can be read."""
    path = painter.meta.get("path")
    try:
        return read_history(epath.Path(path).parent.parent / "metrics.jsonl") if path else []
    except DataError:
        return []


# ---- the command ---------------------------------------------------------------------------------


def main(values: flags.FlagValues) -> None:
    """Reads flags and prompts, paints, writes the report."""
    mode, size = _mode(values), _size(values.size)
    settings = sampler_settings(values["set"].value or ())
    if bool(values.prompt) == bool(values.prompts):
        raise ConfigError("one of --prompt=TEXT and --prompts=FILE is needed; --help shows how")
    found = prompt_file.PromptFile(tuple(values.prompt), (), 0)
    if values.prompts:
        found = prompt_file.read_prompts(values.prompts)
        blank = f" ({found.blank} blank lines skipped)" if found.blank else ""
        print(f"{len(found.items)} prompts in {values.prompts}{blank}")
    out = make_room(common.required(values, "out"), values.overwrite)
    painter = load_painter(values)
    made_by = provenance(painter, mode=mode, seed=values.seed, settings=settings)
    print(f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights")

    done = paint(
        painter,
        found.items,
        out,
        mode=mode,
        seed=values.seed,
        num=values.num,
        size=size,
        settings=settings,
        keep=max(values.show, STRIP_COUNT),
    )
    shown = done.trajectories[: values.show]
    write_strips(out, done.trajectories[:STRIP_COUNT])
    write_report(
        out / REPORT,
        shown,
        verdicts=[strokes_verdicts(t) for t in shown],
        settings={**made_by, "num": values.num, "size": values.size or "the model's"},
        curves=history(painter),
    )
    _tell(done, out, shown)
    if values.json:
        summary = {
            **done.summary(),
            "prompts": len(found.items),
            "blank_lines": found.blank,
            "num": values.num,
            **as_json(made_by),
            "out": {
                "folder": str(out),
                "trajectories": str(out / records.FINISHED),
                "report": str(out / REPORT),
            },
        }
        print(json.dumps(summary))
    if done.stopped:
        raise KeyboardInterrupt


def _tell(done: Painted, out: epath.Path, shown: Sequence[Trajectory]) -> None:
    for index, reason in done.refused[:10]:
        print(f"prompt {index} was refused: {reason}")
    if len(done.refused) > 10:
        print(f"... and {len(done.refused) - 10} more")
    totals = done.summary()
    ends = ", ".join(f"{n} {reason}" for reason, n in totals["finish_reasons"].items())
    rate = f"{totals['pictures_per_second']:.1f} a second"
    print(f"{ends or 'nothing painted'}; {done.pictures} pictures in {done.seconds:.1f} s, {rate}")
    if done.count < done.asked:
        print(f"{done.asked - done.count} of {done.asked} paintings were not begun")
    first = f" (the first {len(shown)} paintings)" if len(shown) < done.count else ""
    print(f"report: {out / REPORT}{first}")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
