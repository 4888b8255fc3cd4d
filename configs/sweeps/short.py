"""Six trainings of eight steps each, and their scores: to see a sweep, and to kill it half way.

    python -m launch.sweep --sweep=configs/sweeps/short.py --workdir=runs/short

Minutes on two CPU cores. The model is far too small, and trained far too little, to paint anything.
What came of it when it was killed is in docs/launching.md.
"""

from launch.trials import Trial, of_overrides, product, sweep


def get_sweep() -> list[Trial]:
    overrides = product(
        sweep("train.seed", [0, 1, 2]),
        sweep("optimizer.learning_rate", [3e-3, 1.2e-2]),
        sweep("train.steps", [8]),
        sweep("train.log_every", [1]),
        sweep("train.save_every", [1]),
    )
    evaluate = ("--suite=strokes", "--num_per_tag=1")
    return of_overrides("configs/strokes_tiny.py:debug", overrides, evaluate)
