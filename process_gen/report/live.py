"""A painting on its way, as a piece of a page: what the live studio shows after each part.

As in the report, everything that comes from outside is text, which the template escapes.
"""

from __future__ import annotations

import base64

from process_gen.core.trajectory import Image, Trajectory, encode_png
from process_gen.report.environment import environment
from process_gen.report.panels import panels

SMALL = 128  # px a side: up to here pictures are enlarged without blur


def live_strip(
    painting: Trajectory | None = None,
    *,
    one_shot: Trajectory | None = None,
    busy: str = "",
    note: str = "",
    error: str = "",
) -> str:
    """Draws a painting as far as it came.

    Args:
      painting: mode "process"; `finish_reason` None while more is to come.
      one_shot: the picture beside it.
      busy: what is being done now; empty when nothing is.
      note: a line to read when nothing is painted.
      error: what was wrong with a wish.

    Returns:
      HTML that holds no script, and nothing to load.
    """
    row = [] if painting is None else panels(painting)
    if painting is not None and not painting.steps:
        row = []
    cells = [(panel, _source(panel.image), _small(panel.image)) for panel in row]
    beside = None if one_shot is None else one_shot.final_image
    return (
        environment()
        .get_template("live.html")
        .render(
            painting=painting,
            cells=cells,
            one_shot=one_shot,
            beside=_source(beside),
            beside_small=_small(beside),
            busy=busy,
            note=note,
            error=error,
        )
    )


def doing(painting: Trajectory) -> str:
    """What comes next in an unfinished painting, in words."""
    if painting.finish_reason is not None:
        return "painting it in one shot"
    if not painting.steps:
        return "writing a plan"
    step, number = painting.steps[-1], len(painting.steps)
    if step.sketch is None:
        return f"step {number}: painting a sketch"
    if step.inspection is None:
        return f"step {number}: looking at it"
    if step.rejected and step.refined is None:
        return f"step {number}: mending it"
    return f"step {number + 1}: writing a plan"


def live_style() -> str:
    """The style sheet of `live_strip`."""
    loader = environment().loader
    assert loader is not None
    return loader.get_source(environment(), "live.css")[0]


def _source(image: Image | None) -> str:
    if image is None:
        return ""
    return f"data:image/png;base64,{base64.b64encode(encode_png(image)).decode('ascii')}"


def _small(image: Image | None) -> bool:
    return image is not None and max(image.shape[:2]) <= SMALL
