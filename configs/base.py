"""Every setting at its default: what the other configs start from, so that any key is at hand.

    python -m launch.train --config=configs/base.py --workdir=runs/base

`process_gen/core/*_config.py` describe every key.
"""

from ml_collections import ConfigDict, config_dict

from process_gen.core.configs import Config, to_mapping

STAGES = ("plan", "sketch", "inspect", "refine", "one_shot", "answer", "control")


def get_config(arg: str = "") -> ConfigDict:
    if arg:
        raise ValueError(f"base takes no argument, got {arg!r}")
    config = ConfigDict(to_mapping(Config()))
    config.loss.ce_weight_late = config_dict.placeholder(float)
    config.sampler.process_shift = config_dict.placeholder(float)
    for stage in STAGES:
        config.loss.stage_scales[stage] = 1.0
    return config
