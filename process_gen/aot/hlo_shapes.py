"""Which arrays a compiled program holds, read from its text.

For tests that say "nobody allocates tokens x vocabulary" or "no S x S array": compile the real
function, give ``compiled.as_text()`` to `has_dims`, and show with a negative control that the plain
version does hold such an array. Choose sizes for which no weight or activation fits by accident
(odd ones: 1,031 rather than 1,024).

Understands HLO text, of any backend, and StableHLO text (``lowered.as_text()``, `jax.export`). In
HLO, values inside a fusion are never stored and do not count; StableHLO comes before fusion, so
there every value counts. Shapes of a partitioned program are those of one device.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

_HLO_ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([0-9,<= ]*)\]")
_MLIR_ARRAY = re.compile(r"tensor<((?:[0-9]+x)*)([a-z][A-Za-z0-9]*)[,>]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.-]+) .*\{$")
_FUSED = re.compile(r"\bfusion\(.*\bcalls=%?([\w.-]+)")
_BITS = re.compile(r"[a-z]+?(\d+)")


class Buffer(NamedTuple):
    """An array of the program; `bytes` without the padding of a device's memory layout."""

    shape: tuple[int, ...]
    dtype: str
    bytes: int


def largest_buffers(compiled_text: str) -> list[Buffer]:
    """The distinct arrays of a program, largest first.

    Args:
      compiled_text: of ``compiled.as_text()``, ``lowered.as_text()`` or an export's
        ``mlir_module()``.

    Raises:
      ValueError: the text holds no array at all, so it is no program.
    """
    found = set(_stablehlo(compiled_text) if "stablehlo." in compiled_text else _hlo(compiled_text))
    if not found:
        raise ValueError("no array in this text; give compiled.as_text() or lowered.as_text()")
    return sorted(found, key=lambda buffer: (-buffer.bytes, buffer))


def has_dims(compiled_text: str, a: int, b: int) -> bool:
    """Whether an array holds `a` times `b` entries or a multiple of that, dimension by dimension.

    True when one dimension is a multiple of `a` and another one of `b` (heads or rows folded into
    either do not hide it), or a single dimension is a multiple of ``a * b``.
    """
    return any(_holds(buffer.shape, a, b) for buffer in largest_buffers(compiled_text))


def _holds(shape: tuple[int, ...], a: int, b: int) -> bool:
    pairs = ((x, y) for i, x in enumerate(shape) for j, y in enumerate(shape) if i != j and x and y)
    return any(x and x % (a * b) == 0 for x in shape) or any(
        x % a == 0 and y % b == 0 for x, y in pairs
    )


def _hlo(text: str) -> list[Buffer]:
    fused = set(_FUSED.findall(text))
    found: list[Buffer] = []
    inside_fusion = False
    for line in text.splitlines():
        opened = _COMPUTATION.match(line)
        if opened:
            inside_fusion = opened.group(1) in fused
        elif not inside_fusion and " = " in line:
            # What is left of the operation's name is the type of its result, a tuple's too.
            found += arrays_of(
                re.split(r"\s[a-z][a-z0-9-]*\(", line.split(" = ", 1)[1], maxsplit=1)[0]
            )
    return found


def arrays_of(type_text: str) -> list[Buffer]:
    """The arrays of an HLO type, in order; those of a tuple too."""
    return [
        _buffer(dtype, re.findall(r"\d+", dims)) for dtype, dims in _HLO_ARRAY.findall(type_text)
    ]


def _stablehlo(text: str) -> list[Buffer]:
    return [
        _buffer(dtype, dims.split("x")[:-1] if dims else [])
        for dims, dtype in _MLIR_ARRAY.findall(text)
    ]


def _buffer(dtype: str, dims: list[str]) -> Buffer:
    shape = tuple(int(size) for size in dims)
    bits = _BITS.match(dtype)  # pred and token have no number
    width = 1.0 if bits is None or dtype == "i1" else int(bits.group(1)) / 8
    return Buffer(shape, dtype, int(np.prod(shape, dtype=np.int64) * width))
