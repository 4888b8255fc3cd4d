"""JSON files that strangers wrote: what is taken from them is of the kind that is wanted.

`where` is what messages call the object that a value is in, such as the file's path.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from process_gen.core.errors import CheckpointError


def read(file: epath.Path) -> dict[str, Any]:
    """The object that a file holds.

    Raises:
      CheckpointError: it cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{file}: no JSON object ({error})") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file}: no JSON object, but {_short(found)}")
    return found


def section(content: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    """An object within one; empty where it is absent or null.

    Raises:
      CheckpointError: it is something else.
    """
    found = content.get(key)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{where}: {key} is {_short(found)}; wanted is a JSON object")
    return dict(found)


def number(content: Mapping[str, Any], key: str, where: str, *, above: float = -math.inf) -> float:
    """A finite number.

    Args:
      above: it is larger than this.

    Raises:
      CheckpointError: it is absent or something else.
    """
    found = _present(content, key, where)
    try:
        value = float(found) if isinstance(found, int | float) else math.nan
    except OverflowError:
        value = math.inf
    if isinstance(found, bool) or not (math.isfinite(value) and value > above):
        least = "" if above == -math.inf else f" above {above:g}"
        raise CheckpointError(f"{where}: {key} is {_short(found)}; wanted is a number{least}")
    return value


def whole(content: Mapping[str, Any], key: str, where: str, *, least: int | None = None) -> int:
    """A whole number.

    Args:
      least: it is not smaller than this.

    Raises:
      CheckpointError: it is absent or something else.
    """
    found = _present(content, key, where)
    if type(found) is not int or (least is not None and found < least):
        from_ = "" if least is None else f" from {least}"
        raise CheckpointError(f"{where}: {key} is {_short(found)}; wanted is a whole number{from_}")
    return found


def _present(content: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in content:
        raise CheckpointError(f"{where}: {key} is missing")
    return content[key]


def _short(value: Any) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # an integer of more digits than Python prints
        text = type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."
