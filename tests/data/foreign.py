"""Rows of other projects' data sets, made up, as real files."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib

import numpy as np
from PIL import Image as PILImage

RNG = np.random.default_rng(0)


def picture(side=32, width=None):
    return RNG.integers(0, 256, (side, width or side, 3), np.uint8)


def encoded(image, form="PNG"):
    out = io.BytesIO()
    PILImage.fromarray(image).save(out, format=form)
    return out.getvalue()


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def png_of_size(width, height, lines=8):
    """A PNG of a few kB that claims a size; its pixels go on for `lines` lines only."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes((1 + 3 * width) * lines), 9)
    parts = [(b"IHDR", head), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


# What no reader may take for a picture, and a word of the reason.
BAD_PICTURES = {
    "no picture": (b"GIF89a no", "cannot decode"),
    "a pickle": (b"\x80\x04\x95", "cannot decode"),
    "half a picture": (encoded(picture(64))[:2000], "cannot decode"),
    "a bomb": (png_of_size(30_000, 30_000), "900000000 pixels) exceeds limit"),
    "a small bomb": (png_of_size(9_000, 9_000), "larger than 4096"),
    "a long side": (png_of_size(40_000, 1), "larger than 4096"),
    "nothing": (b"", "cannot decode"),
}


def write_parquet(path, columns, rows, group=4):
    """Columns are name -> arrow type; words may be bytes, so that UTF-8 can be wrong."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(list(columns.items()))
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=group)


def edit_columns():
    import pyarrow as pa

    return {
        "image_list": pa.list_(pa.binary()),
        "instruction_list": pa.list_(pa.list_(pa.binary())),  # bytes, read like words
    }


def edit_rows(n=6):
    """Single edits and chains, with one or more wordings."""
    rows = []
    for i in range(n):
        edits = 1 + i % 3
        words = [[f"edit {i}.{j} {'ä' * k}".encode() for k in range(1 + j)] for j in range(edits)]
        pictures = [encoded(picture(), "PNG" if i % 2 else "WEBP") for _ in range(edits + 1)]
        rows.append({"image_list": pictures, "instruction_list": words})
    return rows


def write_edits(path, rows):
    write_parquet(path, edit_columns(), rows)


def think_row(i, thoughts=2):
    texts = [f"<think>thought {i}</think><image_start>"] * (thoughts - 1) + ["<answer>B</answer>"]
    return {
        "image_list": [encoded(picture()) for _ in range(thoughts)],
        "instruction_list": [f"question {i}?"],
        "output_text_list": texts,
    }


def write_thoughts(path, rows):
    import pyarrow as pa

    texts = pa.list_(pa.string())
    columns = {
        "image_list": pa.list_(pa.binary()),
        "instruction_list": texts,
        "output_text_list": texts,
    }
    write_parquet(path, columns, rows)


def write_published_thoughts(path, n=3):
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "pid": pa.string(),
        "question": pa.string(),
        "answer": pa.string(),
        "problem_image_0": image,
        "resoning_thought_0": pa.string(),
        "reasoning_image_0": image,
        "resoning_thought_1": pa.string(),
        "full_text_only_thought": pa.string(),
    }
    rows = [
        {
            "pid": str(i),
            "question": "which?",
            "answer": "B",
            "problem_image_0": {"bytes": encoded(picture()), "path": None},
            "resoning_thought_0": "look",
            "reasoning_image_0": {"bytes": encoded(picture()), "path": None},
            "resoning_thought_1": "so",
            "full_text_only_thought": "x",
        }
        for i in range(n)
    ]
    write_parquet(path, columns, rows)


def write_captions(path, captions):
    import pyarrow as pa

    rows = [{"image": encoded(picture()), "captions": text} for text in captions]
    write_parquet(path, {"image": pa.binary(), "captions": pa.binary()}, rows)


def write_jsonl(path, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"\n".join(lines) + b"\n")


def write_tar(path, rows):
    with tarfile.open(path, "w") as archive:
        for key, columns in rows:
            for name, data in columns.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def pair(i=0, **changes):
    cells = {
        "good_image.jpg": encoded(picture()),
        "bad_image.jpg": encoded(picture()),
        "reflection.txt": f"make it blue {i}".encode(),
        "prompt.txt": b"a blue dot",
        "subset.txt": b"rule",
    }
    return cells | changes
