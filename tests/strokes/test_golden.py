"""Every byte of the easy world: texts, pictures, scores, held-out prompts, what the oracle reads.

Trained models and stored data depend on them. A change here changes the training data of every run
and the meaning of every score: it must be meant, and then the hashes below are replaced by those
that the failure shows.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from process_gen.core.configs import SourceConfig
from process_gen.data.sources import build_source
from process_gen.strokes import oracle
from process_gen.strokes.plans import StrokesOptions, outline_at, trajectory_at
from process_gen.strokes.prompts import TAGS, held_out, held_out_requirements, sample_requirement

OPTIONS = {
    "default": {},
    "held_out": {"prompts": "held_out"},
    "faulty": {"conflict": 0.5, "misalignment": 0.5},
    "long": {"diversify": 1.0, "split": 1.0, "shuffle": 1.0, "max_steps": 6},
    "verdict": {"inspection": "verdict", "weights": {"complex": 2.0, "position": 1.0}},
}
GOLDEN = {
    "default": "6585f16d78d67eec",
    "held_out": "d9ac0286fbe5a512",
    "faulty": "afbcbaf0395fafbf",
    "long": "8a39e690da38fea8",
    "verdict": "f41fbece35d4d376",
    "prompts": "6e26905257c8eb10",
    "readings": "ac7c50a6652f6ca2",
    "identities": "ca1f2a01ea0e7767",
}


def _digest(values) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _described(trajectory) -> list:
    pictures = [hashlib.sha256(i.tobytes()).hexdigest() for i in trajectory.images]
    steps = [(s.plan, s.inspection, s.refined_plan) for s in trajectory.steps]
    return [trajectory.prompt, trajectory.metadata, steps, pictures]


def _paintings(name: str) -> str:
    options = StrokesOptions.from_mapping(OPTIONS[name])
    made = [_described(trajectory_at(7, i, options)) for i in range(60)]
    outlines = [[s.plan for s in outline_at(7, i, options).steps] for i in range(60)]
    return _digest([made, outlines])


def _prompts() -> str:
    rng = np.random.default_rng(3)
    drawn = [sample_requirement(rng, tag) for tag in TAGS for _ in range(50)]
    asked = [held_out_requirements(tag, 20, 0) for tag in TAGS]
    kept = [held_out(r["prompt"]) for r in drawn]
    return _digest([drawn, asked, kept])


def _readings() -> str:
    rng = np.random.default_rng(4)
    found = []
    for i in range(40):
        for image in trajectory_at(8, i).images:
            noisy = np.clip(image + rng.normal(0, 30, image.shape), 0, 255).astype(np.uint8)
            for picture in (image, noisy, np.roll(image, 5, 0)):
                reading = oracle.read(picture)
                seen = [(o.shape, o.color, o.x, o.y, o.place) for o in reading.objects]
                found.append([seen, round(reading.stray, 3)])
    return _digest(found)


def _identities() -> str:
    kinds = ("strokes", "strokes_one_shot", "strokes_plans", "strokes_critique")
    sources = [
        build_source(SourceConfig(kind, options=options), 5, split)
        for kind in kinds
        for options in OPTIONS.values()
        for split in ("train", "eval")
    ]
    return _digest([source.fingerprint for source in sources])


MADE = {
    **{name: lambda name=name: _paintings(name) for name in OPTIONS},
    "prompts": _prompts,
    "readings": _readings,
    "identities": _identities,
}


@pytest.mark.parametrize("name", MADE)
def test_golden(name):
    assert MADE[name]() == GOLDEN[name]


def test_one_pixel_would_be_noticed():
    changed = trajectory_at(7, 0)
    changed.steps[0].sketch.setflags(write=True)
    before = _digest(_described(changed))
    changed.steps[0].sketch[0, 0, 0] += 1
    assert _digest(_described(changed)) != before
