"""Paint a suite's prompts and score the pictures.

    python -m launch.evaluate --checkpoint=runs/tiny --suite=strokes --out=runs/tiny/eval
    python -m launch.evaluate --checkpoint=runs/bagel --suite=geneval --out=runs/bagel/geneval

--checkpoint=DIR, --step=STEP, --weights=ema|params, --mode=MODE, --size=HxW, --seed=S,
--set=KEY=VALUE       as of launch.sample; --one_shot is --mode=one_shot
--suite=strokes       held-out prompts of seven tags, judged by the oracle; inspection: paintings
                      cut off after a sketch; context: steps after its own, and after true ones;
                      strokes_hard, inspection_hard, context_hard: in the hard world
--suite=geneval       (genevalpp, t2i_compbench, wise_legacy, wise_verified) paints in the folder
                      layout of the official scorer; --resume goes on
--results=PATH        what that scorer wrote: scores and report of it; paints nothing
--judge=KEY=VALUE     WISE: the endpoint that judges (base_url, chat_model, api_key_env, ...)
--prompts=PATH        these prompts instead; WISE's come from your clone of it
--num_per_tag=N       prompts a tag (strokes, inspection, context: 100, others: all)
--num=K               paintings a prompt (geneval 4, t2i_compbench 10, others 1; in strokes the
                      oracle's choice is scored too, and that of --inspector=CHECKPOINT)
--out=DIR             folder; --overwrite replaces an earlier run's files in it, --resume goes on
--json                print one JSON object as the last line; --show=N paintings on the report

Prints shares with 95 % intervals; writes scores.json, report.html and trajectories.jsonl
(docs/sampling.md, docs/evaluation.md).
"""

from __future__ import annotations

import json

from absl import flags

import process_gen
from launch import benchmarks, common, painting
from launch.suites import PER_TAG, SUITES
from process_gen.core.errors import ConfigError
from process_gen.evaluation import choosing, exposure, judged, probes
from process_gen.report.html import write_report
from process_gen.report.runs import strokes_verdicts
from process_gen.report.scores import flat
from process_gen.sampling import records


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this command."""
    painting.define_flags(values)
    flags.DEFINE_string("suite", None, "what is scored", flag_values=values)
    flags.DEFINE_integer("num_per_tag", None, "prompts a tag", 1, flag_values=values)
    flags.DEFINE_integer("num", None, "paintings a prompt", 1, flag_values=values)
    flags.DEFINE_string("inspector", None, "checkpoint that chooses", flag_values=values)
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
    for flag in ("results", "judge"):
        if values[flag].present:
            raise ConfigError(f"--{flag} belongs to {', '.join(benchmarks.BENCHMARKS)}")
    suite = SUITES[name]
    if values.num is not None and suite.choose is None:
        raise ConfigError(f"--suite={name} paints each of its prompts once, without --num")
    if values.inspector is not None and (suite.choose is None or (values.num or 1) < 2):
        raise ConfigError("--inspector chooses among --num=K paintings of a prompt, K at least 2")
    out = painting.make_room(common.required(values, "out"), values.overwrite, values.resume)
    painter = painting.load_painter(values)
    inspector = None  # loaded at once, so that a wrong checkpoint costs no paintings
    if values.inspector is not None:
        inspector = process_gen.load(values.inspector, weights=values.weights)
        suite.check(values, inspector.config)
    suite.check(values, painter.config)
    prompts = suite.prompts(values, painter.config)
    begun = (exposure.Start, probes.Probe)
    given = [prompt.start if isinstance(prompt, begun) else prompt for prompt in prompts]
    size = (suite.world.size, suite.world.size)
    request = painting.read_request(values, given, num=values.num or 1, size=size)
    made_by = painting.provenance(painter, request, common.command(values, "launch.evaluate"))
    print(
        f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights; {len(prompts)} prompts"
    )

    done = painting.paint(painter, request, out, made_by=made_by, resume=values.resume)
    verdicts = [strokes_verdicts(t) for t in done.trajectories]
    # Scores of a part would look like scores of the whole.
    scores = None if done.stopped else suite.score(prompts, done.trajectories)
    if scores is not None and suite.choose is not None and inspector is not None:
        scores["chosen"] = {
            **suite.choose(done.trajectories, choosing.inspections_of(inspector)),
            "inspector": inspector.meta["path"],
        }
    write_report(
        out / painting.REPORT,
        done.trajectories[: values.show],
        verdicts=verdicts[: values.show],
        title=f"Suite {name}, {request.mode} mode",
        settings={
            **made_by,
            "prompts": values.prompts or f"held out, {values.num_per_tag or PER_TAG} a tag",
        },
        scores=scores if suite.table else None,
        curves=painting.history(painter),
    )
    if done.stopped:
        print(f"not scored; what was painted is in {out}")
        raise done.stopped
    assert scores is not None
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
