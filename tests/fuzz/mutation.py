"""Inputs that are nearly valid: bytes, words and JSON values with a few things changed.

Everything takes a `random.Random`, so that a case is known by its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

_WHOLE = (0, -1, 1, 2, 7, 255, 256, 4097, 2**31, -(2**31), 2**63, 2**64, 10**30, -(10**400))
_FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS = (
    "", " ", "\0", "\ud800", "\udfff\ud800", "é́", "\u202e", "\N{SNOWMAN}", "a" * 5000, "../../x",
    "/etc/passwd", "C:\\x", "%s%n{0}{x}", "<|im_start|>", "<refine>", "</ins><des>", "null", "-1",
    "1e999", "__class__", "true", "\x1b[31m", "\r\n", "𝟙", "Ⅷ", "²",
)  # fmt: skip
_BYTES = (
    b"", b"\0", b"\xff", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"{", b"}", b"[", b"]", b'"', b"\\",
    b",", b":", b"\n", b"\r\n", b"\x80\x04\x95", b"PK\x03\x04", b"\x00\x00\x00\x80", b"\xff" * 8,
    b"9" * 400, b"[" * 3000, b'{"a":' * 1500, b"NaN", b"1e999", b"\\ud800", b"-", b"0x1",
)  # fmt: skip


def scalar(rng: random.Random) -> Any:
    """A value that few expect."""
    kind = rng.randrange(7)
    if kind == 0:
        return rng.choice(_WHOLE)
    if kind == 1:
        return rng.choice(_FLOATS)
    if kind in (2, 3):
        return rng.choice(_TEXTS)
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return rng.choice(([], {}, [[]], [None], {"": None}, [{}], {"a": {"a": {}}}))
    return "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x3000)))) for _ in range(5))


def blob(rng: random.Random, data: bytes, words: Sequence[bytes] = _BYTES) -> bytes:
    """Bytes with one to four changes: flips, cuts, repeats, moves and insertions."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        size = len(data)
        at = rng.randrange(size + 1)
        to = min(size, at + rng.choice((1, 1, 2, 4, 8, rng.randrange(1, 200))))
        kind = rng.randrange(8)
        if kind == 0 and at < size:
            data = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        elif kind == 1 and at < size:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 2:
            data = data[:at]
        elif kind == 3:
            data = data[:at] + data[to:]
        elif kind == 4:
            data = data[:to] + data[at:to] * rng.choice((1, 2, 50)) + data[to:]
        elif kind == 5:
            data = data[:at] + rng.choice(words) + data[rng.choice((at, to)) :]
        elif kind == 6:
            data = data[:at] + rng.randbytes(to - at) + data[to:]
        else:
            part, data = data[at:to], data[:at] + data[to:]
            put = rng.randrange(len(data) + 1)
            data = data[:put] + part + data[put:]
    return data


def text(rng: random.Random, given: str, words: Sequence[str]) -> str:
    """Words with one to four pieces cut, repeated, moved or put in."""
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        at = rng.randrange(len(given) + 1)
        to = min(len(given), at + rng.choice((1, 3, 8, 30)))
        kind = rng.randrange(5)
        if kind == 0:
            given = given[:at] + given[to:]
        elif kind == 1:
            given = given[:to] + given[at:to] * rng.choice((1, 30)) + given[to:]
        elif kind == 2:
            given = given[:at] + rng.choice(words) * rng.choice((1, 1, 2, 100)) + given[at:]
        elif kind == 3:
            given = given[:at] + rng.choice(_TEXTS) + given[to:]
        else:
            given = given[to:] + given[at:to] + given[:at]
    return given


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        found.append((value, key))
        if isinstance(item, (dict, list)):
            _nodes(item, found)
    return found


def tree(rng: random.Random, value: Any, words: Sequence[str] = ()) -> Any:
    """A JSON value with one to three places changed; the given one is left as it is.

    Args:
      rng: decides.
      value: of dicts, lists and plain values.
      words: keys and texts that mean something to whoever reads it.
    """
    value = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        nodes = _nodes(value, []) if isinstance(value, (dict, list)) else []
        if not nodes or rng.random() < 0.02:
            return scalar(rng)
        parent, key = rng.choice(nodes)
        kind = rng.randrange(8)
        if kind <= 2:
            parent[key] = scalar(rng)
        elif kind == 3:
            del parent[key]
        elif kind == 4:
            other, place = rng.choice(nodes)
            copy = json.loads(json.dumps(other.get(place) if isinstance(other, dict) else None))
            parent[key] = copy
        elif kind == 5 and isinstance(parent, dict):
            name = rng.choice(words) if words and rng.random() < 0.7 else str(scalar(rng))
            parent[name] = parent.pop(key) if rng.random() < 0.5 else scalar(rng)
        elif kind == 5:
            parent.insert(key, scalar(rng))
        elif kind == 6 and isinstance(parent[key], str):
            parent[key] = text(rng, parent[key], words or _TEXTS)
        elif kind == 6 and isinstance(parent[key], list):
            parent[key] = parent[key] * rng.choice((0, 2, 40))
        elif words:
            parent[key] = rng.choice(words)
    return value


def dumped(rng: random.Random, value: Any) -> bytes:
    """JSON as bytes, as several writers would; now and then damaged afterwards."""
    made = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    return blob(rng, made) if rng.random() < 0.15 else made
