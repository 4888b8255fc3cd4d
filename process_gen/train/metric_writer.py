"""What a run writes its metrics to. A scalar's name is "split/name".

The classes have the methods of clu's `MetricWriter` that a run uses, so that either can stand in
for the other; clu's own module imports TensorFlow, these do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


class MetricWriter:
    """Takes everything and keeps nothing; the others override what they can show."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures, uint8 [N, H, W, 3] or [H, W, 3]."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes short texts."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings, once."""

    def flush(self) -> None:
        """Makes everything written so far visible."""

    def close(self) -> None:
        """Flushes, and frees what is open."""


class MultiWriter(MetricWriter):
    """Passes everything on to several writers."""

    def __init__(self, writers: Sequence[MetricWriter]) -> None:
        self._writers = tuple(writers)

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes numbers to all."""
        for writer in self._writers:
            writer.write_scalars(step, scalars)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes pictures to all."""
        for writer in self._writers:
            writer.write_images(step, images)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Writes texts to all."""
        for writer in self._writers:
            writer.write_texts(step, texts)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Writes the settings to all."""
        for writer in self._writers:
            writer.write_hparams(hparams)

    def flush(self) -> None:
        """Flushes all."""
        for writer in self._writers:
            writer.flush()

    def close(self) -> None:
        """Closes all."""
        for writer in self._writers:
            writer.close()


def by_split(scalars: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Scalars grouped by what stands before the first slash of their names."""
    groups: dict[str, dict[str, float]] = {}
    for name, value in scalars.items():
        split, _, rest = name.partition("/")
        if not rest:
            split, rest = "", name
        groups.setdefault(split, {})[rest] = value
    return groups
