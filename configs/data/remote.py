"""Paintings for your own prompts, planned, drawn and judged by models behind your own servers.

    python -m launch.make_data --config=configs/data/remote.py:prompts.txt --out=/tmp/painted

The argument is a file of prompts: a prompt a line, or metadata JSONL with "prompt". Copy this file
and fill in what is yours; docs/curation.md describes all settings, what is counted, and what it
costs. Leave --workers at 1: requests run side by side within one process, and each further process
would keep a rate limit of its own. A run that is ended goes on with the same command, and asks
nothing twice.
"""

from ml_collections import ConfigDict

from configs import bagel_7b

# A model that sees pictures: reads free text, writes the steps, judges the sketches.
CHAT = {
    "base_url": "http://localhost:8000/v1",
    "api_key_env": "",  # or the name of the environment variable that holds the key
    "chat_model": "my-vision-model",
    "chat_options": {"temperature": 0.3},
    "concurrency": 16,
    "requests_per_minute": 0.0,  # 0: no limit
    "templates": "",  # a folder of your own templates
    "prices": {"input_per_million": 0.0, "output_per_million": 0.0},
}

# A model that draws and edits pictures.
DRAW = {
    "base_url": "http://localhost:8001/v1",
    "api_key_env": "",
    "image_model": "my-picture-editor",
    "image_size": "512x512",
    "send_image_seed": True,
    "concurrency": 4,
    "timeout": 300.0,
    "prices": {"per_picture": 0.0},
}


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    # Tokens are counted, and pictures refused, for the model that will be trained.
    config.model = bagel_7b.get_config().model
    config.data = ConfigDict()
    makers = {
        "planner": "graph",  # growing subgraphs; "remote" lets the model plan by itself
        "parser": "remote",  # rules first, the model for what they do not read
        "writer": "remote",
        "drafter": "remote",
        "judge": "remote",
        "diversify": 0.3,
        "remote": CHAT,
        "remote_drafter": DRAW,
    }
    options = {"prompts": arg or "prompts.txt", "makers": makers, "attempts": 2}
    # Paintings to be made; a file with fewer prompts is read again, with other seeds.
    config.data.sources = ({"kind": "multi_turn", "size": 1000, "options": options},)
    config.data.image_size = 512
    config.data.text_len = 4096
    config.data.seed = 0
    return config
