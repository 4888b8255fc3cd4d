"""Lets atheris look for bytes that reach code which no case of the campaign does.

    pip install atheris
    python -m tests.fuzz.coverage trajectory -max_total_time=300 [CORPUS]

Of the parsers that take plain bytes. What comes after the name goes to libFuzzer; a folder is a
corpus to go on from. An exception that is not the project's own ends it and leaves the bytes in a
file.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["process_gen"]):
    from process_gen.checkpoint import safetensors_io
    from process_gen.core.errors import ProcessGenError
    from process_gen.core.grammar import Part, check_text
    from process_gen.core.trajectory import decode_image
    from process_gen.curation.prompt_graph import geneval_include, read_prompt
    from process_gen.data.builders import from_line
    from process_gen.sampling.prompt_file import parse_prompts
    from process_gen.strokes import prompts


def _grammar(data: bytes) -> None:
    text = data.decode(errors="replace")
    for part in (Part.PLAN, Part.INSPECTION):
        check_text(part, text)


def _metadata(data: bytes) -> None:
    with contextlib.suppress(ProcessGenError):
        parse_prompts(data, "file")
    list(prompts.read_lines(data.decode(errors="replace").split("\n"), "file"))


def _prompt(data: bytes) -> None:
    geneval_include(read_prompt(data.decode(errors="replace")).graph)


def _safetensors(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "x.safetensors"
        file.write_bytes(data)
        safetensors_io.Reader([file]).close()


TARGETS: dict[str, Callable[[bytes], object]] = {
    "grammar": _grammar,
    "metadata": _metadata,
    "picture": decode_image,
    "prompt": _prompt,
    "safetensors": _safetensors,
    "trajectory": from_line,
}


def main() -> None:
    """Runs until libFuzzer has had enough."""
    name, *rest = sys.argv[1:] or [""]
    if name not in TARGETS:
        sys.exit(f"unknown target {name!r}; known: {', '.join(TARGETS)}")

    def one(data: bytes) -> None:
        with contextlib.suppress(ProcessGenError):
            TARGETS[name](data)

    atheris.Setup([sys.argv[0], *rest], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
