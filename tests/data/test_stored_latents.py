from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, to_segments
from process_gen.core.trajectory import Trajectory, Turn
from process_gen.data.stored_latents import attach

IMAGES = [np.full((8, 8, 3), value, np.uint8) for value in range(3)]
MOMENTS = [np.full((1, 1, 4), value, np.float32) for value in range(3)]
TURNS = (
    Turn(False, image=IMAGES[0]),
    Turn(False, text="blue"),
    Turn(True, image=IMAGES[1]),
    Turn(False, text="round"),
    Turn(True, image=IMAGES[2]),
)


@pytest.mark.parametrize(
    "trajectory",
    [
        Trajectory("blue", mode="edit", inputs=(IMAGES[0],), final_image=IMAGES[1]),
        Trajectory("blue", mode="edit", turns=TURNS),
    ],
)
def test_given_pictures_have_latents_too(trajectory):
    moments = MOMENTS[: len(trajectory.all_images)]
    segments = attach(to_segments(trajectory, GrammarConfig()), trajectory, moments)
    for segment in segments:
        if segment.kind in (Kind.CLEAN, Kind.NOISED):
            assert segment.encoded.max() == segment.image.max()  # each picture its own
        else:
            assert segment.encoded is None
    with pytest.raises(DataError, match="latents of"):
        attach(segments, trajectory, moments[1:])
