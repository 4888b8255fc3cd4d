"""Nested dicts of which one holds a part of another: trained weights, averaged ones, adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


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
