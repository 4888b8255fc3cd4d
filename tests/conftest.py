"""What holds for every test. jax is configured through the environment and not imported here, so
that tests of the numpy modules start in a fraction of a second; processes that a test starts get
the same settings."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import hypothesis
import pytest
from absl import flags

_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "process_gen" / "jax"

_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # [N] + [B, N] is usually a forgotten axis; say `x[None]` where it is meant.
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_DEFAULT_MATMUL_PRECISION": "highest",
    # Compiled programs are kept between runs: compiling is most of what the tests do.
    "JAX_COMPILATION_CACHE_DIR": str(_CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
}
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

# Library code never reads flags, yet some dependencies insist that somebody has parsed them.
flags.FLAGS.mark_as_parsed()

# The same examples on every machine: a failure in CI can be repeated at home.
hypothesis.settings.register_profile("process_gen", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("process_gen")


# XLA's older loops over elements compile twice as fast as those of its fusion emitters.
_COMPILE_FAST = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
_LONG = ("train", "sampling", "launch", "evaluation", "kernels")  # below tests/, longest first


def _rank(item: pytest.Item) -> int:
    parts = item.path.relative_to(Path(__file__).parent).parts
    return _LONG.index(parts[0]) if parts[0] in _LONG else len(_LONG) - (len(parts) == 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="rewrite the stored files that `golden` tests compare with",
    )


def pytest_configure(config: pytest.Config) -> None:
    # Quick tests run a program once or twice: making it costs more than a slow one takes to run.
    # Others train for minutes, or look at what the compiler makes for an accelerator.
    given = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr == "not slow" and "xla_backend_optimization_level" not in given:
        os.environ["XLA_FLAGS"] = " ".join((given, *_COMPILE_FAST))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # What takes long comes first: with several workers one of them would else be left with it.
    items.sort(key=_rank)
    platforms = os.environ["JAX_PLATFORMS"].replace("cuda", "gpu").split(",")
    for item in items:
        for kind in ("gpu", "tpu"):
            if item.get_closest_marker(kind) and kind not in platforms:
                item.add_marker(pytest.mark.skip(reason=f"needs a {kind.upper()}"))


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """True when stored files are to be rewritten instead of compared with."""
    return request.config.getoption("--update-golden")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium, that of the distribution; a missing one is an error where CI=true."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    lacks = "" if path else "no Chromium: make browser"
    if importlib.util.find_spec("playwright") is None:
        lacks = "no playwright: pip install -e '.[dev]'"
    if lacks:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(lacks)
    from playwright.sync_api import sync_playwright

    # Inside a container there is no sandbox to be had, and as root Chromium refuses to look for it.
    with sync_playwright() as tool:
        chromium = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
