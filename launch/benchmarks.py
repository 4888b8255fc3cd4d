"""The community's benchmarks in `launch.evaluate`: paint, lay out, judge or read back, report."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from etils import epath

from launch import common, painting
from process_gen.core.errors import ConfigError, DataError
from process_gen.curation.protocols import Failed
from process_gen.curation.remote_client import RemoteClient
from process_gen.evaluation import judged
from process_gen.evaluation.benchmarks import benchmark as benchmark_lib
from process_gen.evaluation.benchmarks import wise, wise_judge
from process_gen.evaluation.benchmarks.benchmark import Benchmark, Item, Place, Value
from process_gen.evaluation.benchmarks.geneval import GENEVAL
from process_gen.evaluation.benchmarks.genevalpp import GENEVALPP
from process_gen.evaluation.benchmarks.t2i_compbench import T2I_COMPBENCH
from process_gen.report import summary
from process_gen.report.html import write_report
from process_gen.report.scores import flat
from process_gen.sampling import records

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one
    for one in (GENEVAL, GENEVALPP, T2I_COMPBENCH, *map(wise.benchmark, wise.VARIANTS.values()))
}
JUDGED = "wise_scores_results.jsonl"  # in the form that WISE's own programs count


def run(values: flags.FlagValues, benchmark: Benchmark) -> None:
    """Paints, or reads back what the benchmark's scorer wrote; writes scores and report."""
    if values.results and values.judge:
        raise ConfigError("--results and --judge contradict each other")
    if values.inspector is not None:
        raise ConfigError(
            f"--inspector chooses among paintings of strokes, not of {benchmark.name}"
        )
    if values.judge and benchmark.name not in wise.VARIANTS:
        raise ConfigError(f"--judge judges WISE; {benchmark.name} has its own scorer")
    items = chosen(benchmark, values.prompts, values.num_per_tag)
    num = values.num or benchmark.samples
    benchmark_lib.check_layout(benchmark, items, num)
    out = common.required(values, "out")
    if values.results:
        _read_back(values, benchmark, items, num, epath.Path(out))
        return
    client = None
    if values.judge:
        given = painting.sampler_settings(values.judge, "judge")
        client = RemoteClient(wise_judge.options(wise.VARIANTS[benchmark.name], given))
    made_by = _paint(values, benchmark, items, num, out)
    folder = epath.Path(out) / benchmark.name
    if client is None:
        _report(values, benchmark, made_by, epath.Path(out), {}, None)
        print(f"for the scorer: {folder}\n{benchmark.advice(str(folder), out)}")
        return
    with client:
        found, about = _judge(values, benchmark, items, client, epath.Path(out))
    _score(values, benchmark, items, made_by, epath.Path(out), found, about)


def chosen(benchmark: Benchmark, path: str | None, per_tag: int | None) -> list[dict[str, Any]]:
    """The prompts, all of them or the first of each tag."""
    count: dict[str, int] = {}
    kept = []
    for item in benchmark.read(path):
        count[item["tag"]] = count.get(item["tag"], 0) + 1
        if per_tag is None or count[item["tag"]] <= per_tag:
            kept.append(item)
    return kept


def _paint(
    values: flags.FlagValues, benchmark: Benchmark, items: Sequence[Item], num: int, folder: str
) -> dict[str, Any]:
    """Paints, and lays out what is painted, also after an interrupt; returns the provenance."""
    request = painting.read_request(values, items, num=num)
    out = painting.make_room(folder, values.overwrite, values.resume)
    layout = out / benchmark.name
    if layout.exists() and not values.resume and not values.overwrite:
        raise ConfigError(f"--out={out} already holds {layout.name}; use --resume or --overwrite")
    painter = painting.load_painter(values)
    made_by = painting.provenance(painter, request, common.command(values, "launch.evaluate"))
    print(f"checkpoint {made_by['checkpoint']}, {made_by['weights']} weights")
    print(f"{benchmark.name}: {len(items)} prompts, {num} paintings each")
    if values.overwrite:
        (out / JUDGED).unlink(missing_ok=True)
        if layout.exists():
            layout.rmtree()
    done = painting.paint(painter, request, out, made_by=made_by, keep=0, resume=values.resume)
    count = benchmark_lib.export(
        benchmark, items, num, records.lines(out / records.FINISHED), out, layout
    )
    ends = ", ".join(f"{n} {reason}" for reason, n in done.reasons.most_common())
    print(f"{ends}; {count['pictures']} pictures in {layout}")
    if count["no_image"]:
        print(f"{count['no_image']} paintings ended without a picture: grey ones stand for them")
    for index, reason in done.refused[:5]:
        print(f"prompt {index} was refused: {reason}")
    if done.stopped:
        print("interrupted; the same command with --resume goes on")
        raise done.stopped
    return made_by


# ---- results -------------------------------------------------------------------------------------


def _read_back(
    values: flags.FlagValues,
    benchmark: Benchmark,
    items: Sequence[Item],
    num: int,
    out: epath.Path,
) -> None:
    """Scores of the official scorer, for what was painted into a folder."""
    try:
        made_by = json.loads((out / painting.RUN).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"--results: no painted {benchmark.name} in {out} ({error})") from error
    if made_by.get("prompts_hash") != painting.hash_of(items) or made_by.get("num") != num:
        raise ConfigError(
            f"--results: {out} was painted with other --prompts, --num_per_tag or --num"
        )
    found = {
        place: {benchmark.measure: value}
        for place, value in benchmark.results(values.results, items, num).items()
    }
    about = f"results of the benchmark's own scorer, {', '.join(values.results)}"
    _score(values, benchmark, items, made_by, out, found, about)


def _judge(
    values: flags.FlagValues,
    benchmark: Benchmark,
    items: Sequence[Item],
    client: RemoteClient,
    out: epath.Path,
) -> tuple[dict[Place, dict[str, Value]], str]:
    """Scores of an endpoint, also written in the form of WISE's own programs; and what they are."""
    variant = wise.VARIANTS[benchmark.name]
    rubric = wise_judge.find_rubric(variant, values.prompts)
    pictures = {line["index"]: line["final_image"] for line in records.lines(out)}
    answers = wise_judge.judge(variant, rubric, client, items, pictures, str(out))
    found: dict[Place, dict[str, Value]] = {}
    rows = []
    for index, answer in sorted(answers.items()):
        if isinstance(answer, Failed):
            continue
        value = variant.value(answer)
        found[index, 0] = {benchmark.measure: bool(value) if benchmark.binary else value}
        item = items[index]
        head = {"prompt_id": item["prompt_id"], "Subcategory": item["subcategory"]}
        rows.append(json.dumps({**head, **answer}) + "\n")
    (out / JUDGED).write_text("".join(rows))
    failed = [answer for answer in answers.values() if isinstance(answer, Failed)]
    for failure in failed[:5]:
        print(f"not judged: {failure.reason}: {failure.detail}")
    model = client.options.chat_model
    about = f"{variant.name}, judge {model} at {client.options.base_url}, rubric {rubric.name}"
    if model.split("/")[-1].lower() != variant.judge.lower():
        about += f"; not comparable with numbers of {variant.judge}, the variant's judge"
    print(f"{about}\n{json.dumps(client.account.report())}")
    return found, about


def _score(
    values: flags.FlagValues,
    benchmark: Benchmark,
    items: Sequence[Item],
    made_by: Mapping[str, Any],
    out: epath.Path,
    found: Mapping[Place, Mapping[str, Value]],
    about: str,
) -> None:
    lines = [
        judged.of_record(record, found.get((record["index"], record["sample"])))
        for record in records.lines(out / records.FINISHED)
    ]
    judged.write(out, lines)
    scores = benchmark_lib.score(benchmark, items, lines, about=about)
    if not scores["n"]:
        raise DataError("no picture was judged")
    as_json = painting.as_json(made_by)
    text = json.dumps({**flat(scores), **as_json})
    (out / painting.SCORES).write_text(text + "\n")
    _report(values, benchmark, made_by, out, found, scores)
    summary.show(scores=scores)
    print(about)
    if scores["unjudged"]:
        print(f"{scores['unjudged']} paintings were not judged and count nowhere")
    print(f"scores: {out / painting.SCORES}")
    if values.json:
        print(text)


def _report(
    values: flags.FlagValues,
    benchmark: Benchmark,
    made_by: Mapping[str, Any],
    out: epath.Path,
    found: Mapping[Place, Mapping[str, Value]],
    scores: Mapping[str, Any] | None,
) -> None:
    """The first paintings on one page; a whole benchmark would be too large for a browser."""
    most = 200 if values.show is None else values.show
    shown = list(itertools.islice(records.lines(out / records.FINISHED), most))
    write_report(
        out / painting.REPORT,
        [records.load(record, out) for record in shown],
        verdicts=[found.get((record["index"], record["sample"])) for record in shown],
        title=f"{benchmark.name}, {made_by['mode']} mode",
        settings=made_by,
        scores=scores,
    )
    print(f"report: {out / painting.REPORT} (the first {len(shown)} paintings)")
