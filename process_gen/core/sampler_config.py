"""Settings of the sampler."""

from __future__ import annotations

import dataclasses
from typing import Literal

from process_gen.core.checks import check, fraction, positive


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """How to paint.

    Attributes:
      batch: rows painted side by side.
      denoise_steps: velocity evaluations a picture (Heun uses two each but the last).
      one_shot_steps: the same in every other mode.
      solver: "euler" or "heun".
      timestep_shift: shift of the sampling grid.
      guidance: text guidance scale in process mode; 1 is none.
      one_shot_guidance: the same in every other mode.
      image_guidance: scale of the branch that sees the texts only, in every mode but process; 1 is
        none, and without text guidance there is none either.
      guidance_interval: guidance acts while low < t <= high.
      sample_latents: whether a picture that a context reads enters as a draw from the autoencoder's
        distribution, as in BAGEL, or as its mean; only model.codec="flux" has one.
      renorm: how a guided velocity is scaled back, see `core.flow_matching`.
      renorm_min: smallest factor of that scaling; 1 turns it off.
      temperature: of text sampling; 0 is greedy.
      top_p: smallest set of tokens whose probability reaches this is sampled from.
      max_text: tokens of one text segment, both boundary tokens included.
      max_images: pictures of one trajectory.
      max_prompt: tokens of a prompt; a longer one is refused.
      max_context: tokens that a painting may hold in its cache; one that needs more is closed.
    """

    batch: int = 16
    denoise_steps: int = 10
    one_shot_steps: int = 16
    solver: Literal["euler", "heun"] = "euler"
    timestep_shift: float = 1.0
    guidance: float = 1.5
    one_shot_guidance: float = 3.0
    image_guidance: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sample_latents: bool = True
    renorm: Literal["none", "global", "channel", "text_channel"] = "none"
    renorm_min: float = 0.0
    temperature: float = 0.3
    top_p: float = 1.0
    max_text: int = 128
    max_images: int = 8
    max_prompt: int = 128
    max_context: int = 512

    def __post_init__(self) -> None:
        """Checks ranges."""
        positive(
            "sampler",
            batch=self.batch,
            denoise_steps=self.denoise_steps,
            one_shot_steps=self.one_shot_steps,
            timestep_shift=self.timestep_shift,
            max_text=self.max_text,
            max_images=self.max_images,
            max_prompt=self.max_prompt,
            max_context=self.max_context,
            top_p=self.top_p,
        )
        check(self.temperature >= 0, "sampler.temperature must be >= 0")
        fraction("sampler", top_p=self.top_p, renorm_min=self.renorm_min)
        check(self.max_text >= 3, "sampler.max_text must be at least 3")
        low, high = self.guidance_interval
        check(
            0.0 <= low <= high <= 1.0,
            f"sampler.guidance_interval must be low, high in [0, 1], got {low}, {high}",
        )
