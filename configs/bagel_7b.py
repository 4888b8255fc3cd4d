"""Process fine-tuning of BAGEL-7B-MoT, as far as the paper tells how (arXiv 2604.04746).

    python -m launch.import_bagel --source=BAGEL-7B-MoT --output=runs/bagel
    python -m launch.make_data --config=MY_DATA.py --out=process_data
    python -m launch.train --config=configs/bagel_7b.py:process_data \\
        --config.train.init_from=runs/bagel --workdir=runs/bagel_process

The argument is a folder of trajectories; without one the Strokes world is painted at 512 x 512.
Hardware: 8 accelerators of 80 GB, one pack each (docs/scaling.md has the memory); for adapters
alone, --config.model.lora.rank=16 --config.model.param_dtype=bfloat16, one of them. Of this size a
step with adapters was run, from random weights; that of the whole model is compiled for TPUs and
GPUs, and the same code is trained at tiny sizes (configs/bagel_debug.py). Sizes and tokenizer are
those of `init_from`.

The paper states 10,000 steps, packs of 33,000 tokens, lr 2e-5 and cosine decay. What it leaves open
is marked "open" below, with the reason for the default.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(arg: str = "") -> ConfigDict:
    config = base.get_config()

    # The release's sizes; what `init_from` says counts.
    config.model.vocab_size = 152_064
    config.model.width = 3584
    config.model.mlp_width = 18_944
    config.model.num_layers = 28
    config.model.num_heads = 28
    config.model.num_kv_heads = 4
    config.model.head_dim = 128
    config.model.rope_theta = 1e6
    config.model.codec = "flux"
    config.model.codec_channels = 16
    config.model.patch = 2
    config.model.latent_grid = 64
    config.model.und_encoder = "siglip"
    config.model.und_patch = 14
    config.model.und_grid = 70
    config.model.time_features = 256
    config.model.prediction = "velocity"
    config.model.dtype = "bfloat16"
    config.model.param_dtype = "float32"  # updates of 2e-5 vanish in bfloat16 weights
    config.model.layers = "scan"
    config.model.remat = "full"
    config.model.attention = "auto"  # kernels on TPUs and GPUs

    if arg:
        config.data.sources = ({"kind": "folder", "path": arg},)
    else:
        config.data.sources = ({"kind": "strokes", "weight": 1.0, "size": 62_000},)
    # Open: resolution. A pack of 33k tokens holds 9 pictures of 512 px in three copies, which is
    # about three trajectories; of 1024 px it would not hold the longest one. This is the long side;
    # 0 takes the sizes of BAGEL's trainer, sides of 512 to 1024 px, and wants a longer gen_len.
    config.data.image_size = 512
    config.data.gen_len = 18_432  # 9 x (noised + clean) x 32 x 32
    config.data.und_len = 12_416  # 9 x 37 x 37
    config.data.text_len = 2304
    config.data.rows = 8
    config.data.eval_rows = 0
    # Open: what later steps see of a picture. Both copies, as BAGEL sees pictures to be edited.
    config.data.grammar.context_images = "vae+vit"
    # Open: whether a rejected sketch stays. It does; the correction is an edit of it.
    config.data.grammar.rejected_context = "keep"
    # Open: whether a rejected sketch is a target. No: that would teach the fault.
    config.data.grammar.supervise_rejected = False
    # Open: dropout of conditions. BAGEL's trainer.
    config.data.grammar.text_dropout = 0.1
    config.data.grammar.vae_dropout = 0.3
    config.data.grammar.vit_dropout = 0.3

    # Open: weight of the words. 1, as in BAGEL's trainer (some recipes built on it take 0.25).
    config.loss.ce_weight = 1.0
    # The decision what comes next is trained, which BAGEL's own data does not do. Open: its weight.
    config.loss.stage_scales.control = 1.0
    # 2304 tokens x 152,064 logits would be 1.4 GB in float32, and as much for their gradient.
    config.loss.vocab_chunk = 16_384
    # Open: distribution of t. BAGEL's trainer shifts by 1 (some recipes by 4), its sampler by 3.
    config.loss.timestep_shift = 1.0

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-5
    config.optimizer.schedule = "cosine"
    config.optimizer.final_scale = 0.005  # to 1e-7, as BAGEL's trainer
    config.optimizer.warmup_steps = 200  # open: short, for the moments to settle
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.eps = 1e-15
    config.optimizer.clip_norm = 1.0
    # Open: the average. BAGEL's decay, from the first step on; after 10,000 steps a third of it is
    # still the start, so for shorter runs take 0.999.
    config.optimizer.ema_decay = 0.9999
    config.optimizer.ema_warmup = False
    # Open: frozen parts. The autoencoder always; others by name, such as ("und_encoder",).
    config.optimizer.frozen = ()

    config.train.steps = 10_000
    config.train.log_every = 10
    config.train.eval_every = 0
    config.train.save_every = 500
    config.train.init_model = True

    config.mesh.data = 1
    config.mesh.fsdp = -1

    config.sampler.batch = 1
    config.sampler.denoise_steps = 50
    config.sampler.one_shot_steps = 50
    config.sampler.timestep_shift = 3.0
    config.sampler.guidance = 4.0
    config.sampler.one_shot_guidance = 4.0
    config.sampler.guidance_interval = (0.4, 1.0)
    config.sampler.renorm = "global"
    config.sampler.max_text = 512
    config.sampler.max_images = 8
    config.sampler.max_prompt = 512
    config.sampler.max_context = 33_024
    return config
