"""A further round of training for the painter that comes along, as its last one was.

    python -m launch.train --config=configs/strokes_painter.py --workdir=runs/painter
    python -m launch.ship_painter --checkpoint=runs/painter --out=painter

More one-shot pictures, plans and critiques than in strokes_tiny.py, most of them of the prompts in
which faults are missed most. It starts from the painter in the package, or from what
`--config.train.init_from=DIR` names; the rounds before are on the painter's card
(`process_gen/checkpoint/painter/card.json`), and what they brought is in docs/results.md.

With critiques of its own faults too, a quarter of all. They were tried and not kept: of the faults
of warm paintings a tenth more are found, and two to three times as many right sketches rejected:

    python -m launch.make_data --config=configs/data/strokes_warm_sketches.py --out=own
    python -m launch.train --config=configs/strokes_painter.py:own=own --workdir=runs/painter

Hardware: 2 CPU cores, 2 GB; about a second a step.

The argument is "" (the round), "own=DIR[+DIR...]" or "debug" (smaller and from scratch, for tests).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import strokes_tiny

# Of plans and critiques: relations between objects are what is planned wrongly, and missed, most.
TAGS = {
    "single_object": 0.5,
    "two_object": 0.7,
    "counting": 0.8,
    "colors": 0.5,
    "position": 2.5,
    "color_attr": 1.0,
    "complex": 2.5,
}

# Prompts with a colour for one of two things only are few; known by heart, they are misread where
# they are new. So more of their kind, and both things of one colour, as when sampled cold.
UNCOLORED = {"uncolored": 0.4, "same_color": 0.4}


def get_config(arg: str = "") -> ConfigDict:
    own = arg.removeprefix("own=").split("+") if arg.startswith("own=") else []
    if arg not in ("", "debug") and not all(own or [""]):
        raise ValueError(f"unknown argument {arg!r}; known: debug, own=DIR[+DIR...]")
    config = strokes_tiny.get_config("debug" if arg == "debug" else "")
    plans = {"weights": TAGS, **UNCOLORED}
    faults = {"conflict": 0.45, "misalignment": 0.5, **plans}
    config.data.sources = (
        {"kind": "strokes", "weight": 0.16, "size": 8_000, "options": UNCOLORED},
        {"kind": "strokes_one_shot", "weight": 0.32, "size": 16_000},
        {"kind": "strokes_plans", "weight": 0.17, "size": 40_000, "options": plans},
        {"kind": "strokes_critique", "weight": 0.35, "size": 40_000, "options": faults},
        *({"kind": "folder", "path": path, "weight": 0.3 / len(own)} for path in own),
    )
    config.data.gen_len = 160
    config.loss.ce_weight_late = 1.5
    config.loss.late_from = 0.0
    config.optimizer.learning_rate = 3e-3  # half of what it was trained with before, falling to 0
    config.optimizer.decay_fraction = 1.0
    if arg != "debug":
        config.train.init_from = "process_gen/checkpoint/painter"
        config.train.minutes = 0.0
        config.train.steps = 2600
        config.train.save_every = 200
    return config
