"""Nested dicts of which one holds a part of another: trained weights, averaged ones, adapters."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def take(tree: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `tree` that `like` has, to any depth; what `like` holds does not matter."""
    return {
        name: take(tree[name], part) if isinstance(part, Mapping) else tree[name]
        for name, part in like.items()
    }


def overlay(tree: Mapping[str, Any], part: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with those entries replaced that `part` has."""

    def choose(name: str, value: Any) -> Any:
        if name not in part:
            return value
        return overlay(value, part[name]) if isinstance(value, Mapping) else part[name]

    return {name: choose(name, value) for name, value in tree.items()}


def select(tree: Mapping[str, Any], keep: Callable[[tuple[str, ...], Any], bool]) -> dict[str, Any]:
    """The leaves for which `keep(path, leaf)` holds; dicts without any are left out."""

    def walk(path: tuple[str, ...], node: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in node.items():
            at = (*path, name)
            if isinstance(value, Mapping):
                if inner := walk(at, value):
                    found[name] = inner
            elif keep(at, value):
                found[name] = value
        return found

    return walk((), tree)


def fingerprint(tree: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over the names, types, shapes and bytes of all arrays.

    The same on every device and mesh. An array is fetched to the host while it is read, a few at a
    time. Leaves that are None are left out.
    """
    leaves: list[tuple[str, Any]] = []

    def walk(path: tuple[str, ...], node: Any) -> None:
        if isinstance(node, Mapping):
            for name in sorted(node):
                walk((*path, name), node[name])
        elif node is not None:
            leaves.append(("/".join(path), node))

    walk((), tree)
    with ThreadPoolExecutor(4) as pool:  # hashing lets other threads run
        digests = list(pool.map(lambda leaf: _digest(*leaf), leaves))
    return hashlib.sha256(b"".join(digests)).hexdigest()[:16]


def _digest(name: str, leaf: Any) -> bytes:
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(f"{name} {array.dtype} {array.shape} ".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.digest()
