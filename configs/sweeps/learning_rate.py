"""Which learning rate the miniature likes, at two sizes of its average's memory.

    python -m launch.sweep --sweep=configs/sweeps/learning_rate.py --workdir=runs/learning_rate

Six trials of 8.5 minutes and their scores, one after the other; `--jobs=2` runs two at a time, each
of which then has half of the machine. The other ways to make overrides:

    zipped(sweep("model.width", [64, 96]), sweep("model.mlp_width", [160, 256]))
    sampled({"optimizer.learning_rate": [3e-3, 6e-3], "train.seed": range(100)}, num=6, seed=0)
"""

from launch.trials import Trial, of_overrides, product, sweep


def get_sweep() -> list[Trial]:
    overrides = product(
        sweep("optimizer.learning_rate", [3e-3, 6e-3, 1.2e-2]),
        sweep("optimizer.ema_decay", [0.99, 0.995]),
    )
    evaluate = ("--suite=strokes", "--num_per_tag=50")
    return of_overrides("configs/strokes_tiny.py:demo", overrides, evaluate)
