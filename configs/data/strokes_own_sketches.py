"""What a trained painter of the Strokes world does wrong, with the oracle's words and the repair.

    python -m launch.make_data --config=configs/data/strokes_own_sketches.py --out=own
    python -m launch.make_data --config=configs/data/strokes_own_sketches.py:runs/tiny --out=own

Without an argument the painter is the one that comes with the package; with one, a run's working
directory or one of its checkpoints. Training prompts only, half
of them of the tag in which faults are most frequent; three paintings in four are sampled warmer, or
without guidance, than the run would. The 2,000 paintings take two and a half minutes of one CPU
core. Another size: --limit. Train on the result with {"kind": "folder", "path": "own"}.
"""

from ml_collections import ConfigDict

SETTINGS = (
    {},
    {"guidance": 1.0},
    {"temperature": 0.7},
    {"temperature": 1.0, "denoise_steps": 4},
)
TAGS = {
    "two_object": 1.0,
    "counting": 1.0,
    "position": 2.0,
    "color_attr": 1.0,
    "complex": 5.0,
}


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    options = {
        "checkpoint": arg,
        "tags": TAGS,
        "settings": SETTINGS,
        "right_per_fault": 1.0,
    }
    config.data.sources = ({"kind": "own_sketches", "size": 2000, "options": options},)
    config.data.seed = 0
    return config
