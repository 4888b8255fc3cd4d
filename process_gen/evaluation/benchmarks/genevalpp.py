"""GenEval++ (arXiv 2508.09987; github.com/yejy53/Echo-4o): its folder, results and counting.

`1.jpg`, `2.jpg`, ... by the line of the prompt; its scorer asks GPT-4.1 about each and writes one
JSON file. A tag's score is the share of right pictures, the overall score the mean of the tags. A
picture that the scorer could not have judged counts as wrong, as it does there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from process_gen.core.errors import DataError
from process_gen.evaluation.benchmarks.benchmark import Benchmark, Item, Place, Value, lines_of
from process_gen.evaluation.benchmarks.geneval import Row, read_metadata, right_or_wrong


def files(items: Sequence[Item], num: int) -> tuple[dict[Place, str], dict[str, str]]:
    """The layout: one picture a prompt, and the prompts beside them, as the scorer wants them."""
    del num
    metadata = "".join(json.dumps(dict(item)) + "\n" for item in items)
    places = {(index, 0): f"image/{index + 1}.jpg" for index in range(len(items))}
    return places, {"Geneval++.jsonl": metadata}


def results(paths: Sequence[str], items: Sequence[Item], num: int) -> dict[Place, Value]:
    """What the scorer wrote, `Output.json`: whether each picture is right.

    Raises:
      DataError: not such a file, a prompt of another run, or pictures without a result.
    """
    return right_or_wrong(_rows(paths), items, num)


def _rows(paths: Sequence[str]) -> Iterator[Row]:
    for path in paths:
        try:
            rows = json.loads("\n".join(row for _, row in lines_of(path)))["overall_results"]
            lines = [(row["id"], row["prompt"], row["result"]["correct"]) for row in rows]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{path}: not a result of GenEval++'s scorer ({error!r})") from error
        for number, prompt, right in lines:
            where = f"{path}, id {number}"
            if not isinstance(number, int) or right not in (-1, 0, 1):
                raise DataError(f"{where}: not a result of GenEval++'s scorer: {right!r}")
            yield where, (number - 1, 0), str(prompt), right == 1


GENEVALPP = Benchmark(
    name="genevalpp",
    measure="genevalpp_correct",
    samples=1,
    most=1,
    read=lambda path: read_metadata(path, "genevalpp/Geneval++.jsonl"),
    files=files,
    results=results,
    advice=lambda folder, out: (
        f"in {folder}, with OPENAI_API_KEY set, run test_scripts/Eval-gpt-4.1-geneval++.py of a "
        "clone of github.com/yejy53/Echo-4o (it reads Geneval++.jsonl and image/)\n"
        f"then: python -m launch.evaluate --suite=genevalpp --out={out} "
        f"--results={folder}/Output.json"
    ),
)
