"""Image-instruction alignment: right drawings and careless ones, with the words of a judge.

    python -m launch.make_data --config=configs/data/alignment.py --out=/tmp/alignment
    python -m launch.make_data --config=configs/data/alignment.py:runs/tiny --out=/tmp/alignment

Without an argument the embedded renderer draws, two drawings in three with a fault, as in the
paper's 5,000 : 10,000. With a run's working directory that painter's own sketches are judged.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    options = {"checkpoint": arg, "right_per_fault": 0.5} if arg else {"negatives": 2 / 3}
    config.data.sources = ({"kind": "alignment", "size": 2000, "options": options},)
    config.data.seed = 0
    return config
