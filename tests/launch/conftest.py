"""A painter that never learned anything, as a checkpoint on disk, and one that follows a script."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest

from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text

MODEL = {
    "width": 16,
    "mlp_width": 16,
    "num_layers": 1,
    "num_heads": 1,
    "num_kv_heads": 1,
    "head_dim": 8,
    "und_encoder": "none",
}
SAMPLER = {
    "batch": 2,
    "denoise_steps": 2,
    "one_shot_steps": 2,
    "one_shot_guidance": 1.0,
    "max_text": 8,
    "max_images": 2,
}


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
    """A working directory with one checkpoint of a model that compiles in no time."""
    import jax

    from process_gen.checkpoint import manager
    from process_gen.core import configs
    from process_gen.models import functional

    grammar = {"context_images": "vae"}
    sections = {"model": MODEL, "sampler": SAMPLER, "data": {"grammar": grammar}}
    config = configs.from_mapping(sections)
    workdir = tmp_path_factory.mktemp("untrained")
    params = functional.build(config.model).init(jax.random.key(0))
    # Heads begin at zero, which would make all pictures alike.
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda p: p + rng.normal(0, 0.1, p.shape).astype(p.dtype), params)
    with manager.CheckpointManager(workdir, config) as checkpoints:
        checkpoints.save(3, {"params": params}, {"plan_hash": None}, {})
    lines = [f'{{"step": {i}, "split": "train", "loss": {2 / i}}}\n' for i in (1, 2, 3)]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    return workdir


class Scripted:
    """Paints what a script says, a part at a time, as `Painter.stream` does.

    Attributes:
      pause: seconds a part takes.
      asked: (prompt, mode, settings) of every call.
      painting, most: paintings under way, and the most there ever were.
    """

    meta = {"path": "scripted", "weights": "none"}

    def __init__(self):
        from process_gen.core.configs import Config
        from process_gen.data.tokenizer import load_tokenizer

        self.config, self.tokenizer = Config(), load_tokenizer()
        self.pause, self.asked, self.painting, self.most = 0.0, [], 0, 0

    def stream(self, prompts, *, mode, seed, stop, unfinished, **settings):
        (prompt,) = prompts
        self.asked.append((prompt, mode, {"seed": seed, **settings}))
        self.painting += 1
        self.most = max(self.most, self.painting)
        try:
            for out in self._parts(prompt, mode, seed):
                if unfinished and not stop():
                    yield out
                time.sleep(self.pause)
                if stop():
                    yield dataclasses.replace(out, finish_reason="stopped")
                    return
            yield dataclasses.replace(out, finish_reason="finished")
        finally:
            self.painting -= 1

    def _parts(self, prompt, mode, seed):
        begun = prompt if isinstance(prompt, Trajectory) else Trajectory(prompt)
        words, steps = begun.prompt, list(begun.steps)
        if mode == "one_shot":
            yield self._so_far(words, steps, seed, mode, final_image=self._picture(99))
            return

        def next_part(**change):
            steps[-1] = dataclasses.replace(steps[-1], **change)
            return self._so_far(words, steps, seed)

        if not steps:
            yield self._so_far(words, steps, seed)
            steps.append(Step(plan_text(f"paint {words}", f"a sketch of {words}")))
            yield self._so_far(words, steps, seed)
        if steps[-1].sketch is None:
            yield next_part(sketch=self._picture(seed))
        if steps[-1].inspection is None:
            yield next_part(inspection="Seen: nothing. It fits.")
        if steps[-1].rejected:
            yield next_part(refined=self._picture(seed + 1))

    def _so_far(self, prompt, steps, seed, mode="process", **more):
        images = [s.image for s in steps if s.image is not None]
        return Trajectory(
            prompt,
            mode=mode,
            steps=tuple(steps),
            **{"final_image": images[-1] if images else None, **more},
            sampled=Sampled(0, 0, seed, 10, 0.5),
        )

    def _picture(self, level):
        return np.full((32, 32, 3), level % 256, np.uint8)


@pytest.fixture
def scripted():
    """A painter that needs no device."""
    return Scripted()
