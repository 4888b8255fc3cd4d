"""Hand-made and random trajectories, and a toy tokenizer whose ids can be worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from process_gen.core.batch import PatchSizes, TokenIds
from process_gen.core.configs import GrammarConfig
from process_gen.core.trajectory import Step, Trajectory, plan_text
from process_gen.strokes.plans import StrokesOptions, trajectory_at

_STEP_PATTERNS = ("ok", "conflict", "misalignment", "plan only", "not inspected")
_LAST_PATTERNS = (*_STEP_PATTERNS, "rejected", "rejected, plan re-emitted")


@pytest.fixture(scope="session")
def ids() -> TokenIds:
    """One id a word: 100 + its length. Special ids: bos 1, eos 2, image 3 and 4, end 5."""
    return TokenIds(
        encode=lambda text: [100 + len(word) for word in text.split()],
        bos=1,
        eos=2,
        image_start=3,
        image_end=4,
        end_of_text=5,
        specials=frozenset(range(1, 6)),
    )


@pytest.fixture(scope="session")
def sizes() -> PatchSizes:
    return PatchSizes(latent=8, und=8, latent_grid=4, und_grid=4)


def _picture(rng: np.random.Generator) -> np.ndarray:
    height, width = (8 * int(side) for side in rng.integers(1, 4, 2))
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def _words(rng: np.random.Generator, most: int) -> str:
    return " ".join("x" * int(n) for n in rng.integers(1, 9, int(rng.integers(1, most + 1))))


def _step(rng: np.random.Generator, pattern: str) -> Step:
    plan = plan_text(_words(rng, 3), _words(rng, 3))
    if pattern == "plan only":
        return Step(plan)
    sketch = _picture(rng)
    if pattern == "not inspected":
        return Step(plan, sketch)
    if pattern == "ok":
        return Step(plan, sketch, _words(rng, 4))
    fault = f"{_words(rng, 3)} <refine>{_words(rng, 2)}</refine>"
    refined_plan = plan_text(_words(rng, 3), _words(rng, 3))
    return {
        "conflict": Step(plan, sketch, fault, refined_plan, _picture(rng)),
        "misalignment": Step(plan, sketch, fault, None, _picture(rng)),
        "rejected": Step(plan, sketch, fault),
        "rejected, plan re-emitted": Step(plan, sketch, fault, refined_plan),
    }[pattern]


def _synthetic(seed: int) -> Trajectory:
    rng = np.random.default_rng([7, seed])
    prompt = _words(rng, 5)
    if rng.random() < 0.15:
        return Trajectory(prompt, mode="one_shot", final_image=_picture(rng))
    patterns = [*rng.choice(_STEP_PATTERNS, int(rng.integers(0, 4))), rng.choice(_LAST_PATTERNS)]
    steps = tuple(_step(rng, str(pattern)) for pattern in patterns)
    return Trajectory(prompt, steps=steps, final_image=steps[-1].image)


@pytest.fixture(scope="session")
def synthetic():
    """``synthetic(seed)``: a trajectory with steps of random patterns, or a one-shot one."""
    return _synthetic


@pytest.fixture(scope="session")
def thousand() -> list[Trajectory]:
    """1,000 trajectories: every pattern of the Strokes world and of `synthetic`."""
    strokes = StrokesOptions(conflict=0.3, misalignment=0.3)
    return [_synthetic(i) for i in range(700)] + [trajectory_at(3, i, strokes) for i in range(300)]


@pytest.fixture(scope="session")
def grammars() -> list[GrammarConfig]:
    """Every combination of settings."""
    options = itertools.product(
        ("vae+vit", "vit", "vae"), ("keep", "vit_only", "drop"), (False, True), (1, 2)
    )
    return [
        GrammarConfig(images, rejected, supervise, copies)
        for images, rejected, supervise, copies in options
        if rejected != "vit_only" or "vit" in images
    ]
