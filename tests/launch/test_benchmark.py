"""The benchmark command in miniature: its counts are right, and every suite gives its numbers."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

import process_gen
from configs import bagel_7b, strokes_tiny
from launch import (
    bench_bagel,
    bench_data,
    bench_figures,
    bench_sample,
    bench_sizes,
    bench_steps,
    bench_timing,
    bench_train,
    benchmark,
    common,
)
from process_gen.core.configs import Config, from_mapping
from process_gen.core.errors import ConfigError
from process_gen.models import flops
from process_gen.sampling.painter import Painter


def test_the_work_is_the_reference_s():
    """The counts of the file's description: tokens, labels, targets, parameters."""
    config = bench_bagel.read_config()
    batch = bench_bagel.train_batch(config, np.random.default_rng(0))
    work = flops.of_batch(batch)
    assert (work.text + work.patches, work.latents) == (280, 384)
    assert (work.labels, work.targets) == (132, 256)
    assert flops.useful_share(batch) == 1.0
    # 44 % of all pairs of a sample are seen, as in the reference.
    assert work.pairs / (2 * 332**2) == pytest.approx(0.44, abs=0.01)
    assert flops.train(config.model, work) == pytest.approx(27.3e9, rel=0.02)


@pytest.mark.slow
def test_branches_of_guidance_see_what_they_should(monkeypatch):
    config = bench_bagel.read_config(num_layers=1, width=32, mlp_width=32, num_heads=2,
                                     num_kv_heads=2, head_dim=16)  # fmt: skip
    monkeypatch.setattr(bench_bagel, "STEPS", 2)
    monkeypatch.setattr(bench_bagel, "WRITTEN", 3)
    work = bench_bagel.build(config)
    assert work.calls["denoise"]().shape == (64, 64)
    assert work.calls["guided"]().shape == (64, 64)
    tokens, count, _ = work.calls["decode"]()
    assert tokens.shape == (3,) and int(count) == 2
    assert 2 * work.flops["denoise"] < work.flops["guided"] < 3 * work.flops["denoise"]
    loss, grads = work.calls["train"]()
    assert np.isfinite(float(loss)) and float(jnp.abs(grads["lm_head"]["kernel"]).max()) > 0


def test_a_call_can_be_warmed_up():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = bench_timing.interleaved(calls, 2, warm=1)
    assert seen == ["a", "b"] + ["a", "a", "b", "b"] * 2
    assert len(times["a"].seconds) == 2


def test_rounds_are_interleaved():
    seen = []
    calls = {name: lambda name=name: seen.append(name) for name in "ab"}
    times = bench_timing.interleaved(calls, 3)
    assert seen == ["a", "b"] + ["a", "b"] * 3
    summary = times["a"].summary(more=1)
    assert summary["rounds"] == 3 and summary["more"] == 1
    assert summary["ms_min"] <= summary["ms"] <= summary["ms_max"]


def _row(family, evaluations, rate):
    exact = {"rate": rate, "low": rate - 0.1, "high": rate + 0.05}
    return {"mode": "process", "family": family, "exact": exact,
            "evaluations_a_painting": evaluations}  # fmt: skip


def test_accuracy_is_drawn_against_evaluations(tmp_path):
    euler, dpm = [_row("euler", 8, 0.9), _row("euler", 2, 0.8)], _row("dpm", 4, 0.7)
    rows = [*euler, dpm, _row("dpm", 8, 0.75)]
    found = {"suite": "steps", "rows": rows}
    bench_figures.write(found, tmp_path / "front.png")
    assert PIL.Image.open(tmp_path / "front.png").width > 500
    (axis,) = bench_figures.FIGURES["steps"](found).axes
    euler, dpm = (container.lines[0].get_xydata() for container in axis.containers)
    assert euler[:, 1].tolist() == [80, 90] and dpm[:, 1].tolist() == [70, 75]
    # Moved aside a little, so that members of equal cost can be told apart.
    np.testing.assert_allclose(euler[:, 0], [2, 8], rtol=0.02)
    np.testing.assert_allclose(dpm[:, 0], [4, 8], rtol=0.02)
    assert euler[1, 0] != dpm[1, 0]
    first, second = (container.lines[0].get_color() for container in axis.containers)
    assert first != second


def test_a_suite_without_a_figure_says_so(tmp_path):
    with pytest.raises(ConfigError, match="data has none; steps, sample, train have"):
        bench_figures.write({"suite": "data"}, tmp_path / "figure.png")


def test_a_reference_works_in_turn_with_ours(tmp_path):
    program = tmp_path / "reference.py"
    program.write_text(
        "import sys\n"
        "for line in sys.stdin:\n"
        "    if line == 'broken\\n': sys.exit(3)\n"
        f"    with open({str(tmp_path / 'seen')!r}, 'a') as file: file.write(line)\n"
        "    print('done', flush=True)\n"
    )
    reference = bench_bagel.Reference(f"{sys.executable} {program}")
    calls = {name: lambda name=name: reference.run(f"ours {name}") for name in "ab"}
    bench_timing.interleaved(bench_bagel.beside(calls, reference), 2)
    assert (tmp_path / "seen").read_text().splitlines() == ["ours a", "a", "ours b", "b"] * 3
    with pytest.raises(ConfigError, match="ended with 3 at 'broken'"):
        reference.run("broken")
    with pytest.raises(ConfigError, match="ended with 3"):
        reference.run("a")  # and it stays so
    reference.close()


def test_compilations_are_counted():
    with bench_timing.compilations() as counter:
        run = jax.jit(lambda x: x * 3.0 + 17.5)
        run(jnp.ones(7))
        first = counter.count
        run(jnp.ones(7))
        assert counter.count == first >= 1
    jax.jit(lambda x: x - 1.25)(jnp.ones(7))
    assert counter.count == first


def test_compile_times_leave_the_settings_alone():
    before = jax.config.jax_compilation_cache_dir
    found = bench_timing.compile_seconds(lambda: jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))))
    assert set(found) == {"trace", "cold", "from_disk"} and found["cold"] > 0
    assert jax.config.jax_compilation_cache_dir == before


@pytest.mark.slow
def test_a_step_is_measured():
    mapping = strokes_tiny.get_config("debug").to_dict()
    config = from_mapping(mapping)
    found = bench_train.measure(config, 2, 1e12)
    assert 0 < found["useful_tokens"] <= 1 and found["model_gflop"] > 0
    assert found["mfu"] == pytest.approx(
        found["model_gflop"] * 1e9 / (found["step"]["ms"] * 1e-3) / 1e12, rel=0.3
    )


@pytest.mark.slow
def test_sizes_are_measured_with_random_weights(capsys):
    mapping = strokes_tiny.get_config("debug").to_dict()
    mapping["sampler"] |= {"batch": 2}
    found = bench_sizes.measure_all(from_mapping(mapping), 1, list(bench_sizes.PARTS))
    assert {"chunked", "rows with gradients"} < set(found["attention"])
    assert found["step"]["useful_tokens"] == 1 and found["step"]["mfu"] > 0
    assert [row["batch"] for row in found["painting"]["batches"]] == list(bench_sizes.BATCHES)
    rows = found["trajectory"]["by_pictures"]
    assert [row["pictures"] for row in rows] == [1, 2, 3]
    for name in ("pictures_of_one_shot", "whole_of_one_shot", "tokens"):
        assert 0 < rows[0][name] < rows[1][name] < rows[2][name]
    assert "painting {" in capsys.readouterr().out  # each part as soon as it is there


def test_reading_back_counts_the_copies_that_are_read():
    mapping = strokes_tiny.get_config("debug").to_dict()
    found = {}
    for copies in ("vit", "vae", "vae+vit"):
        mapping["data"]["grammar"]["context_images"] = copies
        painter = Painter(from_mapping(mapping), None)
        programs = painter._bound(painter.config.sampler, painter._default_size())
        read = bench_sample.copies_read(programs)
        needed = bench_sample._piece_flops(programs, 1, 1, {"decode": 1})["re-encode"]
        found[copies] = sum(read.values()), needed
    assert found["vit"][0] == found["vae"][0] == 18 and found["vae+vit"][0] == 36
    assert 1.9 < found["vae+vit"][1] / found["vit"][1] < 2.2


@pytest.mark.parametrize(
    ("dtype", "dtypes", "taken"),
    [
        ("bfloat16", ("float32",), ("float32", "bfloat16")),
        ("bfloat16", ("float32", "bfloat16"), ("float32", "bfloat16")),
        ("float32", ("float32", "bfloat16"), ("float32", "bfloat16")),
        ("float32", ("float32",), ("float32",)),
    ],
)
def test_shares_are_of_the_peak_of_the_type(monkeypatch, dtype, dtypes, taken):
    peaks = {"float32": 100.0, "bfloat16": 400.0}
    seen, bests = [], set()
    monkeypatch.setattr(
        bench_train.bench_timing, "peaks",
        lambda shapes, types: seen.append(types) or {"gflops": {t: peaks[t] for t in types}},
    )  # fmt: skip
    monkeypatch.setattr(bench_train, "measure", lambda config, rounds, best: bests.add(best) or {})
    mapping = strokes_tiny.get_config("debug").to_dict()
    mapping["model"] |= {"dtype": dtype}
    found = bench_train.measure_all(mapping, 1, dtypes)
    assert seen == [taken] and bests == {1e9 * peaks[dtype]} and found["mfu_of"] == dtype


def test_steps_on_latents_are_refused_before_the_peak(monkeypatch):
    monkeypatch.setattr(bench_train.bench_timing, "peaks", None)
    mapping = bagel_7b.get_config().to_dict()
    with pytest.raises(ConfigError, match="model.codec='flux': --suite=train measures"):
        bench_train.measure_all(mapping, 1, ("float32",))


def test_peak_memory_is_in_megabytes(monkeypatch):
    """What the system counts is KiB; what a device counts is bytes."""
    stats, device = {}, SimpleNamespace(memory_stats=lambda: stats)
    monkeypatch.setattr(bench_timing.jax, "devices", lambda: [device])
    usage = SimpleNamespace(ru_maxrss=1_000_000)
    monkeypatch.setattr(bench_timing.resource, "getrusage", lambda who: usage)
    assert bench_timing.peak_memory_mb() == 1024.0
    stats["peak_bytes_in_use"] = 1_000_000
    assert bench_timing.peak_memory_mb() == 1.0


@pytest.mark.parametrize(("asked", "ran"), [(5, 20), (30, 30)])
def test_the_rounds_of_data_are_those_that_ran(monkeypatch, capsys, asked, ran):
    pulled = []

    planned = []

    class Batches:
        epoch = 0

        def __next__(self):
            pulled.append(1)
            return SimpleNamespace(token_BxT=[0])

        def plan(self, epoch):
            planned.append((epoch, len(pulled)))

        def close(self):
            pass

    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(bench_data.pipeline, "train_dataset", lambda config: Batches())
    monkeypatch.setattr(bench_data.flops, "useful_share", lambda batch: 1.0)
    arguments = ["x", "--suite=data", "--config=configs/strokes_tiny.py", "--json"]
    arguments.append(f"--rounds={asked}")
    common.run(benchmark.main, benchmark.define_flags, "", arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["rounds"] == found["ahead"]["rounds"] == ran
    assert len(pulled) == 2 * (1 + ran)  # ahead and one at a time, a first batch each
    # The next epoch is planned before a batch is timed, not beside it.
    assert planned == [(1, 1), (1, 1 + ran + 1)]


def test_mixed_prompts_hold_every_tag():
    words = bench_sample.mixed_prompts(21)
    assert len(set(words)) > 14 and len({len(w.split()) for w in words}) > 3


def test_crowded_prompts_ask_for_six_objects():
    words = bench_sample.crowded_prompts(21)
    assert len(set(words)) == 21 and all(len(set(w.split(" and "))) == 6 for w in words)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", ["sample", "bagel_cpu", "data", "train"])
def test_every_suite_prints_an_object(suite, capsys):
    arguments = ["x", f"--suite={suite}", "--rounds=1", "--prompts=32", "--json"]
    if suite in ("train", "data"):
        arguments.append("--config=configs/strokes_tiny.py")
    common.run(benchmark.main, benchmark.define_flags, benchmark.__doc__ or "", arguments)
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["suite"] == suite and found["peak_memory_mb"] > 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--suite=data", "--figure={tmp}/x.png"], "--figure: suite data has none"),
        (["--suite=steps"], "--suite=steps is about the easy Strokes world, and the painter has"),
        (["--suite=bagel_cpu", "--reference=pyhton x.py"], "is there: 'pyhton'"),
        (["--suite=bagel_cpu", "--reference= "], "is there: it is empty"),
        (["--suite=bagel_cpu", "--reference=python 'x.py"], "cannot be read: No closing quotation"),
    ],
)
def test_mistakes_are_said_before_anything_is_measured(monkeypatch, tmp_path, capsys, flags, words):
    def measured(*_, **__):
        raise AssertionError("measured")

    sources = [{"kind": "strokes", "options": {"world": "hard"}}]
    painter = SimpleNamespace(config=from_mapping({"data": {"sources": sources}}))
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(process_gen, "load", lambda path: painter)
    monkeypatch.setattr(bench_steps, "measure", measured)
    monkeypatch.setattr(bench_data, "measure_all", measured)
    monkeypatch.setattr(bench_bagel, "build", measured)
    arguments = [flag.format(tmp=tmp_path) for flag in flags]
    with pytest.raises(SystemExit) as exit:
        config = "--config=configs/strokes_tiny.py"
        common.run(benchmark.main, benchmark.define_flags, "", ["x", config, *arguments])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and words in error and error.count("\n") == 1


def test_accuracy_is_measured_in_the_size_of_the_easy_world():
    sizes = []

    def stream(wanted, *, size, **_):
        sizes.append(size)
        raise ConfigError("this far")

    painter = SimpleNamespace(config=Config(), stream=stream)
    with pytest.raises(ConfigError, match="this far"):
        bench_steps.measure_all(painter, 1)
    assert sizes == [(32, 32)]


def test_numbers_are_kept_where_the_figure_cannot_be_drawn(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    monkeypatch.setattr(benchmark, "run_suite", lambda values: {"rows": []})
    out = tmp_path / "out.json"
    arguments = ["x", "--suite=steps", f"--figure={tmp_path}/nowhere/x.png", f"--out={out}"]
    with pytest.raises(FileNotFoundError):
        common.run(benchmark.main, benchmark.define_flags, "", arguments)
    assert json.loads(out.read_text())["suite"] == "steps"


def test_a_suite_is_needed(capsys):
    with pytest.raises(SystemExit) as exit:
        common.run(benchmark.main, benchmark.define_flags, "", ["x"])
    assert exit.value.code == 2 and "--suite" in capsys.readouterr().err
