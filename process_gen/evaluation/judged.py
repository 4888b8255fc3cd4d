"""What became of each painting of a suite, without its pictures: `verdicts.jsonl`.

An object a line: where the painting stands (`index`, `sample`, `prompt`, `tag`), how it went
(`finish_reason`, `steps`, `pictures`, `nfe`, `seconds`), and `values`: what was judged, by name,
each true, false or a number between 0 and 1. Nothing here loads a device.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from etils import epath

from process_gen.core.errors import DataError
from process_gen.sampling import records

FILE = "verdicts.jsonl"


@dataclasses.dataclass(frozen=True)
class Judged:
    """One painting; see the module's docstring.

    Attributes:
      steps: of the process; 0 in other modes.
      pictures: painted ones.
      nfe: velocity evaluations.
      seconds: wall time of a row.
      values: empty where nobody judged.
    """

    index: int
    sample: int
    prompt: str
    tag: str
    finish_reason: str
    steps: int
    pictures: int
    nfe: int
    seconds: float
    values: Mapping[str, bool | float]


def of_record(record: Mapping[str, Any], values: Mapping[str, bool | float] | None) -> Judged:
    """A painting's line in the records, and what was judged."""
    return Judged(
        index=record["index"],
        sample=record["sample"],
        prompt=record["prompt"],
        tag=str(record["metadata"].get("tag") or ""),
        finish_reason=record["finish_reason"] or "none",
        steps=len(record["steps"]),
        pictures=records.pictures(record),
        nfe=record["nfe"],
        seconds=record["seconds"],
        values=dict(values or {}),
    )


def write(folder: str | os.PathLike[str], judged: Iterable[Judged]) -> None:
    """Writes `FILE` into a folder."""
    text = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in judged)
    (epath.Path(folder) / FILE).write_text(text)


def read(path: str | os.PathLike[str]) -> Iterator[Judged]:
    """Reads such a file.

    Raises:
      DataError: a line that `write` did not write; the text names it.
    """
    rows = epath.Path(path).read_text().splitlines()
    for number, row in enumerate(rows, 1):
        try:
            yield Judged(**json.loads(row))
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}, line {number}: not a judged painting ({error})") from error
