"""Tests of the train command: flags, errors, and one real run on a very small model."""

from __future__ import annotations

import json
import re
import sys

import jax
import pytest

from launch import common, train
from process_gen.checkpoint import manager
from process_gen.core import configs
from process_gen.core.errors import ConfigError
from tests.train.event_files import events

CONFIG = """
import ml_collections
from process_gen.core import configs

def get_config(arg=None):
    config = ml_collections.ConfigDict(configs.to_mapping(configs.Config()))
    config.model.update(dict(
        width=16, mlp_width=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
        und_encoder="none"))
    source = dict(kind="strokes", size=40)
    config.data.update(dict(
        sources=(source,), eval_sources=(source,), rows=1, eval_rows=1, und_len=0, prefetch=0))
    config.data.grammar.context_images = "vae"
    config.train.update(dict(steps=4, log_every=2, eval_every=2, save_every=2))
    config.optimizer.name = arg or "adamw"
    return config
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(CONFIG)
    return path


def call(*args):
    common.run(train.main, train.define_flags, train.__doc__, ["launch.train", *map(str, args)])


@pytest.fixture
def fit_calls(monkeypatch):
    """Replaces the loop, so that a test of flags neither compiles nor trains."""
    calls = []
    monkeypatch.setattr(train.loop, "fit", lambda config, workdir, **_: calls.append(config))
    monkeypatch.setattr(train.pipeline, "train_dataset", lambda *_: None)
    monkeypatch.setattr(train.pipeline, "eval_batches", lambda *_: [])
    monkeypatch.setattr(common, "enable_compilation_cache", lambda: None)
    return calls


def test_overrides_and_argument_reach_the_config(config_file, tmp_path, fit_calls):
    call(
        f"--config={config_file}:muon",
        f"--workdir={tmp_path}",
        "--config.train.steps=7",
        "--config.optimizer.learning_rate=1",
        "--config.sampler.guidance_interval=(0.1, 0.9)",
    )
    (config,) = fit_calls
    assert (config.optimizer.name, config.train.steps) == ("muon", 7)
    assert config.optimizer.learning_rate == 1.0
    assert config.sampler.guidance_interval == (0.1, 0.9)
    assert config.data.sources == (configs.SourceConfig("strokes", size=40),)
    assert sys.argv[0] != "launch.train"  # given back


def test_what_is_nothing_by_default_can_be_set(tmp_path, fit_calls):
    flags = ("--config.sampler.process_shift=2", "--config.loss.ce_weight_late=1.5")
    call("--config=configs/base.py", f"--workdir={tmp_path}", *flags)
    (config,) = fit_calls
    assert (config.sampler.process_shift, config.loss.ce_weight_late) == (2.0, 1.5)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--config.train.stepss=5"], "unknown config key 'stepss' in --config.train.stepss=5.*st"),
        (["--config.optimiser.name=adamw"], "unknown config key 'optimiser'"),
        (["--config.train.steps=many"], "train.steps=many"),
        (["--config.train.steps.foo=1"], r"names nothing that can be set: .* train\.steps\.foo"),
        (["--config.data.sources[9]=1"], "names nothing that can be set: tuple index out of range"),
        (["--config.model.width=-8"], "model.width must be positive, got -8"),
        (["--config.model.dtype=float16"], "model.dtype must be one of"),
        (["--config.mesh.tensor=3"], r"mesh .*tensor=3.* does not fit"),
        (["--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["word"], "unexpected argument 'word'"),
    ],
)
def test_mistakes_are_one_line_and_status_2(config_file, tmp_path, fit_calls, capsys, args, words):
    workdir = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_info:
        call(f"--config={config_file}", f"--workdir={workdir}", *args)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(words, error)
    assert not fit_calls and not workdir.exists()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--workdir=x"], "--config=FILE is missing"),
        (["--workdir=x", "--config.train.steps=5"], "--config=FILE is missing"),
        (["--config=nowhere.py", "--workdir=x"], "config file nowhere.py does not exist"),
        (["--config={broken}", "--workdir=x"], "cannot be loaded: SyntaxError"),
        (["--config={file}"], "--workdir is missing"),
    ],
)
def test_missing_or_broken_files(config_file, tmp_path, fit_calls, capsys, args, words):
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(SystemExit) as exit_info:
        call(*[a.format(file=config_file, broken=broken) for a in args])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and error.count("\n") == 1 and words in error


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{'a': 1}[arg]", "KeyError: 'name'"),
        ("configs.nmae", "AttributeError: module 'process_gen.core.configs' has no attribute"),
        ("open('/nowhere/settings')", "FileNotFoundError: [Errno 2] No such file or directory"),
        ("open('/')", "IsADirectoryError: [Errno 21] Is a directory: '/'"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--config.optimizer.name=muon"]])
def test_what_a_config_file_raises_is_not_an_unknown_key(
    config_file, tmp_path, fit_calls, capsys, line, words, more
):
    config_file.write_text(CONFIG.replace("    return", f"    {line}\n    return"))
    with pytest.raises(SystemExit) as exit_info:
        call(f"--config={config_file}:name", f"--workdir={tmp_path / 'run'}", *more)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and error.count("\n") == 1
    assert error.startswith(f"error: config file {config_file}:name cannot be loaded: {words}")


def test_restore_names_the_newest_the_best_or_a_step():
    assert [train.which(text) for text in ("latest", "best", "120")] == ["latest", "best", 120]
    for text in ("newest", "-1", "1.5", ""):
        with pytest.raises(ConfigError, match="none of latest, best and the number"):
            train.which(text)


def test_help_fits_a_screen_and_shows_an_example(capsys):
    call("--help")
    text = capsys.readouterr().out
    assert "python -m launch.train --config=configs/strokes_tiny.py --workdir=" in text
    assert len(text.splitlines()) <= 24 and max(map(len, text.splitlines())) <= 100


def test_cache_folder(monkeypatch, tmp_path):
    set_to = {}
    monkeypatch.setattr(jax.config, "update", set_to.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    common.enable_compilation_cache()
    assert set_to["jax_compilation_cache_dir"] == str(tmp_path / "process_gen" / "jax")
    set_to.clear()
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/elsewhere")
    common.enable_compilation_cache()
    assert "jax_compilation_cache_dir" not in set_to


def test_who_can_paint_on_the_way(monkeypatch):
    train_settings = {"paint_every": 5, "paint_prompts": ["a red circle"]}
    config = configs.from_mapping({"train": train_settings})
    assert train.hooks(configs.from_mapping({}), None) == {}
    assert train.hooks(config, None)["paint"].every == 5
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="only runs of one process paint"):
        train.hooks(config, None)


def test_a_run_goes_on_and_another_config_is_refused(config_file, tmp_path, capsys):
    workdir = tmp_path / "run"
    call(f"--config={config_file}", f"--workdir={workdir}", "--config.train.steps=2")
    out = capsys.readouterr().out
    assert "layers/gen/mlp/up/kernel" in out and "layers embed mlp" in out and "bytes" in out
    assert "from step 0 of 2" in out and "train 2/2" in out and "eval  2" in out
    call(f"--config={config_file}", f"--workdir={workdir}")
    assert "from step 2 of 4" in capsys.readouterr().out
    assert manager.load_for_sampling(workdir)[2]["step"] == 4
    entries = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [(e["step"], e["split"]) for e in entries] == [
        (step, split) for step in (2, 4) for split in ("train", "eval")
    ]
    assert {"loss", "plan_ce", "sketch_mse"} <= entries[0].keys()

    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    with pytest.raises(SystemExit) as exit_info:
        call(f"--config={config_file}:muon", f"--workdir={workdir}")
    error = capsys.readouterr().err
    assert exit_info.value.code == 2 and error.count("\n") == 1
    assert "optimizer.name is 'adamw' there and 'muon' here" in error
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


@pytest.mark.slow  # compiles a training step and a painter
@pytest.mark.timeout(900)
def test_the_event_files_of_a_run(config_file, tmp_path):
    """Losses, rates, norms, pack fill and shares of the data; and paintings on the way."""
    workdir = tmp_path / "run"
    painting = (
        "--config.train.paint_every=2",
        "--config.train.paint_prompts=('a red circle',)",
        "--config.sampler.denoise_steps=2",
        "--config.sampler.max_text=8",
        "--config.sampler.max_images=1",
    )
    call(f"--config={config_file}", f"--workdir={workdir}", "--config.train.steps=4", *painting)
    found: dict[str, list] = {}
    for step, tag, kind, value in events(workdir / "tensorboard"):
        found.setdefault(tag, []).append((step, kind, value))
    scalars = {
        *("train/loss", "train/plan_ce", "train/sketch_mse", "train/steps_per_second"),
        *("train/learning_rate", "train/grad_norm", "train/grad_norm/und", "train/grad_norm/gen"),
        *("train/update_norm/embed", "train/update_norm/lm_head", "train/fill/text"),
        *("train/tokens/plan_ce", "train/data/epoch", "train/data/share_strokes", "eval/loss"),
        *("paint/finished", "paint/seconds"),
    }
    for tag in scalars:
        assert [(step, kind) for step, kind, _ in found[tag]] == [
            (2, "simple_value"),
            (4, "simple_value"),
        ], tag
    parts = [found[t][-1][2] for t in found if t.startswith("train/grad_norm/")]
    # Means over two steps: parts add up to no more than the whole, and to about as much.
    total = found["train/grad_norm"][-1][2]
    assert 0.5 * total < sum(x * x for x in parts) ** 0.5 < 1.0001 * total
    assert 0 < found["train/fill/text"][0][2] <= 1 and found["train/data/share_strokes"][0][2] == 1
    assert [(step, kind) for step, kind, _ in found["paint/0"]] == [(2, "image"), (4, "image")]
    strip = found["paint/0"][0][2]
    assert strip.height > 50 and strip.width > 100
