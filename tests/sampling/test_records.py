"""Paintings on disk: what is written, what is read back, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from process_gen.core.batch import Lengths, PatchSizes, lay_out, pack
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import from_segments, to_segments
from process_gen.core.trajectory import Sampled, Step, Trajectory, decode_image, plan_text, same
from process_gen.data.tokenizer import load_tokenizer, token_ids
from process_gen.sampling import records

FIELDS = (
    "index sample prompt seed mode finish_reason nfe seconds final_image text metadata steps"
).split()
STEP_FIELDS = ["plan", "sketch", "inspection", "refined_plan", "refined"]
HOSTILE = '</ins> <|vision_start|> <script>alert(1)</script> \x00 \u2028 \ud800 "\n😀'


def image(number):
    return np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)


def painting(index=0, sample=0, **changes):
    """A sketch that is rejected and repaired, then a step that finishes."""
    plan = plan_text("add a red circle at top left", "a red circle at top left")
    seen = "seen: green circle top left. the instruction fits the prompt. "
    fault = seen + "it should be red. <refine>change it to red</refine>"
    steps = (
        Step(plan, image(1), fault, plan, image(2)),
        Step(plan, image(3), seen + "the picture is complete."),
    )
    made = Trajectory(
        prompt="a red circle",
        steps=steps,
        final_image=image(3),
        finish_reason="finished",
        metadata={"tag": "colors", "prompt": "a red circle"},
        sampled=Sampled(index, sample, 7, 30, 1.25),
    )
    return dataclasses.replace(made, **changes)


def write(folder, *paintings):
    with records.Recorder(folder) as recorder:
        for made in paintings:
            recorder.add(made)
    return folder / records.FINISHED


def test_a_line_and_its_pictures(tmp_path):
    file = write(tmp_path / "out", painting(3, 1))
    (line,) = file.read_text("utf-8").splitlines()
    record = json.loads(line)
    assert list(record) == FIELDS and list(record["steps"][0]) == STEP_FIELDS
    assert record["final_image"] == "pictures/00003-1.png"
    assert record["steps"][0]["refined"] == "steps/00003-1-1-refined.png"
    assert record["steps"][1]["refined"] is None and record["text"] is None
    stored = decode_image((file.parent / record["steps"][0]["sketch"]).read_bytes())
    np.testing.assert_array_equal(stored, image(1))
    names = [path.name for path in file.parent.rglob("*.png")]
    assert len(names) == 4 and all(records.PICTURE_NAME.fullmatch(name) for name in names)


def test_lines_are_sorted_and_the_part_file_is_gone(tmp_path):
    places = [(1, 1), (0, 0), (10, 0), (1, 0), (0, 1)]
    with records.Recorder(tmp_path) as recorder:
        for place in places:
            recorder.add(painting(*place))
        part = (tmp_path / records.PART).read_text().splitlines()
        assert [json.loads(line)["index"] for line in part] == [i for i, _ in places]
    found = [(t.sampled.index, t.sampled.sample) for t in records.read(tmp_path)]
    assert found == sorted(places)
    assert not (tmp_path / records.PART).exists()


def test_a_failure_leaves_the_part_file(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with records.Recorder(tmp_path) as recorder:
            recorder.add(painting(1))
            recorder.add(painting(0))
            raise KeyboardInterrupt
    part = tmp_path / records.PART
    assert not (tmp_path / records.FINISHED).exists()
    assert [t.sampled.index for t in records.read(part)] == [1, 0]
    part.write_bytes(part.read_bytes()[:-20])  # killed while writing
    assert [t.sampled.index for t in records.read(part)] == [1]
    cut = tmp_path / records.FINISHED
    cut.write_bytes(part.read_bytes())
    with pytest.raises(DataError, match="line 2"):  # a finished file is never cut off
        list(records.read(cut))


def test_what_is_cut_off_while_it_is_sorted_is_no_finished_file(tmp_path):
    (tmp_path / f"{records.FINISHED}.tmp").mkdir()  # no room for it
    with pytest.raises(OSError), records.Recorder(tmp_path) as recorder:
        recorder.add(painting(1))
    assert not (tmp_path / records.FINISHED).exists()
    assert [record["index"] for record in records.unfinished(tmp_path)] == [1]


def test_going_on_that_is_cut_off_at_once_loses_no_line(tmp_path, monkeypatch):
    def unfinished():
        return [record["index"] for record in records.unfinished(tmp_path)]

    with pytest.raises(KeyboardInterrupt), records.Recorder(tmp_path) as recorder:
        for i in range(3):
            recorder.add(painting(i))
        raise KeyboardInterrupt
    earlier, write_line = records.unfinished(tmp_path), records.Recorder._write

    def killed(self, record):
        if record["index"] == 1:
            raise OSError("no space left")
        write_line(self, record)

    for _ in range(2):  # the second one finds what the first has left
        with monkeypatch.context() as patched:
            patched.setattr(records.Recorder, "_write", killed)
            with pytest.raises(OSError, match="no space"):
                records.Recorder(tmp_path, earlier).__enter__()
        assert len((tmp_path / records.PART).read_bytes().splitlines()) == 1  # it was lost there
        assert unfinished() == [0, 1, 2]
    with records.Recorder(tmp_path, records.unfinished(tmp_path)) as recorder:
        assert not (tmp_path / records.EARLIER).exists() and unfinished() == [0, 1, 2]
        recorder.add(painting(3))
    assert unfinished() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "made",
    [
        painting(),
        painting(prompt=HOSTILE, metadata={"prompt": HOSTILE, "n": [1, {"x": None}]}),
        painting(steps=(), mode="one_shot"),
        painting(steps=(), final_image=None, finish_reason="refused", text="too long"),
        painting(steps=(Step("<ins>no end"),), final_image=None, finish_reason="malformed"),
        painting(
            steps=(Step(plan_text("a", "b"), image(5), "half a <refine> tag"),),
            final_image=image(5),
            finish_reason="malformed",
        ),
        painting(inputs=(image(8), image(9))),
        painting(steps=(), final_image=None, mode="understand", text="a cat"),
        painting(
            steps=(), final_image=None, mode="understand", text=" ", finish_reason="malformed"
        ),
    ],
    ids=[
        "process",
        "hostile",
        "one_shot",
        "refused",
        "half a plan",
        "half a tag",
        "inputs",
        "answer",
        "blank answer",
    ],
)
def test_round_trip(tmp_path, made):
    (found,) = records.read(write(tmp_path, made))
    assert same(found, made)
    other = dataclasses.replace(made, sampled=Sampled(0, 0, 8, 30, 1.25))
    assert not same(found, other)


def test_a_finished_painting_can_be_packed(tmp_path):
    made = painting()
    (found,) = records.read(write(tmp_path, made))
    settings, sizes = GrammarConfig(), PatchSizes(8, 8, 4, 4)
    ids = token_ids(load_tokenizer())

    def packed(trajectory):
        run = lay_out(to_segments(trajectory, settings), ids, sizes)
        return pack([run], Lengths(*(n + 5 for n in run.lengths)), sizes)

    again, first = packed(found), packed(made)
    for a, b in zip(again, first, strict=True):  # arrays, and tuples of them
        np.testing.assert_array_equal(np.stack(a), np.stack(b))
    assert (first.target_stage_BxG >= 0).any() and (first.label_BxT >= 0).any()
    bare = from_segments(to_segments(found, settings))
    assert bare.prompt == made.prompt and np.array_equal(bare.final_image, image(3))
    # Partner: another picture gives another pack.
    changed = dataclasses.replace(made.steps[1], sketch=image(4))
    other = packed(dataclasses.replace(made, steps=(made.steps[0], changed), final_image=image(4)))
    assert not np.array_equal(other.latent_BxGxP, first.latent_BxGxP)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": 5}, "'prompt' must be str, got '5'"),
        ({"seed": None}, "'seed' must be int"),
        ({"nfe": True}, "'nfe' must be int"),
        ({"steps": [3]}, "step 1: 'plan' must be str"),
        ({"steps": "none"}, "'steps' must be list"),
        ({"mode": "dreaming"}, "mode 'dreaming'"),
        ({"final_image": "../secret.png"}, "not a path below"),
        ({"final_image": "/etc/passwd"}, "not a path below"),
        ({"final_image": "pictures\\..\\..\\x"}, "not a path below"),
        ({"final_image": "a\0b"}, "not a path below"),
        ({"final_image": "pictures/gone.png"}, "cannot read"),
        ({"final_image": "trajectories.jsonl"}, "cannot decode"),
        ({"steps": []} | {"prompt": " "}, "the prompt is empty"),
    ],
)
def test_what_is_no_painting_is_refused(tmp_path, change, words):
    file = write(tmp_path, painting(), painting(1))
    good, line = file.read_text().splitlines()
    file.write_text(f"{good}\n\n{json.dumps({**json.loads(line), **change, 'unknown': 1})}\n")
    with pytest.raises(DataError, match="line 3") as error:
        list(records.read(file))
    assert words in str(error.value)


def test_missing_fields_files_and_broken_lines(tmp_path):
    with pytest.raises(DataError, match="no paintings at"):
        records.read(tmp_path)
    file = tmp_path / records.FINISHED
    for text in ('{"prompt": "x"}', "[]", "nonsense", "[" * 100_000, '{"steps": []}'):
        file.write_text(text + "\n")
        with pytest.raises(DataError, match="line 1"):
            list(records.read(file))
    with records.Recorder(tmp_path) as recorder:
        with pytest.raises(DataError, match="only sampled"):
            recorder.add(painting(sampled=None))
