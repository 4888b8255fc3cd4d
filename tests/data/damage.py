"""Trajectory folders with records that cannot be used."""

from __future__ import annotations

import base64
import json

from process_gen.core.configs import SourceConfig
from process_gen.core.trajectory import to_json
from process_gen.data.builders import open_shard, shard_entry
from process_gen.data.sources import build_source
from tests.data import foreign


def paintings(n, kind="strokes"):
    source = build_source(SourceConfig(kind), 0)
    return [source[i] for i in range(n)]


def record(change):
    made = to_json(paintings(1)[0])
    change(made)
    return json.dumps(made).encode()


def with_picture(data):
    def change(made):
        made["steps"][0]["sketch"] = base64.b64encode(data).decode()
        made["final_image"] = None

    return record(change)


def without_pictures(made):
    made["steps"] = [{**step, "sketch": None, "refined": None} for step in made["steps"]]


def planned_only(made):
    made["steps"] = [
        {"plan": s["plan"], "sketch": None, "inspection": None, "refined_plan": None,
         "refined": None} for s in made["steps"]
    ]  # fmt: skip


BAD_RECORDS = {
    **{what: (with_picture(data), reason) for what, (data, reason) in foreign.BAD_PICTURES.items()},
    "an empty prompt": (record(lambda made: made.update(prompt=" ")), "the prompt is empty"),
    "promised pictures": (record(without_pictures), "an inspection without a sketch"),
    "a promised final picture": (record(planned_only), "a finished picture, but no step has one"),
    "no steps": (record(lambda made: made.update(steps=[])), "has no steps"),
    "a one-shot without its picture": (
        record(lambda made: made.update(mode="one_shot", steps=[], final_image=None)),
        "a one-shot trajectory has no picture",
    ),
    "an edit of nothing": (
        record(lambda made: made.update(mode="edit", steps=[])),
        "an edit needs the picture",
    ),
    "wrong UTF-8": (record(lambda made: None).replace(b'"process"', b'"proc\xffss"'), "utf-8"),
    "half a record": (record(lambda made: None)[:300], "Unterminated string"),
    "no base64": (
        record(lambda made: made.update(final_image="?")),
        "an image is not valid base64",
    ),
    "no record": (b"", "Expecting value"),
}


def folder_of(path, records):
    path.mkdir()
    shard = path / "x.array_record"
    writer = open_shard(shard)
    for data in records:
        writer.write(data)
    writer.close()
    manifest = {"format": 1, "count": len(records), "shards": [shard_entry(shard, len(records))]}
    (path / "manifest.json").write_text(json.dumps(manifest))
