"""Six trainings of eight steps each, and their scores: to see a sweep, and to kill it half way.

    python -m launch.sweep --sweep=configs/sweeps/short.py --workdir=runs/short

Minutes on two CPU cores. The model is far too small, and trained far too little, to paint anything.
What came of it when it was killed is in docs/launching.md.
"""

from launch.trials import Trial, of_overrides, product, sweep

HELD_OUT = {"prompts": "held_out"}
SHORT = {
    "train.steps": 8,
    "train.log_every": 1,
    "train.save_every": 1,
    "data.sources": ({"kind": "strokes", "size": 200},),
    "data.eval_sources": ({"kind": "strokes", "size": 20, "options": HELD_OUT},),
}


def get_sweep() -> list[Trial]:
    overrides = product(
        sweep("train.seed", [0, 1, 2]),
        sweep("optimizer.learning_rate", [3e-3, 1.2e-2]),
        [SHORT],
    )
    evaluate = ("--suite=strokes", "--num_per_tag=1")
    return of_overrides("configs/strokes_tiny.py:debug", overrides, evaluate)
