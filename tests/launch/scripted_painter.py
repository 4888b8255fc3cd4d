"""A painter that follows a script, for what is built around painters."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np

from process_gen.core.configs import Config
from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.data.tokenizer import load_tokenizer


class Scripted:
    """Paints what a script says, a part at a time, as `Painter.stream` does.

    Attributes:
      pause: seconds a part takes, unless it is held.
      asked: (prompt, mode, settings) of every call.
      painting, most: paintings under way, and the most there ever were.
    """

    meta = {"path": "scripted", "weights": "none"}

    def __init__(self):
        self.config, self.tokenizer = Config(), load_tokenizer()
        self.pause, self.asked, self.painting, self.most = 0.0, [], 0, 0
        self._turns: threading.Semaphore | None = None

    def hold(self, parts=0):
        """Lets it paint so many parts; it then waits, however long, for `release`."""
        self._turns = threading.Semaphore(parts)

    def release(self):
        """Lets it go on."""
        held, self._turns = self._turns, None
        if held is not None:
            held.release()

    def _wait(self):
        turns = self._turns
        if turns is None:
            time.sleep(self.pause)
        else:
            turns.acquire(timeout=120)

    def stream(self, prompts, *, mode, seed, stop, unfinished, **settings):
        (prompt,) = prompts
        self.asked.append((prompt, mode, {"seed": seed, **settings}))
        self.painting += 1
        self.most = max(self.most, self.painting)
        try:
            for out in self._parts(prompt, mode, seed):
                if unfinished and not stop():
                    yield out
                self._wait()
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
            steps.append(Step(plan_text(f"paint {words}", "a sketch")))
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
