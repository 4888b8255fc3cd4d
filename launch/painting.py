"""What the commands that paint share: their flags, painting into a folder, and what reports say."""

from __future__ import annotations

import ast
import collections
import dataclasses
import hashlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

import process_gen
from launch import bench_timing, common
from process_gen.checkpoint import shipped
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.interrupts import finish_on_interrupt
from process_gen.core.trajectory import MODES, Image, Trajectory
from process_gen.evaluation import judged
from process_gen.report.curves import read_history
from process_gen.sampling import interleaved, records
from process_gen.sampling.painter import Painter, Prompt
from process_gen.sampling.studio import Usage
from process_gen.train.progress import duration

REPORT, SCORES, STRIPS = "report.html", "scores.json", "strips"
RUN = "run.json"  # what was asked for: written before the first picture
LINES = (records.FINISHED, records.EARLIER, records.PART)
FILES = (*LINES, REPORT, SCORES, RUN, judged.FILE)
FOLDERS = (records.PICTURES, records.STEPS, STRIPS)
TRAIN = "python -m launch.train --config=configs/strokes_tiny.py --workdir=runs/tiny"


@dataclasses.dataclass(frozen=True)
class Request:
    """What is to be painted, and how; see `sampling.painter.Painter.paint`.

    Attributes:
      prompts: words, mappings with a "prompt", or paintings to go on with.
      mode, seed, settings, num, size, images: as there.
    """

    prompts: Sequence[Prompt]
    mode: str
    seed: int
    settings: Mapping[str, Any]
    num: int = 1
    size: tuple[int, int] | None = None
    images: Sequence[Image] = ()


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
      stopped: what to raise where it was interrupted.
      before: of `count` and `pictures`, what an earlier run painted.
      usage: how full the calls to the device were.
      compilations: programs that were compiled, or read from the cache on disk.
    """

    asked: int
    trajectories: list[Trajectory] = dataclasses.field(default_factory=list)
    reasons: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    refused: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    pictures: int = 0
    nfe: int = 0
    seconds: float = 0.0
    stopped: KeyboardInterrupt | None = None
    before: tuple[int, int] = (0, 0)
    usage: Usage = dataclasses.field(default_factory=Usage)
    compilations: int = 0

    def add(self, record: Mapping[str, Any], trajectory: Trajectory | None) -> None:
        """Counts one more; its line in the records, and the painting where it is kept."""
        reason = record["finish_reason"] or "none"
        self.reasons[reason] += 1
        self.pictures += records.pictures(record)
        self.nfe += record["nfe"]
        if reason == "refused" and record["sample"] == 0:
            self.refused.append((record["index"], record["text"] or ""))
        if trajectory is not None:
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
            "pictures_per_second": round(
                (self.pictures - self.before[1]) / max(self.seconds, 1e-9), 3
            ),
            "compilations": self.compilations,
            **self.usage.summary(),
        }


def paint(
    painter: Painter,
    request: Request,
    out: epath.Path,
    *,
    made_by: Mapping[str, Any],
    keep: int | None = None,
    resume: bool = False,
) -> Painted:
    """Paints into a folder, with a line of progress on stderr; Ctrl-C ends it in order.

    Args:
      painter: weights and settings.
      request: what is painted.
      out: folder, see `make_room`.
      made_by: see `provenance`; kept beside the paintings.
      keep: how many of the paintings to hold in memory, from the first on; None is all.
      resume: leave what an earlier run painted, but for what its interrupt cut off.

    Raises:
      ConfigError: a setting is wrong, or the run to go on with painted something else; nothing was
        written.
    """
    asked = as_json(made_by)
    if resume:
        check_same(out, asked)
    num = request.num
    done = Painted(len(request.prompts) * num)
    progress = _Progress(done)
    with bench_timing.compilations() as compilations, finish_on_interrupt() as interrupted:

        def stop() -> bool:
            progress.show()
            return interrupted() is not None

        def kept(record: Mapping[str, Any]) -> bool:
            return keep is None or record["index"] * num + record["sample"] < keep

        before = records.unfinished(out) if resume else []
        skip = {(record["index"], record["sample"]) for record in before}
        stream = painter.stream(
            request.prompts,
            mode=request.mode,
            seed=request.seed,
            num=num,
            size=request.size,
            images=request.images,
            stop=stop,
            usage=done.usage,
            **({"skip": skip} if skip else {}),
            **request.settings,
        )
        if not resume:
            clear(out)
        out.mkdir(parents=True, exist_ok=True)
        new = out / f"{RUN}.tmp"
        new.write_text(json.dumps(asked, indent=1) + "\n")
        new.replace(out / RUN)
        for record in before:
            done.add(record, records.load(record, out) if kept(record) else None)
        done.before = (done.count, done.pictures)
        with records.Recorder(out, before) as recorder:
            for trajectory in stream:
                record = recorder.add(trajectory)
                done.add(record, trajectory if kept(record) else None)
        done.stopped = interrupted()
    done.compilations = compilations.count
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
        if fresh := count - self._done.before[0]:
            left = (asked - count) * passed / fresh
            text += f"  {fresh / passed:.2f} paintings/s  ETA {duration(left)}"
        print(f"{text:<64}", end=end, file=sys.stderr, flush=True)


# ---- the output folder ---------------------------------------------------------------------------


def make_room(folder: str, overwrite: bool, resume: bool = False) -> epath.Path:
    """Makes sure that paintings may be written into a folder; writes and removes nothing.

    Files that are not this command's are no hindrance.

    Raises:
      ConfigError: it is no folder, or holds an earlier run's files and neither `overwrite` nor
        `resume` is true.
    """
    if overwrite and resume:
        raise ConfigError("--overwrite and --resume contradict each other")
    out = epath.Path(folder)
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out={folder} is a file, not a folder")
    found = next((name for name in (*FILES, *FOLDERS) if (out / name).exists()), None)
    if found and not overwrite and not resume:
        raise ConfigError(
            f"--out={folder} already holds {found}; choose another folder, go on with an "
            "interrupted run with --resume, or replace an earlier run's files with --overwrite"
        )
    return out


def check_same(out: epath.Path, asked: Mapping[str, Any]) -> None:
    """Makes sure that the run in a folder is the one that is to go on; a new folder is fine.

    Raises:
      ConfigError: it painted with other weights, prompts or settings, or cannot be read.
    """
    if not (out / RUN).exists():
        if any((out / name).exists() for name in LINES):
            raise ConfigError(f"--resume: {out} has no {RUN}, so nobody knows what it was to paint")
        return
    try:
        before = json.loads((out / RUN).read_text())
    except ValueError as error:
        raise ConfigError(f"--resume: {out / RUN} cannot be read ({error})") from error
    now = json.loads(json.dumps(asked))
    for name in ("checkpoint_hash", "mode", "seed", "num", "size", "prompts_hash", "settings"):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"--resume: the run in {out} has another {name} ({_short(before.get(name))}, now "
                f"{_short(now.get(name))}); use its settings, or another --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


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


# ---- flags ---------------------------------------------------------------------------------------


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that every command that paints has."""
    text, switch = flags.DEFINE_string, flags.DEFINE_boolean
    text("checkpoint", None, "working directory or checkpoint", flag_values=values)
    text("step", "latest", "which checkpoint", flag_values=values)
    text("prompts", None, "file of prompts", flag_values=values)
    flags.DEFINE_enum("mode", None, list(MODES), "how to paint", flag_values=values)
    text("size", None, "HxW in pixels", flag_values=values)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "which weights", flag_values=values)
    flags.DEFINE_integer("seed", 0, "of prompts and noise", 0, 2**32 - 1, flag_values=values)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE of the sampler", flag_values=values)
    switch("one_shot", False, "paint at once", flag_values=values)
    switch("overwrite", False, "replace an earlier run's files", flag_values=values)
    switch("resume", False, "go on with an interrupted run", flag_values=values)
    switch("json", False, "print a JSON object", flag_values=values)


def load_painter(values: flags.FlagValues) -> Painter:
    """The painter that the flags name.

    Raises:
      ConfigError: there is no `--checkpoint`, and no painter came with the package.
      CheckpointError: nothing usable is there.
    """
    if not values.checkpoint and not shipped.is_painter(shipped.DEFAULT):
        raise ConfigError(f"--checkpoint=DIR is missing; train a painter with: {TRAIN}")
    step = int(values.step) if values.step.isdecimal() else values.step
    if isinstance(step, str) and step not in ("latest", "best"):
        raise ConfigError(f"--step is latest, best or a number, got {step!r}")
    common.enable_compilation_cache()
    return process_gen.load(values.checkpoint or "", weights=values.weights, step=step)


def read_request(
    values: flags.FlagValues,
    prompts: Sequence[Prompt],
    *,
    num: int = 1,
    size: tuple[int, int] | None = None,
    images: Sequence[Image] = (),
) -> Request:
    """What the flags ask for.

    Args:
      values: flags of the command.
      prompts, num, images: of the request.
      size: where there is no `--size`; None is the model's.

    Raises:
      ConfigError: flags contradict each other, or cannot be read.
    """
    return Request(
        prompts=prompts,
        mode=read_mode(values),
        seed=values.seed,
        settings=sampler_settings(values["set"].value or ()),
        num=num,
        size=read_size(values.size) or size,
        images=images,
    )


def read_mode(values: flags.FlagValues) -> str:
    """`--mode`, or what `--one_shot` says.

    Raises:
      ConfigError: they contradict each other.
    """
    mode = values.mode or ("one_shot" if values.one_shot else "process")
    if values.one_shot and mode != "one_shot":
        raise ConfigError(f"--one_shot and --mode={mode} contradict each other")
    return mode


def read_size(text: str | None) -> tuple[int, int] | None:
    """`--size`; None where it is not given.

    Raises:
      ConfigError: not HxW.
    """
    if text is None:
        return None
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    if match is None:
        raise ConfigError(f"--size is HxW in pixels, for example 32x32; got {text!r}")
    return int(match[1]), int(match[2])


def sampler_settings(pairs: Sequence[str], flag: str = "set") -> dict[str, Any]:
    """Settings out of KEY=VALUE texts; a value is a Python literal, or else a word.

    Raises:
      ConfigError: a text without "=".
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--{flag}={pair} is not KEY=VALUE, for example --set=guidance=2")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            found[key] = value
    return found


# ---- what reports say ----------------------------------------------------------------------------


def provenance(painter: Painter, request: Request, command: str) -> dict[str, Any]:
    """Which weights paint what, and how: nested plain values, for reports and `--json`.

    Raises:
      ConfigError: a setting is unknown or out of range.
    """
    size = request.size
    sampler = interleaved.sampler_settings(
        painter.config.sampler, request.mode, bool(request.images), request.settings
    )
    return {
        "checkpoint": painter.meta.get("path"),
        "checkpoint_hash": painter.fingerprint,
        "step": painter.meta.get("step"),
        "weights": painter.meta.get("weights"),
        "mode": request.mode,
        "seed": request.seed,
        "num": request.num,
        "size": f"{size[0]}x{size[1]}" if size else "the model's",
        "prompts_hash": hash_of(request.prompts, request.images),
        "dtype": painter.config.model.dtype,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "commit": common.git_hash(),
        "command": command,
        "sampler": dataclasses.asdict(sampler),
    }


def hash_of(prompts: Sequence[Any], images: Sequence[Image] = ()) -> str:
    """16 hex digits that name what is painted, metadata and given pictures included."""
    words = [p.prompt if isinstance(p, Trajectory) else p for p in prompts]
    words += [hashlib.sha256(x.tobytes()).hexdigest() for x in images]
    text = json.dumps(words, sort_keys=True, default=dict)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def as_json(made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`provenance` as the commands print it: the sampler's part is called `settings`."""
    return {("settings" if name == "sampler" else name): v for name, v in made_by.items()}


def history(painter: Painter) -> list[dict[str, Any]]:
    """The training history beside the checkpoint; empty where there is none that can be read."""
    path = painter.meta.get("path")
    try:
        return read_history(epath.Path(path).parent.parent / "metrics.jsonl") if path else []
    except DataError:
        return []
