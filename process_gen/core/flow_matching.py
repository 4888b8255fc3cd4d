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
from typing import Any, Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np

Prediction = Literal["velocity", "x0"]
Renorm = Literal["none", "global", "channel", "text_channel"]
Solver = Literal["euler", "heun", "adams", "dpm"]


_Times = TypeVar("_Times", jax.Array, np.ndarray)


def shift_time(t: _Times, shift: float) -> _Times:
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


def time_grid(steps: int, shift: float, start: float = 1.0) -> np.ndarray:
    """``float32[steps + 1]`` from `start` (1 is noise) to 0, evenly spaced before the shift.

    BAGEL's `num_timesteps` counts the points of this grid, one more than its steps.
    """
    first = start / (shift - (shift - 1.0) * start)  # the time that is shifted to `start`
    return shift_time(np.linspace(first, 0.0, steps + 1), shift).astype(np.float32)


def _beside(t: jax.Array, x: jax.Array) -> jax.Array:
    """A scalar t, or one a row, in as many dimensions as x."""
    return jnp.reshape(t, t.shape + (1,) * (x.ndim - t.ndim))


def _second_order(
    solver: Solver, times: tuple[jax.Array, ...], x: Any, v: Any, last: Any
) -> tuple[jax.Array, jax.Array]:
    """The slope of a two-step method, and what the next step wants to know of this one.

    "adams" extrapolates the velocity along t. "dpm" extrapolates the clean picture along
    ``lambda = log((1 - t) / t)``: the second-order multistep of DPM-Solver++ (arXiv 2211.01095,
    algorithm 2) on this path. Where it has no two finite steps of lambda it is an Euler step, and
    so are both methods' first ones.

    Args:
      solver: "adams" or "dpm".
      times: the step before, this and the next one, equal where there is no step.
      x, v: now.
      last: what the step before returned.
    """
    before, now, following = (_beside(t, x) for t in times)
    if solver == "adams":
        ratio = (now - following) / jnp.where(before > now, before - now, jnp.inf)
        return v + 0.5 * ratio * (v - last), v
    clean = x - now * v
    inside = (before < 1.0) & (following > 0.0) & (before > now)
    logit = [
        jnp.log((1.0 - t) / t)
        for t in (jnp.where(inside, t, 0.5) for t in (before, now, following))
    ]
    ratio = (logit[2] - logit[1]) / jnp.where(inside, logit[1] - logit[0], 1.0)
    ahead = clean + jnp.where(inside, 0.5 * ratio, 0.0) * (clean - last)
    return v + (clean - ahead) / jnp.where(now > 0.0, now, 1.0), clean


def integrate(
    velocity: Callable[..., Any],
    start: jax.Array,
    grid: jax.Array,
    solver: Solver,
    *,
    steps: jax.Array | int | None = None,
    memory: Any = None,
) -> jax.Array:
    """Follows the flow down the time grid.

    Args:
      velocity: ``(x, t) -> v``, `t` like a column of the grid; with a memory ``(x, t, memory) ->
        (v, memory)``.
      start: x at the first time of the grid, which is the noise where that is 1.
      grid: falling times, ``float32[N + 1]`` or, one line a row, ``[B, N + 1]``; the loop runs on
        the device. A row that has arrived, its times equal from there on, stays where it is.
      solver: "euler"; "heun" (the mean of the velocities at both ends; the last step, whose end is
        t = 0, stays an Euler step); "adams" or "dpm", of second order with one evaluation a step.
      steps: how many steps of the grid to take, which may be traced; by default all of them.
      memory: what `velocity` is given first, a pytree of arrays.

    Raises:
      ValueError: unknown `solver`.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}; known: {', '.join(get_args(Solver))}")
    steps = grid.shape[-1] - 1 if steps is None else steps

    def evaluate(x: jax.Array, t: jax.Array, memory: Any) -> tuple[jax.Array, Any]:
        return (velocity(x, t), None) if memory is None else velocity(x, t, memory)

    def step(i: jax.Array, carry: tuple, order: int) -> tuple:
        x, memory, last = carry
        times = tuple(jnp.take(grid, j, axis=-1) for j in (jnp.maximum(i - 1, 0), i, i + 1))
        length = _beside(times[1] - times[2], x)
        v, memory = evaluate(x, times[1], memory)
        if order == 2 and solver == "heun":
            ahead, memory = evaluate(x - v * length, times[2], memory)
            v = 0.5 * (v + ahead)
        elif order == 2:
            v, last = _second_order(solver, times, x, v, last)
        return x - v * length, memory, last

    order = 1 if solver == "euler" else 2
    whole = steps - 1 if solver == "heun" else steps
    carry = (start, memory, start if order == 2 else None)  # what is not needed is not carried
    carry = jax.lax.fori_loop(0, whole, lambda i, carry: step(i, carry, order), carry)
    return step(jnp.asarray(whole), carry, 1)[0] if solver == "heun" else carry[0]


def evaluations(steps: int, solver: Solver) -> int:
    """Velocity evaluations of `integrate`, guidance branches not counted."""
    return 2 * steps - 1 if solver == "heun" else steps


def evaluation_times(grid: np.ndarray, solver: Solver) -> np.ndarray:
    """Their times, in order, down one grid ``[N + 1]``."""
    return np.repeat(grid[:-1], 2)[1:] if solver == "heun" else grid[:-1]


def guided_at(t: _Times, interval: tuple[float, float]) -> _Times:
    """bool, where guidance acts: low < t <= high."""
    low, high = interval
    return (low < t) & (t <= high)


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
