"""Paint a suite's prompts and score the pictures.

    python -m launch.evaluate --checkpoint=runs/tiny --suite=strokes --out=runs/tiny/eval
    python -m launch.evaluate --checkpoint=runs/bagel --suite=geneval --out=runs/bagel/geneval

--checkpoint=DIR, --step=STEP, --weights=ema|params, --mode=MODE, --size=HxW, --seed=S,
--set=KEY=VALUE       as of launch.sample; --one_shot is --mode=one_shot
--suite=strokes       held-out prompts of seven tags, judged by the oracle; inspection: paintings
                      cut off after a sketch, half as many with a fault as without
--suite=geneval       (genevalpp, t2i_compbench, wise_legacy, wise_verified) paints in the folder
                      layout of the official scorer; --resume goes on
--results=PATH        what that scorer wrote: reads it into scores and report; paints nothing
--judge=KEY=VALUE     WISE: the endpoint that judges (base_url, chat_model, api_key_env, ...)
--prompts=PATH        these prompts instead; WISE's come from your clone of it
--num_per_tag=N       prompts a tag (strokes: 100, inspection: 100, others: all)
--num=K               paintings a prompt (geneval 4, t2i_compbench 10, others 1)
--out=DIR             folder; --overwrite replaces an earlier run's files in it, --resume goes on
--json                print one JSON object as the last line; --show=N paintings on the report

Prints shares with 95 % intervals; writes scores.json (the object that --json prints), report.html
and trajectories.jsonl (docs/sampling.md). docs/evaluation.md explains them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from launch import benchmarks, common, painting
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import Trajectory
from process_gen.evaluation import judged, probes, stepwise
from process_gen.evaluation.strokes import score
from process_gen.report import summary
from process_gen.report.html import write_report
from process_gen.report.runs import strokes_verdicts
from process_gen.report.scores import flat
from process_gen.sampling import prompt_file, records
from process_gen.strokes import oracle
from process_gen.strokes.prompts import TAGS, check, held_out_requirements
from process_gen.strokes.scene import SIZE


@dataclasses.dataclass(frozen=True)
class Suite:
    """What is painted, and how it is scored.

    Attributes:
      prompts: the command's flags -> what the painter is given.
      score: what was given, and the paintings in that order -> nested dict of rates.
      show: prints it.
      table: whether the report shows the scores tag by tag.
    """

    prompts: Callable[[flags.FlagValues], Sequence[Any]]
    score: Callable[[Sequence[Any], Sequence[Trajectory]], dict[str, Any]]
    show: Callable[[Mapping[str, Any]], None]
    table: bool = True


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


def _per_tag(values: flags.FlagValues) -> int:
    return values.num_per_tag or 100


def _strokes_prompts(values: flags.FlagValues) -> list[Mapping[str, Any]]:
    return requirements(values.prompts, _per_tag(values), values.seed)


def _strokes_score(prompts: Sequence[Any], painted: Sequence[Trajectory]) -> dict[str, Any]:
    del prompts
    scores = score(painted, oracle.judge)
    steps = {} if painted[0].mode != "process" else {"steps": stepwise.painting_rates(painted)}
    return {**scores, **steps}


def _strokes_show(scores: Mapping[str, Any]) -> None:
    summary.show(scores=scores)
    if "steps" in scores:
        steps = scores["steps"]
        summary.show(rates={**_rates(steps), **_rates(steps["inspection"])})


def _rates(scores: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rates among scores, without counts and groups."""
    return {k: v for k, v in scores.items() if isinstance(v, Mapping) and "rate" in v}


def _probes(values: flags.FlagValues) -> list[probes.Probe]:
    if painting.read_mode(values) != "process" or values.prompts:
        raise ConfigError("--suite=inspection takes neither another mode nor --prompts")
    count = _per_tag(values) * len(TAGS)
    return probes.make_probes(count, 2 * count, values.seed)


SUITES = {
    "strokes": Suite(_strokes_prompts, _strokes_score, _strokes_show),
    "inspection": Suite(
        _probes,
        lambda given, painted: {"suite": "inspection", **probes.score(given, painted)},
        lambda scores: summary.show(rates=_rates(scores)),
        table=False,
    ),
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    painting.define_flags(values)
    flags.DEFINE_string("suite", None, "what is scored", flag_values=values)
    flags.DEFINE_integer("num_per_tag", None, "prompts a tag", 1, flag_values=values)
    flags.DEFINE_integer("num", None, "paintings a prompt", 1, flag_values=values)
    flags.DEFINE_multi_string("results", [], "what a scorer wrote", flag_values=values)
    flags.DEFINE_multi_string("judge", [], "KEY=VALUE of an endpoint", flag_values=values)
    flags.DEFINE_integer("show", None, "paintings on the report", 0, flag_values=values)
    flags.DEFINE_string("out", None, "folder to write", flag_values=values)


def main(values: flags.FlagValues) -> None:
    """Paints, judges, writes scores and report."""
    name = common.required(values, "suite")
    if name in benchmarks.BENCHMARKS:
        benchmarks.run(values, benchmarks.BENCHMARKS[name])
        return
    if name not in SUITES:
        known = ", ".join([*SUITES, *benchmarks.BENCHMARKS])
        raise ConfigError(f"--suite={name} is unknown; there is {known}")
    for flag in ("results", "judge", "num"):
        if values[flag].present:
            raise ConfigError(f"--{flag} belongs to {', '.join(benchmarks.BENCHMARKS)}")
    suite = SUITES[name]
    prompts = suite.prompts(values)
    given = [prompt.start if isinstance(prompt, probes.Probe) else prompt for prompt in prompts]
    request = painting.read_request(values, given, size=(SIZE, SIZE))
    out = painting.make_room(common.required(values, "out"), values.overwrite, values.resume)
    painter = painting.load_painter(values)
    made_by = painting.provenance(painter, request, common.command(values, "launch.evaluate"))
    print(
        f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights; {len(prompts)} prompts"
    )

    done = painting.paint(painter, request, out, made_by=made_by, resume=values.resume)
    verdicts = [strokes_verdicts(t) for t in done.trajectories]
    # Scores of a part would look like scores of the whole.
    scores = None if done.stopped else suite.score(prompts, done.trajectories)
    write_report(
        out / painting.REPORT,
        done.trajectories[: values.show],
        verdicts=verdicts[: values.show],
        title=f"Suite {name}, {request.mode} mode",
        settings={**made_by, "prompts": values.prompts or f"held out, {_per_tag(values)} a tag"},
        scores=scores if suite.table else None,
        curves=painting.history(painter),
    )
    if scores is None:
        print(f"not scored; what was painted is in {out}")
        raise KeyboardInterrupt
    text = json.dumps({**flat(scores), **done.summary(), **painting.as_json(made_by)})
    (out / painting.SCORES).write_text(text + "\n")
    pairs = zip(records.lines(out), verdicts, strict=True)
    judged.write(out, [judged.of_record(*pair) for pair in pairs])
    suite.show(scores)
    print(f"scores: {out / painting.SCORES}")
    print(f"paintings: {out / records.FINISHED}")
    print(f"report: {out / painting.REPORT}")
    if values.json:
        print(text)


if __name__ == "__main__":
    common.run(main, define_flags, __doc__ or "")
