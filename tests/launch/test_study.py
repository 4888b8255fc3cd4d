"""The study's arms in the hard world: what they train on, and which suites score them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from configs import strokes_hard, strokes_study, strokes_tiny
from launch import trials
from launch.suites import SUITES
from process_gen.core.configs import Config, from_mapping
from process_gen.data.packing import measure_source
from process_gen.data.pictures import picture_rule
from process_gen.data.rows import patch_sizes
from process_gen.data.sources import build_source
from process_gen.data.tokenizer import load_tokenizer

SWEEP = Path(__file__).parents[2] / "configs" / "sweeps" / "study.py"
ARMS = ("process", "one_shot", "multi_turn", "conflict", "alignment")


def config_of(arm: str) -> Config:
    return from_mapping(strokes_study.get_config(arm).to_dict())


def lengths(config: Config, count: int = 60) -> list[tuple[float, np.ndarray]]:
    """Weight of each source, and T, V, G of its first paintings."""
    data = config.data
    tokenizer = load_tokenizer(data.tokenizer)
    settings = (data.grammar, tokenizer, patch_sizes(config), picture_rule(config))
    found = [measure_source(build_source(s, 0), 0, count, *settings) for s in data.sources]
    return [(s.weight, f.length_Nx3) for s, f in zip(data.sources, found, strict=True)]


def too_long(found: list[tuple[float, np.ndarray]], *limits: int) -> float:
    """Share of the paintings that no pack of these limits holds."""
    shares = [weight * np.mean((length > limits).any(axis=1)) for weight, length in found]
    return sum(shares) / sum(weight for weight, _ in found)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_of_the_hard_world_is_the_easy_one_elsewhere(arm):
    easy, hard = config_of(arm), config_of(f"{arm},world=hard")
    assert hard.data.tokenizer == "strokes_hard" and hard.model.latent_grid == 6
    assert (hard.train.flops, hard.optimizer) == (easy.train.flops, easy.optimizer)
    for mixture in ("sources", "eval_sources"):
        pairs = zip(getattr(easy.data, mixture), getattr(hard.data, mixture), strict=True)
        for a, b in pairs:
            assert (a.kind, a.weight, a.size) == (b.kind, b.weight, b.size)
            assert {**a.options, "world": "hard"} == dict(b.options)


@pytest.mark.parametrize("arm", ["process", "one_shot"])
def test_few_paintings_are_too_long_for_a_pack(arm):
    data = (config := config_of(f"{arm},world=hard")).data
    found = lengths(config)
    assert too_long(found, data.text_len, data.und_len, data.gen_len) < 0.03
    assert too_long(found, data.text_len, data.und_len, 64) > 0.1  # partner: no room for a picture


def test_the_recipe_differs_from_the_easy_one_where_it_says_so():
    easy, hard = (from_mapping(m.get_config().to_dict()) for m in (strokes_tiny, strokes_hard))
    assert (easy.loss, easy.optimizer) == (hard.loss, hard.optimizer)
    assert easy.data.grammar == hard.data.grammar
    assert from_mapping(strokes_hard.get_config("debug").to_dict()).data.rows == 2


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("process,world=harder", "unknown world 'harder'"),
        ("copies_4,world=hard", "'copies_4' is of the easy world only"),
    ],
)
def test_what_the_hard_world_has_not_is_refused(argument, words):
    with pytest.raises(ValueError, match=words):
        strokes_study.get_config(argument)


def test_trials_are_scored_in_the_world_that_they_are_trained_on():
    hard = 0
    for trial in trials.load(str(SWEEP)):
        suites = [w[8:] for command in trial.commands for w in command if w.startswith("--suite=")]
        assert {SUITES[suite].world.name for suite in suites} <= {
            "hard" if trial.name.startswith("hard_") else "easy"
        }
        trained = [c[1] for c in trial.commands if c[0] == "launch.train"]
        assert all(("world=hard" in words) == trial.name.startswith("hard_") for words in trained)
        hard += trial.name.startswith("hard_")
    assert hard == 15
