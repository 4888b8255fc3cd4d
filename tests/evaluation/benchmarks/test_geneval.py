"""GenEval, GenEval++ and T2I-CompBench: folders file by file, results, counting by hand."""

from __future__ import annotations

import hashlib
import json
from collections import Counter

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Sampled, Trajectory, decode_image
from process_gen.evaluation import judged
from process_gen.evaluation.benchmarks import benchmark as lib
from process_gen.evaluation.benchmarks.geneval import GENEVAL
from process_gen.evaluation.benchmarks.genevalpp import GENEVALPP
from process_gen.evaluation.benchmarks.t2i_compbench import CATEGORIES, T2I_COMPBENCH
from process_gen.sampling import records

SHA256 = {  # of the files as their projects have them
    "geneval/evaluation_metadata.jsonl": "5c48e0813e812e3c",
    "genevalpp/Geneval++.jsonl": "9c1216a3f6fe2d99",
    "t2i_compbench/color_val.txt": "1634259756dbc77d",
    "t2i_compbench/3d_spatial_val.txt": "c9953597315f36a5",
    "t2i_compbench/complex_val.txt": "1b808018b8d9916d",
    "t2i_compbench/non_spatial_val.txt": "04c56cc9ac441dc9",
    "t2i_compbench/numeracy_val.txt": "dad8df141604b70b",
    "t2i_compbench/shape_val.txt": "37e1a276906c7ea9",
    "t2i_compbench/spatial_val.txt": "8707a1d7e42ce300",
    "t2i_compbench/texture_val.txt": "fbb5363515b4a280",
}


@pytest.mark.parametrize("name", SHA256)
def test_shipped_prompts_are_unchanged_and_have_their_licence(name):
    file = lib.PROMPTS / name
    assert hashlib.sha256(file.read_bytes()).hexdigest()[:16] == SHA256[name]
    licence = (file.parent / "LICENSE").read_text()
    assert "MIT License" in licence or "Apache License" in licence


def test_the_official_prompts():
    items = GENEVAL.read(None)
    assert Counter(item["tag"] for item in items) == {
        "single_object": 80,
        "two_object": 99,
        "counting": 80,
        "colors": 94,
        "position": 100,
        "color_attr": 100,
    }
    plus = GENEVALPP.read(None)
    assert len(plus) == 280 and set(Counter(i["tag"] for i in plus).values()) == {40}
    comp = T2I_COMPBENCH.read(None)
    assert Counter(i["tag"] for i in comp) == dict.fromkeys(CATEGORIES, 300)
    assert not any("\r" in i["prompt"] for i in comp)
    for one in (GENEVAL, GENEVALPP, T2I_COMPBENCH):
        lib.check_layout(one, one.read(None), one.samples)


def paint(folder, items, num, missing=()):
    """Stand-ins for paintings: each with a grey of its own."""
    with records.Recorder(folder) as recorder:
        for index, item in enumerate(items):
            for sample in range(num):
                level = 10 * index + sample
                image = np.full((16, 24, 3), level, np.uint8)
                recorder.add(
                    Trajectory(
                        item["prompt"],
                        "one_shot",
                        final_image=None if (index, sample) in missing else image,
                        finish_reason="max_text" if (index, sample) in missing else "finished",
                        metadata=item,
                        sampled=Sampled(index, sample, 0, 10, 0.5),
                    )
                )


def lay_out(benchmark, items, num, tmp_path, missing=()):
    paint(tmp_path / "out", items, num, missing)
    lines = records.lines(tmp_path / "out")
    folder = tmp_path / "layout"
    count = lib.export(benchmark, items, num, lines, tmp_path / "out", folder)
    found = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    return folder, found, count


def test_the_folder_of_geneval_file_by_file(tmp_path):
    items = GENEVAL.read(None)[:3]
    folder, found, count = lay_out(GENEVAL, items, 4, tmp_path, missing={(1, 2)})
    # The layout of the README of djghosh13/geneval, "Image generation"; grid.png is optional.
    expected = {f"0000{i}/metadata.jsonl" for i in range(3)}
    expected |= {f"0000{i}/samples/000{s}.png" for i in range(3) for s in range(4)}
    assert found == expected and count == {"pictures": 11, "no_image": 1}
    raw = (lib.PROMPTS / "geneval" / "evaluation_metadata.jsonl").read_text().splitlines()
    for i in range(3):
        text = (folder / f"0000{i}" / "metadata.jsonl").read_text()
        assert json.loads(text) == json.loads(raw[i]) and "\n" not in text
        for s in range(4):
            image = decode_image((folder / f"0000{i}/samples/000{s}.png").read_bytes())
            if (i, s) == (1, 2):  # without one, the scorer would count 3 pictures of 4
                assert np.ptp(image) == 0
            else:
                assert image.shape == (16, 24, 3) and image[0, 0, 0] == 10 * i + s
    official(folder)


def official(folder):
    """What the official scorer reads, as its loop does."""
    seen = 0
    for sub in folder.iterdir():
        assert sub.is_dir() and sub.name.isdigit()
        metadata = json.loads((sub / "metadata.jsonl").read_text())
        assert metadata["include"] and metadata["tag"]
        for image in (sub / "samples").iterdir():
            assert image.suffix == ".png" and image.stem.isdigit()
            seen += 1
    return seen


def result(items, index, sample, right):
    """A line of the official results.jsonl."""
    name = f"/images/{index:05d}/samples/{sample:04d}.png"
    return json.dumps(
        {
            "filename": name,
            "tag": items[index]["tag"],
            "prompt": items[index]["prompt"],
            "correct": right,
            "reason": "",
            "metadata": json.dumps(items[index]),
            "details": "{}",
        }
    )


ITEMS = [
    {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a red cup"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a blue cup"},
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"},
]
RIGHT = {(0, 0): True, (0, 1): True, (1, 0): False, (1, 1): True, (2, 0): False, (2, 1): False}


def write_results(path, items, right):
    path.write_text("".join(result(items, *place, r) + "\n" for place, r in right.items()))
    return [str(path)]


def judged_lines(items, values, measure):
    return [
        judged.Judged(i, s, items[i]["prompt"], items[i]["tag"], "finished", 0, 1, 10, 0.5, value)
        for (i, s), value in values.items()
    ]


def test_counting_of_geneval_by_hand(tmp_path):
    found = GENEVAL.results(write_results(tmp_path / "r.jsonl", ITEMS, RIGHT), ITEMS, 2)
    assert found == RIGHT
    values = {place: {"geneval_correct": right} for place, right in found.items()}
    scores = lib.score(GENEVAL, ITEMS, judged_lines(ITEMS, values, "geneval_correct"))
    assert scores["tags"]["colors"]["geneval_correct"]["rate"] == 0.75
    assert scores["tags"]["counting"]["geneval_correct"]["rate"] == 0.0
    # The mean of the tags, 0.375; the mean over pictures would be 0.5.
    assert scores["overall"]["geneval_correct"]["rate"] == 0.375
    assert scores["pictures_right"]["rate"] == 0.5
    assert scores["prompts_right"]["rate"] == pytest.approx(2 / 3)
    low, high = (scores["overall"]["geneval_correct"][k] for k in ("low", "high"))
    assert 0.05 < low < 0.375 < high < 0.8
    assert scores["tags"]["colors"]["prompts"] == 2 and scores["missing_tags"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: {**r, (2, 2): True}, "is not of this run"),
        (lambda r: {k: v for k, v in r.items() if k != (1, 1)}, "5 of 6 pictures"),
        (lambda r: {**r, (0, 0): "yes"}, "not a result"),
    ],
)
def test_results_of_geneval_that_are_not_of_the_run(tmp_path, change, words):
    paths = write_results(tmp_path / "r.jsonl", ITEMS, change(RIGHT))
    with pytest.raises(DataError, match=words):
        GENEVAL.results(paths, ITEMS, 2)


def test_results_twice_or_of_other_prompts_or_of_another_program(tmp_path):
    paths = write_results(tmp_path / "r.jsonl", ITEMS, RIGHT)
    with pytest.raises(DataError, match="a second result"):
        GENEVAL.results(paths * 2, ITEMS, 2)
    with pytest.raises(DataError, match="line 1: .*not of this run"):
        GENEVAL.results(paths, ITEMS[::-1], 2)
    (tmp_path / "r.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="not a result of GenEval"):
        GENEVAL.results(paths, ITEMS, 2)
    with pytest.raises(DataError, match="cannot read"):
        GENEVAL.results([str(tmp_path / "none")], ITEMS, 2)


def test_the_folder_of_genevalpp_and_its_counting(tmp_path):
    folder, found, _ = lay_out(GENEVALPP, ITEMS, 1, tmp_path)
    assert found == {"Geneval++.jsonl", "image/1.jpg", "image/2.jpg", "image/3.jpg"}
    assert decode_image((folder / "image/3.jpg").read_bytes())[0, 0, 0] == 20
    rows = (folder / "Geneval++.jsonl").read_text().splitlines()
    assert [json.loads(row) for row in rows] == ITEMS
    told = [
        {
            "id": i + 1,
            "tag": ITEMS[i]["tag"],
            "prompt": ITEMS[i]["prompt"],
            "result": {"correct": c},
        }
        for i, c in enumerate((1, -1, 0))
    ]
    (tmp_path / "Output.json").write_text(json.dumps({"overall_results": told}, indent=2))
    values = GENEVALPP.results([str(tmp_path / "Output.json")], ITEMS, 1)
    assert values == {(0, 0): True, (1, 0): False, (2, 0): False}  # -1 is wrong, as in the official
    with pytest.raises(DataError, match="takes 1 painting a prompt"):
        lib.check_layout(GENEVALPP, ITEMS, 2)


def test_the_folder_of_t2i_compbench_and_its_results(tmp_path):
    items = [
        {"tag": "color", "prompt": "a green bench and a blue bowl"},
        {"tag": "color", "prompt": "a red hat."},
        {"tag": "complex", "prompt": "The hat was on top of the rack."},
    ]
    folder, found, _ = lay_out(T2I_COMPBENCH, items, 2, tmp_path)
    assert found == {
        "color/samples/a green bench and a blue bowl_000000.png",
        "color/samples/a green bench and a blue bowl_000001.png",
        "color/samples/a red hat._000002.png",
        "color/samples/a red hat._000003.png",
        "complex/samples/The hat was on top of the rack._000000.png",
        "complex/samples/The hat was on top of the rack._000001.png",
    }
    for name in found:  # what the scorers make of a name
        file = name.rpartition("/")[2]
        number = int(file.split("_")[-1].split(".")[0])
        prompt = items[number // 2 + (2 if name.startswith("complex") else 0)]["prompt"]
        assert file.split("_")[0] == prompt
    annotation = folder / "color" / "annotation_blip"
    annotation.mkdir()
    rows = [{"question_id": i, "answer": f"{v:.4f}"} for i, v in enumerate((0.5, 0.7, 1.0, 0.0))]
    (annotation / "vqa_result.json").write_text(json.dumps(rows))
    values = T2I_COMPBENCH.results([str(folder)], items, 2)
    assert values == {(0, 0): 0.5, (0, 1): 0.7, (1, 0): 1.0, (1, 1): 0.0}
    named = {p: {"t2i_compbench_score": values[p]} if p in values else {} for p in values}
    scores = lib.score(T2I_COMPBENCH, items, judged_lines(items, named, ""))
    color = scores["tags"]["color"]["t2i_compbench_score"]
    assert color["rate"] == pytest.approx(0.55) and color["low"] < 0.55 < color["high"]
    assert scores["missing_tags"] == ["complex"]
    assert scores["overall"]["t2i_compbench_score"]["rate"] is None
    assert "no overall score" in scores["overall_is"] and "pictures_right" not in scores
    (annotation / "vqa_result.json").write_text(json.dumps(rows[:3]))
    with pytest.raises(DataError, match="3 results of 4 pictures"):
        T2I_COMPBENCH.results([str(folder)], items, 2)
    with pytest.raises(DataError, match="no vqa_result.json"):
        T2I_COMPBENCH.results([str(tmp_path / "elsewhere")], items, 2)


@pytest.mark.parametrize("prompt", ["a/b", "a_b", "x" * 250])
def test_prompts_that_no_file_can_be_named_by(prompt):
    with pytest.raises(DataError, match="cannot be named"):
        T2I_COMPBENCH.files([{"tag": "color", "prompt": prompt}], 1)


def test_prompts_of_a_users_file(tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text('{"tag": "a", "prompt": "b", "n": 1}\n\n')
    assert GENEVAL.read(str(file)) == [{"tag": "a", "prompt": "b", "n": 1}]
    for text, words in (("x", "not valid JSON"), ('{"prompt": "b"}', "wanted"), ("\n", "holds no")):
        file.write_text(text)
        with pytest.raises(DataError, match=words):
            GENEVAL.read(str(file))
    (tmp_path / "shape_val.txt").write_bytes(b"a cube\tx y\r\na ball\r\n")
    items = T2I_COMPBENCH.read(str(tmp_path / "shape_val.txt"))
    assert items == [{"tag": "shape", "prompt": "a cube"}, {"tag": "shape", "prompt": "a ball"}]
    assert T2I_COMPBENCH.read(str(tmp_path)) == items
    for path, words in ((file, "wanted CATEGORY_val"), (tmp_path / "none", "wanted CATEGORY")):
        with pytest.raises(DataError, match=words):
            T2I_COMPBENCH.read(str(path))
