from __future__ import annotations

import base64
import copy
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PILImage

from process_gen.core import trajectory as trajectory_lib
from process_gen.core.errors import TrajectoryError
from process_gen.core.trajectory import (
    FINISH_REASONS,
    MAX_IMAGE_SIDE,
    MAX_TEXT,
    Sampled,
    Stage,
    Step,
    Trajectory,
    Turn,
    decode_image,
    encode_png,
    from_json,
    parse_plan,
    plan_text,
    refine_command,
    same,
    to_json,
    validate,
)

PLAN = plan_text("add a dot", "a dot")
FAULT = "it is red. <refine>make it blue</refine>"
RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 5, 3), np.uint8)
OTHER = RNG.integers(0, 256, (6, 5, 3), np.uint8)
FULL = Trajectory(
    prompt='a "dot" \N{ARTIST PALETTE} </ins>',
    inputs=(OTHER,),
    steps=(
        Step(PLAN, IMAGE, FAULT, PLAN, OTHER),
        Step(PLAN, IMAGE, FAULT, None, OTHER),
        Step(PLAN, OTHER, "fine"),
        Step(PLAN, IMAGE),
    ),
    final_image=IMAGE,
    text="said",
    finish_reason="finished",
    metadata={"tag": "colors", "include": [{"class": "circle", "count": 1}], "nested": {"a": None}},
    sampled=Sampled(index=3, sample=1, seed=7, nfe=40, seconds=1.5),
)


def change(where, value):
    """The JSON of `FULL` with one place changed; `where` is a path of keys."""
    record = json.loads(json.dumps(to_json(FULL)))
    place = record
    for key in where[:-1]:
        place = place[key]
    place[where[-1]] = value
    return record


# ---- rules ---------------------------------------------------------------------------------------


def one(**fields):
    step = Step(**{"plan": PLAN, "sketch": IMAGE, "inspection": "fine", **fields})
    return Trajectory("a dot", steps=(step,))


def talk(*turns, mode="understand", prompt="what?", **more):
    """A conversation; words begin with "m:" where the model says them, pictures of it are OTHER."""
    made = []
    for turn in turns:
        if isinstance(turn, str):
            made.append(Turn(turn.startswith("m:"), text=turn.removeprefix("m:")))
        else:
            made.append(Turn(turn is OTHER, image=turn))
    return Trajectory(prompt, mode=mode, turns=tuple(made), **more)


GOOD = [
    FULL,
    talk(IMAGE, "what?", "m:a dot", "where?", "m:here"),
    talk("what?", IMAGE, "m:I look", OTHER, "m:a dot"),
    talk(IMAGE, "what?", OTHER, "and then", OTHER, mode="edit"),
    Trajectory("blue", mode="edit", inputs=(IMAGE,), final_image=OTHER),
    one(),
    Trajectory("a dot", steps=(Step(PLAN),)),
    Trajectory("a dot", mode="one_shot", final_image=IMAGE),
    Trajectory("why?", mode="understand", inputs=(IMAGE,), text="because"),
    one(inspection=FAULT),  # a fault that nothing repairs, in the last step
    Trajectory("", steps=(Step("<ins>cut"),), finish_reason="max_text"),  # closed early
]
BAD = [
    (Trajectory("blue", mode="edit", final_image=OTHER), "an edit needs the picture"),
    (Trajectory("blue", mode="edit", inputs=(IMAGE,)), "an edit needs the picture"),
    (talk("what?", OTHER, mode="edit"), "an edit needs the picture"),
    (Trajectory("why?", mode="understand", inputs=(IMAGE,), text=" "), "an answer is missing"),
    (talk(IMAGE, "what?", "m:a dot", mode="process"), "turns in mode 'process'"),
    (talk(IMAGE, "what?", "m:a dot", text="a dot"), "a reply beside them"),
    (talk(IMAGE, "what?", "m:a dot", final_image=IMAGE), "a reply beside them"),
    (talk(IMAGE, "what?", "m:a dot", prompt="why?"), "not the first words"),
    (talk(IMAGE, "what?"), "the model has no turn"),
    (
        Trajectory("w", mode="understand", turns=(Turn(False, text="w"), Turn(True))),
        "turn 1 is neither words nor a picture",
    ),
    (talk("what?", IMAGE.astype(float), "m:x"), "turn 1 is not a uint8"),
    (
        Trajectory("a dot", steps=(Step(PLAN),), final_image=IMAGE),
        "a finished picture, but no step has one",
    ),
    (dataclasses.replace(FULL, mode="paint"), "mode 'paint' is not one of"),
    (dataclasses.replace(FULL, finish_reason="done"), "finish_reason 'done'"),
    (dataclasses.replace(FULL, prompt="  "), "the prompt is empty"),
    (dataclasses.replace(FULL, mode="one_shot"), "a one-shot trajectory has steps"),
    (Trajectory("a dot", mode="one_shot"), "has no picture"),
    (dataclasses.replace(FULL, final_image=OTHER), "not the last step's picture"),
    (dataclasses.replace(FULL, inputs=(IMAGE.astype(np.float32),)), "input 0 is not a uint8"),
    (dataclasses.replace(FULL, inputs=(IMAGE.tolist(),)), "input 0 is not a uint8"),
    (one(sketch=IMAGE[..., :1]), r"picture 0 has shape \(6, 5, 1\)"),
    (one(sketch=IMAGE[:0]), r"picture 0 has shape \(0, 5, 3\)"),
    (one(sketch=np.zeros((1, MAX_IMAGE_SIDE + 1, 3), np.uint8)), "a side of 4097 px"),
    (one(plan="add a dot"), "step 0: the plan is not <ins>"),
    (one(sketch=None), "step 0: an inspection without a sketch"),
    (one(refined=OTHER), "step 0: a refinement, but the inspection has no"),
    (one(refined_plan=PLAN), "step 0: a re-emitted plan, but the inspection has no"),
    (one(inspection=FAULT, refined_plan="again", refined=OTHER), "re-emitted plan is malformed"),
    (one(inspection="<refine>make it blue"), "unbalanced <refine>"),
    (
        Trajectory("a dot", steps=(Step(PLAN, IMAGE, FAULT), Step(PLAN, IMAGE, "fine"))),
        "step 0: the inspection found a fault that no refinement repairs",
    ),
]


@pytest.mark.parametrize("trajectory", GOOD)
def test_valid(trajectory):
    validate(trajectory)


@pytest.mark.parametrize(("trajectory", "reason"), BAD)
def test_invalid(trajectory, reason):
    with pytest.raises(TrajectoryError, match=reason):
        validate(trajectory)


def test_what_was_closed_early_may_break_the_rules_of_training_data():
    broken = one(plan="add a dot", refined=OTHER)
    for reason in FINISH_REASONS:
        if reason != "finished":
            validate(dataclasses.replace(broken, finish_reason=reason))
    with pytest.raises(TrajectoryError):
        validate(dataclasses.replace(broken, finish_reason="finished"))


def test_stage_numbers_are_stored_in_packs():
    assert [(s.name, int(s)) for s in Stage] == [
        ("PROMPT", 0), ("PLAN", 1), ("SKETCH", 2), ("INSPECT", 3),
        ("REFINE", 4), ("ONE_SHOT", 5), ("ANSWER", 6), ("CONTROL", 7),
    ]  # fmt: skip


# ---- words ---------------------------------------------------------------------------------------


def test_plans():
    assert PLAN == "<ins>add a dot</ins><des>a dot</des>"
    assert parse_plan(PLAN) == ("add a dot", "a dot")
    assert parse_plan("\n<ins>a\nb</ins> \n <des></des> ") == ("a\nb", "")
    for text in ("", "add a dot", "<ins>a</ins>", "<des>a</des><ins>b</ins>", PLAN + "x"):
        assert parse_plan(text) is None


def test_refine_commands():
    assert refine_command(FAULT) == "make it blue"
    assert refine_command("fine") is None
    for text in ("<refine>", "a</refine>"):
        with pytest.raises(TrajectoryError, match="unbalanced"):
            refine_command(text)


TAGS = ("<ins>", "</ins>", "<des>", "</des>", "<refine>", "</refine>", " ", "\n", "x")


@given(pieces=st.lists(st.sampled_from(TAGS), max_size=9), whole=st.booleans())
def test_tags_are_read_as_one_expression_would(pieces, whole):
    text = "".join(pieces)
    text = f"<ins>{text}</des>" if whole else text
    plan = re.compile(r"<ins>(.*?)</ins>\s*<des>(.*?)</des>", re.DOTALL).fullmatch(text.strip())
    assert parse_plan(text) == (plan and plan.groups())
    command = re.search(r"<refine>(.*?)</refine>", text, re.DOTALL)
    if command is None and ("<refine>" in text or "</refine>" in text):
        with pytest.raises(TrajectoryError, match="unbalanced"):
            refine_command(text)
    else:
        assert refine_command(text) == (command and command[1])
    assert Step("", inspection=text).rejected == (command is not None)


def test_tags_that_are_repeated_take_no_time():
    """With one expression for the whole these would take hours."""
    many = 200_000
    assert parse_plan("<ins>" + "</ins><des>" * many) is None
    assert parse_plan("<ins>" + "</ins>" * many + "</des>") is None
    assert parse_plan("<ins></ins>" + " " * many + "x</des>") is None
    with pytest.raises(TrajectoryError, match="unbalanced"):
        refine_command("<refine>" * many)


def test_long_texts_and_many_pixels_are_refused(monkeypatch):
    said = "x" * (MAX_TEXT + 1)
    for long in (
        dataclasses.replace(FULL, prompt=said),
        dataclasses.replace(FULL, steps=(Step(plan_text(said, "")), *FULL.steps)),
        Trajectory("?", mode="understand", inputs=(IMAGE,), text=said),
    ):
        with pytest.raises(TrajectoryError, match=f"characters, more than {MAX_TEXT}"):
            validate(long)
    record = to_json(FULL)
    pictures = len(FULL.all_images)
    monkeypatch.setattr(
        trajectory_lib, "MAX_PIXELS", (pictures + 1) * IMAGE.shape[0] * IMAGE.shape[1]
    )
    assert same(from_json(record), FULL)
    monkeypatch.setattr(
        trajectory_lib, "MAX_PIXELS", pictures * IMAGE.shape[0] * IMAGE.shape[1] - 1
    )
    with pytest.raises(TrajectoryError, match="pictures of a record have over"):
        from_json(record)


def test_half_a_tag_is_no_command():
    """Sampled text may end anywhere; such a painting is closed, written and read like any other."""
    cut = dataclasses.replace(one(inspection="no. <refine>make"), finish_reason="malformed")
    assert not cut.steps[0].rejected and one(inspection=FAULT).steps[0].rejected
    validate(cut)
    assert same(from_json(to_json(cut)), cut)
    with pytest.raises(TrajectoryError, match="unbalanced"):
        validate(dataclasses.replace(cut, finish_reason="finished"))


def test_pictures_of_a_trajectory():
    assert [id(x) for x in FULL.images] == [
        id(x) for x in (IMAGE, OTHER, IMAGE, OTHER, OTHER, IMAGE)
    ]
    assert [step.rejected for step in FULL.steps] == [True, True, False, False]
    assert FULL.steps[0].image is OTHER and FULL.steps[2].image is OTHER
    one_shot = Trajectory("a dot", mode="one_shot", final_image=IMAGE)
    assert len(one_shot.images) == 1


# ---- JSON ----------------------------------------------------------------------------------------


def test_turns_stand_in_a_record_only_where_there_are_some():
    assert "turns" not in to_json(FULL)
    record = to_json(talk(IMAGE, "what?", OTHER, "m:a dot"))
    assert [turn["by_model"] for turn in record["turns"]] == [False, False, True, True]
    again = from_json(record)
    assert len(again.images) == 1 and np.array_equal(again.images[0], OTHER)
    for broken, what in (
        ([1], "turn 0 must be an object"),
        ([{"by_model": True, "said": "x"}], "turn 0 must be an object"),
        ([{"by_model": 1, "text": "x"}], "'by_model' must be bool"),
        ({}, "'turns' must be list"),
    ):
        with pytest.raises(TrajectoryError, match=what):
            from_json(record | {"turns": broken})


@pytest.mark.parametrize("trajectory", GOOD)
def test_json_round_trip(trajectory):
    again = from_json(json.loads(json.dumps(to_json(trajectory))))
    assert same(again, trajectory)
    assert again.prompt == trajectory.prompt and again.sampled == trajectory.sampled
    assert len(again.steps) == len(trajectory.steps)
    for a, b in zip(again.images, trajectory.images, strict=True):
        assert a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (["prompt"], "another"),
        (["metadata", "tag"], "counting"),
        (["sampled", "nfe"], 41),
        (["steps", 2, "inspection"], "good"),
        (["steps", 0, "refined_plan"], None),
        (["text"], None),
        (["finish_reason"], None),
        (["inputs"], []),
        (["final_image"], None),
    ],
)
def test_same_notices_every_change(where, value):
    assert same(from_json(change(where, value)), FULL) is False


def test_same_notices_one_pixel():
    pixel = IMAGE.copy()
    pixel[5, 4, 2] ^= 1
    assert same(one(), one(sketch=IMAGE.copy()))
    assert not same(one(), one(sketch=pixel))


def png_of(size, mode="RGB", form="PNG"):
    out = io.BytesIO()
    PILImage.new(mode, size).save(out, format=form)
    return base64.b64encode(out.getvalue()).decode()


@pytest.mark.parametrize(
    ("where", "value", "reason"),
    [
        (["colour"], 1, "unknown trajectory field.*colour"),
        (["steps", 1, "sketches"], 1, "step 1: unknown field.*sketches"),
        (["sampled", "speed"], 1, "'sampled' is malformed.*speed"),
        (["version"], 2, "trajectory format 2; this code reads 1"),
        (["prompt"], None, "'prompt' must be str, got NoneType"),
        (["prompt"], 3, "'prompt' must be str, got int"),
        (["mode"], "paint", "mode 'paint'"),
        (["steps"], {}, "'steps' must be list, got dict"),
        (["steps", 0], "a plan", "step 0 must be an object, got str"),
        (["steps", 0, "plan"], None, "step 0: 'plan' must be str, got NoneType"),
        (["steps", 0, "inspection"], 1, "step 0: 'inspection' must be str or null, got int"),
        (["steps", 0, "refined_plan"], [], "step 0: 'refined_plan' must be str or null"),
        (["inputs"], None, "'inputs' must be list"),
        (["inputs"], [None], "input 0 is null"),
        (["metadata"], [], "'metadata' must be Mapping, got list"),
        (["sampled"], 1, "'sampled' must be Mapping or null"),
        (["sampled", "nfe"], "many", "'sampled' is malformed: 'nfe' must be a number"),
        (["text"], 1, "'text' must be str or null"),
        (["finish_reason"], "done", "finish_reason 'done'"),
        (["final_image"], 3, "an image must be a base64 string, got int"),
        (["final_image"], "%%%", "not valid base64"),
        (["final_image"], "aGVsbG8=", "cannot decode an image of 5 bytes"),
        (["final_image"], "", "cannot decode an image of 0 bytes"),
        (["steps", 0, "sketch"], png_of((4097, 1)), "4097x1 px is larger than 4096"),
        (["steps", 0, "sketch"], png_of((4, 4), form="GIF"), "cannot decode an image"),
        (["steps", 0, "sketch"], png_of((4, 4))[:40], "cannot decode an image"),
    ],
)
def test_json_that_is_refused(where, value, reason):
    with pytest.raises(TrajectoryError, match=reason):
        from_json(change(where, value))


def test_json_that_is_no_object_or_lacks_a_field():
    for record in (None, [], "x", 3):
        with pytest.raises(TrajectoryError, match="must be an object"):
            from_json(record)
    for field in ("version", "prompt", "mode", "steps", "inputs", "metadata"):
        record = to_json(FULL)
        del record[field]
        with pytest.raises(TrajectoryError):
            from_json(record)


def test_reading_does_not_change_the_record():
    record = to_json(FULL)
    before = copy.deepcopy(record)
    from_json(record)
    assert record == before


# ---- pictures ------------------------------------------------------------------------------------


def test_png_keeps_every_pixel_and_jpeg_nearly():
    np.testing.assert_array_equal(decode_image(encode_png(IMAGE)), IMAGE)
    flat = np.full((16, 16, 3), (200, 30, 90), np.uint8)
    for form in ("JPEG", "WEBP"):
        out = io.BytesIO()
        PILImage.fromarray(flat).save(out, format=form, quality=95)
        assert np.abs(decode_image(out.getvalue()).astype(int) - flat).max() < 8


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA", "1"])
def test_other_colour_modes_become_rgb(mode):
    picture = decode_image(base64.b64decode(png_of((3, 2), mode)))
    assert picture.shape == (2, 3, 3) and picture.dtype == np.uint8
    # Black, or nothing at all on white.
    assert (picture == (255 if mode in ("LA", "RGBA") else 0)).all()


def test_alpha_is_laid_on_white():
    out = io.BytesIO()
    PILImage.fromarray(np.array([[[255, 0, 0, 128]]], np.uint8), "RGBA").save(out, format="PNG")
    np.testing.assert_allclose(decode_image(out.getvalue())[0, 0], [255, 127, 127], atol=1)


@pytest.mark.parametrize(("mode", "key"), [("RGB", (9, 8, 7)), ("L", 9)])
def test_a_colour_that_means_transparent_becomes_white(mode, key):
    out = io.BytesIO()
    picture = PILImage.new(mode, (2, 1), key)
    picture.putpixel((1, 0), (1, 2, 3) if mode == "RGB" else 1)
    picture.save(out, format="PNG", transparency=key)
    decoded = decode_image(out.getvalue())[0]
    assert (decoded[0] == 255).all() and (decoded[1] < 255).all()
