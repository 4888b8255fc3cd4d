"""Checks that settings make of their values; each failure is one `ConfigError`."""

from __future__ import annotations

from process_gen.core.errors import ConfigError


def check(condition: bool, what: str) -> None:
    """Raises ConfigError with the text `what` unless `condition` holds."""
    if not condition:
        raise ConfigError(what)


def positive(section: str, **values: float) -> None:
    """Raises ConfigError for the first of `values` that is not > 0; `section` is its path."""
    for name, value in values.items():
        check(value > 0, f"{section}.{name} must be positive, got {value}")


def fraction(section: str, **values: float) -> None:
    """Raises ConfigError for the first of `values` outside [0, 1]."""
    for name, value in values.items():
        check(0.0 <= value <= 1.0, f"{section}.{name} must lie in [0, 1], got {value}")
