"""How often the oracle is right: the figures of `docs/strokes.md`."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from process_gen.strokes.layout import draw_objects, wanted
from process_gen.strokes.oracle import judge, read, satisfies_exactly, truth
from process_gen.strokes.prompts import TAGS, sample_requirement
from process_gen.strokes.render import render
from process_gen.strokes.scene import EASY, Scene, World

NOISE = 8.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """Shares of pictures, in [0, 1].

    Attributes:
      clean: renders that are called exact for the prompt they were painted for.
      clean_read: renders of which every object is read back with the right colour, shape and cell.
      noisy: as `clean`, with Gaussian noise of sigma 8 (of 255) added.
      found_in_noise: pictures of pure noise in which an object is found.
      mismatched: renders that are called exact for another prompt of the tag that they do not meet.
      milliseconds: mean time of one verdict.
      worst_tag: the lowest `clean` of a tag.
    """

    clean: float
    clean_read: float
    noisy: float
    found_in_noise: float
    mismatched: float
    milliseconds: float
    worst_tag: float


def measure(n: int = 5000, seed: int = 0, world: World = EASY) -> Figures:
    """Judges `n` pictures of all tags in turn; jitter and radius are continuous, off the grid."""
    jitter = world.jitters[-1]
    rng = np.random.Generator(np.random.PCG64([seed, 0x0AC1E]))
    names = ("clean", "clean_read", "noisy", "found_in_noise", "mismatched")
    hits = {name: np.zeros(n, bool) for name in names}
    seconds = 0.0
    for i in range(n):
        tag = TAGS[i % len(TAGS)]
        split = "held_out" if i % 2 else "train"
        asked = sample_requirement(rng, tag, split=split, world=world)
        objects = [item for group in draw_objects(rng, wanted(asked), world) for item in group]
        scene = Scene(
            tuple(
                dataclasses.replace(
                    item,
                    dx=rng.uniform(-jitter, jitter),
                    dy=rng.uniform(-jitter, jitter),
                    radius=rng.uniform(radii[0], radii[-1]),
                )
                for item in objects
                for radii in (world.kind[item.shape].radii,)
            ),
            world,
        )
        picture = render(scene)
        start = time.perf_counter()
        verdict = judge(picture, asked, world)
        seconds += time.perf_counter() - start
        hits["clean"][i] = verdict.exact
        hits["clean_read"][i] = verdict.reading.placed == tuple(
            sorted((o.color, o.shape, o.place) for o in scene.objects)
        )
        noisy = picture + rng.normal(0.0, NOISE, picture.shape)
        noisy = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
        hits["noisy"][i] = judge(noisy, asked, world).exact
        other = asked
        while satisfies_exactly(truth(scene), other):
            other = sample_requirement(rng, tag, world=world)
        hits["mismatched"][i] = judge(picture, other, world).exact
        hits["found_in_noise"][i] = bool(read(_pure_noise(rng, i, world.size), world).objects)
    rates = {name: float(values.mean()) for name, values in hits.items()}
    worst = min(float(hits["clean"][k :: len(TAGS)].mean()) for k in range(len(TAGS)))
    return Figures(**rates, milliseconds=1e3 * seconds / n, worst_tag=worst)


def _pure_noise(rng: np.random.Generator, i: int, size: int) -> np.ndarray:
    """Uniform noise, Gaussian noise around grey, and Gaussian noise on the background, in turn."""
    shape = (size, size, 3)
    if i % 3 == 0:
        return rng.integers(0, 256, shape, dtype=np.uint8)
    center, sigma = ((128.0, 64.0), (28.0, 16.0))[i % 3 - 1]
    return np.clip(np.rint(rng.normal(center, sigma, shape)), 0, 255).astype(np.uint8)
