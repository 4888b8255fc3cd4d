"""Prompts by number: of the Strokes world, or from a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from process_gen.core.errors import DataError
from process_gen.curation.strokes_maker import StrokesPrompts
from process_gen.data.packing import digest
from process_gen.sampling.prompt_file import read_prompts
from process_gen.strokes.plans import StrokesOptions
from process_gen.strokes.prompts import held_out


class Prompts(Protocol):
    """A sequence of requirements: mappings with a "prompt".

    Attributes:
      fingerprint: hash of what the numbers mean.
    """

    fingerprint: str

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The prompt of an item."""
        ...


class FilePrompts:
    """The prompts of a file, over and over.

    Raises:
      DataError: see `sampling.prompt_file.read_prompts`; or one that is held out from training.
    """

    def __init__(self, path: str):
        """Reads all of it."""
        items = read_prompts(path).items
        self._items = [{"prompt": item} if isinstance(item, str) else dict(item) for item in items]
        for item in self._items:
            if held_out(item["prompt"]):
                raise DataError(f"{path}: {item['prompt']!r} is held out; never train on it")
        self.fingerprint = digest(self._items)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        """The prompt of an item."""
        return self._items[index % len(self._items)]


def open_prompts(
    path: str, weights: Mapping[str, float], size: int, seed: int, uncolored: float = 0.0
) -> Prompts:
    """The prompts of a file or, without one, `size` of the Strokes world.

    Args:
      path: of the file, or "".
      weights, size, seed, uncolored: see `StrokesPrompts`; without weights all tags alike.

    Raises:
      ConfigError: weights of unknown tags, or not one above 0.
      DataError: see `FilePrompts`.
    """
    if path:
        return FilePrompts(path)
    options = StrokesOptions(weights=weights) if weights else StrokesOptions()
    return StrokesPrompts(options.weights, size, seed, uncolored)
