"""Reads any frozen settings dataclass from a plain mapping, strictly."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from process_gen.core.errors import ConfigError

T = TypeVar("T")
_hints = functools.cache(typing.get_type_hints)  # takes longer than all the rest


def build(kind: type[T], mapping: Any, where: str = "") -> T:
    """Builds the dataclass `kind`; absent keys keep their defaults, lists become tuples.

    Args:
      kind: a dataclass whose annotations are dataclasses, scalars, Literal, tuple, Mapping, or one
        of these or None.
      mapping: nested mappings of plain values.
      where: dotted path of `kind` in the whole, for messages.

    Raises:
      ConfigError: an unknown key, a wrong type, or a value that the dataclass refuses.
    """
    if isinstance(mapping, kind):
        return mapping
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'config'} must be a mapping, got {type(mapping).__name__}")
    hints = _hints(kind)
    names = [f.name for f in dataclasses.fields(typing.cast(Any, kind))]
    values = {}
    for key, value in mapping.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            close = difflib.get_close_matches(str(key), names, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
            raise ConfigError(f"unknown config key {path!r}; {hint}")
        values[key] = _convert(value, hints[key], path)
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where or 'config'}: {error}") from error


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Checks `value` against the annotation `kind`."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return build(typing.cast(type, kind), value, where)
    if origin is Literal:
        if value not in args:
            wanted = ", ".join(map(repr, args))
            raise ConfigError(f"{where} must be one of {wanted}, got {value!r}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if origin is tuple:
        return _convert_tuple(value, args, where)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {type(value).__name__}")
        return dict(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(
                f"{where} is too large: a number of {value.bit_length()} bits"
            ) from error
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{where} must be {kind.__name__}, got {value!r}")
    return value


def _convert_tuple(value: Any, args: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where} must be a list, got {type(value).__name__}")
    if len(args) == 2 and args[1] is Ellipsis:
        args = (args[0],) * len(value)
    if len(value) != len(args):
        raise ConfigError(f"{where} must have {len(args)} items, got {len(value)}")
    pairs = enumerate(zip(value, args, strict=True))
    return tuple(_convert(item, kind, f"{where}[{i}]") for i, (item, kind) in pairs)
