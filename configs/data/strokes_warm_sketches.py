"""Many faults of a painter's own: sampled warm, and mostly of prompts about relations.

    python -m launch.make_data --config=configs/data/strokes_warm_sketches.py --out=own
    python -m launch.make_data --config=configs/data/strokes_warm_sketches.py:runs/tiny --out=own

As configs/data/strokes_own_sketches.py, for which a painter that is right in 98 of 100 pictures
makes too few faults. In some prompts not every group has a colour: of such ones about two things
there are few to train on, so that a painter knows them by heart, and these are new to it. The
16,000 paintings take twenty minutes of one CPU core.
"""

from ml_collections import ConfigDict

from configs.data import strokes_own_sketches

SETTINGS = ({"temperature": 1.0}, {"temperature": 1.0}, {"temperature": 0.5})
TAGS = {
    "two_object": 0.4,
    "counting": 0.4,
    "position": 2.0,
    "color_attr": 0.4,
    "complex": 6.8,
}


def get_config(arg: str = "") -> ConfigDict:
    config = strokes_own_sketches.get_config(arg)
    (source,) = config.data.sources
    warm = {"tags": TAGS, "uncolored": 0.4, "settings": SETTINGS}
    options = {**source["options"], **warm}
    config.data.sources = ({**source, "size": 16_000, "options": options},)
    return config
