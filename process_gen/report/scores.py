"""Scores as files hold them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(scores: Any) -> Any:
    """Scores with a number a key: `exact`, `exact_low`, `exact_high`, and so on, at any depth."""
    if not isinstance(scores, Mapping):
        return scores
    out: dict[str, Any] = {}
    for name, value in scores.items():
        if isinstance(value, Mapping) and {"rate", "low", "high"} <= value.keys():
            out |= {name: value["rate"], f"{name}_low": value["low"], f"{name}_high": value["high"]}
        else:
            out[name] = flat(value)
    return out
