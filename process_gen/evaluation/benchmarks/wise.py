"""WISE (arXiv 2503.07265; github.com/PKU-YuanGroup/WISE): prompts of the user's, weights, results.

There are two variants, and no number here goes without its variant's name:

  wise_legacy    GPT-4o-2024-05-13 gives consistency, realism and aesthetic quality 0, 1 or 2; a
                 picture's WiScore is (0.7 c + 0.2 r + 0.1 a) / 2. Overall: 0.4 culture + 0.167 time
                 + 0.133 space + 0.1 of each science. The numbers in papers before April 2026.
  wise_verified  Qwen3.5-35B-A3B gives 0 or 1; about 200 prompts are others. Overall: 0.4 culture
                 + 0.12 of each other category.

A prompt's category follows from its number, with other limits in each variant. Prompts and rubric
carry no licence: they are read from a clone of the user's, or, the rubric, put in our own words.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from etils import epath

from process_gen.core.errors import DataError
from process_gen.evaluation.benchmarks.benchmark import Benchmark, Item, Place, Value, lines_of, put

WHOLE = 1000  # prompts of either variant
HOME = "github.com/PKU-YuanGroup/WISE"


@dataclasses.dataclass(frozen=True)
class Variant:
    """One of the two.

    Attributes:
      name: of the suite.
      measure: of a picture.
      judge: the model whose scores are comparable.
      last: number of each category's last prompt.
      weights: of the categories.
      data: folder of the prompts in a clone, and the ending of its files.
      program: file of a clone that holds the rubric.
      scores: what the judge gives, and its weight in the measure.
      most: of each score.
    """

    name: str
    measure: str
    judge: str
    last: dict[str, int]
    weights: dict[str, float]
    data: tuple[str, str]
    program: str
    scores: dict[str, float]
    most: int

    def value(self, given: dict[str, float]) -> float:
        """The measure of a picture, 0 to 1."""
        return sum(weight * given[name] for name, weight in self.scores.items()) / self.most

    def category(self, number: int) -> str:
        """Of a prompt, by its number from 1.

        Raises:
          DataError: there is no such number.
        """
        if number >= 1:
            for name, last in self.last.items():
                if number <= last:
                    return name
        raise DataError(f"{self.name} has no prompt {number}; they are numbered 1 to {WHOLE}")


LEGACY = Variant(
    name="wise_legacy",
    measure="wise_legacy_wiscore",
    judge="gpt-4o-2024-05-13",
    last={
        "culture": 400,
        "time": 567,
        "space": 700,
        "biology": 800,
        "physics": 900,
        "chemistry": 1000,
    },
    weights={
        "culture": 0.4,
        "time": 0.167,
        "space": 0.133,
        "biology": 0.1,
        "physics": 0.1,
        "chemistry": 0.1,
    },
    data=("WISE_legacy/data", ""),
    program="WISE_legacy/gpt_eval.py",
    scores={"consistency": 0.7, "realism": 0.2, "aesthetic_quality": 0.1},
    most=2,
)
VERIFIED = Variant(
    name="wise_verified",
    measure="wise_verified_score",
    judge="Qwen3.5-35B-A3B",
    last={
        "culture": 400,
        "time": 520,
        "space": 640,
        "biology": 760,
        "physics": 880,
        "chemistry": 1000,
    },
    weights={
        "culture": 0.4,
        "time": 0.12,
        "space": 0.12,
        "biology": 0.12,
        "physics": 0.12,
        "chemistry": 0.12,
    },
    data=("data_verified", "_verified"),
    program="vllm_eval.py",
    scores={"score": 1.0},
    most=1,
)
VARIANTS = {variant.name: variant for variant in (LEGACY, VERIFIED)}
_PARTS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")


def read(variant: Variant, path: str | None) -> list[dict[str, Any]]:
    """Prompts of a clone, of a folder with its three files, or of one file; by number.

    Raises:
      DataError: no path, nothing of the kind there, a file of another form, a number twice.
    """
    if path is None:
        raise DataError(
            f"WISE's prompts carry no licence and do not come along: clone {HOME} and give "
            "--prompts=CLONE"
        )
    found: dict[int, dict[str, Any]] = {}
    for file in _files(variant, epath.Path(path)):
        try:
            rows = json.loads(file.read_text())
            fields = [
                (int(r["prompt_id"]), r["Prompt"], r["Explanation"], r["Subcategory"]) for r in rows
            ]
        except (ValueError, LookupError, TypeError) as error:
            raise DataError(f"{file}: not a file of WISE's prompts ({error!r})") from error
        for number, prompt, explanation, kind in fields:
            if number in found:
                raise DataError(f"{file}: prompt {number} stands there twice")
            found[number] = {
                "tag": variant.category(number),
                "prompt": prompt,
                "explanation": explanation,
                "subcategory": kind,
                "prompt_id": number,
            }
    return [found[number] for number in sorted(found)]


def _files(variant: Variant, path: epath.Path) -> list[epath.Path]:
    if path.is_file():
        return [path]
    folder, ending = variant.data
    names = [f"{part}{ending}.json" for part in _PARTS]
    for place in (path / folder, path):
        if files := [place / name for name in names if (place / name).exists()]:
            return files
    raise DataError(
        f"no prompts of {variant.name} at {path}: wanted a clone of {HOME}, with "
        f"{folder}/{names[0]}, or one of its files"
    )


def files(items: Sequence[Item], num: int) -> tuple[dict[Place, str], dict[str, str]]:
    """The layout: pictures by the numbers of their prompts."""
    del num
    return {(index, 0): f"{item['prompt_id']}.png" for index, item in enumerate(items)}, {}


def results(
    variant: Variant, paths: Sequence[str], items: Sequence[Item], num: int
) -> dict[Place, Value]:
    """What the official scorer (or `wise_judge`) wrote, `*_scores_results.jsonl`.

    Prompts without a result are left out: the scorer skips what its judge would not answer.

    Raises:
      DataError: not such a file, a prompt of another run, or a score out of range.
    """
    del num
    index = {item["prompt_id"]: i for i, item in enumerate(items)}
    found: dict[Place, Value] = {}
    for path in paths:
        for number, row in lines_of(path):
            where = f"{path}, line {number}"
            try:
                line = json.loads(row)
                prompt = line["prompt_id"]
                if not isinstance(prompt, float):  # 1.0 is found as it is, and 1.5 is no prompt
                    prompt = int(prompt)
                given = {name: float(line[name]) for name in variant.scores}
            except (ValueError, LookupError, TypeError, OverflowError) as error:
                raise DataError(f"{where}: not a result of {variant.name} ({error!r})") from error
            if prompt not in index or not all(g in range(variant.most + 1) for g in given.values()):
                raise DataError(f"{where}: not of this run, or out of range: {row[:80]}")
            value = variant.value(given)
            put(found, (index[prompt], 0), bool(value) if variant.most == 1 else value, where)
    return found


def benchmark(variant: Variant) -> Benchmark:
    """The variant as a benchmark."""
    program = "calculate_verified.py" if variant is VERIFIED else "WISE_legacy/Calculate.py"
    return Benchmark(
        name=variant.name,
        measure=variant.measure,
        samples=1,
        most=1,
        read=lambda path: read(variant, path),
        files=files,
        results=lambda paths, items, num: results(variant, paths, items, num),
        advice=lambda folder, out: (
            f"in a clone of {HOME}, judge {folder} with {variant.program} and {variant.judge} "
            f"({program} counts)\n"
            f"then: python -m launch.evaluate --suite={variant.name} --prompts=CLONE --out={out} "
            "--results=SCORES.jsonl (repeated)\n"
            "or let an endpoint judge at once: --judge=base_url=URL --judge=chat_model=NAME"
        ),
        weights=variant.weights,
        whole=WHOLE,
        binary=variant.most == 1,
    )
