"""Instruction-intermediate conflict: a painter's own plans, judged against the whole prompt.

    python -m launch.make_data --config=configs/data/conflict.py --out=/tmp/conflict
    python -m launch.make_data --config=configs/data/conflict.py:runs/tiny --out=/tmp/conflict

Without an argument the painter is the one that comes with the package; with one, a run's working
directory. Warm sampling makes plans wrong more often. As in the
paper's 6,905 : 8,296, there are 0.83 right steps for each wrong one.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    options = {
        "checkpoint": arg,
        "settings": ({"temperature": 0.7}, {"temperature": 1.0}),
        "right_per_fault": 0.83,
    }
    config.data.sources = ({"kind": "conflict", "size": 2000, "options": options},)
    config.data.seed = 0
    return config
