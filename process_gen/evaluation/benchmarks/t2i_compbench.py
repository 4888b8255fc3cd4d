"""T2I-CompBench++ (github.com/Karine-Huang/T2I-CompBench): its folders and results.

    color/samples/a green bench and a blue bowl_000000.png
    color/samples/a green bench and a blue bowl_000001.png
    ...

A folder a category, painting after painting of prompt after prompt, numbered through; the scorers
take the prompt from the file's name, up to the first "_". They are run category by category, ten
paintings a prompt, and write `vqa_result.json`: values between 0 and 1. A category's score is the
mean of its values; there is no overall score, since the categories have different measures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from etils import epath

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

# Category -> where its scorer writes, below the category's folder.
CATEGORIES = {
    "color": "annotation_blip",
    "shape": "annotation_blip",
    "texture": "annotation_blip",
    "spatial": "labels/annotation_obj_detection_2d",
    "3d_spatial": "labels/annotation_obj_detection_3d",
    "numeracy": "annotation_num",
    "non_spatial": "annotation_clip",
    "complex": "annotation_3_in_1",
}
LONGEST = 240  # bytes of a prompt in a file's name: file systems allow 255


def read(path: str | None) -> list[dict[str, Any]]:
    """Prompts of a `CATEGORY_val.txt`, or of all of them in a folder.

    Raises:
      DataError: nothing of the kind is there, or a file holds no prompts.
    """
    place = epath.Path(path) if path else shipped("t2i_compbench")
    files = {name: place / f"{name}_val.txt" for name in CATEGORIES}
    if not place.is_dir():
        name = place.name.removesuffix(".txt").removesuffix("_val")
        if name not in CATEGORIES:
            raise DataError(f"{place}: wanted CATEGORY_val.txt, of {', '.join(CATEGORIES)}")
        files = {name: place}
    items = []
    for category, file in files.items():
        if not file.exists():
            continue
        # What stands behind a tab is not the prompt.
        rows = [row.split("\t")[0] for _, row in lines_of(str(file))]
        items += [{"tag": category, "prompt": row} for row in rows]
    if not items:
        raise DataError(f"{place} holds no prompts: no CATEGORY_val.txt of {', '.join(CATEGORIES)}")
    return items


def files(items: Sequence[Item], num: int) -> tuple[dict[Place, str], dict[str, str]]:
    """The layout.

    Raises:
      DataError: a prompt that cannot be part of a file's name, or that the scorers would cut off.
    """
    count = dict.fromkeys(CATEGORIES, 0)
    places: dict[Place, str] = {}
    for index, item in enumerate(items):
        prompt, category = item["prompt"], item["tag"]
        bad = next((c for c in "/_\0\n" if c in prompt), None)
        if bad is not None or len(prompt.encode()) > LONGEST:
            why = f"holds {bad!r}" if bad is not None else f"is longer than {LONGEST} bytes"
            raise DataError(f"prompt {index} {why}, so its file cannot be named: {prompt[:60]!r}")
        for sample in range(num):
            places[index, sample] = f"{category}/samples/{prompt}_{count[category]:06d}.png"
            count[category] += 1
    return places, {}


def results(paths: Sequence[str], items: Sequence[Item], num: int) -> dict[Place, Value]:
    """What the scorers wrote below a folder: the value of each picture, by category.

    Categories without results are left out, and named among the missing tags.

    Raises:
      DataError: no results, other numbers of them than pictures, or values outside 0 to 1.
    """
    first: dict[str, int] = {}
    count = dict.fromkeys(CATEGORIES, 0)
    for index, item in enumerate(items):
        first.setdefault(item["tag"], index)
        count[item["tag"]] += num
    found: dict[Place, Value] = {}
    for path in paths:
        for category in first:
            file = epath.Path(path) / category / CATEGORIES[category] / "vqa_result.json"
            if not file.exists():
                continue
            rows = _rows(file)
            if len(rows) != count[category]:
                raise DataError(f"{file} holds {len(rows)} results of {count[category]} pictures")
            for number, value in rows:
                if not 0 <= number < count[category] or not 0 <= value <= 1:
                    raise DataError(f"{file}: question_id {number}, answer {value} is not of it")
                put(found, (first[category] + number // num, number % num), value, str(file))
    if not found:
        raise DataError(f"no vqa_result.json of any category below {', '.join(paths)}")
    return found


def _rows(file: epath.Path) -> list[tuple[int, float]]:
    try:
        rows = [
            (int(row["question_id"]), float(row["answer"])) for row in json.loads(file.read_text())
        ]
    except (ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file}: not a result of T2I-CompBench's scorers ({error!r})") from error
    if not all(math.isfinite(value) for _, value in rows):
        raise DataError(f"{file}: an answer is no number")
    return rows


T2I_COMPBENCH = Benchmark(
    name="t2i_compbench",
    measure="t2i_compbench_score",
    samples=10,
    most=0,
    read=read,
    files=files,
    results=results,
    advice=lambda folder, out: (
        "in a clone of github.com/Karine-Huang/T2I-CompBench, give each category's scorer its own "
        f"folder:\n  {', '.join(f'{folder}/{name}' for name in list(CATEGORIES)[:2])}, ...\n"
        f"then: python -m launch.evaluate --suite=t2i_compbench --out={out} --results={folder}"
    ),
    overall=False,
    binary=False,
)
