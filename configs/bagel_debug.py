"""Process training of a tiny imported checkpoint, to see that everything fits together.

    python -m launch.import_bagel --source=tests/parity/fixtures/checkpoint --output=runs/import \\
        --tokenizer=bytes
    python -m launch.train --config=configs/bagel_debug.py --config.train.init_from=runs/import \\
        --workdir=runs/bagel_debug

Hardware: one CPU core, about a minute. Sizes of the model and the tokenizer come from the import.
Pictures of the Strokes world are shrunk to 16 x 16 pixels; nothing is learned.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ValueError(f"bagel_debug takes no argument, got {arg!r}")
    config = base.get_config()

    config.train.init_model = True
    config.model.layers = "scan"

    simple = {"weights": {"single_object": 1.0}, "misalignment": 0.3}
    config.data.sources = (
        {"kind": "strokes", "weight": 0.8, "size": 64, "options": simple},
        {"kind": "strokes_one_shot", "weight": 0.2, "size": 16, "options": simple},
    )
    config.data.eval_sources = ({"kind": "strokes", "size": 16, "options": simple},)
    config.data.image_size = 16
    config.data.grammar.vae_dropout = 0.3
    config.data.grammar.vit_dropout = 0.3
    config.data.text_len = 512
    config.data.und_len = 32
    config.data.gen_len = 128
    config.data.rows = 4
    config.data.eval_rows = 4

    config.optimizer.learning_rate = 1e-4
    config.optimizer.warmup_steps = 1
    config.optimizer.ema_warmup = False

    config.train.steps = 4
    config.train.log_every = 1
    config.train.eval_every = 2
    config.train.save_every = 4

    config.sampler.batch = 2
    config.sampler.denoise_steps = 2
    config.sampler.one_shot_steps = 2
    config.sampler.max_text = 16
    config.sampler.max_images = 2
    return config
