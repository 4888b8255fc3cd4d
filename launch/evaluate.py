"""Paint a suite's prompts and score the pictures.

    python -m launch.evaluate --checkpoint=runs/tiny --suite=strokes --out=runs/tiny/eval

--checkpoint=DIR      a run's working directory, or one checkpoint in it
--step=STEP           latest (default), best, or a number, of a working directory
--weights=ema|params  averaged weights (default) or the plain ones
--suite=strokes       what is scored: held-out prompts of seven tags, judged by the oracle
--num_per_tag=N       prompts a tag (100)
--prompts=FILE        these prompts instead: metadata JSONL with Strokes requirements
--one_shot            paint at once instead of step by step
--seed=S              of the prompts and of the paintings (0)
--set=KEY=VALUE       a setting of the sampler: --set=guidance=2 --set=temperature=0
--out=DIR             folder; --overwrite replaces an earlier run's files in it
--json                print one JSON object as the last line

Prints the share of right pictures with 95 % intervals, tag by tag; writes scores.json (the object
that --json prints), report.html with every painting, and trajectories.jsonl (docs/sampling.md).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from absl import flags

from launch import common, painting
from process_gen.core.errors import ConfigError, DataError
from process_gen.evaluation.strokes import VERDICTS, score
from process_gen.report import summary
from process_gen.report.html import write_report
from process_gen.sampling import prompt_file, records
from process_gen.strokes import oracle
from process_gen.strokes.prompts import TAGS, check, held_out_requirements
from process_gen.strokes.scene import SIZE

SUITES = ("strokes",)


def requirements(path: str | None, num_per_tag: int, seed: int) -> list[Mapping[str, Any]]:
    """The prompts to paint, each with its requirement: those of a file, or held-out ones.

    Raises:
      DataError: a line of the file states no Strokes requirement.
    """
    if path is None:
        return [r for tag in TAGS for r in held_out_requirements(tag, num_per_tag, seed)]
    found = prompt_file.read_prompts(path)
    checked = []
    for number, item in zip(found.lines, found.items, strict=True):
        where = f"{path}, line {number}"
        if isinstance(item, str):
            raise DataError(
                f"{where}: plain text cannot be scored; wanted a JSON object with 'tag', 'include' "
                "and 'prompt'"
            )
        checked.append(check(item, where))
    return checked


def flat(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Scores with a number a key: `exact`, `exact_low`, `exact_high`, and so on."""

    def rates(row: Mapping[str, Any]) -> dict[str, Any]:
        out = {name: value for name, value in row.items() if name not in VERDICTS}
        for name in VERDICTS:
            rate = row[name]
            out |= {name: rate["rate"], f"{name}_low": rate["low"], f"{name}_high": rate["high"]}
        return out

    return {
        **scores,
        "overall": rates(scores["overall"]),
        "tags": {tag: rates(row) for tag, row in scores["tags"].items()},
    }


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    painting.define_flags(values)
    flags.DEFINE_string("suite", None, "what is scored", flag_values=values)
    flags.DEFINE_integer("num_per_tag", 100, "prompts a tag", 1, flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Paints, judges, writes scores and report."""
    suite = common.required(values, "suite")
    if suite not in SUITES:
        raise ConfigError(f"--suite={suite} is unknown; there is {', '.join(SUITES)}")
    settings = painting.sampler_settings(values["set"].value or ())
    mode = "one_shot" if values.one_shot else "process"
    prompts = requirements(values.prompts, values.num_per_tag, values.seed)
    out = painting.make_room(common.required(values, "out"), values.overwrite)
    painter = painting.load_painter(values)
    made_by = painting.provenance(painter, mode=mode, seed=values.seed, settings=settings)
    print(
        f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights; {len(prompts)} prompts"
    )

    done = painting.paint(
        painter,
        prompts,
        out,
        mode=mode,
        seed=values.seed,
        size=(SIZE, SIZE),
        settings=settings,
    )
    # Scores of a part would look like scores of the whole.
    scores = None if done.stopped else score(done.trajectories, oracle.judge)
    write_report(
        out / painting.REPORT,
        done.trajectories,
        verdicts=[painting.strokes_verdicts(t) for t in done.trajectories],
        title=f"Suite {suite}, {mode} mode",
        settings={**made_by, "prompts": values.prompts or f"held out, {values.num_per_tag} a tag"},
        scores=scores,
        curves=painting.history(painter),
    )
    if scores is None:
        print(f"not scored; what was painted is in {out}")
        raise KeyboardInterrupt
    text = json.dumps({**flat(scores), **done.summary(), **painting.as_json(made_by)})
    (out / painting.SCORES).write_text(text + "\n")
    summary.show(scores=scores)
    print(f"scores: {out / painting.SCORES}")
    print(f"paintings: {out / records.FINISHED}")
    print(f"report: {out / painting.REPORT}")
    if values.json:
        print(text)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
