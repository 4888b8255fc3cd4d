"""What a benchmark consists of, and how its prompts become a folder that its own scorer reads.

A benchmark paints prompts into our records (`sampling.records`); `export` copies the finished
pictures into the layout of its official scorer; that scorer runs unchanged, elsewhere; its results
are read back, and `score` counts them as the benchmark does.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from PIL import Image as PILImage

from process_gen.core.errors import DataError
from process_gen.core.trajectory import decode_image, encode_png
from process_gen.evaluation.intervals import (
    CONFIDENCE,
    Rate,
    mean_of_rates,
    mean_of_values,
    wilson,
)
from process_gen.evaluation.judged import Judged

PROMPTS = Path(__file__).parent / "prompts"
MISSING = 128  # grey of the picture that stands for a painting without one

Item = Mapping[str, Any]  # a prompt's metadata: "prompt", "tag", and what the benchmark has besides
Place = tuple[int, int]  # index and sample of a painting
Value = bool | float


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One of the community's benchmarks.

    Attributes:
      name: of the suite, and of the folder for the scorer.
      measure: what its scorer gives a picture; the name says which variant it is.
      samples: paintings a prompt, as the benchmark is run.
      most: paintings a prompt that its folder has room for; 0 for any number.
      read: the prompts of a path of the user's, or of None: those that come along.
      files: prompts and paintings a prompt -> where each painting's picture goes (a relative path,
        .png or .jpg), and other files with their contents.
      results: paths of what the scorer wrote, prompts, paintings a prompt -> values by painting.
      advice: folder for the scorer, folder of the output -> how to go on, for the user.
      weights: of the tags in the overall score; None for alike.
      whole: number of its prompts, where an overall score of fewer would not be its score.
      overall: whether the benchmark defines an overall score.
      binary: whether values are right or wrong.
    """

    name: str
    measure: str
    samples: int
    most: int
    read: Callable[[str | None], list[dict[str, Any]]]
    files: Callable[[Sequence[Item], int], tuple[dict[Place, str], dict[str, str]]]
    results: Callable[[Sequence[str], Sequence[Item], int], dict[Place, Value]]
    advice: Callable[[str, str], str]
    weights: Mapping[str, float] | None = None
    whole: int = 0
    overall: bool = True
    binary: bool = True


def shipped(name: str) -> epath.Path:
    """Folder of the prompts that come along."""
    return epath.Path(PROMPTS / name)


def check_layout(benchmark: Benchmark, items: Sequence[Item], num: int) -> None:
    """Checks that prompts can be laid out, before anything is painted.

    Raises:
      DataError: more paintings a prompt than the layout has room for, or a prompt that cannot be
        part of a file's name.
    """
    if benchmark.most and num > benchmark.most:
        raise DataError(
            f"{benchmark.name} takes {benchmark.most} painting a prompt, --num={num} asks for more"
        )
    benchmark.files(items, num)


def export(
    benchmark: Benchmark,
    items: Sequence[Item],
    num: int,
    records: Iterable[Mapping[str, Any]],
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
) -> dict[str, int]:
    """Copies finished pictures into the layout of the scorer.

    A painting without a picture gets a plain grey one: left out, it would not be counted as wrong.

    Args:
      benchmark: which.
      items: its prompts, in the order in which they were painted.
      num: paintings a prompt.
      records: lines of the paintings, see `sampling.records.lines`.
      source: folder of these paintings.
      folder: where the layout goes; files of the same name are overwritten.

    Returns:
      Counts: `pictures`, `no_image`.
    """
    places, others = benchmark.files(items, num)
    source, folder = epath.Path(source), epath.Path(folder)
    count = {"pictures": 0, "no_image": 0}
    made: set[str] = set()

    def write(name: str, data: bytes) -> None:
        file = folder / name
        if str(file.parent) not in made:
            file.parent.mkdir(parents=True, exist_ok=True)
            made.add(str(file.parent))
        file.write_bytes(data)

    for name, text in others.items():
        write(name, text.encode("utf-8"))
    size = (64, 64)
    for record in records:
        name = places[record["index"], record["sample"]]
        if record["final_image"] is None:
            data = encode_png(np.full((*size, 3), MISSING, np.uint8))
            count["no_image"] += 1
        else:
            data = (source / record["final_image"]).read_bytes()
            count["pictures"] += 1
        write(name, data if name.endswith(".png") else _jpeg(data))
    return count


def _jpeg(data: bytes) -> bytes:
    """A picture as JPEG, as near to the original as JPEG goes."""
    out = io.BytesIO()
    picture = PILImage.fromarray(decode_image(data))
    picture.save(out, format="JPEG", quality=100, subsampling=0)
    return out.getvalue()


def score(
    benchmark: Benchmark,
    items: Sequence[Item],
    judged: Sequence[Judged],
    *,
    about: str = "",
    confidence: float = CONFIDENCE,
) -> dict[str, Any]:
    """Counts judged paintings as the benchmark does.

    Args:
      benchmark: which.
      items: all prompts that were to be painted.
      judged: paintings; those without the benchmark's measure are counted as `unjudged`.
      about: what the numbers depend on besides, a judge for one.
      confidence: of the intervals.

    Returns:
      A dict that `json.dumps` accepts, in the form of `evaluation.strokes.score`; besides,
      `unjudged`, and for right-or-wrong values `pictures_right` (all alike) and `prompts_right`
      (any of a prompt's pictures). `overall` has no rate where the benchmark defines none, where
      it would be weighted over tags that are missing, or where it is one of all prompts only.
    """
    name = benchmark.measure
    tags: dict[str, Any] = {}
    groups: dict[str, list[float]] = {tag: [] for tag in dict.fromkeys(i["tag"] for i in items)}
    known = [one for one in judged if name in one.values]
    for one in known:
        groups[one.tag].append(float(one.values[name]))
    groups = {tag: values for tag, values in groups.items() if values}
    for tag, values in groups.items():
        own = [one for one in judged if one.tag == tag]
        tags[tag] = {
            "n": len(values),
            "prompts": len({one.prompt for one in own}),
            "no_image": sum(one.pictures == 0 for one in own),
            name: dataclasses.asdict(_rate(benchmark, values, confidence)),
        }
    expected = benchmark.weights or dict.fromkeys(i["tag"] for i in items)
    missing = [tag for tag in expected if tag not in tags]
    overall = _overall(benchmark, groups, missing, confidence)
    found = {
        "suite": benchmark.name,
        **({"about": about} if about else {}),
        "confidence": confidence,
        "n": len(known),
        "unjudged": len(judged) - len(known),
        "tags": tags,
        "missing_tags": missing,
        "overall": {name: dataclasses.asdict(overall)},
        "overall_is": _explained(benchmark),
        **({"tag_weights": dict(benchmark.weights)} if benchmark.weights else {}),
    }
    if benchmark.binary and known:
        by_prompt: dict[int, bool] = {}
        for one in known:
            by_prompt[one.index] = by_prompt.get(one.index, False) or bool(one.values[name])
        found["pictures_right"] = dataclasses.asdict(
            wilson(sum(bool(one.values[name]) for one in known), len(known), confidence)
        )
        found["prompts_right"] = dataclasses.asdict(
            wilson(sum(by_prompt.values()), len(by_prompt), confidence)
        )
    return found


def _rate(benchmark: Benchmark, values: Sequence[float], confidence: float) -> Rate:
    if benchmark.binary:
        return wilson(int(sum(values)), len(values), confidence)
    return mean_of_values([values], confidence=confidence)


def _overall(
    benchmark: Benchmark,
    groups: Mapping[str, Sequence[float]],
    missing: Sequence[str],
    confidence: float,
) -> Rate:
    nothing = Rate(None, 0.0, 1.0, None, 0)
    count = sum(map(len, groups.values()))
    if not benchmark.overall or not groups or count < benchmark.whole:
        return nothing
    if benchmark.weights is None:
        if benchmark.binary:
            rates = [wilson(int(sum(v)), len(v), confidence) for v in groups.values()]
            return mean_of_rates(rates, confidence)
        return mean_of_values(list(groups.values()), None, confidence)
    if missing:
        return nothing
    weights = [benchmark.weights[tag] for tag in groups]
    return mean_of_values(list(groups.values()), weights, confidence)


def _explained(benchmark: Benchmark) -> str:
    if not benchmark.overall:
        return "the benchmark defines no overall score"
    if benchmark.weights is None:
        return "overall is the mean of the tags"
    part = f", of all {benchmark.whole} prompts only" if benchmark.whole else ""
    parts = " + ".join(f"{weight:g} {tag}" for tag, weight in benchmark.weights.items())
    return f"overall is {parts}{part}"


def lines_of(path: str) -> list[tuple[int, str]]:
    """Number and text of each line of a UTF-8 file that is not blank.

    Raises:
      DataError: it cannot be read.
    """
    try:
        rows = epath.Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not valid UTF-8 ({error.reason})") from error
    return [(number, row) for number, row in enumerate(rows, 1) if row.strip()]


def put(found: dict[Place, Value], place: Place, value: Value, where: str) -> None:
    """Notes a result.

    Raises:
      DataError: the same painting has one already.
    """
    if place in found:
        raise DataError(f"{where}: a second result of prompt {place[0]}, sample {place[1]}")
    found[place] = value
