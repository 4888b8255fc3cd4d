"""Rows that cannot be used: counted by kind, the first ones named, and an error where asked for."""

from __future__ import annotations

import collections
import logging
from typing import Any

from process_gen.core.errors import DataError

_KEPT = 20

logger = logging.getLogger(__name__)


class Unusable(DataError):
    """A row cannot be used.

    Attributes:
      kind: what it is counted under, such as "picture".
    """

    def __init__(self, kind: str, text: str):
        """Takes the kind and the reason."""
        super().__init__(text)
        self.kind = kind


class Skips:
    """What a reader left out.

    Attributes:
      counts: rows by kind.
      examples: the first ones in words, place and reason.
    """

    def __init__(self, strict: bool = False):
        """Args: strict: the first row left out is an error instead."""
        self._strict = strict
        self.counts: collections.Counter[str] = collections.Counter()
        self.examples: list[str] = []

    def add(self, where: str, error: DataError | str, kind: str = "row", rows: int = 1) -> None:
        """Counts rows that are left out.

        Args:
          where: the place, such as "part-0.parquet, row 17".
          error: the reason; an `Unusable` knows its kind.
          kind: of a reason that does not.
          rows: how many.

        Raises:
          DataError: under `strict`.
        """
        text = f"{where}: {error}"
        if self._strict:
            raise DataError(f"{text}; without strict it would be left out and counted")
        self.counts[error.kind if isinstance(error, Unusable) else kind] += rows
        if len(self.examples) < _KEPT:
            self.examples.append(text)
            logger.warning("left out: %s", text)

    def to_mapping(self) -> dict[str, Any]:
        """For manifests and ``--json``."""
        return {"counts": dict(sorted(self.counts.items())), "examples": list(self.examples)}
