"""What is fuzzed: each target makes a case out of random numbers and gives it to a parser."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from launch import common
from process_gen.checkpoint import safetensors_io
from process_gen.checkpoint.remote import RangeReader
from process_gen.core import configs, grammar
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import CheckpointError, ConfigError, DataError
from process_gen.core.grammar import Kind, Next, Part, Segment
from process_gen.core.trajectory import (
    Step,
    Trajectory,
    Turn,
    decode_image,
    parse_plan,
    plan_text,
    refine_command,
    to_json,
)
from process_gen.curation.prompt_graph import geneval_include, read_prompt
from process_gen.data.builders import TrajectoryFolder, from_line, write_folder
from process_gen.data.imports import FORMATS, ImportOptions, import_rows
from process_gen.data.skips import Skips
from process_gen.sampling.prompt_file import parse_prompts
from process_gen.strokes import prompts as strokes_prompts
from tests.data import foreign
from tests.fuzz import mutation

Call = Callable[[random.Random], None]


# ---- grammar -------------------------------------------------------------------------------------

TAGS = ("<ins>", "</ins>", "<des>", "</des>", "<refine>", "</refine>", "<think>", " ", "\n", "x")
GRAMMARS = [
    GrammarConfig(context_images=seen, rejected_context=kept, supervise_rejected=kept == "drop")
    for seen in ("vae+vit", "vit", "vae")
    for kept in ("keep", "vit_only", "drop")
    if kept != "vit_only" or "vit" in seen
]


@functools.cache
def paintings() -> tuple[Trajectory, ...]:
    """One of each form, with pictures of a few pixels."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (8, width, 3), np.uint8) for width in (8, 16))
    plan, fault = plan_text("add it", "a scene"), "seen. wrong. <refine>move it</refine>"
    fine = Step(plan, a, "seen. fine.")
    return (
        Trajectory("a dot", steps=(fine, Step(plan, b, fault, None, a)), final_image=a),
        Trajectory("a dot", steps=(Step(plan, a, fault, plan, b), fine), final_image=a),
        Trajectory("a dot", steps=(Step(plan), Step(plan))),
        Trajectory("a dot", mode="one_shot", final_image=b, metadata={"tag": "x", "include": [1]}),
        Trajectory("make it red", mode="edit", inputs=(a,), final_image=b),
        Trajectory("which?", mode="understand", inputs=(a,), text="this one"),
        Trajectory(
            "go on", mode="edit",
            turns=(Turn(False, image=a), Turn(False, text="go on"), Turn(True, image=b)),
        ),
    )  # fmt: skip


def words_of_the_grammar(rng: random.Random) -> None:
    """Plans and inspections."""
    given = rng.choice(
        (plan_text("a", "b"), "fine <refine>x</refine>", "".join(rng.choices(TAGS, k=9)))
    )
    text = mutation.text(rng, given, TAGS)
    parse_plan(text)
    for part in (Part.PLAN, Part.REFINED_PLAN, Part.INSPECTION, Part.FAULT):
        grammar.check_text(part, text)
    grammar.prompt_text(text, "process")
    refine_command(text)


def segments(rng: random.Random) -> None:
    """Segments in places where they do not belong, read back into a painting."""
    settings = rng.choice(GRAMMARS)
    made = grammar.to_segments(rng.choice(paintings()), settings)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not made:
            break
        at, kind = rng.randrange(len(made)), rng.randrange(6)
        if kind == 0:
            del made[at]
        elif kind == 1:
            made.insert(rng.randrange(len(made) + 1), made[at])
        elif kind == 2:
            made[at] = dataclasses.replace(made[at], part=rng.choice(list(Part)))
        elif kind == 3:
            made[at] = dataclasses.replace(made[at], kind=rng.choice(list(Kind)), image=None)
        elif kind == 4:
            made[at] = dataclasses.replace(made[at], text=mutation.text(rng, made[at].text, TAGS))
        else:
            made[at] = Segment(
                rng.choice(list(Kind)), rng.choice(list(Part)), next=rng.choice(list(Next))
            )
    again = grammar.from_segments(made)
    grammar.to_segments(again, settings, rng.choice(("all", "last_inspection", "last_repair")))


def grammar_target(rng: random.Random) -> None:
    """Both."""
    (words_of_the_grammar if rng.random() < 0.5 else segments)(rng)


# ---- trajectories and pictures -------------------------------------------------------------------

FIELDS = tuple(f.name for kind in (Trajectory, Step, Turn) for f in dataclasses.fields(kind))


@functools.cache
def trajectory_seeds() -> tuple[Any, ...]:
    """As JSON values."""
    return tuple(to_json(one) for one in paintings())


def trajectory(rng: random.Random) -> None:
    """A stored record, and what the packer makes of one that is taken."""
    record = mutation.tree(
        rng, rng.choice(trajectory_seeds()), (*FIELDS, "process", "edit", "think")
    )
    read = from_line(mutation.dumped(rng, record))
    grammar.to_segments(read, rng.choice(GRAMMARS))


@functools.cache
def picture_seeds() -> tuple[bytes, ...]:
    """Of every format and of several modes."""
    from PIL import Image

    image = Image.fromarray(foreign.picture(12))
    made = []
    for form in ("PNG", "JPEG", "WEBP"):
        for mode in ("RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"):
            out = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):
                image.convert(mode).save(out, format=form)
                made.append(out.getvalue())
    return (*made, *(data for data, _ in foreign.BAD_PICTURES.values()))


def picture(rng: random.Random) -> None:
    """Bytes of a picture."""
    image = decode_image(mutation.blob(rng, rng.choice(picture_seeds())))
    assert image.dtype == np.uint8 and image.ndim == 3 and max(image.shape[:2]) <= 4096


# ---- prompts -------------------------------------------------------------------------------------

METADATA = (
    {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a star"},
    {
        "tag": "position", "prompt": "a square left of a red circle", "exclude": [],
        "include": [
            {"class": "circle", "count": 1, "color": "red"},
            {"class": "square", "count": 1, "position": ["left of", 0]},
        ],
    },
)  # fmt: skip
SAID = (
    "tag", "include", "exclude", "prompt", "class", "count", "color", "position", "star", "with",
    "counting", "left of", "red", "two", "a photo of", "and",
)  # fmt: skip


def metadata(rng: random.Random) -> None:
    """Files of prompts, and requirements of the Strokes world."""
    lines = [mutation.dumped(rng, mutation.tree(rng, x, SAID)) for x in rng.choices(METADATA, k=2)]
    data = b"\n".join(lines)
    if rng.random() < 0.3:
        data = mutation.blob(rng, data)
    if rng.random() < 0.5:
        parse_prompts(data, "file")
    else:
        list(strokes_prompts.read_lines(data.decode(errors="surrogateescape").split("\n"), "file"))


PROMPTS = (
    "a photo of two red wine glasses and a bench",
    "a square left of a red circle, which is above three blue stars",
    "The fluffy clouds on the left are bigger than the 4 metal chairs",
)


def prompt(rng: random.Random) -> None:
    """The rules that read a prompt as a scene graph."""
    text = mutation.text(rng, rng.choice(PROMPTS), SAID)
    strokes_prompts.held_out(text)
    reading = read_prompt(text)
    geneval_include(reading.graph)
    if reading.unread:
        raise DataError("words that have no place in the graph")


# ---- settings ------------------------------------------------------------------------------------


@functools.cache
def config_seeds() -> tuple[Any, ...]:
    """Whole configs as plain values."""
    from configs import bagel_debug, strokes_tiny

    made = [strokes_tiny.get_config().to_dict(), bagel_debug.get_config().to_dict()]
    return (configs.to_mapping(configs.Config()), *(json.loads(json.dumps(one)) for one in made))


@functools.cache
def setting_names() -> tuple[str, ...]:
    """Every key, and the sections."""
    whole = configs.to_mapping(configs.Config())
    return (*whole, *(key for part in whole.values() for key in part))


def settings(rng: random.Random) -> None:
    """A mapping of settings."""
    configs.from_mapping(mutation.tree(rng, rng.choice(config_seeds()), setting_names()))


OVERRIDES = (
    "1", "0.5", "-1", "True", "None", "(1, 2)", "[]", "{}", "'x'", "('vit',)", "nan", "1e999",
    "({'kind': 'strokes'},)", "vae+vit", "", "=", "1_0", "0x1f", "9" * 400, "(" * 300, "(1,",
    "__import__('os').abort()", "[].__class__", "lambda: 0", "\ud800", "\0",
)  # fmt: skip


# A part of the settings with every type that there is.
CONFIG = """return ConfigDict({
        "data": {"rows": 8, "image_size": 0, "stored_latents": False,
                 "sources": ({"kind": "strokes"},),
                 "grammar": {"text_dropout": 0.1, "context_images": "vit"}},
        "optimizer": {"learning_rate": 1e-3, "frozen": ("embed",)},
        "loss": {"ce_weight_late": 1.5}})"""


def overrides(folder: Path) -> Call:
    """A command line: ``--config.section.key=value``."""
    file = folder / "config.py"
    file.write_text(f"from ml_collections import ConfigDict\ndef get_config():\n    {CONFIG}\n")
    names = (
        "data.rows", "data.image_size", "data.stored_latents", "data.sources", "data.grammar",
        "data.grammar.text_dropout", "data.grammar.context_images", "optimizer.learning_rate",
        "optimizer.frozen", "loss.ce_weight_late", "data.sources[0].kind",
    )  # fmt: skip

    def call(rng: random.Random) -> None:
        arguments = ["command", f"--config={file}"]
        for _ in range(rng.choice((1, 1, 2))):
            name = f"config.{rng.choice(names)}"
            if rng.random() < 0.3:
                name = mutation.text(rng, name, ("config", ".", "-", "=", "[0]", "]", "__class__"))
            value = rng.choice(OVERRIDES)
            if rng.random() < 0.3:
                value = mutation.text(rng, value, OVERRIDES)
            arguments.append(f"--{name}={value}" if rng.random() < 0.9 else f"--{name}")
        common.read_config(common.parse(common.define_config, arguments))

    return call


# ---- weights -------------------------------------------------------------------------------------

HEADER = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
}
TERMS = (
    "dtype",
    "shape",
    "data_offsets",
    "F32",
    "BF16",
    "I64",
    "F8_E4M3",
    "a",
    "b",
    "__metadata__",
)


def safetensors_file(rng: random.Random) -> bytes:
    """A file of two tensors, its header or its bytes changed."""
    header = mutation.tree(rng, HEADER, TERMS) if rng.random() < 0.8 else HEADER
    text = mutation.dumped(rng, header)
    text += b" " * (-len(text) % 8 if rng.random() < 0.5 else 0)
    length = len(text) if rng.random() < 0.9 else rng.choice((0, 1, 2**31, 2**63, 2**64 - 1, 99))
    data = struct.pack("<Q", length) + text + bytes(32)
    return mutation.blob(rng, data) if rng.random() < 0.3 else data


def safetensors(folder: Path) -> Call:
    """Headers, read by the library and by range; and the index of a folder in pieces."""
    file = folder / "model.safetensors"
    index = folder / "ema.safetensors.index.json"
    stated = {"metadata": {}, "weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}
    whole = json.dumps(HEADER).encode()
    (folder / "part.safetensors").write_bytes(struct.pack("<Q", len(whole)) + whole + bytes(32))

    def call(rng: random.Random) -> None:
        kind = rng.randrange(5)
        if kind == 4:
            words = ("weight_map", "part.safetensors", "../x", "/etc/passwd", "a", ".")
            index.write_bytes(mutation.dumped(rng, mutation.tree(rng, stated, words)))
            safetensors_io.open_folder(folder, ("ema",)).close()
            return
        file.write_bytes(safetensors_file(rng))
        if kind < 2:
            read_by_range(file)
            return
        with safetensors_io.Reader([file]) as reader:
            for key, info in reader.infos.items():
                assert reader.read(key).shape == info.shape

    return call


def read_by_range(file: Path) -> None:
    """As `safetensors_io.Reader` reads a file in a bucket."""
    try:
        reader = RangeReader(epath.Path(file), safetensors_io.DTYPES)
        for key, (dtype, shape) in reader.tensors.items():
            if dtype in safetensors_io.DTYPES:
                assert reader.get_tensor(key).shape == shape
    except ValueError as error:  # which `Reader` turns into this
        raise CheckpointError(str(error)) from error


# ---- rows of other projects ----------------------------------------------------------------------


def imported(name: str, path: Path, images: Path) -> None:
    """Reads all rows; a file that gives nothing counts as refused."""
    skips = Skips()
    rows = list(import_rows(name, str(path), skips, ImportOptions(str(images))))
    if not rows:
        raise DataError(str(skips.to_mapping()))


def parquet(folder: Path) -> Call:
    """Files with a few bytes changed, and tables whose cells are of other types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, seeds = folder / "rows.parquet", []
    for name, write in (
        ("bagel_edit", lambda: foreign.write_edits(path, foreign.edit_rows(2))),
        ("thinkmorph", lambda: foreign.write_thoughts(path, [foreign.think_row(0)])),
        ("thinkmorph", lambda: foreign.write_published_thoughts(path, 1)),
        ("t2i", lambda: foreign.write_captions(path, ['{"a": "words"}'])),
    ):
        write()
        seeds.append((name, path.read_bytes()))
    cells: tuple[Any, ...] = (
        foreign.encoded(foreign.picture(8)), b"", b"\xff", b"words", "words", 1, 2.5, None,
        True, [], [b"x"], [["x"]], {"bytes": b"x"}, [None], b'{"a": "b"}', b"{" * 3000, b'{"a": 1}',
    )  # fmt: skip

    def call(rng: random.Random) -> None:
        if rng.random() < 0.5:
            name, data = rng.choice(seeds)
            path.write_bytes(mutation.blob(rng, data))
        else:
            name = rng.choice(("bagel_edit", "thinkmorph", "t2i", "genref"))
            columns = {}
            for column in FORMATS[name].columns[:24]:  # of numbered ones the first
                if rng.random() < 0.8:
                    columns[column] = pa.array([rng.choice(cells)])
            table = pa.table(columns or {"x": [1]})
            pq.write_table(table, path, compression="none")
        imported(name, path, folder)

    return call


def rows(folder: Path) -> Call:
    """JSON lines, a JSON array, a tar file."""
    (folder / "a.png").write_bytes(foreign.encoded(foreign.picture(8)))
    answers = [
        {"image": "a.png", "conversations": [{"from": "human", "value": "<image>\nwhich?"},
                                             {"from": "gpt", "value": "this"}]},
        {"image": ["a.png"], "conversations": [{"from": "human", "value": "a<image>b"},
                                               {"from": "gpt", "value": "c"}] * 2},
    ]  # fmt: skip
    pairs = [{"good_image": "a.png", "bad_image": "a.png", "reflection": "x", "prompt": "a dot"}]
    words = (
        "image", "conversations", "from", "value", "human", "gpt", "<image>", "a.png", "video",
        "good_image", "bad_image", "reflection", "reflection_dict", "prompt", "../a.png",
    )  # fmt: skip
    foreign.write_tar(folder / "rows.tar", [("0", foreign.pair(0)), ("1", foreign.pair(1))])
    tar = (folder / "rows.tar").read_bytes()

    def call(rng: random.Random) -> None:
        name, seed = rng.choice((("vlm_sft", answers), ("genref", pairs)))
        kind = rng.choice(("jsonl", "json", "tar"))
        if kind == "tar":
            name, data = "genref", mutation.blob(rng, tar)
        elif kind == "json":
            data = mutation.dumped(rng, mutation.tree(rng, seed, words))
        else:
            lines = [mutation.dumped(rng, mutation.tree(rng, one, words)) for one in seed]
            data = b"\n".join(lines)
        path = folder / f"rows.{kind}"
        path.write_bytes(data)
        imported(name, path, folder)

    return call


# ---- folders -------------------------------------------------------------------------------------


def folder_target(folder: Path) -> Call:
    """The manifest of a trajectory folder, and bytes of its shards."""
    target = folder / "data"
    made = write_folder(str(target), paintings(), shards=2)
    first = target / made["shards"][0]["file"]
    whole, manifest = first.read_bytes(), target / "manifest.json"
    words = (
        "format",
        "count",
        "shards",
        "file",
        "bytes",
        "sha256",
        "supervise",
        "../x",
        first.name,
    )

    def call(rng: random.Random) -> None:
        manifest.write_bytes(json.dumps(made).encode())
        first.write_bytes(whole)
        if rng.random() < 0.7:
            manifest.write_bytes(mutation.dumped(rng, mutation.tree(rng, made, words)))
        else:
            at = rng.randrange(len(whole))
            first.write_bytes(
                whole[:at] + bytes([whole[at] ^ (1 << rng.randrange(8))]) + whole[at + 1 :]
            )
        opened = TrajectoryFolder(str(target), strict=rng.random() < 0.5)
        for index in range(min(len(opened), 8)):
            opened[index]

    return call


TARGETS: dict[str, Call | Callable[[Path], Call]] = {
    "grammar": grammar_target,
    "trajectory": trajectory,
    "picture": picture,
    "metadata": metadata,
    "prompt": prompt,
    "settings": settings,
    "overrides": overrides,
    "safetensors": safetensors,
    "parquet": parquet,
    "rows": rows,
    "folder": folder_target,
}
_WITH_FILES = (overrides, safetensors, parquet, rows, folder_target)


@contextlib.contextmanager
def open_target(name: str) -> Iterator[Call]:
    """A target that can be called; its files lie in memory where there is such a folder.

    Raises:
      ConfigError: an unknown name.
    """
    if name not in TARGETS:
        raise ConfigError(f"unknown target {name!r}; known: {', '.join(TARGETS)}")
    made: Any = TARGETS[name]
    if made not in _WITH_FILES:
        yield made
        return
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield made(Path(folder))
