"""Multi-turn generation: prompts planned in growing steps with detours, drawn and filtered.

    python -m launch.make_data --config=configs/data/multi_turn.py --out=/tmp/multi_turn --workers=2
    python -m launch.make_data --config=configs/data/multi_turn.py:prompts.txt --out=/tmp/remote

Without an argument the Strokes world plans, draws and judges 20,000 paintings (`--limit=N`: fewer).
With a file of prompts (a prompt a line, or metadata JSONL) scene graphs are read from them by rule
where that is enough. A server that speaks the OpenAI-compatible API reads the other prompts, writes
the steps, draws and judges 2,000: SERVER below, and the variable OPENAI_API_KEY.
"""

from ml_collections import ConfigDict

from configs import bagel_7b

SERVER = {
    "base_url": "https://api.openai.com/v1",
    "chat_model": "gpt-4o",
    "image_model": "gpt-image-1",
    "ask_base64": False,
    "longest_side": 512,
}


def get_config(arg: str = "") -> ConfigDict:
    config = ConfigDict()
    config.data = ConfigDict()
    size, options = 20_000, {"makers": {"diversify": 0.3}}
    if arg:
        makers = {"planner": "graph", "parser": "remote", "writer": "remote", "drafter": "remote"}
        makers |= {"judge": "remote", "diversify": 0.3, "remote": SERVER}
        size, options = 2000, {"prompts": arg, "makers": makers, "attempts": 2}
        config.model = bagel_7b.get_config().model  # whose tokens are counted
        config.data.image_size = 512
        config.data.text_len = 4096
    config.data.sources = ({"kind": "multi_turn", "size": size, "options": options},)
    config.data.seed = 0
    return config
