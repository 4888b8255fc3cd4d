"""The recipe of strokes_tiny.py on the hard Strokes world: 48 px, 16 kinds in 16 cells, depth.

    python -m launch.train --config=configs/strokes_hard.py --workdir=runs/hard        # 60 minutes
    python -m launch.evaluate --checkpoint=runs/hard --suite=strokes_hard --out=runs/hard/eval
    python -m launch.train --config=configs/strokes_study.py:one_shot,world=hard --workdir=D

Hardware: 2 CPU cores, 3 GB. 658 steps of its arm in the study are too few to draw, 1,975 paint 68 %
of the held-out prompts exactly (docs/results.md). A step costs twice the FLOPs of one of the easy
recipe (docs/study/README.md), and about twice its processor time (docs/performance.md).

Of the 20,000 trajectories of an epoch 1.15 % are too long for a pack and left out, of the easy
recipe's 1.1 %; T, V and G of the packs are 96 to 98 % full:

    python -m launch.inspect_data --config=configs/strokes_hard.py

The argument is "" (the recipe) or "debug" (smaller, for tests).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from configs import strokes_tiny


def set_world(config: ConfigDict) -> None:
    """Makes every source paint the hard world."""
    for mixture in ("sources", "eval_sources"):
        config.data[mixture] = tuple(
            {**source, "options": {**source.get("options", {}), "world": "hard"}}
            for source in config.data[mixture]
        )


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ("", "debug"):
        raise ValueError(f"unknown argument {arg!r}; known: debug")
    config = strokes_tiny.get_config(arg)
    set_world(config)
    config.data.tokenizer = "strokes_hard"

    # 36 tokens a picture instead of 16; a pack holds as many trajectories as one of the easy world.
    config.model.latent_grid = config.model.und_grid = 48 // config.model.patch
    config.data.text_len = 416
    config.data.und_len = 216
    config.data.gen_len = 360
    if not arg:
        config.data.rows = 10
        config.data.eval_rows = 24

    config.train.paint_prompts = (  # held out
        "a red large diamond behind a purple small moon",
        "a blue large star and a red small triangle",
        "two blue large stars below a red large bar and an orange small bar",
        "a white large triangle left of a purple small square and three white large rings",
    )
    config.sampler.max_text = 112  # the longest inspection of 10,000 paintings has 102
    config.sampler.max_context = 768
    return config
