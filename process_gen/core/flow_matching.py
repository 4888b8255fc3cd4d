"""The flow path: rectified flow between pictures and noise, for the loss and for the sampler.

Signs, stated once (those of BAGEL, `modeling/bagel/bagel.py` of its repository):

* t = 0 is the clean picture x0, t = 1 is pure noise eps, ``x_t = (1 - t) x0 + t eps``;
* the velocity points from data to noise, ``v = dx/dt = eps - x0``;
* sampling starts at t = 1 and steps down, ``x <- x - v (t_now - t_next)``.

A head may predict the velocity or x0; `to_velocity` converts, here and nowhere else. The loss and
every reported mse are in velocity units. Randomness is always an argument.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

Prediction = Literal["velocity", "x0"]
Renorm = Literal["none", "global", "channel", "text_channel"]


def shift_time(t: jax.Array, shift: float) -> jax.Array:
    """``s t / (1 + (s - 1) t)``: s > 1 moves times towards noise (Esser et al. 2403.03206, eq. 23).

    Maps [0, 1] onto itself and keeps both ends.
    """
    return shift * t / (1.0 + (shift - 1.0) * t)


def logit_normal_time(normal: jax.Array, mean: float, std: float, shift: float) -> jax.Array:
    """Training times in (0, 1) from standard normal draws: ``shift(sigmoid(mean + std n))``."""
    return shift_time(jax.nn.sigmoid(mean + std * normal), shift)


def interpolate(x0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """``x_t``; `t` broadcasts against `x0` and `eps`."""
    return (1.0 - t) * x0 + t * eps


def velocity_target(x0: jax.Array, eps: jax.Array) -> jax.Array:
    """``dx_t / dt``, the same at every t."""
    return eps - x0


def to_velocity(
    output: jax.Array, x_t: jax.Array, t: jax.Array, prediction: Prediction, min_t: float
) -> jax.Array:
    """Turns a head's output into a velocity.

    With ``x_t = x0 + t v`` an x0 head gives ``v = (x_t - x0) / t``. The divisor is kept above
    `min_t`, else the weight 1/t^2 of the smallest times would rule the loss.

    Raises:
      ValueError: unknown `prediction`.
    """
    if prediction == "velocity":
        return output
    if prediction == "x0":
        return (x_t - output) / jnp.maximum(t, min_t)
    raise ValueError(f"unknown prediction {prediction!r}; known: velocity, x0")


def time_grid(steps: int, shift: float) -> np.ndarray:
    """``float32[steps + 1]`` from 1 (noise) to 0, evenly spaced, then shifted.

    BAGEL's `num_timesteps` counts the points of this grid, one more than its steps.
    """
    even = np.linspace(1.0, 0.0, steps + 1)
    return (shift * even / (1.0 + (shift - 1.0) * even)).astype(np.float32)


def integrate(
    velocity: Callable[[jax.Array, jax.Array], jax.Array],
    eps: jax.Array,
    grid: jax.Array,
    solver: Literal["euler", "heun"],
) -> jax.Array:
    """Follows the flow from noise down the time grid.

    Args:
      velocity: ``(x, t) -> v``, `t` a scalar.
      eps: the noise to start from.
      grid: falling times, ``float32[steps + 1]``; the loop runs on the device.
      solver: "euler", or "heun" (the mean of the velocities at both ends; the last step, whose end
        is t = 0, stays an Euler step).

    Raises:
      ValueError: unknown `solver`.
    """
    steps = grid.shape[0] - 1

    def euler(i: jax.Array, x: jax.Array) -> jax.Array:
        return x - velocity(x, grid[i]) * (grid[i] - grid[i + 1])

    def heun(i: jax.Array, x: jax.Array) -> jax.Array:
        v = velocity(x, grid[i])
        ahead = velocity(x - v * (grid[i] - grid[i + 1]), grid[i + 1])
        return x - 0.5 * (v + ahead) * (grid[i] - grid[i + 1])

    if solver == "euler":
        return jax.lax.fori_loop(0, steps, euler, eps)
    if solver == "heun":
        return euler(jnp.asarray(steps - 1), jax.lax.fori_loop(0, steps - 1, heun, eps))
    raise ValueError(f"unknown solver {solver!r}; known: euler, heun")


def evaluations(steps: int, solver: Literal["euler", "heun"]) -> int:
    """Velocity evaluations of `integrate`, guidance branches not counted."""
    return steps if solver == "euler" else 2 * steps - 1


def guide(
    conditional: jax.Array,
    text_dropped: jax.Array | None,
    image_dropped: jax.Array | None,
    *,
    text_scale: jax.Array | float,
    image_scale: jax.Array | float,
    renorm: Renorm,
    renorm_min: float,
) -> jax.Array:
    """Classifier-free guidance with two branches (BAGEL, `modeling/bagel/bagel.py`).

    ``w = u_T + s_T (c - u_T)``, then ``w <- u_I + s_I (w - u_I)``; the result is shrunk so that it
    is no longer than the conditional velocity:

    * "global": one norm over all tokens and features of a picture;
    * "channel": one norm a token;
    * "text_channel": one norm a token, between the text and the image step;
    * "none": not at all.

    The factor is clipped to [`renorm_min`, 1]. Without a text branch there is no guidance at all,
    as in BAGEL; without an image branch its step is skipped.

    Args:
      conditional, text_dropped, image_dropped: velocities ``[B, N, P]``.
      text_scale, image_scale: 1 is no guidance.
      renorm, renorm_min: as above.
    """
    if text_dropped is None:
        return conditional
    w = text_dropped + text_scale * (conditional - text_dropped)
    if renorm == "text_channel":
        w = w * _shrink(conditional, w, (-1,), renorm_min)
    if image_dropped is not None:
        w = image_dropped + image_scale * (w - image_dropped)
    if renorm == "global":
        w = w * _shrink(conditional, w, (-2, -1), renorm_min)
    elif renorm == "channel":
        w = w * _shrink(conditional, w, (-1,), renorm_min)
    return w


def _shrink(
    reference: jax.Array, w: jax.Array, axes: tuple[int, ...], renorm_min: float
) -> jax.Array:
    def norm(x: jax.Array) -> jax.Array:
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=axes, keepdims=True))

    return jnp.clip(norm(reference) / (norm(w) + 1e-8), renorm_min, 1.0)
