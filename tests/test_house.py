"""The house rules that no linter checks. Each rule is a function over plain values, so that a test
can show it something wrong."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from configs import strokes_painter
from process_gen.core import configs
from process_gen.strokes import prompts

ROOT = Path(__file__).resolve().parents[1]
MAX_LINES = 500
MAX_BYTES = 1_000_000

# Weights with the reference's outputs for them: without these there is no parity test at all.
MAY_BE_BIG = ("tests/parity/fixtures/", "process_gen/checkpoint/painter/")


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    """What a commit holds; in a copy without git, all files outside the ignored folders."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        ignored = {".venv", ".git", "demo", "painted", "runs", "site", "build", "dist"}
        paths = [p for p in ROOT.rglob("*") if not ignored & set(p.relative_to(ROOT).parts)]
    return tuple(path for path in paths if path.is_file())


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def too_big(sizes: Mapping[str, int], limit: int) -> list[str]:
    return [f"{name}: {size} > {limit}" for name, size in sizes.items() if size > limit]


def test_no_python_file_is_long():
    lines = {
        _name(path): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked_files()
        if path.suffix == ".py"
    }
    assert too_big(lines, MAX_LINES) == []


def test_no_tracked_file_is_big():
    sizes = {_name(path): path.stat().st_size for path in tracked_files()}
    assert (
        too_big({n: s for n, s in sizes.items() if not n.startswith(MAY_BE_BIG)}, MAX_BYTES) == []
    )


def test_something_big_is_found():
    assert too_big({"a.py": 500, "b.py": 501}, MAX_LINES) == ["b.py: 501 > 500"]


def missing_from_nav(pages: Iterable[str], mkdocs_yml: str) -> list[str]:
    navigation = mkdocs_yml.partition("\nnav:")[2]
    return sorted(set(pages) - set(re.findall(r"[\w/.-]+\.md", navigation)))


def test_every_page_is_in_the_navigation():
    docs = ROOT / "docs"
    pages = [page.relative_to(docs).as_posix() for page in docs.rglob("*.md")]
    assert missing_from_nav(pages, (ROOT / "mkdocs.yml").read_text(encoding="utf-8")) == []


def test_a_page_outside_the_navigation_is_found():
    assert missing_from_nav(["a.md", "b.md"], "# b.md\nnav:\n  - A: a.md\n") == ["b.md"]


def missing_commands(text: str, existing: Iterable[str]) -> list[str]:
    return sorted(set(re.findall(r"-m launch\.(\w+)", text)) - set(existing))


def test_documents_name_existing_commands():
    existing = [path.stem for path in (ROOT / "launch").glob("*.py")]
    texts = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("configs/*.py")]
    texts.append(ROOT / "Makefile")
    wrong = {_name(t): missing_commands(t.read_text(encoding="utf-8"), existing) for t in texts}
    assert {name: missing for name, missing in wrong.items() if missing} == {}


def test_a_command_that_does_not_exist_is_found():
    assert missing_commands("python -m launch.train; python -m launch.tain", ["train"]) == ["tain"]


def test_changelog_has_room_for_the_next_release():
    assert "\n## [Unreleased]\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.py"))


def variants(name: str, text: str) -> list[str]:
    """The arguments with which `text` runs a config: `configs/NAME:ARGUMENT`."""
    return sorted(set(re.findall(rf"configs/{re.escape(name)}:([\w,=.-]+)", text)))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_resolves_and_shows_its_command(name):
    spec = importlib.util.spec_from_file_location(f"config_{name[:-3]}", ROOT / "configs" / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    doc = module.__doc__ or ""
    assert "python -m launch." in doc, "the docstring gives no command"
    configs.from_mapping(module.get_config().to_dict())
    for variant in variants(name, doc + (ROOT / "Makefile").read_text(encoding="utf-8")):
        configs.from_mapping(module.get_config(variant).to_dict())


def test_own_faults_of_a_round_have_one_share_however_many_folders():
    def shares(argument: str) -> list[float]:
        sources = strokes_painter.get_config(argument).data.sources
        return [source["weight"] for source in sources if source["kind"] == "folder"]

    assert shares("") == [] and shares("own=a") == [0.3] and shares("own=a+b") == [0.15, 0.15]
    for argument in ("own=", "own=a+", "owns=a"):
        with pytest.raises(ValueError, match=r"known: debug, own=DIR"):
            shares(argument)


def test_variants_are_read_from_commands():
    text = "--config=configs/a.py:demo --config=configs/b.py:x --config=configs/a.py --out=d"
    assert variants("a.py", text) == ["demo"]


def test_demo_paints_held_out_prompts_only():
    lines = (ROOT / "configs" / "demo_prompts.jsonl").read_text(encoding="utf-8").splitlines()
    required = [prompts.check(json.loads(line))["prompt"] for line in lines]
    assert len(set(required)) >= 8
    assert all(prompts.held_out(prompt) for prompt in required)
    assert not prompts.held_out("a red circle"), "held_out() says yes to everything"


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared_dependencies(setup_py: str) -> tuple[set[str], set[str]]:
    """The distributions named in CORE, and those in EXTRAS, of the text of setup.py."""
    groups: dict[str, set[str]] = {}
    for node in ast.parse(setup_py).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            groups[node.targets[0].id] = {
                _normal(match.group())
                for part in ast.walk(node.value)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
                if (match := re.match(r"[A-Za-z][\w.-]*(?=[\[><=]|$)", part.value))
            }
    return groups["CORE"], groups["EXTRAS"]


def imported_packages(sources: Iterable[str]) -> set[str]:
    """Top-level names of all absolute imports, inside functions too."""
    found = set()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add((node.module or "").partition(".")[0])
    return found


def _third_party() -> set[str]:
    """The distributions behind what process_gen, launch and configs import."""
    sources = [
        path.read_text(encoding="utf-8")
        for path in tracked_files()
        if path.suffix == ".py" and _name(path).startswith(("process_gen/", "launch/", "configs/"))
    ]
    own = {"process_gen", "launch", "configs", *sys.stdlib_module_names}
    providers = importlib.metadata.packages_distributions()
    return {_normal(providers.get(name, [name])[0]) for name in imported_packages(sources) - own}


def test_dependencies_are_declared_and_used():
    core, extras = declared_dependencies((ROOT / "setup.py").read_text(encoding="utf-8"))
    used = _third_party()
    assert used - core - extras == set(), "imported, but not in setup.py"
    assert core - used == set(), "in setup.py, but not imported"


def test_dependencies_are_read_from_both_sides():
    setup_py = 'CORE = [f"jax{JAX}", "etils[epath]>=1"]\nEXTRAS = {"app": ["gradio>=6"]}\n'
    assert declared_dependencies(setup_py) == ({"jax", "etils"}, {"app", "gradio"})
    assert imported_packages(["import a.b\ndef f():\n  from c import d", "from . import e"]) == {
        "a",
        "c",
    }


def test_every_dependency_has_its_reason():
    core, _ = declared_dependencies((ROOT / "setup.py").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    named = {_normal(name) for name in re.findall(r"`([\w.-]+)", page)}
    assert core - named == set()
