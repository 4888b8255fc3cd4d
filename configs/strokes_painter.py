"""A further round of training for the painter that comes along, as its last one was.

    python -m launch.train --config=configs/strokes_painter.py --workdir=runs/painter
    python -m launch.ship_painter --checkpoint=runs/painter --out=painter

More one-shot pictures and more critiques than in strokes_tiny.py, most of them of sketches that
differ from their plan. It starts from the painter in the package, or from what
`--config.train.init_from=DIR` names; the rounds before are on the painter's card
(`process_gen/checkpoint/painter/card.json`), and what they brought is in docs/results.md.

Hardware: 2 CPU cores, 2 GB; about a second a step.

The argument is "" (the round) or "debug" (smaller and from scratch, for tests).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import strokes_tiny


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ("", "debug"):
        raise ValueError(f"unknown argument {arg!r}; known: debug")
    config = strokes_tiny.get_config(arg)
    faults = {"conflict": 0.42, "misalignment": 0.54}
    config.data.sources = (
        {"kind": "strokes", "weight": 0.18, "size": 8_000},
        {"kind": "strokes_one_shot", "weight": 0.40, "size": 16_000},
        {"kind": "strokes_plans", "weight": 0.03, "size": 2_000},
        {"kind": "strokes_critique", "weight": 0.39, "size": 14_000, "options": faults},
    )
    config.data.gen_len = 160
    config.loss.ce_weight_late = 1.5
    config.loss.late_from = 0.0
    config.optimizer.learning_rate = 3e-3  # half of what it was trained with before, falling to 0
    config.optimizer.decay_fraction = 1.0
    if not arg:
        config.train.init_from = "process_gen/checkpoint/painter"
        config.train.minutes = 0.0
        config.train.steps = 900
        config.train.save_every = 200
    return config
