"""Write a trained painter as two small files, for the package or to hand on.

    python -m launch.ship_painter --checkpoint=runs/tiny --scores=runs/tiny/eval/scores.json \\
        --out=painter

--checkpoint=DIR      a run's working directory, or one checkpoint in it
--step=STEP           latest (default), best, or a number, of a working directory
--weights=ema|params  averaged weights (default) or the plain ones
--scores=FILE         what launch.evaluate wrote, for the card; may be given several times
--recipe=FILE         text that says how the weights were made, for the card
--set=KEY=VALUE       a setting of the sampler that becomes the painter's default
--out=DIR             folder; launch.sample --checkpoint=DIR paints with it

The weights are stored in bfloat16; score the result itself, not the checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from absl import flags

from launch import common, painting
from process_gen.checkpoint import shipped
from process_gen.core.configs import SamplerConfig, SourceConfig
from process_gen.core.errors import ConfigError
from process_gen.core.settings import build
from process_gen.data.tokenizer import COMMITTED
from process_gen.models import functional


def _scores(files: list[str]) -> dict[str, Any]:
    """Headline numbers of score files by suite and mode."""
    found = {}
    for name in files:
        try:
            scores = json.loads(Path(name).read_text())
            suite, mode = scores["suite"], scores["mode"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--scores={name} is not what launch.evaluate writes: {error}") from (
                error
            )
        # Paths of the machine that painted would mean nothing elsewhere.
        found[f"{suite}, {mode}"] = {
            k: v for k, v in scores.items() if k not in ("checkpoint", "command")
        }
    return found


def _recipe(file: str | None) -> str:
    try:
        return Path(file).read_text() if file else ""
    except (OSError, ValueError) as error:
        raise ConfigError(f"--recipe={file} cannot be read: {error}") from error


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    text = flags.DEFINE_string
    text("checkpoint", None, "working directory or checkpoint", flag_values=values)
    text("step", "latest", "which checkpoint", flag_values=values)
    flags.DEFINE_enum("weights", "ema", ["ema", "params"], "which weights", flag_values=values)
    flags.DEFINE_multi_string("scores", [], "score files", flag_values=values)
    text("recipe", None, "file that says how it was made", flag_values=values)
    flags.DEFINE_multi_string("set", [], "KEY=VALUE of the sampler", flag_values=values)
    text("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Reads a checkpoint and writes the two files."""
    common.required(values, "checkpoint")
    out = common.required(values, "out")
    painter = painting.load_painter(values)
    settings = dataclasses.asdict(painter.config.sampler) | painting.sampler_settings(
        values["set"].value or ()
    )
    # Folders of this machine mean nothing elsewhere; what was generated says what it has learned.
    data = painter.config.data
    if data.tokenizer and data.tokenizer not in COMMITTED:
        raise ConfigError(
            f"data.tokenizer={data.tokenizer} is a file of this machine, and a painter's two files "
            f"hold none: only one with a committed tokenizer ({', '.join(COMMITTED)}) can be "
            "written; hand on the checkpoint and the tokenizer instead"
        )
    # A folder without a path stands for those that were left out: there must be one source.
    learned = tuple(s for s in data.sources if not s.path) or (SourceConfig("folder"),)
    held_out = tuple(s for s in data.eval_sources if not s.path)
    config = dataclasses.replace(
        painter.config,
        sampler=build(SamplerConfig, settings, "sampler"),
        train=dataclasses.replace(painter.config.train, init_from=""),
        data=dataclasses.replace(data, sources=learned, eval_sources=held_out),
    )
    about = {
        "tokenizer": painter.tokenizer.fingerprint,
        "step": painter.meta.get("step"),
        "weights": painter.meta.get("weights"),
        "commit": common.git_hash(),
        "recipe": _recipe(values.recipe),
        "scores": _scores(values.scores),
    }
    card = shipped.write(out, config, functional.together(painter.weights.model), about)
    size = sum(f.stat().st_size for f in Path(out).iterdir())
    print(f"{out}: {card['parameters']:,} parameters, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
