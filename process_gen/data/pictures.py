"""The pictures of a run brought to the sizes that its model takes, before they are cut into tokens.

With the autoencoder of "flux" they may have any shape; their aspect is kept. The understanding copy
is made from the picture *at the size of the latent one*, as it is while painting.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from process_gen.core.configs import Config
from process_gen.core.grammar import Kind, Segment
from process_gen.data.images import Resize, latent_rule, painted_copy, question_rule


@dataclasses.dataclass(frozen=True)
class Pictures:
    """What a run does with pictures.

    Attributes:
      latent: for all of them; None leaves them as they are.
      und: for the copies that become understanding patches, after `latent`.
      asked: for pictures of a question instead of both, which share a budget of pixels.
    """

    latent: Resize | None = None
    und: Resize | None = None
    asked: Resize | None = None

    def __call__(self, segments: Sequence[Segment], blank: bool = False) -> list[Segment]:
        """The segments of one trajectory with their pictures resized.

        Args:
          segments: from `core.grammar.to_segments`.
          blank: whether the sizes alone matter, as for measuring lengths.
        """
        if self == AS_THEY_ARE:
            return list(segments)
        asked = sum(_is_asked(segment) for segment in segments)
        made: dict[tuple[int, bool], np.ndarray] = {}
        out = []
        for segment in segments:
            if segment.image is None:
                out.append(segment)
                continue
            und = segment.kind is Kind.UND
            key = (id(segment.image), und)  # copies share their picture
            if key not in made:
                empty = blank or segment.encoded is not None  # only its size is looked at
                if _is_asked(segment) and self.asked is not None:
                    made[key] = _resized(segment.image, self.asked, blank, asked)
                else:
                    made[key] = self._both(segment.image, und, empty)
            out.append(dataclasses.replace(segment, image=made[key]))
        return out

    def _both(self, image: np.ndarray, und: bool, blank: bool) -> np.ndarray:
        for rule in (self.latent, self.und if und else None):
            if rule is not None:
                image = _resized(image, rule, blank)
        return image


def _is_asked(segment: Segment) -> bool:
    """Whether a picture is shown for a question about it; nothing else is so firmly there."""
    return segment.firm and segment.kind is Kind.UND


def _resized(image: np.ndarray, rule: Resize, blank: bool, pictures: int = 1) -> np.ndarray:
    width, height = rule.size(image.shape[1], image.shape[0], pictures)
    if blank:
        return np.broadcast_to(np.uint8(0), (height, width, 3))
    return image if image.shape[:2] == (height, width) else rule.resized(image, pictures)


AS_THEY_ARE = Pictures()


def picture_rule(config: Config) -> Pictures:
    """How the data of a config resizes pictures.

    `data.image_size` is the long side of all; without one, "flux" takes the sizes that BAGEL was
    trained with (`images.latent_rule`), and pixels are left as they are.
    """
    size, model = config.data.image_size, config.model
    latent = latent_rule(model) if model.codec == "flux" else None
    if size:
        latent = Resize(size, size, model.latent_side)
    asked = question_rule(model) if model.codec == "flux" else None
    return Pictures(latent, painted_copy(model), asked)
