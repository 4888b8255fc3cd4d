"""GenEval (arXiv 2310.11513; github.com/djghosh13/geneval): its folder, results and counting.

    00000/metadata.jsonl       line 0 of evaluation_metadata.jsonl
    00000/samples/0000.png     its paintings
    ...

The scorer looks for folders with digits and, in their `samples`, for digits and ".png"; it writes
an object a picture. A tag's score is the share of right pictures, the overall score the mean of
the tags. The official prompts are painted four times each.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from process_gen.core.errors import DataError
from process_gen.evaluation.benchmarks.benchmark import (
    Benchmark,
    Item,
    Place,
    Value,
    lines_of,
    put,
    shipped,
)

Row = tuple[str, Place, str, bool]

_PICTURE = re.compile(r"(?:^|[/\\])(\d+)[/\\]samples[/\\](\d+)\.png$")


def read_metadata(path: str | None, default: str) -> list[dict[str, Any]]:
    """Prompts of a metadata file in GenEval's schema, an object a line.

    Raises:
      DataError: it cannot be read, or a line has no "tag" and "prompt"; the text names it.
    """
    path = path or str(shipped(default))
    items = []
    for number, row in lines_of(path):
        try:
            item = json.loads(row)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not valid JSON ({error})") from error
        known = isinstance(item, dict) and isinstance(item.get("prompt"), str)
        if not known or not isinstance(item.get("tag"), str):
            raise DataError(f"{path}, line {number}: wanted an object with 'tag' and 'prompt'")
        items.append(item)
    if not items:
        raise DataError(f"{path} holds no prompts")
    return items


def files(items: Sequence[Item], num: int) -> tuple[dict[Place, str], dict[str, str]]:
    """The layout: place of each picture, and each prompt's metadata."""
    places = {
        (index, sample): f"{index:05d}/samples/{sample:04d}.png"
        for index in range(len(items))
        for sample in range(num)
    }
    others = {f"{i:05d}/metadata.jsonl": json.dumps(dict(item)) for i, item in enumerate(items)}
    return places, others


def results(paths: Sequence[str], items: Sequence[Item], num: int) -> dict[Place, Value]:
    """What the scorer wrote, `results.jsonl`: whether each picture is right.

    Raises:
      DataError: not such a file, a picture or prompt of another run, or pictures without a result.
    """
    return right_or_wrong(_rows(paths), items, num)


def _rows(paths: Sequence[str]) -> Iterator[Row]:
    for path in paths:
        for number, row in lines_of(path):
            where = f"{path}, line {number}"
            try:
                line = json.loads(row)
                name, right, prompt = line["filename"], line["correct"], line["prompt"]
            except (ValueError, LookupError, TypeError) as error:
                raise DataError(f"{where}: not a result of GenEval's scorer ({error!r})") from error
            match = _PICTURE.search(str(name))
            if match is None or right not in (0, 1):
                raise DataError(f"{where}: not a result of GenEval's scorer: {row[:80]!r}")
            yield where, (int(match[1]), int(match[2])), str(prompt), bool(right)


def right_or_wrong(rows: Iterable[Row], items: Sequence[Item], num: int) -> dict[Place, Value]:
    """What a scorer found, if that is every picture of a run, once, and no other.

    Args:
      rows: what it wrote: where it stands, the picture, its prompt, whether it is right.
      items: prompts of the run.
      num: paintings a prompt.

    Raises:
      DataError: a picture or prompt of another run, one twice, or pictures without a result; a
        score of a part would look like one of the whole.
    """
    found: dict[Place, Value] = {}
    for where, place, prompt, right in rows:
        index, sample = place
        inside = 0 <= index < len(items) and 0 <= sample < num
        if not inside or prompt.strip() != items[index]["prompt"].strip():
            raise DataError(
                f"{where}: {prompt[:60]!r} as prompt {index}, sample {sample} is not of this run"
            )
        put(found, place, right, where)
    if len(found) != len(items) * num:
        raise DataError(
            f"the results hold {len(found)} of {len(items) * num} pictures; let the scorer read "
            "the whole folder"
        )
    return found


GENEVAL = Benchmark(
    name="geneval",
    measure="geneval_correct",
    samples=4,
    most=0,
    read=lambda path: read_metadata(path, "geneval/evaluation_metadata.jsonl"),
    files=files,
    results=results,
    advice=lambda folder, out: (
        "in a clone of github.com/djghosh13/geneval:\n"
        f"  python evaluation/evaluate_images.py {folder} --outfile {out}/results.jsonl "
        "--model-path DETECTOR\n"
        f"then: python -m launch.evaluate --suite=geneval --out={out} "
        f"--results={out}/results.jsonl"
    ),
)
