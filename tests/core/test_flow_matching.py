from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.flow_matching import (
    evaluation_times,
    evaluations,
    guide,
    integrate,
    interpolate,
    logit_normal_time,
    shift_time,
    time_grid,
    to_velocity,
    velocity_target,
)

RNG = np.random.default_rng(0)
X0 = RNG.uniform(-1, 1, (2, 5, 3)).astype(np.float32)
EPS = RNG.normal(size=(2, 5, 3)).astype(np.float32)


# ---- the path ------------------------------------------------------------------------------------


def test_the_path_begins_at_the_picture_and_ends_in_noise():
    np.testing.assert_array_equal(interpolate(X0, EPS, 0.0), X0)
    np.testing.assert_array_equal(interpolate(X0, EPS, 1.0), EPS)
    np.testing.assert_allclose(interpolate(X0, EPS, 0.25), 0.75 * X0 + 0.25 * EPS, rtol=1e-6)


def test_the_target_is_the_paths_derivative():
    t, h = 0.3, 1e-2
    slope = (interpolate(X0, EPS, t + h) - interpolate(X0, EPS, t - h)) / (2 * h)
    np.testing.assert_allclose(velocity_target(X0, EPS), slope, atol=1e-4)
    assert np.abs(velocity_target(EPS, X0) - slope).max() > 0.1


def test_x0_heads_and_velocity_heads_say_the_same():
    for t in (0.06, 0.5, 1.0):
        x_t = interpolate(X0, EPS, t)
        velocity = velocity_target(X0, EPS)
        from_x0 = to_velocity(X0, x_t, jnp.float32(t), "x0", 0.05)
        np.testing.assert_allclose(from_x0, velocity, atol=3e-5)
        assert np.abs(to_velocity(EPS, x_t, jnp.float32(t), "x0", 0.05) - velocity).max() > 0.1
        same = to_velocity(velocity, x_t, jnp.float32(t), "velocity", 0.05)
        np.testing.assert_array_equal(same, velocity)
    with pytest.raises(ValueError, match="unknown prediction 'noise'"):
        to_velocity(X0, X0, jnp.float32(0.5), "noise", 0.05)


def test_the_divisor_of_an_x0_head_has_a_floor():
    x_t = interpolate(X0, EPS, 0.01)
    wrong = X0 + 1.0
    error = to_velocity(wrong, x_t, jnp.float32(0.01), "x0", 0.05) - to_velocity(
        X0, x_t, jnp.float32(0.01), "x0", 0.05
    )
    np.testing.assert_allclose(error, -20.0, rtol=1e-4)  # 1 / 0.05, not 1 / 0.01
    assert np.isfinite(to_velocity(wrong, x_t, jnp.float32(0.0), "x0", 0.05)).all()


# ---- times ---------------------------------------------------------------------------------------


def test_bagels_default_grid():
    """50 points, shift 3: worked out from s t / (1 + (s - 1) t) at t = k / 49."""
    grid = time_grid(49, 3.0)
    assert grid.shape == (50,) and grid.dtype == np.float32
    golden = [1.0, 0.993103, 0.986014]
    np.testing.assert_allclose(grid[:3], golden, atol=1e-6)
    np.testing.assert_allclose(grid[-3:], [0.113208, 0.058824, 0.0], atol=1e-6)
    assert grid[0] == 1.0 and grid[-1] == 0.0
    assert (grid[:-1] > 0.4).sum() == 41  # steps inside BAGEL's guidance interval (0.4, 1]
    assert (np.diff(grid) < 0).all()
    assert np.abs(time_grid(50, 3.0)[:3] - golden).max() > 1e-4  # 50 steps are another grid
    assert (time_grid(49, 1.0)[:-1] > 0.4).sum() == 30


def test_no_shift_is_evenly_spaced():
    np.testing.assert_allclose(time_grid(4, 1.0), [1, 0.75, 0.5, 0.25, 0])
    assert np.abs(time_grid(4, 2.0) - time_grid(4, 1.0)).max() > 0.1


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 7.0])
def test_a_shift_keeps_both_ends_and_the_order(shift):
    t = np.linspace(0, 1, 101)
    shifted = shift_time(t, shift)
    assert shifted[0] == 0.0 and shifted[-1] == 1.0
    assert (np.diff(shifted) > 0).all()
    np.testing.assert_allclose(shift_time(shifted, 1 / shift), t, atol=1e-12)
    inside = slice(1, -1)
    assert ((shifted > t)[inside].all(), (shifted < t)[inside].all()) == (shift > 1, shift < 1)


def test_training_times_are_logit_normal():
    normal = jnp.asarray(np.random.default_rng(1).normal(size=20_000))
    t = np.asarray(logit_normal_time(normal, 0.0, 1.0, 1.0))
    assert 0 < t.min() and t.max() < 1
    logit = np.log(t / (1 - t))
    np.testing.assert_allclose(logit, normal, atol=2e-3)
    moved = np.asarray(logit_normal_time(normal, -0.5, 2.0, 3.0))
    # A shift by s adds log s to the logit.
    np.testing.assert_allclose(
        np.log(moved / (1 - moved)), -0.5 + 2 * normal + np.log(3), atol=2e-2
    )


# ---- solvers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["euler", "heun", "adams", "dpm"])
@pytest.mark.parametrize(("steps", "shift"), [(1, 1.0), (7, 3.0)])
def test_an_exact_velocity_gives_the_data_back(solver, steps, shift):
    grid = jnp.asarray(time_grid(steps, shift))
    exact = velocity_target(X0, EPS)
    out = integrate(lambda x, t: exact, jnp.asarray(EPS), grid, solver)
    np.testing.assert_allclose(out, X0, atol=1e-5)
    reversed_sign = integrate(lambda x, t: -exact, jnp.asarray(EPS), grid, solver)
    assert np.abs(reversed_sign - X0).max() > 1

    # An x0 head that always knows the picture arrives there too, from any noise.
    def from_x0(x, t):
        return to_velocity(X0, x, t, "x0", 1e-3)

    np.testing.assert_allclose(integrate(from_x0, jnp.asarray(EPS), grid, solver), X0, atol=1e-4)


def error_of(solver, steps):
    """dx/dt = x from x(1) = e down to t = 0, where x = 1."""
    grid = jnp.asarray(time_grid(steps, 1.0))
    return abs(float(integrate(lambda x, t: x, jnp.float32(np.e), grid, solver)) - 1.0)


def test_heun_is_of_second_order_and_euler_of_first():
    euler = [error_of("euler", n) for n in (8, 16, 32)]
    heun = [error_of("heun", n) for n in (8, 16, 32)]
    for coarse, fine in zip(euler, euler[1:], strict=False):
        assert 1.8 < coarse / fine < 2.3
    for coarse, fine in zip(heun, heun[1:], strict=False):
        assert 3.5 < coarse / fine < 4.7
    assert heun[0] < euler[0] / 5


def gaussian_error(solver, steps):
    """Data of mean 1 and deviation 1/2, whose velocity is known, against the exact end."""
    grid = jnp.asarray(time_grid(steps, 1.0))

    def velocity(x, t):
        variance = (0.5 * (1 - t)) ** 2 + t**2
        # x_t = (1 - t) + standard normal * root of the variance
        return -1.0 + (x - (1 - t)) * (t - 0.25 * (1 - t)) / variance

    return abs(float(integrate(velocity, jnp.float32(1.5), grid, solver)) - (1.0 + 1.5 * 0.5))


def test_two_step_methods_are_better_at_one_evaluation_a_step():
    adams = [error_of("adams", n) for n in (8, 16, 32)]
    for coarse, fine in zip(adams, adams[1:], strict=False):
        assert 3.2 < coarse / fine < 4.7
    for solver in ("adams", "dpm"):
        assert gaussian_error(solver, 12) < gaussian_error("euler", 12) / 3
        assert evaluations(12, solver) == 12


def test_rows_have_grids_of_their_own():
    grids = np.stack([time_grid(4, 1.0), np.array([0.5, 0.25, 0, 0, 0], np.float32)])

    def velocity(x, t):
        return x - 0.3 * t[:, None]

    for solver in ("euler", "adams", "dpm"):
        both = integrate(velocity, jnp.ones((2, 3)), jnp.asarray(grids), solver, steps=4)
        for row, grid in enumerate((grids[0], grids[1, :3])):
            alone = integrate(velocity, jnp.ones((1, 3)), jnp.asarray(grid)[None], solver)
            np.testing.assert_allclose(both[row], alone[0], rtol=1e-6)
        assert np.abs(both[0] - both[1]).max() > 1e-2
    np.testing.assert_allclose(time_grid(4, 3.0, start=0.6)[0], 0.6, rtol=1e-6)


def test_what_a_velocity_remembers():
    def velocity(x, t, memory):
        return x, memory + 1.0

    def counted(x, t, memory):
        return jnp.where(memory < 2.5, x, 0.0), memory + 1.0

    start, grid = jnp.float32(2.0), jnp.asarray(time_grid(4, 1.0))
    whole, three = (
        integrate(f, start, grid, "euler", memory=jnp.float32(0)) for f in (velocity, counted)
    )
    np.testing.assert_allclose(three, 2.0 * 0.75**3, rtol=1e-6)
    np.testing.assert_allclose(whole, three * 0.75, rtol=1e-6)


def test_times_given_to_the_velocity():
    """The grid's times, each step's beginning (Heun: its end too, but never t = 0)."""
    grid = jnp.asarray(time_grid(4, 2.0))
    seen = []

    def velocity(x, t):
        jax.debug.callback(lambda t: seen.append(float(t)), t, ordered=True)
        return x

    for solver, times in (
        ("euler", grid[:-1]),
        ("heun", jnp.stack([grid[:3], grid[1:4]], 1).ravel().tolist() + [grid[3]]),
    ):
        seen.clear()
        integrate(velocity, jnp.float32(1), grid, solver).block_until_ready()
        jax.effects_barrier()
        np.testing.assert_allclose(seen, times)
        np.testing.assert_array_equal(seen, evaluation_times(np.asarray(grid), solver))
        assert len(seen) == evaluations(4, solver)
    assert (evaluations(4, "euler"), evaluations(4, "heun")) == (4, 7)
    with pytest.raises(ValueError, match="unknown solver 'midpoint'"):
        integrate(velocity, jnp.float32(1), grid, "midpoint")


# ---- guidance ------------------------------------------------------------------------------------

BRANCHES = tuple(RNG.normal(size=(2, 5, 3)).astype(np.float32) for _ in range(3))


def guided_by_hand(c, text, image, text_scale, image_scale, renorm, renorm_min):
    """BAGEL's formulas for one picture, token by token, in float64."""
    c, text = c.astype(np.float64), text.astype(np.float64)

    def factor(reference, w):
        return min(max(np.linalg.norm(reference) / (np.linalg.norm(w) + 1e-8), renorm_min), 1.0)

    w = np.array([t + text_scale * (x - t) for x, t in zip(c, text, strict=True)])
    if renorm == "text_channel":
        w = np.array([x * factor(ref, x) for ref, x in zip(c, w, strict=True)])
    if image is not None:
        w = image + image_scale * (w - image)
    if renorm == "global":
        w = w * factor(c, w)
    if renorm == "channel":
        w = np.array([x * factor(ref, x) for ref, x in zip(c, w, strict=True)])
    return w


@pytest.mark.parametrize("renorm", ["none", "global", "channel", "text_channel"])
@pytest.mark.parametrize("with_image", [False, True])
@pytest.mark.parametrize("renorm_min", [0.0, 0.6])
def test_guidance_by_hand(renorm, with_image, renorm_min):
    conditional, text, image = BRANCHES
    image = image if with_image else None
    out = guide(
        *(conditional, text, image),
        text_scale=4.0,
        image_scale=1.5,
        renorm=renorm,
        renorm_min=renorm_min,
    )
    for picture in range(2):
        branches = [x if x is None else x[picture] for x in (conditional, text, image)]

        def by_hand(mode, minimum, branches=branches):
            return guided_by_hand(*branches, 4.0, 1.5, mode, minimum)

        np.testing.assert_allclose(out[picture], by_hand(renorm, renorm_min), atol=1e-5)
        for mode in {"none", "global", "channel", "text_channel"} - {renorm}:
            if with_image or {mode, renorm} != {"channel", "text_channel"}:  # else the same
                assert np.abs(by_hand(renorm, 0.0) - by_hand(mode, 0.0)).max() > 1e-2
        if renorm != "none":
            assert np.abs(by_hand(renorm, 0.0) - by_hand(renorm, 0.6)).max() > 1e-2


def test_without_a_text_branch_there_is_no_guidance():
    conditional, text, image = BRANCHES
    settings = dict(text_scale=4.0, image_scale=2.0, renorm="global", renorm_min=0.0)
    assert guide(conditional, None, image, **settings) is conditional
    assert np.abs(guide(conditional, text, image, **settings) - conditional).max() > 0.1


def test_scales_of_one_give_the_conditional_velocity():
    conditional, text, image = BRANCHES
    for renorm in ("none", "global", "channel", "text_channel"):
        out = guide(
            conditional, text, image, text_scale=1.0, image_scale=1.0, renorm=renorm, renorm_min=0.0
        )
        np.testing.assert_allclose(out, conditional, atol=1e-5)


def test_renormalisation_only_shrinks():
    conditional, text, _ = BRANCHES
    arguments = dict(text_scale=4.0, image_scale=1.0, renorm_min=0.0)

    def norms(renorm):
        return np.linalg.norm(guide(conditional, text, None, renorm=renorm, **arguments), axis=-1)

    reference = np.linalg.norm(conditional, axis=-1)
    assert (norms("channel") <= reference + 1e-5).all()
    assert not (norms("none") <= reference + 1e-5).all()
    # A factor that is never below 1 turns it off.
    off = guide(conditional, text, None, renorm="channel", **(arguments | {"renorm_min": 1.0}))
    np.testing.assert_allclose(np.linalg.norm(off, axis=-1), norms("none"), rtol=1e-5)
