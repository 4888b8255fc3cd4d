"""Files of prompts: plain text, a prompt a line, or metadata JSONL, an object a line."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from etils import epath

from process_gen.core.errors import DataError
from process_gen.core.trajectory import MAX_TEXT


@dataclasses.dataclass(frozen=True)
class PromptFile:
    """What a file of prompts holds.

    Attributes:
      items: prompts as words, or as mappings with a "prompt"; the file is one kind or the other.
      lines: the number of each item's line, from 1.
      blank: lines that were skipped because they are blank.
    """

    items: tuple[str | Mapping[str, Any], ...]
    lines: tuple[int, ...]
    blank: int


def read_prompts(path: str | os.PathLike[str]) -> PromptFile:
    """Reads a UTF-8 file of prompts; metadata when its first line that is not blank begins with {.

    Raises:
      DataError: no such file; or see `parse_prompts`.
    """
    try:
        data = epath.Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the prompts in {path}: {error.strerror or error}") from error
    return parse_prompts(data, str(path))


def parse_prompts(data: bytes, path: str) -> PromptFile:
    """The prompts in the bytes of a file; see `read_prompts`.

    Words of a plain line lose the blanks around them. Nothing else is changed: what a prompt may
    hold is the painter's business.

    Args:
      data: UTF-8, with or without a byte-order mark.
      path: what messages call it.

    Raises:
      DataError: no prompts in it, or a line that is not what the file began with; the text names
        the line.
    """
    rows = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if rows[-1] == b"":  # what follows the last line's end is no line
        rows.pop()
    items: list[str | Mapping[str, Any]] = []
    lines: list[int] = []
    metadata = False
    for number, row in enumerate(rows, 1):
        where = f"{path}, line {number}"
        try:
            text = row.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise DataError(f"{where}: not valid UTF-8 ({error.reason})") from error
        if not text:
            continue
        if not items:
            metadata = text.startswith("{")
        item = _metadata(text, where) if metadata else text
        if (length := len(item if isinstance(item, str) else item["prompt"])) > MAX_TEXT:
            raise DataError(f"{where}: {length} characters, more than {MAX_TEXT}")
        items.append(item)
        lines.append(number)
    if not items:
        raise DataError(f"{path} holds no prompts")
    return PromptFile(tuple(items), tuple(lines), len(rows) - len(items))


def _metadata(text: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(text, parse_constant=_not_a_number, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        hint = "the first prompt begins with '{', so every line must be a JSON object"
        raise DataError(f"{where}: not valid JSON ({error}); {hint}") from error
    if not isinstance(record, Mapping) or not isinstance(record.get("prompt"), str):
        raise DataError(f"{where}: wanted a JSON object with a string 'prompt'")
    return record


def _not_a_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits} is too large")
    return value
