"""Who may import whom. Imports are read from the source, so nothing is executed.

The layers, lowest first; a package may import lower layers only, never one beside it:

    core
    sharding
    strokes, kernels, losses, checkpoint
    models, data
    train, sampling
    curation, aot
    evaluation
    report
    the modules of process_gen itself (the Python API)
    launch

`configs` reads core and nothing else, but for `configs.sweeps`, which lists commands of `launch`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    ("core",),
    ("sharding",),
    ("strokes", "kernels", "losses", "checkpoint"),
    ("models", "data"),
    ("train", "sampling"),
    ("curation", "aot"),
    ("evaluation",),
    ("report",),
)
LEVELS = {f"process_gen.{name}": level for level, names in enumerate(LAYERS) for name in names}
LEVELS |= {"configs": 1, "process_gen": len(LAYERS), "launch": len(LAYERS) + 1}
LEVELS |= {"configs.sweeps": len(LAYERS) + 2}

# What a data worker or a tool without an accelerator loads. A trailing dot means a whole package.
JAX_FREE = (
    "process_gen.core.trajectory",
    "process_gen.core.grammar",
    "process_gen.core.configs",
    "process_gen.core.errors",
    "process_gen.core.axes",
    "process_gen.core.batch",
    "process_gen.core.patches",
    "process_gen.core.settings",
    "process_gen.strokes.",
    "process_gen.data.",
)
JAX_PACKAGES = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, where it is imported, and whether merely importing the file does it."""

    target: str
    line: int
    at_import: bool


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def _walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below `node`, with whether its statement runs when the file is imported."""
    yield node, at_import
    inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for field, value in ast.iter_fields(node):
        skipped = isinstance(node, ast.If) and field == "body" and _is_type_checking(node.test)
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _walk(child, inside and not skipped)


def imports_of(source: str, module: str, is_package: bool = False) -> list[Import]:
    """The modules that `source` imports; `from a import b` gives `a.b`, as b may be a module."""
    found = []
    for node, at_import in _walk(ast.parse(source), True):
        if isinstance(node, ast.Import):
            found += [Import(alias.name, node.lineno, at_import) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                drop = node.level - is_package
                parents = module.split(".")[: -drop or None]
                base = ".".join([*parents, base] if base else parents)
            found += [Import(f"{base}.{a.name}", node.lineno, at_import) for a in node.names]
    return found


def _package(module: str) -> str:
    """The key of LEVELS that a module falls under; modules right below process_gen are the API."""
    top, _, rest = module.partition(".")
    below = f"{top}.{rest.partition('.')[0]}"
    return below if below in LEVELS else top


Sources = Mapping[str, str]  # module name -> its text; a package's __init__ ends in ".__init__"


def _modules(sources: Sources) -> Iterator[tuple[str, list[Import]]]:
    for name, source in sources.items():
        is_package = name.endswith(".__init__")
        module = name.removesuffix(".__init__")
        yield module, imports_of(source, module, is_package)


def layer_violations(sources: Sources) -> list[str]:
    """Imports that point up or sideways, and packages that the table of layers does not name."""
    wrong = []
    for module, imports in _modules(sources):
        here = _package(module)
        if here == "process_gen" and module.count(".") > 1:
            wrong.append(f"{module}: its package is not in the table of layers")
        for one in imports:
            there = _package(one.target)
            if there in LEVELS and there != here and LEVELS[there] >= LEVELS[here]:
                wrong.append(f"{module}:{one.line} imports {one.target}")
    return wrong


def misplaced(sources: Sources, target: str, allowed: tuple[str, ...]) -> list[str]:
    """Imports of `target` (or of anything in it) outside the packages `allowed`."""
    return [
        f"{module}:{one.line} imports {one.target}"
        for module, imports in _modules(sources)
        if _package(module) not in allowed
        for one in imports
        if one.target == target or one.target.startswith(f"{target}.")
    ]


def jax_paths(sources: Sources, roots: tuple[str, ...]) -> list[str]:
    """Chains of imports, run when a module of `roots` is imported, that end in jax or its kin."""
    imports = {module: found for module, found in _modules(sources)}

    def own_modules(target: str) -> list[str]:
        """The files that importing `target` executes: its parent packages and itself."""
        parts = target.split(".")
        names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        return [name for name in names if name in imports]

    @functools.cache
    def chain(module: str) -> str | None:
        seen, queue = {module}, [(module, module)]
        while queue:
            current, path = queue.pop(0)
            for one in imports[current]:
                if not one.at_import:
                    continue
                if one.target.partition(".")[0] in JAX_PACKAGES:
                    return f"{path}:{one.line} -> {one.target}"
                for name in own_modules(one.target):
                    if name not in seen:
                        seen.add(name)
                        queue.append((name, f"{path}:{one.line} -> {name}"))
        return None

    starts = [
        name
        for module in imports
        if any(
            module == root or (root[-1] == "." and f"{module}.".startswith(root)) for root in roots
        )
        for name in own_modules(module)
    ]
    return sorted({found for name in starts if (found := chain(name))})


@functools.cache
def project() -> Sources:
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text(encoding="utf-8")
        for package in ("process_gen", "launch", "configs")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def test_imports_point_down():
    assert layer_violations(project()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("process_gen.core.batch", "import process_gen.data.packing"),
        ("process_gen.losses.text", "from process_gen import kernels"),
        ("process_gen.losses.text", "from ..kernels import attention"),
        ("process_gen.train.step", "def f():\n  from process_gen.sampling import sampler"),
        ("process_gen.report.html", "from process_gen import api"),
        ("process_gen.report.html", "import process_gen"),
        ("process_gen.api", "from launch import train"),
        ("process_gen.novel.thing", "import os"),
        ("configs.strokes_tiny", "from process_gen.models import unified"),
    ],
)
def test_an_import_that_points_up_is_found(module, line):
    assert layer_violations({module: line}) != []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("process_gen.train.step", "from process_gen.core import batch\nimport jax"),
        ("process_gen.losses.text", "from .flow import mse"),
        ("process_gen.models.__init__", "from . import unified"),
        ("process_gen.__init__", "from process_gen.api import load"),
        ("launch.train", "import process_gen\nfrom process_gen.report import html"),
        ("configs.strokes_tiny", "from process_gen.core import configs"),
    ],
)
def test_an_import_that_points_down_is_fine(module, line):
    assert layer_violations({module: line}) == []


@pytest.mark.parametrize("target", ["ml_collections", "absl"])
def test_flags_and_config_dicts_stay_at_the_entry_points(target):
    assert misplaced(project(), target, ("launch", "configs")) == []


def test_nnx_stays_in_models():
    assert misplaced(project(), "flax.nnx", ("process_gen.models",)) == []
    assert misplaced(project(), "flax.linen", ()) == []


def test_a_misplaced_import_is_found():
    sources = {
        "process_gen.train.loop": "from absl import flags",
        "process_gen.losses.text": "from flax import nnx",
        "process_gen.models.layers": "from flax import nnx",
    }
    assert misplaced(sources, "absl", ("launch",)) == [
        "process_gen.train.loop:1 imports absl.flags"
    ]
    assert misplaced(sources, "flax.nnx", ("process_gen.models",)) == [
        "process_gen.losses.text:1 imports flax.nnx"
    ]


@pytest.mark.parametrize("root", JAX_FREE)
def test_data_workers_load_no_jax(root):
    modules = [name.removesuffix(".__init__") for name in project()]
    assert any(f"{module}.".startswith(root) for module in modules), f"{root} does not exist"
    assert jax_paths(project(), (root,)) == []


def test_a_hidden_import_of_jax_is_found():
    sources = {
        "process_gen.__init__": "",
        "process_gen.core.__init__": "",
        "process_gen.core.masks": "import jax.numpy as jnp",
        "process_gen.data.__init__": "",
        "process_gen.data.packing": "from process_gen.core import masks",
        "process_gen.data.lazy": "def f():\n  from process_gen.core import masks",
        "process_gen.data.typed": "if TYPE_CHECKING:\n  import jax\nelse:\n  import os",
    }
    assert jax_paths(sources, ("process_gen.data.",)) == [
        "process_gen.data.packing:1 -> process_gen.core.masks:1 -> jax.numpy"
    ]
    sources["process_gen.__init__"] = "import jax"
    assert jax_paths(sources, ("process_gen.data.lazy",)) != []


def test_modules_without_jax_really_load_without_it():
    """The same at run time, third-party packages included (grain, for one, loads jax itself)."""
    modules = [
        name.removesuffix(".__init__")
        for name in project()
        if f"{name}.".startswith("process_gen.strokes.") or name in JAX_FREE
    ]
    code = f"import sys, {', '.join(modules)}\nprint('jax' in sys.modules)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
