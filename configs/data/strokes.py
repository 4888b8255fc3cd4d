"""Paintings of the Strokes world, written to disk.

    python -m launch.make_data --config=configs/data/strokes.py --show=8 --out=/tmp/strokes
    python -m launch.make_data --config=configs/data/strokes.py:strokes_one_shot --out=/tmp/one_shot

The argument names the source: strokes (default), strokes_one_shot, strokes_plans, strokes_critique.
Two thousand trajectories, 2.5 MB, about five seconds on one core.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.sources = ({"kind": arg or "strokes", "size": 2000},)
    config.data.seed = 0
    return config
