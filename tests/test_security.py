"""Rules about what the source may do with bytes that strangers wrote (docs/security.md).

Each is a function over plain text, so that a test can show it something wrong.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    p for folder in ("process_gen", "launch", "configs") for p in (ROOT / folder).rglob("*.py")
]

# They run code that stands in what they read, or are made to.
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal",
           "yaml", "torch", "code", "runpy"}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "extract", "extractall"}


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def _wrong_call(call: ast.Call) -> str:
    name = _name(call.func)
    last = name.rpartition(".")[2]
    if name in CALLS or (last in ("extract", "extractall") and last != name):
        return name
    if last == "load" and name.split(".")[0] in ("np", "numpy"):
        allowed = _keyword(call, "allow_pickle")
        return (
            ""
            if isinstance(allowed, ast.Constant) and allowed.value is False
            else f"{name}: pickles"
        )
    if isinstance(shell := _keyword(call, "shell"), ast.Constant) and shell.value:
        return f"{name}: shell"
    if (
        last == "open"
        and name.split(".")[0] in ("Image", "PILImage", "PIL")
        and _keyword(call, "formats") is None
    ):
        return f"{name}: any format"
    return ""


def dangerous(text: str) -> list[str]:
    """What a module imports or calls that could run what it reads, with its line."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
            if isinstance(node, ast.Call) and (what := _wrong_call(node)):
                found.append(f"line {node.lineno}: {what}")
        found += [f"line {node.lineno}: {n}" for n in names if n.split(".")[0] in MODULES]
    return found


def test_nothing_that_is_read_can_run():
    found = {path.name: dangerous(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert len(found) > 100 and {name: what for name, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from yaml import load",
        "import torch.serialization",
        "x = eval(text)",
        "import numpy as np\nnp.load(file)",
        "np.load(file, allow_pickle=True)",
        "archive.extractall(folder)",
        "subprocess.run(text, shell=True)",
        "PILImage.open(file)",
        "os.system(text)",
    ],
)
def test_what_could_run_is_found(text):
    assert dangerous(text)


def test_what_is_harmless_is_left_alone():
    text = """
import ast, json
import numpy as np
ast.literal_eval(text)
json.loads(text)
np.load(file, allow_pickle=False)
re.compile(pattern)
archive.extractfile(member)
PILImage.open(file, formats=("PNG",))
subprocess.run(words, check=True)
"""
    assert dangerous(text) == []


def test_every_limit_of_the_page_is_the_one_in_force():
    from process_gen.checkpoint import remote
    from process_gen.core import trajectory
    from process_gen.data import foreign_rows, imports

    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    for limit in (
        trajectory.MAX_IMAGE_SIDE,
        trajectory.MAX_PIXELS,
        trajectory.MAX_TEXT,
        imports.MAX_PICTURES,
        foreign_rows.MAX_LINE,
        foreign_rows.MAX_PICTURE,
        remote._LONGEST_HEADER,
    ):
        assert f"{limit:,}" in page
