"""process_gen: process-driven image generation in JAX.

import process_gen
painter = process_gen.load("runs/tiny")
for trajectory in painter.paint(["a red circle left of a blue star"], seed=1):
    print(trajectory.finish_reason, trajectory.final_image.shape)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from process_gen.sampling.painter import Painter, load

__all__ = ["Painter", "load"]


def __getattr__(name: str) -> Any:
    """Imports the painter when it is first asked for; data workers never load a device."""
    if name in __all__:
        from process_gen.sampling import painter

        return getattr(painter, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
