"""Invariants of the training step, on the real model in very small."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.aot.hlo_shapes import has_dims
from process_gen.core.batch import (
    Dropout,
    Lengths,
    PackedBatch,
    PatchSizes,
    lay_out,
    pack,
    stack,
)
from process_gen.core.configs import Config, LossConfig, from_mapping
from process_gen.core.grammar import to_segments
from process_gen.core.trajectory import Stage
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.losses import stages
from process_gen.models import functional
from process_gen.strokes.plans import StrokesOptions, one_shot, text_only, trajectory_at
from process_gen.train import loop, optimizer, state, step
from process_gen.train import metrics as metrics_lib
from tests.lively import SMALLEST, lively

IDS = token_ids(load_tokenizer())
SIZES = PatchSizes(latent=8, und=8, latent_grid=4, und_grid=4)
LENGTHS = Lengths(320, 160, 384)
NO_DROPOUT = Dropout()
FAULTY = StrokesOptions(conflict=0.5, misalignment=0.5, weights={"position": 1.0})


def tiny(**model) -> Config:
    return from_mapping(
        {
            "model": {**SMALLEST, **model},
            "data": {"grammar": {"noise_copies": 2}},
            "optimizer": {"name": "muon", "learning_rate": 1e-2, "warmup_steps": 0},
        }
    )


@pytest.fixture(scope="module")
def setup():
    config = tiny()
    fns = functional.build(config.model)
    return config, fns, lively(jax.jit(fns.init)(jax.random.key(0)))


def runs(config, *trajectories, dropout=NO_DROPOUT, rng=None):
    segments = [to_segments(t, config.data.grammar) for t in trajectories]
    return [lay_out(s, IDS, SIZES, dropout=dropout, rng=rng) for s in segments]


def draws_for(laid_out, lengths, seed=0):
    """Noise that belongs to a trajectory, wherever in a pack it lies."""
    eps = np.zeros((lengths.gen, 192), np.float32)
    normal = np.zeros(lengths.gen, np.float32)
    at = copies = 0
    for number, run in laid_out:
        rng = np.random.default_rng([seed, number])
        eps[at : at + run.lengths.gen] = rng.normal(size=(run.lengths.gen, 192))
        normal[copies : copies + run.copies] = rng.normal(size=run.copies)
        at, copies = at + run.lengths.gen, copies + run.copies
    return step.Draws(jnp.asarray(normal)[None], jnp.asarray(eps)[None])


def summed(config, fns):
    """Sums of both losses and their gradients, not normalised."""

    def total(params, batch, draws):
        elements = step.elementwise_losses(fns, params, batch, draws, config)
        one = stages.Counts(jnp.float32(1.0), jnp.float32(1.0))
        return stages.reduce(
            elements, one, ce_weight=1.0, mse_weight=1.0, scales=stages.scale_table({})
        )

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.fixture(scope="module")
def grad(setup):
    """Of `summed` for the plain config: one program, compiled once."""
    config, fns, _ = setup
    return summed(config, fns)


def row(*packed_runs) -> PackedBatch:
    return stack([pack(packed_runs, LENGTHS, SIZES)])


def largest_difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y)) / (1e-6 + jnp.max(jnp.abs(y)))) for x, y in pairs)


def test_packing_two_trajectories_changes_neither(setup, grad):
    config, _, params = setup
    a, b = runs(config, trajectory_at(0, 1, FAULTY), trajectory_at(0, 2, FAULTY))
    (loss_a, _), grad_a = grad(params, row(a), draws_for([(0, a)], LENGTHS))
    (loss_b, _), grad_b = grad(params, row(b), draws_for([(1, b)], LENGTHS))
    both, draws = row(a, b), draws_for([(0, a), (1, b)], LENGTHS)
    (loss, metrics), together = grad(params, both, draws)
    assert loss == pytest.approx(float(loss_a + loss_b), rel=1e-5)
    added = jax.tree.map(jnp.add, grad_a, grad_b)
    assert largest_difference(together, added) < 1e-4
    assert all(metrics[name][1] > 0 for name in ("plan_ce", "inspect_ce", "refine_mse"))

    # The same with intervals that cross the border between the two.
    leak = both._replace(
        text=both.text._replace(
            visible_to=np.where(both.text.visible_to >= 0, 10_000, both.text.visible_to)
        )
    )
    (leaked, _), _ = grad(params, leak, draws)
    assert abs(float(leaked) - float(loss)) > 1e-3


def test_losses_depend_on_the_past_only(setup):
    """Gradients of one segment's loss reach earlier tokens and no later one, stage by stage."""
    _, fns, params = setup
    config = tiny(vocab_size=640)
    (run,) = runs(config, trajectory_at(0, 1, FAULTY))
    batch = row(run)
    draws = draws_for([(0, run)], LENGTHS)
    # Every token gets an id of its own, so that the table's gradient tells tokens apart.
    n = run.lengths.text
    unique = batch._replace(
        token_BxT=np.where(np.arange(LENGTHS.text) < n, np.arange(LENGTHS.text), 639)[None]
    )
    order = batch.text.order[0, :n]

    @jax.jit
    def reached(weight_T, weight_G):
        def loss(table):
            weights = {**params, "embed": {"table": table}}
            elements = step.elementwise_losses(fns, weights, unique, draws, config)
            return jnp.sum(elements.ce_BxT[0] * weight_T) + jnp.sum(elements.mse_BxG[0] * weight_G)

        return jnp.abs(jax.grad(loss)(params["embed"]["table"])).max(1)[:n]

    nothing = np.zeros(LENGTHS.gen, np.float32)
    labelled = np.flatnonzero(batch.label_BxT[0] >= 0)
    seen_stages = set()
    for stage in np.unique(batch.label_stage_BxT[0, labelled]):
        tokens = labelled[batch.label_stage_BxT[0, labelled] == stage]
        seen_stages.add(int(stage))
        one = np.zeros(LENGTHS.text, np.float32)
        one[tokens[0]] = 1.0
        gradient = np.asarray(reached(one, nothing))
        here = batch.text.order[0, tokens[0]]
        assert np.all(gradient[order > here] == 0.0), stage
        assert np.all(gradient[order == here] > 0.0), stage
        visible = (order < here) & (batch.text.visible_to[0, :n] >= here)
        assert np.all(gradient[visible] > 0.0), stage
    assert len(seen_stages) >= 4  # plan, inspection, re-emitted plan or refinement, control
    for stage in np.unique(batch.target_stage_BxG[0][batch.target_stage_BxG[0] >= 0]):
        targets = np.flatnonzero(batch.target_stage_BxG[0] == stage)[:1]
        one = nothing.copy()
        one[targets] = 1.0
        gradient = np.asarray(reached(np.zeros(LENGTHS.text, np.float32), one))
        here = batch.gen.order[0, targets[0]]
        assert np.all(gradient[order > here] == 0.0), stage
        assert np.any(gradient[order < here] > 0.0), stage


def test_a_noised_image_reaches_its_own_loss_only(setup):
    config, fns, params = setup
    (run,) = runs(config, trajectory_at(0, 1, FAULTY))
    batch, draws = row(run), draws_for([(0, run)], LENGTHS)
    copies = batch.copy_BxG[0]

    @jax.jit
    def reached(eps, weight_T, weight_G):
        def loss(eps):
            noisy = draws._replace(eps_BxGxP=eps)
            elements = step.elementwise_losses(fns, params, batch, noisy, config)
            return jnp.sum(elements.ce_BxT[0] * weight_T) + jnp.sum(elements.mse_BxG[0] * weight_G)

        return jnp.abs(jax.grad(loss)(eps)[0]).max(1)

    everything_T = (batch.label_BxT[0] >= 0).astype(np.float32)
    no_text = np.zeros_like(everything_T)
    from_text = reached(draws.eps_BxGxP, everything_T, np.zeros(LENGTHS.gen, np.float32))
    assert np.all(np.asarray(from_text) == 0.0)
    for copy in (0, 1, copies.max()):
        own = np.asarray(copies == copy)
        gradient = np.asarray(reached(draws.eps_BxGxP, no_text, own.astype(np.float32)))
        assert np.all(gradient[own] > 0.0)
        assert np.all(gradient[~own] == 0.0)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": "unroll"},
        {"remat": "full"},
        {"remat": "dots"},
        {"attention": "chunked", "remat": "offload"},
        {"attention": "rows"},
        {"attention": "rows", "remat": "attention"},
    ],
)
def test_how_layers_are_run_changes_no_number(setup, grad, change):
    config, _, params = setup
    other = tiny(**change)
    (run,) = runs(config, trajectory_at(0, 3, FAULTY))
    batch, draws = row(run), draws_for([(0, run)], LENGTHS)
    other_grad = summed(other, functional.build(other.model))
    (loss, _), grads = grad(params, batch, draws)
    (other_loss, _), other_grads = other_grad(params, batch, draws)
    assert other_loss == pytest.approx(float(loss), rel=1e-5)
    assert largest_difference(other_grads, grads) < 1e-4
    # The setting did change the program.
    texts = [g.lower(params, batch, draws).as_text() for g in (grad, other_grad)]
    assert texts[0] != texts[1]


# Over rows one loop is there again, which sorts and does not attend.
@pytest.mark.parametrize(("attention", "again"), [("chunked", 0), ("rows", 1)])
def test_what_the_backward_pass_computes_again(setup, attention, again):
    """Attention is a loop over blocks: it runs twice only where its output was not kept."""
    config, _, params = setup
    batch = three_rows(config)
    loops, texts = {}, {}
    for remat in ("none", "attention", "offload", "full"):
        other = tiny(attention=attention, remat=remat)
        traced = summed(other, functional.build(other.model)).trace(
            params, batch, step.draw(jax.random.key(0), batch)
        )
        # A CPU has one memory only, and leaves out what is said about another.
        texts[remat] = traced.lower(lowering_platforms=("tpu",)).as_text()
        loops[remat] = texts[remat].count("stablehlo.while")
    assert loops["none"] + again == loops["attention"] == loops["offload"] < loops["full"]
    assert len(set(texts.values())) == 4
    assert {name for name, text in texts.items() if "pinned_host" in text} == {"offload"}


def three_rows(config):
    laid_out = runs(config, *(trajectory_at(0, i, FAULTY) for i in range(4)))
    return stack([pack([run], LENGTHS, SIZES) for run in laid_out])


def test_accumulation_equals_one_big_batch(setup):
    config, fns, params = setup
    batch = three_rows(config)
    runs_of, results = {}, {}
    for parts in (1, 4):
        settings = dataclasses.replace(config.optimizer, accumulate=parts, name="adamw", eps=1.0)
        parted = dataclasses.replace(config, optimizer=settings)
        tx, schedule = optimizer.make_optimizer(settings, fns.logical_axes)
        start = state.make_state(params, tx, 10)
        arguments = (start, batch, jax.random.key(1))
        make = jax.jit(step.make_train_step(fns, tx, schedule, parted))
        runs_of[parts] = make.lower(*arguments).compile()
        results[parts] = runs_of[parts](*arguments)
    temporary = {n: run.memory_analysis().temp_size_in_bytes for n, run in runs_of.items()}
    assert temporary[4] < 0.5 * temporary[1]
    (whole, metrics), (other, other_metrics) = results[1], results[4]
    assert largest_difference(other.params, whole.params) < 1e-6
    for name, (numerator, denominator) in metrics.items():
        assert other_metrics[name][0] == pytest.approx(float(numerator), rel=1e-4), name
        if name not in ("grad_norm", "learning_rate"):
            assert other_metrics[name][1] == denominator, name
    # An equality that held whatever was trained on would say nothing.
    tokens = np.array(batch.token_BxT)
    tokens[:, 5] += 1
    changed, _ = runs_of[1](start, batch._replace(token_BxT=tokens), jax.random.key(1))
    assert largest_difference(changed.params, whole.params) > 1e-5


def lowered_step(config, batch):
    fns = functional.build(config.model)
    rule, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    shapes = jax.eval_shape(lambda: state.make_state(fns.init(jax.random.key(0)), rule, 10))
    run = jax.jit(step.make_train_step(fns, rule, schedule, config))
    return run.lower(shapes, batch, jax.random.key(1))


def test_blocks_of_the_vocabulary_change_no_number_and_hold_no_logits(setup):
    """In the whole step, before the compiler has made anything smaller."""
    config = tiny(vocab_size=1031)
    blocks = dataclasses.replace(config, loss=dataclasses.replace(config.loss, vocab_chunk=200))
    batch = row(*runs(config, trajectory_at(0, 1, FAULTY)))
    texts = [lowered_step(c, batch).as_text() for c in (config, blocks)]
    assert [has_dims(text, LENGTHS.text, 1031) for text in texts] == [True, False]
    fns = functional.build(config.model)
    params = lively(jax.jit(fns.init)(jax.random.key(0)))
    draws = step.draw(jax.random.key(0), batch)

    def ce(config):
        elements = functools.partial(step.elementwise_losses, fns)
        return jax.jit(lambda params: elements(params, batch, draws, config).ce_BxT)

    want, in_blocks = ce(config)(params), ce(blocks)
    found, other = in_blocks(params), in_blocks(lively(params))
    np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-6)
    assert np.abs(other - want).max() > 0.1


def test_weights_that_are_not_trained_cost_no_gradient(setup):
    sizes = {"width": 64, "mlp_width": 256, "num_heads": 2, "head_dim": 32, "vocab_size": 640}
    config = tiny(**sizes)
    batch = row(*runs(config, trajectory_at(0, 1, FAULTY)))
    adapted = tiny(**sizes, lora={"rank": 1})
    flops = [lowered_step(c, batch).cost_analysis()["flops"] for c in (config, adapted)]
    assert flops[1] < 0.85 * flops[0]  # a third of the work with weights is their gradient


def test_an_expert_without_tokens_is_not_updated(setup):
    config, fns, params = setup
    tx, schedule = optimizer.make_optimizer(config.optimizer, fns.logical_axes)
    run = jax.jit(step.make_train_step(fns, tx, schedule, config))
    before = state.make_state(params, tx, 10)
    moved, _ = run(before, three_rows(config), jax.random.key(1))
    words = pack(runs(config, text_only(trajectory_at(0, 5, FAULTY))), LENGTHS, SIZES)
    words = stack([words] * 4)  # of the same shape, so that nothing is compiled again
    after, _ = run(moved, words, jax.random.key(1))
    for name in ("latent_in", "latent_out", "time_in", "time_out"):
        assert largest_difference(after.params[name], moved.params[name]) == 0.0
    gen = (after.params["layers"]["gen"], moved.params["layers"]["gen"])
    assert largest_difference(*gen) == 0.0
    assert largest_difference(after.params["layers"]["und"], moved.params["layers"]["und"]) > 0.0
    first = (moved.params["layers"]["gen"], before.params["layers"]["gen"])
    assert largest_difference(*first) > 0.0


def test_the_same_key_draws_the_same_and_the_next_step_something_else(setup):
    config, _, _ = setup
    batch = three_rows(config)
    one = step.draw(jax.random.key(3), batch)
    assert largest_difference(one, step.draw(jax.random.key(3), batch)) == 0.0
    assert largest_difference(one, step.draw(jax.random.key(4), batch)) > 0.0
    t = np.asarray(step.times(one, batch, config.loss))
    assert np.all(t[batch.copy_BxG < 0] == 0.0)
    assert np.all((t[batch.copy_BxG >= 0] > 0) & (t[batch.copy_BxG >= 0] < 1))
    for copy in range(int(batch.copy_BxG[0].max()) + 1):
        assert len(np.unique(t[0][batch.copy_BxG[0] == copy])) == 1


def test_one_shot_and_empty_rows_are_finite(setup):
    config, fns, params = setup
    drawn = runs(config, one_shot(trajectory_at(0, 5, FAULTY)))
    batch = stack([pack(drawn, LENGTHS, SIZES), pack([], LENGTHS, SIZES)])
    metrics = jax.jit(step.make_eval_step(fns, config))(params, batch, jax.random.key(0))
    assert np.isfinite(metrics_lib.compute(metrics_lib.collect(metrics))["loss"])
    assert metrics["one_shot_mse"][1] == 2 * 16
    assert metrics["plan_ce"][1] == 0


def test_a_padded_batch_weighs_as_much_as_it_holds(setup):
    """The held-out loss is that of one batch of all packs, which the last batch does not fill."""
    config, fns, params = setup
    loss = LossConfig(ce_weight=0.25, ce_weight_late=0.5, mse_weight=3.0)
    config = dataclasses.replace(config, loss=loss)
    rows = [[run] for run in runs(config, *(trajectory_at(0, i, FAULTY) for i in (1, 2)))]
    rows += [runs(config, one_shot(trajectory_at(0, 3, FAULTY))), []]
    first, last = (stack([pack(r, LENGTHS, SIZES) for r in rows[i : i + 2]]) for i in (0, 2))
    evaluate = step.make_eval_step(fns, config)
    both, alone, padded = (
        loop._make_evaluate(evaluate, batches, lambda batch: batch)(params)
        for batches in ([first, last], [first], [last])
    )
    for values in (both, alone):
        assert values["loss"] == pytest.approx(0.5 * values["ce"] + 3 * values["mse"], rel=1e-6)
    # Partner: the mean over batches is another number.
    assert abs(both["loss"] - (alone["loss"] + padded["loss"]) / 2) > 0.05 * both["loss"]
    # A batch alone has the loss that training has.
    key = jax.random.fold_in(jax.random.key(0), 0)
    wanted, _ = step._loss(
        {}, params, first, step.draw(key, first), step._counts(first, config), 0.5,
        fns=fns, config=config, latents=step._PIXELS,
    )  # fmt: skip
    assert alone["loss"] == pytest.approx(float(wanted), rel=1e-6)


def test_the_weight_of_words_changes_once_on_the_way():
    config = from_mapping({"loss": {"ce_weight": 0.3, "ce_weight_late": 1.5, "late_from": 0.4}})
    total = jnp.int32(100)
    weights = [float(step.ce_weight_at(jnp.int32(i), total, config.loss)) for i in (0, 39, 40, 99)]
    assert weights == pytest.approx([0.3, 0.3, 1.5, 1.5])


def test_what_a_batch_holds_is_counted(setup):
    config, _, _ = setup
    a, b = runs(config, trajectory_at(0, 1, FAULTY), trajectory_at(0, 2, FAULTY))
    metrics = {name: (jnp.float32(0), jnp.float32(5)) for name in stages.STAGE_METRICS}
    places = {"text": LENGTHS.text, "und": LENGTHS.und, "gen": LENGTHS.gen}
    for packed, held in ((row(a), (a,)), (row(a, b), (a, b))):
        found = step.load(packed, metrics)
        for name, size in places.items():
            used = sum(getattr(run.lengths, name) for run in held)
            assert [float(x) for x in found[f"fill/{name}"]] == [used, size]
        assert found["tokens/plan_ce"] == (5, 1)


def test_reweighted_texts_count_by_the_root_of_their_length(setup):
    config, _, _ = setup
    batch = three_rows(config)
    wanted = 0.0
    for label, stage in zip(batch.label_BxT, batch.label_stage_BxT, strict=True):
        special = (label >= 0) & (stage == int(Stage.CONTROL))
        own = np.flatnonzero((label >= 0) & ~special)
        texts = np.split(own, np.flatnonzero(np.diff(own) > 1) + 1)
        wanted += special.sum() + sum(len(text) ** 0.5 for text in texts)
    reweighted = dataclasses.replace(config, loss=LossConfig(ce_reweighting=True))
    assert float(step._counts(batch, reweighted).ce) == pytest.approx(wanted, rel=1e-6)
    assert float(step._counts(batch, config).ce) == (batch.label_BxT >= 0).sum() > 2 * wanted


def test_ids_outside_the_tables_are_refused(setup):
    config, _, _ = setup
    batch = three_rows(config)
    step.check_batch(batch, config)
    with pytest.raises(ValueError, match="token is 640"):
        step.check_batch(batch._replace(token_BxT=batch.token_BxT * 0 + 640), config)


def test_bfloat16_computes_about_the_same(setup):
    config, fns, params = setup
    half = tiny(dtype="bfloat16")
    batch = three_rows(config)
    key = jax.random.key(0)
    full = jax.jit(step.make_eval_step(fns, config))(params, batch, key)
    low = jax.jit(step.make_eval_step(functional.build(half.model), half))(params, batch, key)
    for name in ("ce", "mse"):
        assert low[name][0] == pytest.approx(float(full[name][0]), rel=0.05), name
        assert low[name][0] != full[name][0], name  # it did compute in another type
        assert low[name][0].dtype == jnp.float32
