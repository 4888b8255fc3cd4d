from __future__ import annotations

import dataclasses
import json
import tarfile

import numpy as np
import pytest

from process_gen.core.configs import SourceConfig, from_mapping
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.trajectory import Trajectory, decode_image, refine_command, same
from process_gen.data import parquet_rows
from process_gen.data.builders import TrajectoryFolder, write_folder
from process_gen.data.exports import export_rows
from process_gen.data.imports import FORMATS, ImportOptions, import_rows
from process_gen.data.parquet_rows import ParquetWriter
from process_gen.data.pipeline import train_dataset
from process_gen.data.skips import Skips
from process_gen.data.sources import build_source
from tests.data import foreign


def read(name, source, **options):
    skips = Skips()
    return list(import_rows(name, str(source), skips, ImportOptions(**options))), skips


def all_same(left, right):
    return len(left) == len(right) and all(map(same, left, right))


# ---- formats -------------------------------------------------------------------------------------


def test_bagel_edits(tmp_path):
    rows = foreign.edit_rows()
    foreign.write_edits(tmp_path / "a.parquet", rows[:4])
    foreign.write_edits(tmp_path / "b.parquet", rows[4:])
    made, skips = read("bagel_edit", tmp_path)
    assert not skips.counts and [len(t.turns) for t in made] == [0, 5, 7, 0, 5, 7]
    for trajectory, row in zip(made, rows, strict=True):
        pictures = [decode_image(data) for data in row["image_list"]]
        shown = [*trajectory.inputs, *(t.image for t in trajectory.turns if t.image is not None)]
        shown += [trajectory.final_image] if trajectory.final_image is not None else []
        assert all(map(np.array_equal, shown, pictures)) and len(shown) == len(pictures)
        assert trajectory.mode == "edit"
        words = [[x.decode() for x in choices] for choices in row["instruction_list"]]
        assert trajectory.prompt == words[0][0]
        several = any(len(choices) > 1 for choices in words)
        assert trajectory.metadata == ({"wordings": words} if several else {})


def test_thoughts_with_pictures(tmp_path):
    rows = [foreign.think_row(0), foreign.think_row(1, 3), foreign.think_row(2, 1)]
    foreign.write_thoughts(tmp_path / "a.parquet", rows)
    made, skips = read("thinkmorph", tmp_path / "a.parquet")
    assert not skips.counts
    assert [[t.by_model for t in x.turns] for x in made] == [
        [False, False, True, True, True],
        [False, False, True, True, True, True, True],
        [],  # a question and its answer
    ]
    assert made[2].text == "<answer>B</answer>" and len(made[2].inputs) == 1
    assert [t.text for t in made[0].turns if t.text] == [
        "question 0?",
        "<think>thought 0</think><image_start>",
        "<answer>B</answer>",
    ]


def test_thoughts_as_published(tmp_path):
    foreign.write_published_thoughts(tmp_path / "a.parquet")
    made, skips = read("thinkmorph", tmp_path)
    assert len(made) == 3 and not skips.counts
    assert [t.text for t in made[0].turns if t.by_model and t.text] == [
        "<think>look</think><image_start>",
        "<image_end><think>so</think><answer>B</answer>",
    ]


def write_published(path, *rows):
    """Rows as thoughts and the numbers of those with a picture, in one table; None is a null."""
    import pyarrow as pa

    most = max(len(thoughts) for thoughts, _ in rows)
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"question": pa.string(), "answer": pa.string(), "problem_image_0": image}
    columns |= {f"resoning_thought_{i}": pa.string() for i in range(most)}
    columns |= {f"reasoning_image_{i}": image for i in range(most)}
    shown = {"bytes": foreign.encoded(foreign.picture(8)), "path": None}
    cells = [
        {"question": "which?", "answer": "B", "problem_image_0": shown}
        | {f"resoning_thought_{i}": thought for i, thought in enumerate(thoughts)}
        | {f"reasoning_image_{i}": shown for i in pictures}
        for thoughts, pictures in rows
    ]
    foreign.write_parquet(path, columns, cells)


def test_thoughts_as_published_are_of_any_number(tmp_path):
    rows = [(["a"], []), (["a", "b"], [0]), (list("abcdefghij"), range(10))]
    write_published(tmp_path / "a.parquet", *rows)
    made, skips = read("thinkmorph", tmp_path)
    assert not skips.counts
    assert made[0].text == "<think>a</think><answer>B</answer>"
    for trajectory, (thoughts, pictures) in zip(made[1:], rows[1:], strict=True):
        said = [t.text for t in trajectory.turns if t.by_model and t.text]
        assert [text.split("think>")[1][:-2] for text in said] == thoughts
        assert [text.endswith("<answer>B</answer>") for text in said].index(True) == len(said) - 1
        assert sum(t.by_model and t.image is not None for t in trajectory.turns) == len(pictures)


@pytest.mark.parametrize(
    ("thoughts", "pictures", "reason"),
    [
        ([None, "b"], [], "'resoning_thought_0' is missing or empty"),
        (["a", None, "c"], [], "thoughts or pictures after the last of 1 thoughts"),
        (["a", None], [0, 1], "thoughts or pictures after the last of 1 thoughts"),
        (["a", "b"], [1], "reasoning_image_1, but an earlier thought has no picture"),
        (["a"] * 64, [], "64 thoughts or more"),
        (["a"] * 65, [], "64 thoughts or more"),
    ],
)
def test_thoughts_that_are_not_in_order(tmp_path, thoughts, pictures, reason):
    write_published(tmp_path / "a.parquet", (thoughts, pictures), (["a", "b"], [0]))
    made, skips = read("thinkmorph", tmp_path)
    assert len(made) == 1 and skips.counts == {"column": 1}
    assert skips.examples[0].startswith("a.parquet, row 0: ") and reason in skips.examples[0]


def test_captions(tmp_path):
    texts = ['{"a": "one dot", "b": "a single dot", "c": " "}', '{"a": "two"}']
    foreign.write_captions(tmp_path / "a.parquet", texts)
    made, skips = read("t2i", tmp_path)
    assert [t.prompt for t in made] == ["one dot", "two"] and not skips.counts
    assert made[0].metadata == {"wordings": [["one dot", "a single dot"]]}
    assert all(t.mode == "one_shot" and t.final_image is not None for t in made)


def conversation(*said, **more):
    told = [{"from": who, "value": value} for who, value in said]
    return {"conversations": told, **more}


def vlm(tmp_path, *rows, images=("a.png", "b.png")):
    for name in images:
        (tmp_path / name).write_bytes(foreign.encoded(foreign.picture()))
    foreign.write_jsonl(tmp_path / "rows.jsonl", rows)
    return read("vlm_sft", tmp_path / "rows.jsonl", images=str(tmp_path))


def test_questions_about_pictures(tmp_path):
    one = conversation(("human", "<image>\nwhat?"), ("gpt", "a dot"), image="a.png")
    two = conversation(
        ("human", "is <image> like <image>?"), ("gpt", "no"), ("human", "why?"), ("gpt", "colour"),
        image=["a.png", "b.png"],
    )  # fmt: skip
    words = conversation(("human", "what is two and two?"), ("gpt", "four"))
    made, skips = vlm(tmp_path, one, two, words)
    assert not skips.counts
    assert made[0].prompt == "what?" and made[0].text == "a dot" and len(made[0].inputs) == 1
    shape = ["w" if t.image is None else "p" for t in made[1].turns]
    assert shape == list("wpwpwwww")  # is, picture, like, picture, ?, no, why?, colour
    assert [t.by_model for t in made[1].turns] == [False] * 5 + [True, False, True]
    assert made[1].prompt == "is"
    assert made[2].inputs == () and made[2].text == "four"


GENREF = {
    "tar": lambda p: foreign.write_tar(
        p / "x.tar", [(f"{i:05d}", foreign.pair(i)) for i in range(4)]
    ),
    "jsonl": lambda p: foreign.write_jsonl(p / "x.jsonl", json_pairs(p)),
    "json": lambda p: (p / "x.json").write_text(json.dumps(json_pairs(p))),
}


def json_pairs(folder):
    rows = []
    for i in range(4):
        for kind in ("good", "bad"):
            (folder / f"{kind}{i}.jpg").write_bytes(foreign.encoded(foreign.picture(), "JPEG"))
        told = f"make it blue {i}"
        reflection = {"reflection_dict": {"x": told}} if i % 2 else {"reflection": told}
        names = {"good_image": f"good{i}.jpg", "bad_image": f"bad{i}.jpg"}
        rows.append({"prompt": "a blue dot", **names, **reflection})
    return rows


@pytest.mark.parametrize("kind", GENREF)
def test_pairs_of_a_bad_and_a_good_picture(tmp_path, kind):
    GENREF[kind](tmp_path)
    made, skips = read("genref", tmp_path, images=str(tmp_path))
    assert not skips.counts
    bad = [t for t in made if t.steps[0].rejected]
    good = [t for t in made if not t.steps[0].rejected]
    assert (len(bad), len(good)) == (4, 2)  # the paper's proportion
    assert [refine_command(t.steps[0].inspection) for t in bad] == [
        f"make it blue {i}" for i in range(4)
    ]
    assert all(t.steps[0].refined is not None for t in bad)
    assert FORMATS["genref"].supervise == "last_repair"
    assert len(read("genref", tmp_path, images=str(tmp_path), positives=1.0)[0]) == 8
    assert len(read("genref", tmp_path, images=str(tmp_path), positives=0.0)[0]) == 4


def test_long_pictures_are_shrunk_where_asked(tmp_path):
    row = {"image_list": [foreign.encoded(foreign.picture(64, 128))] * 2}
    foreign.write_edits(tmp_path / "a.parquet", [row | {"instruction_list": [[b"blue"]]}])
    assert read("bagel_edit", tmp_path)[0][0].final_image.shape == (64, 128, 3)
    small = read("bagel_edit", tmp_path, max_side=32)[0][0]
    assert small.final_image.shape == small.inputs[0].shape == (16, 32, 3)


# ---- there and back ------------------------------------------------------------------------------

COLUMNS = {
    "bagel_edit": {"image_list": "pictures", "instruction_list": "choices"},
    "thinkmorph": {"image_list": "pictures", "instruction_list": "texts",
                   "output_text_list": "texts"},
    "t2i": {"image": "bytes", "captions": "text"},
}  # fmt: skip
WRITE = {
    "bagel_edit": lambda p: foreign.write_edits(p, foreign.edit_rows(7)),
    "thinkmorph": lambda p: foreign.write_thoughts(
        p, [foreign.think_row(i, 1 + i % 3) for i in range(5)]
    ),
    "t2i": lambda p: foreign.write_captions(p, ['{"a": "x", "b": "y\\u00e4"}', '{"k": "z"}']),
}


@pytest.mark.parametrize("name", WRITE)
def test_imported_exported_and_imported_is_the_same(tmp_path, name):
    WRITE[name](tmp_path / "in.parquet")
    first, _ = read(name, tmp_path / "in.parquet")
    write_folder(str(tmp_path / "data"), first, shards=2)
    folder = TrajectoryFolder(str(tmp_path / "data"))
    skips = Skips()
    with ParquetWriter(str(tmp_path / "out.parquet"), COLUMNS[name], group=2) as writer:
        for row in export_rows(name, folder, "data", skips):
            writer.write(row)
    groups = writer.groups
    assert groups == -(-len(first) // 2) and not skips.counts
    info = json.loads((tmp_path / "out.parquet.info.json").read_text())
    assert info == {str(tmp_path / "out.parquet"): {"num_row_groups": groups}}
    again, _ = read(name, tmp_path / "out.parquet")
    assert all_same(first, again)
    changed = [dataclasses.replace(again[0], prompt="another"), *again[1:]]
    assert not all_same(first, changed)


def test_what_a_layout_cannot_express_is_counted():
    strokes = build_source(SourceConfig("strokes"), 0)
    for name in COLUMNS:
        skips = Skips()
        assert list(export_rows(name, [strokes[0]], "data", skips)) == []
        assert skips.counts == {"form": 1} and "data, record 0" in skips.examples[0]
    with pytest.raises(DataError, match="is not a picture and edits"):
        list(export_rows("bagel_edit", [strokes[0]], "data", Skips(strict=True)))


ONE_SHOT = Trajectory("blue", mode="one_shot", final_image=foreign.picture(8))
EDIT = dataclasses.replace(ONE_SHOT, mode="edit", inputs=(foreign.picture(8),))


@pytest.mark.parametrize("wordings", [5, "a", {"a": 1}, [1], [["a"], ["b"]], [[1]], [[" "]]])
@pytest.mark.parametrize(("name", "good"), [("bagel_edit", EDIT), ("t2i", ONE_SHOT)])
def test_wordings_that_are_none_cost_their_row(name, good, wordings):
    bad = dataclasses.replace(good, metadata={"wordings": wordings})
    several = dataclasses.replace(good, metadata={"wordings": [["blue", "azure"]]})
    skips = Skips()
    rows = list(export_rows(name, [good, bad, several], "data", skips))
    assert len(rows) == 2 and "azure" in str(rows[1]) and skips.counts == {"column": 1}
    assert "data, record 1: metadata 'wordings'" in skips.examples[0]


# ---- what cannot be used -------------------------------------------------------------------------


def edit(**changes):
    row = {
        "image_list": [foreign.encoded(foreign.picture()) for _ in range(2)],
        "instruction_list": [[b"blue"]],
    }
    return row | changes


@pytest.mark.parametrize("what", foreign.BAD_PICTURES)
def test_a_bad_picture_costs_its_row(tmp_path, what):
    data, reason = foreign.BAD_PICTURES[what]
    broken = edit(image_list=[foreign.encoded(foreign.picture()), data])
    foreign.write_edits(tmp_path / "a.parquet", [edit(), broken, edit()])
    made, skips = read("bagel_edit", tmp_path)
    assert len(made) == 2 and skips.counts == {"picture": 1}
    (example,) = skips.examples
    assert example.startswith("a.parquet, row 1: image_list[1]") and reason in example
    with pytest.raises(DataError, match=r"a\.parquet, row 1.*without strict"):
        list(import_rows("bagel_edit", str(tmp_path), Skips(strict=True)))


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        (edit(image_list=[]), "picture", "promises 2 to 64 pictures and has 0"),
        (edit(image_list=[b"x"] * 65), "picture", "has 65"),
        (edit(image_list=None), "column", "'image_list' is missing"),
        (edit(image_list=[None, None]), "picture", "holds no picture but NoneType"),
        (edit(instruction_list=[]), "column", "instructions for 0 edits"),
        (edit(instruction_list=[[b"a"], [b"b"]]), "column", "instructions for 2 edits"),
        (edit(instruction_list=[[b" "]]), "prompt", "instruction_list[0] is empty"),
        (edit(instruction_list=[[]]), "prompt", "offers no words"),
        (edit(instruction_list=[[b"\xff\xfe"]]), "UTF-8", "no valid UTF-8"),
        (edit(instruction_list=[[None]]), "column", "wanted words"),
    ],
)
def test_a_bad_row_of_edits(tmp_path, row, kind, reason):
    foreign.write_edits(tmp_path / "a.parquet", [row, edit()])
    made, skips = read("bagel_edit", tmp_path)
    assert len(made) == 1 and skips.counts == {kind: 1}
    assert skips.examples[0].startswith("a.parquet, row 0: ") and reason in skips.examples[0]


QUESTION = conversation(("human", "<image>what?"), ("gpt", "a dot"), image="a.png")


@pytest.mark.parametrize(
    ("row", "kind", "reason"),
    [
        (b'{"conversations": [', "JSON", "no JSON object"),
        (b"[1]", "JSON", "list instead of an object"),
        (b'{"a": "\xff"}', "UTF-8", "no valid UTF-8"),
        (b'{"conversations": [{"from": "human", "value": "\\ud800"}]}', "UTF-8", "no valid UTF-8"),
        (QUESTION | {"image": []}, "picture", "more <image> marks than the 0 pictures"),
        (QUESTION | {"image": ["a.png", "b.png"]}, "picture", "fewer <image> marks"),
        (QUESTION | {"image": "c.png"}, "picture", "'c.png' cannot be read"),
        (QUESTION | {"image": "../a.png"}, "picture", "outside the folder"),
        (QUESTION | {"image": "/etc/passwd"}, "picture", "outside the folder"),
        (QUESTION | {"video": "v.mp4"}, "video", "videos are not read"),
        (conversation(("robot", "hm"), image="a.png"), "column", "from nobody known"),
        (conversation(("gpt", "a dot")), "prompt", "nobody asks"),
        (conversation(("human", "what?")), "trajectory", "no turn"),
        (conversation(("human", "what?"), ("gpt", " ")), "prompt", "is empty"),
        ({"image": "a.png"}, "column", "'conversations' is missing"),
    ],
)
def test_a_bad_question(tmp_path, row, kind, reason):
    made, skips = vlm(tmp_path, QUESTION, row, QUESTION)
    assert len(made) == 2 and skips.counts == {kind: 1}
    assert "rows.jsonl, line 2: " in skips.examples[0] and reason in skips.examples[0]


@pytest.mark.parametrize(
    ("changes", "kind", "reason"),
    [
        ({"good_image.jpg": b"x"}, "picture", "good_image.jpg: cannot decode"),
        ({"prompt.txt": b" "}, "prompt", "the prompt is empty"),
        ({"prompt.txt": b"\xff"}, "UTF-8", "prompt.txt is no valid UTF-8"),
        ({"reflection.txt": b""}, "prompt", "the reflection is empty"),
        ({"reflection.txt": b"</refine>"}, "column", "<refine> tag"),
    ],
)
def test_a_bad_pair(tmp_path, changes, kind, reason):
    rows = [("a", foreign.pair()), ("dir/b", foreign.pair(**changes)), ("c", foreign.pair())]
    foreign.write_tar(tmp_path / "x.tar", rows)
    made, skips = read("genref", tmp_path, positives=0.0)
    assert len(made) == 2 and skips.counts == {kind: 1}
    assert skips.examples[0].startswith("x.tar, dir/b: ") and reason in skips.examples[0]


def test_a_missing_picture_of_a_pair(tmp_path):
    cells = foreign.pair()
    del cells["bad_image.jpg"]
    foreign.write_tar(tmp_path / "x.tar", [("a", cells), ("b", foreign.pair())])
    _, skips = read("genref", tmp_path)
    assert "promises a picture bad_image" in skips.examples[0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("kind", ["parquet", "tar", "json"])
def test_a_cut_file_is_counted_and_what_can_be_read_is_read(tmp_path, kind, share):
    if kind == "parquet":
        foreign.write_edits(tmp_path / "b.parquet", [edit() for _ in range(8)])
    elif kind == "tar":
        rows = [(str(i), foreign.pair(i)) for i in range(4)]
        foreign.write_tar(tmp_path / "b.tar", rows)
    else:
        (tmp_path / "b.json").write_text(json.dumps(json_pairs(tmp_path)))
    path = tmp_path / f"b.{kind}"
    data = path.read_bytes().rstrip(b"\0")  # a tar ends in zeros
    path.write_bytes(data[: int(len(data) * share)])
    name = "bagel_edit" if kind == "parquet" else "genref"
    made, skips = read(name, tmp_path, images=str(tmp_path))
    rejected = [t for t in made if t.steps and t.steps[0].rejected]
    assert len(rejected) <= (0 if kind == "parquet" else 4)
    assert skips.counts["file"] == 1 and skips.examples[-1].startswith(f"b.{kind}")
    with pytest.raises(DataError, match="without strict"):
        options = ImportOptions(images=str(tmp_path))
        list(import_rows(name, str(tmp_path), Skips(strict=True), options))


@pytest.mark.parametrize("name", ["bagel_edit", "thinkmorph", "t2i", "genref", "vlm_sft"])
def test_a_file_without_any_of_the_columns_costs_its_rows(tmp_path, name):
    import pyarrow as pa

    foreign.write_parquet(tmp_path / "a.parquet", {"x": pa.int64()}, [{"x": 1}] * 5)
    made, skips = read(name, tmp_path)
    assert not made and skips.counts == {"column": 5}
    assert skips.examples[0].startswith("a.parquet: none of the columns")
    with pytest.raises(DataError, match="none of the columns.*without strict"):
        list(import_rows(name, str(tmp_path), Skips(strict=True)))
    foreign.write_parquet(tmp_path / "a.parquet", {"x": pa.int64()}, [])
    assert not read(name, tmp_path)[1].counts  # nothing is left out


def test_a_damaged_row_group_costs_its_rows(tmp_path):
    foreign.write_edits(tmp_path / "a.parquet", [edit() for _ in range(12)])
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[4:60] = bytes(56)  # the head of the first page
    (tmp_path / "a.parquet").write_bytes(data)
    made, skips = read("bagel_edit", tmp_path)
    assert len(made) == 8 and skips.counts == {"row group": 4}
    assert "a.parquet, row group 0" in skips.examples[0]


def test_a_member_that_only_claims_its_size_is_left_out(tmp_path):
    """As GNU tar stores files with holes: 100 MB of zeros in a few bytes."""
    foreign.write_tar(tmp_path / "rows.tar", [("0", foreign.pair(0))])
    bomb = tarfile.TarInfo("1.good_image.jpg")
    bomb.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "100000000"}
    with tarfile.open(tmp_path / "rows.tar", "a", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(bomb)
    made, skips = read("genref", tmp_path / "rows.tar")
    assert len(made) == 1 and skips.counts == {"file": 1}
    assert "1.good_image.jpg: 100000000 bytes, most of them not there" in skips.examples[0]


def test_a_json_array_is_read_in_pieces(tmp_path, monkeypatch):
    from process_gen.data import foreign_rows

    monkeypatch.setattr(foreign_rows, "_CHUNK", 7)
    values = [{"a": "ä" * i, "b": [i, {"c": "]"}]} for i in range(20)]
    for text in (json.dumps(values, ensure_ascii=False), json.dumps(values, indent=1)):
        (tmp_path / "x.json").write_text(text)
        skips = Skips()
        rows = list(foreign_rows.read_json(tmp_path / "x.json", skips))
        assert [row.cells for row in rows] == values and not skips.counts
    (tmp_path / "x.json").write_text('[{"a": 1}, 7, {"b": 2}]')
    rows = list(foreign_rows.read_json(tmp_path / "x.json", skips))
    assert [row.cells for row in rows] == [{"a": 1}, {"b": 2}]
    assert skips.counts == {"JSON": 1} and "item 1" in skips.examples[0]


def test_mistakes_are_named(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="unknown format 'bagle'; known: bagel_edit"):
        read("bagle", tmp_path)
    with pytest.raises(DataError, match="no file ending in"):
        read("t2i", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        read("t2i", tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="positives"):
        ImportOptions(positives=2.0)

    def missing():
        raise ConfigError("parquet files need pyarrow")

    foreign.write_edits(tmp_path / "a.parquet", [edit()])
    monkeypatch.setattr(parquet_rows, "_pyarrow", missing)
    with pytest.raises(ConfigError, match="need pyarrow"):
        read("bagel_edit", tmp_path)


# ---- training on it ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bagel_edit", "thinkmorph", "t2i"])
def test_imported_rows_become_batches(tmp_path, monkeypatch, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    WRITE[name](tmp_path / "in.parquet")
    made, _ = read(name, tmp_path / "in.parquet")
    write_folder(str(tmp_path / "data"), made)
    source = {"kind": "folder", "path": str(tmp_path / "data"), "augment": ["rephrase", "flip"]}
    iterator = train_dataset(from_mapping({"data": {"sources": [source], "rows": 1}}))
    batch = next(iterator)
    assert (batch.copy_BxG >= 0).any() and not iterator.skipped.counts
    answers = batch.label_BxT[batch.label_stage_BxT == 6]
    assert (answers >= 0).any() == (name == "thinkmorph")
