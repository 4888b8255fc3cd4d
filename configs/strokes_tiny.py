"""BAGEL in miniature on the Strokes world: about a million parameters, pixel patches, 2 CPU cores.

    python -m launch.train --config=configs/strokes_tiny.py --workdir=runs/tiny        # 60 minutes
    python -m launch.train --config=configs/strokes_tiny.py:demo --workdir=demo/run    # 8.5 minutes
    python -m launch.evaluate --checkpoint=runs/tiny --suite=strokes --out=runs/tiny/eval

Hardware: 2 CPU cores, 2 GB. Measured results stand in docs/results.md.

The argument is "" (the recipe), "demo" (the same, shorter) or "debug" (smaller still, for tests).
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    if arg not in ("", "demo", "debug"):
        raise ValueError(f"unknown argument {arg!r}; known: demo, debug")
    config = base.get_config()

    config.model.width = 96
    config.model.mlp_width = 256
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.head_dim = 24
    config.model.attention = "auto"  # on CPUs 1.5 times the steps of "rows", where g++ is
    config.model.prediction = "x0"  # a pixel patch has more features than the model is wide

    # Shares of trajectories. Paintings in steps, pictures at once (so that drawing directly is not
    # forgotten), planning without pictures (nearly free), and critiques of faulty sketches.
    faults = {"conflict": 0.3, "misalignment": 0.45}
    config.data.sources = (
        {"kind": "strokes", "weight": 0.6, "size": 12_000},
        {"kind": "strokes_one_shot", "weight": 0.12, "size": 2_400},
        {"kind": "strokes_plans", "weight": 0.14, "size": 2_800},
        {"kind": "strokes_critique", "weight": 0.14, "size": 2_800, "options": faults},
    )
    config.data.eval_sources = (
        {"kind": "strokes", "weight": 0.8, "size": 800, "options": {"prompts": "held_out"}},
        {
            "kind": "strokes_one_shot",
            "weight": 0.2,
            "size": 200,
            "options": {"prompts": "held_out"},
        },
    )
    config.data.grammar.context_images = "vit"
    config.data.grammar.noise_copies = 2
    config.data.grammar.text_dropout = 0.1
    config.data.text_len = 248
    config.data.und_len = 80
    config.data.gen_len = 128
    config.data.rows = 12
    config.data.eval_rows = 48

    # Pictures first, words later.
    config.loss.ce_weight = 0.3
    config.loss.ce_weight_late = 1.5
    config.loss.late_from = 0.4
    config.loss.t_mean = 1.0
    config.loss.t_std = 1.0

    config.optimizer.name = "muon"
    config.optimizer.learning_rate = 6e-3
    config.optimizer.schedule = "linear"
    config.optimizer.decay_fraction = 0.4
    config.optimizer.warmup_steps = 50
    config.optimizer.b2 = 0.95
    config.optimizer.ema_decay = 0.997

    config.train.minutes = 60.0
    config.train.log_every = 20
    config.train.eval_every = 250
    config.train.save_every = 500
    config.train.paint_prompts = (  # held out, as those of the demo
        "a circle above a white triangle",
        "a red circle and a green star",
        "a green square below three red squares",
        "two yellow squares right of a white star and an orange circle",
    )

    # In process mode, 10 steps and guidance add less than can be measured: docs/performance.md.
    config.sampler.denoise_steps = 4
    config.sampler.one_shot_steps = 16
    config.sampler.guidance = 1.5
    config.sampler.one_shot_guidance = 1.0
    config.sampler.temperature = 0.3
    config.sampler.max_text = 96

    if arg == "demo":
        config.train.minutes = 8.5
        config.optimizer.ema_decay = 0.995
    if arg == "debug":
        config.model.width = 32
        config.model.mlp_width = 64
        config.model.num_layers = 2
        config.model.num_heads = 2
        config.model.num_kv_heads = 1
        config.model.head_dim = 16
        config.data.rows = 2
        config.data.eval_rows = 2
        config.train.minutes = 0.0
        config.train.steps = 20
        config.train.log_every = 5
        config.train.eval_every = 10
        config.train.save_every = 10
    return config
