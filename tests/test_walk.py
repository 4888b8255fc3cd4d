"""docs/walk.md is walked with commands of the README, copied and not edited."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+)`")


def commands(text: str) -> list[str]:
    """The lines of a page's shell blocks, without comments."""
    lines = (line for block in _BLOCK.findall(text) for line in block.splitlines())
    return [command for line in lines if (command := re.sub(r"(^|\s)#.*", "", line).strip())]


def edited(walk: str, readme: str) -> list[str]:
    """Commands of the walk that do not stand in the README as they are."""
    known = {*commands(readme), *_SPAN.findall(_BLOCK.sub("", readme))}
    return [command for command in commands(walk) if command not in known]


def test_the_walk_edits_no_command():
    walk, readme = ((ROOT / name).read_text() for name in ("docs/walk.md", "README.md"))
    assert len(commands(walk)) >= 4
    assert edited(walk, readme) == []


def test_an_edited_command_is_found():
    readme = "```bash\nmake app  # the studio\n```\n| `python -m x --out=DIR` | does x |\n"
    walk = "```bash\nmake app\n```\n\n```bash\npython -m x --out=DIR   # like this\n```\n"
    assert edited(walk, readme) == []
    assert edited(walk.replace("make app", "make app ARGS=1"), readme) == ["make app ARGS=1"]
    assert edited(walk, readme.replace("--out", "--to")) == ["python -m x --out=DIR"]
