"""The same prompts painted over and over while a model learns, as filmstrips for its log."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from process_gen.core.configs import Config
from process_gen.report.figures import filmstrip
from process_gen.sampling.painter import Painter
from process_gen.train.state import TrainState, averaged

SCALE = 4  # pixels of a strip for one of its pictures


def make_strips(
    config: Config, vae: Any = None
) -> Callable[[int, TrainState], Mapping[str, float | np.ndarray]]:
    """Builds a hook of the training loop that paints `train.paint_prompts`; before the loop begins.

    It paints with the averaged weights and the run's own settings, always from the same seed, all
    prompts in one batch; what it compiles is compiled at its first call.

    Args:
      config: of the run.
      vae: weights of the picture codec, where it has any.

    Returns:
      `(step, state) -> found`: a picture `uint8[H, W, 3]` for each prompt, named by its number, the
      share of paintings that were `finished`, their `images`, and the `seconds` it took.
    """
    prompts = config.train.paint_prompts
    # Made while no mesh is in force, as modules want it.
    painter = Painter(config, None, vae=jax.device_put(vae))

    def strips(step: int, state: TrainState) -> Mapping[str, float | np.ndarray]:
        started = time.monotonic()
        # The step after this one overwrites the weights, so that the painter must not keep them.
        done = painter.with_params(averaged(state)).paint(prompts, seed=0, batch=len(prompts))
        found: dict[str, float | np.ndarray] = {
            str(number): np.asarray(filmstrip(trajectory, SCALE))
            for number, trajectory in enumerate(done)
        }
        ended = [trajectory.finish_reason == "finished" for trajectory in done]
        found["finished"] = sum(ended) / len(done)
        found["images"] = sum(len(trajectory.images) for trajectory in done) / len(done)
        found["seconds"] = time.monotonic() - started
        return found

    return strips
