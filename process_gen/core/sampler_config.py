"""Settings of the sampler."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from process_gen.core.checks import check, fraction, positive


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to paint.

    Attributes:
      batch: rows painted side by side.
      denoise_steps: steps a picture, each one velocity evaluation (Heun: two, but for the last).
      one_shot_steps: the same in every other mode.
      final_steps: steps with which the last picture of a finished painting is painted once more, in
        its own context and from its own noise; 0 leaves it as it is.
      later_start: time from which a picture is painted that follows another one, which is noised
        that far; 1 begins with pure noise as the first picture does.
      solver: "euler", "heun", "adams" or "dpm", see `core.flow_matching.integrate`.
      timestep_shift: shift of the sampling grid.
      process_shift: the same in process mode; None is the same as `timestep_shift`.
      guidance: text guidance scale in process mode; 1 is none.
      one_shot_guidance: the same in every other mode.
      image_guidance: scale of the branch that sees the texts only, in every mode but process; 1 is
        none, and without text guidance there is none either.
      guidance_interval: guidance acts while low < t <= high; outside, its branch does not run.
      guidance_every: the text-dropped branch runs in every so many of a picture's evaluations in
        which guidance acts; in between, its last difference to the conditional one is used again.
        In modes "process" and "one_shot".
      sample_latents: whether a picture that a context reads enters as a draw from the autoencoder's
        distribution, as in BAGEL, or as its mean; only model.codec="flux" has one.
      renorm: how a guided velocity is scaled back, see `core.flow_matching`.
      renorm_min: smallest factor of that scaling; 1 turns it off.
      temperature: of text sampling; 0 is greedy.
      top_p: smallest set of tokens whose probability reaches this is sampled from.
      max_text: tokens of one text segment, both boundary tokens included.
      max_images: pictures of one trajectory.
      max_prompt: tokens of a prompt; a longer one is refused.
      max_context: tokens that a painting may hold in its cache; one that needs more is closed, a
        prompt that does is refused. In modes "process" and "one_shot"; other contexts grow.
    """

    batch: int = 16
    denoise_steps: int = 10
    one_shot_steps: int = 16
    final_steps: int = 0
    later_start: float = 1.0
    solver: Literal["euler", "heun", "adams", "dpm"] = "euler"
    timestep_shift: float = 1.0
    process_shift: float | None = None
    guidance: float = 1.5
    one_shot_guidance: float = 3.0
    image_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_every: int = 1
    sample_latents: bool = True
    renorm: Literal["none", "global", "channel", "text_channel"] = "none"
    renorm_min: float = 0.0
    temperature: float = 0.3
    top_p: float = 1.0
    max_text: int = 128
    max_images: int = 8
    max_prompt: int = 128
    max_context: int = 512

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt that a cache of this size can hold; a longer one is refused."""
        return min(self.max_prompt, self.max_context)

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name, value in dataclasses.asdict(self).items():
            if isinstance(value, float):
                check(math.isfinite(value), f"sampler.{name} must be finite, got {value}")
        positive(
            "sampler",
            batch=self.batch,
            denoise_steps=self.denoise_steps,
            one_shot_steps=self.one_shot_steps,
            timestep_shift=self.timestep_shift,
            later_start=self.later_start,
            guidance_every=self.guidance_every,
            max_text=self.max_text,
            max_images=self.max_images,
            max_prompt=self.max_prompt,
            max_context=self.max_context,
            top_p=self.top_p,
        )
        check(self.temperature >= 0, "sampler.temperature must be >= 0")
        check(self.final_steps >= 0, "sampler.final_steps must be >= 0")
        if self.process_shift is not None:
            positive("sampler", process_shift=self.process_shift)
        fraction(
            "sampler", top_p=self.top_p, renorm_min=self.renorm_min, later_start=self.later_start
        )
        check(self.max_text >= 3, "sampler.max_text must be at least 3")
        low, high = self.guidance_interval
        check(
            0.0 <= low <= high <= 1.0,
            f"sampler.guidance_interval must be low, high in [0, 1], got {low}, {high}",
        )
