from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from process_gen.core import grammar
from process_gen.core.attention_mask import may_attend
from process_gen.core.batch import Dropout, PatchSizes, lay_out
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import GrammarError, TrajectoryError
from process_gen.core.grammar import (
    Kind,
    Next,
    Part,
    Segment,
    check_text,
    from_segments,
    legal_next,
    to_segments,
)
from process_gen.core.trajectory import Stage, Step, Trajectory, Turn, plan_text, same, validate
from process_gen.data.tokenizer import SPECIALS, load_tokenizer, token_ids

PLAN = plan_text("a dot", "a dot")
FAULT = "not so. <refine>make it blue</refine>"
IMAGE = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)
OTHER = 255 - IMAGE
TEXT_PARTS = (
    Part.PROMPT,
    Part.BARE_PROMPT,
    Part.PLAN,
    Part.INSPECTION,
    Part.FAULT,
    Part.REFINED_PLAN,
)

CONFLICT = Trajectory(
    "a dot",
    steps=(Step(PLAN, IMAGE, FAULT, PLAN, OTHER), Step(PLAN, IMAGE, "fine")),
    final_image=IMAGE,
)
MISALIGNMENT = Trajectory(
    "a dot",
    steps=(Step(PLAN, IMAGE, FAULT, None, OTHER), Step(PLAN, IMAGE, "fine")),
    final_image=IMAGE,
)


def told(trajectory):
    """All that segments keep of a trajectory; pictures by identity."""
    steps = [
        (s.plan, id(s.sketch), s.inspection, s.refined_plan, id(s.refined))
        for s in trajectory.steps
    ]
    return trajectory.prompt, trajectory.mode, steps, id(trajectory.final_image)


def test_round_trip_of_1000_trajectories_under_every_setting(thousand, grammars):
    for trajectory in thousand:
        validate(trajectory)
        for settings in grammars:
            assert told(from_segments(to_segments(trajectory, settings))) == told(trajectory)
    patterns = {
        (
            s.sketch is None,
            s.inspection is None,
            s.rejected,
            s.refined_plan is None,
            s.image is None,
        )
        for t in thousand
        for s in t.steps
    }
    assert len(patterns) == 5  # plan only, not inspected, ok, conflict, misalignment
    assert sum(t.mode == "one_shot" for t in thousand) > 50
    assert sum(bool(t.steps) and t.steps[-1].rejected and t.steps[-1].refined is None
               for t in thousand) > 100  # fmt: skip


def test_round_trip_notices_a_changed_word_and_a_changed_picture(thousand):
    settings = GrammarConfig()
    for trajectory in thousand[::50]:
        stripped = dataclasses.replace(trajectory, metadata={})
        segments = to_segments(trajectory, settings)
        assert same(from_segments(segments), stripped)
        for index, segment in enumerate(segments):
            if segment.kind is Kind.TEXT:
                changed = dataclasses.replace(segment, text=segment.text + " y")
            elif segment.image is not segments[index - 1].image:  # the first copy is the one read
                changed = dataclasses.replace(segment, image=segment.image ^ 1)
            else:
                continue
            mutated = [*segments[:index], changed, *segments[index + 1 :]]
            assert not same(from_segments(mutated), stripped), segment.part


def test_every_label_is_legal_and_true(thousand, grammars):
    """A label names what really comes next, stands on the part's last segment, and is in the
    table."""
    seen = set()
    for trajectory, settings in itertools.product(thousand[::3], grammars[::5]):
        segments = to_segments(trajectory, settings)
        parts = [part for part, _ in itertools.groupby(segments, key=lambda s: s.part)]
        groups = [list(group) for _, group in itertools.groupby(segments, key=lambda s: s.part)]
        for number, (part, group) in enumerate(zip(parts, groups, strict=True)):
            assert all(s.next is None for s in group[:-1])
            label = group[-1].next
            if label is None:
                continue
            assert label in legal_next(part)
            following = parts[number + 1] if number + 1 < len(parts) else None
            if following is None and part is Part.REFINED_PLAN:
                following = Part.REFINED  # never painted, but nothing else could follow
            expected = {
                None: Next.END,
                Part.SKETCH: Next.IMAGE,
                Part.REFINED: Next.IMAGE,
                Part.ONE_SHOT: Next.IMAGE,
            }.get(following, Next.TEXT)
            assert label is expected, (part, following)
            seen.add((part, label))
    everything = {(part, label) for part in Part for label in legal_next(part)}
    assert seen == everything


@pytest.mark.parametrize("trajectory", [CONFLICT, MISALIGNMENT])
def test_an_illegal_label_is_refused_when_writing(trajectory, monkeypatch):
    to_segments(trajectory, GrammarConfig())
    table = {**grammar.TRANSITIONS, Part.FAULT: {}}
    monkeypatch.setattr(grammar, "TRANSITIONS", table)
    with pytest.raises(GrammarError, match="may not follow a inspection with a fault"):
        to_segments(trajectory, GrammarConfig())


# A legal way to every part, and the parts that may be read after it, written out by hand.
WAY = {
    Part.PROMPT: [Part.PROMPT],
    Part.BARE_PROMPT: [Part.BARE_PROMPT],
    Part.PLAN: [Part.PROMPT, Part.PLAN],
    Part.SKETCH: [Part.PROMPT, Part.PLAN, Part.SKETCH],
    Part.INSPECTION: [Part.PROMPT, Part.PLAN, Part.SKETCH, Part.INSPECTION],
    Part.FAULT: [Part.PROMPT, Part.PLAN, Part.SKETCH, Part.FAULT],
    Part.REFINED_PLAN: [Part.PROMPT, Part.PLAN, Part.SKETCH, Part.FAULT, Part.REFINED_PLAN],
    Part.REFINED: [Part.PROMPT, Part.PLAN, Part.SKETCH, Part.FAULT, Part.REFINED],
    Part.ONE_SHOT: [Part.BARE_PROMPT, Part.ONE_SHOT],
}
READABLE = {
    Part.PROMPT: {Part.PLAN},
    Part.BARE_PROMPT: {Part.ONE_SHOT},
    Part.PLAN: {Part.SKETCH, Part.PLAN},  # plan after plan: text-only planning
    Part.SKETCH: {Part.INSPECTION, Part.FAULT, Part.PLAN, Part.SKETCH},  # a copy; not inspected
    Part.INSPECTION: {Part.PLAN},
    Part.FAULT: {Part.REFINED_PLAN, Part.REFINED},
    Part.REFINED_PLAN: {Part.REFINED},
    Part.REFINED: {Part.PLAN, Part.REFINED},  # a copy
    Part.ONE_SHOT: {Part.ONE_SHOT},
}


def plain(part: Part) -> Segment:
    if part not in TEXT_PARTS:
        return Segment(Kind.CLEAN, part, image=IMAGE)
    text = {Part.PROMPT: grammar.prompt_text("a dot", "process"), Part.FAULT: FAULT}
    return Segment(Kind.TEXT, part, text=text.get(part, PLAN))


@pytest.mark.parametrize("before", WAY)
def test_reading_accepts_the_table_and_nothing_else(before):
    way = [plain(part) for part in WAY[before]]
    for part in Part:
        if part in READABLE[before]:
            assert from_segments([*way, plain(part)]).prompt
        else:
            with pytest.raises(GrammarError):
                from_segments([*way, plain(part)])


def test_reading_refuses_what_has_no_prompt():
    for segments in ([], [plain(Part.PLAN)], [Segment(Kind.TEXT, Part.PROMPT, text="a dot")]):
        with pytest.raises(GrammarError):
            from_segments(segments)
    with pytest.raises(GrammarError, match="followed by its picture"):
        from_segments([plain(Part.BARE_PROMPT)])


@pytest.mark.parametrize(
    ("trajectory", "reason"),
    [
        (Trajectory("a dot", mode="think"), "no grammar for mode 'think' without turns"),
        (Trajectory("blue", mode="edit", inputs=(IMAGE,)), "edit 'blue' has no reply"),
        (Trajectory("what?", mode="understand"), "understand 'what\\?' has no reply"),
        (Trajectory("a dot"), "has no steps"),
        (Trajectory("a dot", mode="one_shot"), "has no picture"),
    ],
)
def test_writing_refuses(trajectory, reason):
    with pytest.raises(GrammarError, match=reason):
        to_segments(trajectory, GrammarConfig())


# ---- conversations -------------------------------------------------------------------------------

GIVEN, SAID = Turn(False, image=IMAGE), Turn(False, text="make it blue")
PAINTED, TOLD = Turn(True, image=OTHER), Turn(True, text="a dot")
EDIT = Trajectory("make it blue", mode="edit", inputs=(IMAGE,), final_image=OTHER)
ANSWER = Trajectory("make it blue", mode="understand", inputs=(IMAGE,), text="a dot")
CHAIN = (GIVEN, SAID, PAINTED, Turn(False, text="and round"), Turn(True, image=IMAGE))
THOUGHT = (GIVEN, SAID, TOLD, PAINTED, Turn(True, text="blue"))


def said(segments):
    """Kind, part, loss and the segment that the picture was drawn for."""
    return [(s.kind.value, s.part, s.loss, s.plan) for s in segments]


def shown(part, plan, copies="vae+vit"):
    kinds = {"vae+vit": ("clean", "und"), "vit": ("und",), "vae": ("clean",)}[copies]
    return [(kind, part, False, plan) for kind in kinds]


def test_an_edit():
    expected = [
        *shown(Part.GIVEN, None),
        ("text", Part.ASKED, False, None),
        ("noised", Part.REPLY_PICTURE, True, 2),
    ]
    segments = to_segments(EDIT, GrammarConfig())
    assert said(segments) == expected
    turns = dataclasses.replace(EDIT, inputs=(), final_image=None, turns=(GIVEN, SAID, PAINTED))
    assert said(to_segments(turns, GrammarConfig())) == expected
    assert [s.stage for s in segments] == [Stage.PROMPT] * 3 + [Stage.ONE_SHOT]
    assert all(s.next is None and not s.firm for s in segments)


def test_edits_one_after_the_other():
    chain = Trajectory("make it blue", mode="edit", turns=CHAIN)
    assert said(to_segments(chain, GrammarConfig())) == [
        *shown(Part.GIVEN, None),
        ("text", Part.ASKED, False, None),
        ("noised", Part.REPLY_PICTURE, True, 2),
        *shown(Part.REPLY_PICTURE, 2),
        ("text", Part.ASKED, False, None),
        ("noised", Part.REPLY_PICTURE, True, 6),
    ]
    twice = to_segments(chain, GrammarConfig(noise_copies=2))
    assert [s.kind for s in twice].count(Kind.NOISED) == 4


@pytest.mark.parametrize("copies", ["vae+vit", "vit", "vae"])
def test_a_question_shows_the_understanding_copy_and_keeps_it(copies):
    segments = to_segments(ANSWER, GrammarConfig(context_images=copies))
    assert said(segments) == [
        *shown(Part.GIVEN, None, "vae" if copies == "vae" else "vit"),
        ("text", Part.ASKED, False, None),
        ("text", Part.REPLY, True, None),
    ]
    assert all(s.firm for s in segments) and segments[-1].stage is Stage.ANSWER


def test_thinking_with_pictures():
    thought = Trajectory("make it blue", mode="understand", turns=THOUGHT)
    segments = to_segments(thought, GrammarConfig())
    assert said(segments) == [
        *shown(Part.GIVEN, None),
        ("text", Part.ASKED, False, None),
        ("text", Part.REPLY, True, None),
        ("noised", Part.REPLY_PICTURE, True, 2),  # without words it is without the question too
        *shown(Part.REPLY_PICTURE, 2),
        ("text", Part.REPLY, True, None),
    ]
    assert not any(s.firm for s in segments)


@pytest.mark.parametrize("delete", [False, True])
def test_dropout_spares_questions_and_not_edits(delete):
    ids = token_ids(load_tokenizer())
    sizes = PatchSizes(latent=8, und=8, latent_grid=1, und_grid=1)
    dropout = Dropout(text=1.0, vae=1.0, vit=1.0, delete=delete)

    def run(trajectory, dropout):
        segments = to_segments(trajectory, GrammarConfig())
        return lay_out(segments, ids, sizes, dropout=dropout, rng=np.random.default_rng(0))

    for trajectory, spared in ((ANSWER, True), (EDIT, False)):
        whole, dropped = run(trajectory, Dropout()), run(trajectory, dropout)
        alike = [np.array_equal(a, b) for a, b in zip(whole[:3], dropped[:3], strict=True)]
        assert all(alike) == spared


def test_an_edit_without_its_words_still_sees_its_picture():
    ids = token_ids(load_tokenizer())
    sizes = PatchSizes(latent=8, und=8, latent_grid=1, und_grid=1)
    for dropout, sees_picture in ((Dropout(text=1.0), True), (Dropout(prompt=1.0), False)):
        segments = to_segments(EDIT, GrammarConfig())
        run = lay_out(segments, ids, sizes, dropout=dropout, rng=np.random.default_rng(0))
        noised, clean = run.gen[:, 1], run.gen[:, 0]
        words = run.text[:, 4:-2]  # two pairs of boundaries before them, one behind
        assert not may_attend(noised[0], words[1], words[2]).any()
        assert may_attend(noised[0], clean[1], clean[2]) == sees_picture


# ---- what carries a loss -------------------------------------------------------------------------


def supervised(trajectory, **settings):
    segments = to_segments(trajectory, GrammarConfig(**settings))
    return [(s.kind, s.part) for s in segments if s.loss]


def test_a_rejected_sketch_carries_no_flow_loss(thousand, grammars):
    checked = 0
    for trajectory, settings in itertools.product(thousand[::4], grammars):
        steps = iter(trajectory.steps)
        step = None
        for segment in to_segments(trajectory, settings):
            if segment.part is Part.PLAN:
                step = next(steps)
            if segment.part is Part.SKETCH and segment.kind is Kind.NOISED:
                assert segment.loss
                assert settings.supervise_rejected or not step.rejected
                checked += step.rejected
    assert checked > 100  # the assertion above met rejected sketches where they are allowed


def test_losses_of_the_two_corrections():
    text, flow = Kind.TEXT, Kind.NOISED
    next_step = [(text, Part.PLAN), (flow, Part.SKETCH), (text, Part.INSPECTION)]
    fault = [(text, Part.PLAN), (text, Part.FAULT)]
    assert supervised(CONFLICT) == [
        *fault,
        (text, Part.REFINED_PLAN),
        (flow, Part.REFINED),
        *next_step,
    ]
    assert supervised(MISALIGNMENT) == [*fault, (flow, Part.REFINED), *next_step]
    both = supervised(MISALIGNMENT, supervise_rejected=True)
    assert both[:3] == [(text, Part.PLAN), (flow, Part.SKETCH), (text, Part.FAULT)]


def test_every_target_is_noised_as_often_as_asked():
    for copies in (1, 3):
        flow = [kind for kind, _ in supervised(CONFLICT, noise_copies=copies) if kind is not
                Kind.TEXT]  # fmt: skip
        assert len(flow) == 2 * copies
    one_shot = Trajectory("a dot", mode="one_shot", final_image=IMAGE)
    kinds = [s.kind for s in to_segments(one_shot, GrammarConfig(noise_copies=2))]
    assert kinds == [Kind.TEXT, Kind.NOISED, Kind.NOISED]


def test_only_the_last_inspection_is_supervised_when_asked(thousand):
    inspected = 0
    for trajectory in thousand[::3]:
        if trajectory.mode != "process":
            continue
        last = trajectory.steps[-1]
        segments = to_segments(trajectory, GrammarConfig(), "last_inspection")
        losses = [s for s in segments if s.loss]
        assert [s.text for s in losses] == [last.inspection] * (last.inspection is not None)
        assert all(s.next is None and s.kind is not Kind.NOISED for s in segments)
        assert told(from_segments(segments)) == told(trajectory)
        inspected += len(losses)
        everything = [s for s in to_segments(trajectory, GrammarConfig()) if s.loss]
        assert len(everything) > len(losses)
    assert inspected > 100


def test_the_last_repair_is_supervised_when_asked(thousand):
    def parts(trajectory, supervise):
        segments = to_segments(trajectory, GrammarConfig(noise_copies=2), supervise)
        assert told(from_segments(segments)) == told(trajectory)
        learnt = [(s.kind, s.part) for s in segments if s.loss]
        return learnt, [(s.part, s.next) for s in segments if s.next is not None]

    text, flow = Kind.TEXT, Kind.NOISED
    for fault, plan, decision in ((CONFLICT, [Part.REFINED_PLAN], Next.TEXT),
                                  (MISALIGNMENT, [], Next.IMAGE)):  # fmt: skip
        first = fault.steps[0]
        cut = dataclasses.replace(fault, steps=(first,), final_image=first.refined)
        learnt, labels = parts(cut, "last_repair")
        refined = [(flow, Part.REFINED)] * 2
        assert learnt == [(text, Part.FAULT), *[(text, part) for part in plan], *refined]
        # What follows the refined picture is not known: the painting was cut there.
        assert labels == [(Part.FAULT, decision), *[(part, Next.IMAGE) for part in plan]]
        # Earlier faults are context; only the last step is learnt.
        assert parts(fault, "last_repair")[0] == [(text, Part.INSPECTION)]
    for trajectory in thousand[::7]:
        if trajectory.mode == "process" and trajectory.steps[-1].refined is None:
            unrepaired = [part for _, part in parts(trajectory, "last_repair")[0]]
            assert set(unrepaired) <= {Part.INSPECTION, Part.FAULT, Part.REFINED_PLAN}


def test_stages():
    stages = [s.stage for s in to_segments(CONFLICT, GrammarConfig(context_images="vit"))]
    assert stages == [
        Stage.PROMPT,
        Stage.PLAN, Stage.SKETCH, Stage.INSPECT, Stage.REFINE, Stage.REFINE, Stage.REFINE,
        Stage.PLAN, Stage.SKETCH, Stage.SKETCH, Stage.INSPECT,
    ]  # fmt: skip


# ---- what later tokens see -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "kinds"),
    [("vae+vit", [Kind.CLEAN, Kind.UND]), ("vit", [Kind.UND]), ("vae", [Kind.CLEAN])],
)
def test_copies_that_later_tokens_see(images, kinds):
    segments = to_segments(CONFLICT, GrammarConfig(context_images=images))
    first = [s.kind for s in segments if s.part is Part.SKETCH][: len(kinds)]
    assert first == kinds


@pytest.mark.parametrize(
    ("rejected", "hidden"),
    [("keep", set()), ("vit_only", {Kind.CLEAN}), ("drop", {Kind.CLEAN, Kind.UND})],
)
@pytest.mark.parametrize("trajectory", [CONFLICT, MISALIGNMENT])
def test_a_rejected_sketch_is_hidden_once_its_inspection_is_over(
    trajectory, rejected, hidden, ids, sizes
):
    settings = GrammarConfig(rejected_context=rejected)
    segments = to_segments(trajectory, settings)
    inspection = next(i for i, s in enumerate(segments) if s.part is Part.FAULT)
    for index, segment in enumerate(segments):
        is_hidden = index < inspection and segment.kind in hidden and segment.image is IMAGE
        assert segment.hidden_after == (inspection if is_hidden else None)

    # The same in the mask: who sees the first sketch's clean and understanding tokens?
    run = lay_out(segments, ids, sizes, dropout=Dropout(), rng=None)
    stage = run.text[6]
    text_order = run.text[0]
    begin = np.flatnonzero(run.text[4] == ids.bos)[2]  # after the prompt and the plan
    end = begin + len(ids.encode(FAULT)) + 2
    assert (stage[begin : end - 1] == int(Stage.INSPECT)).all()
    for kind, column in ((Kind.CLEAN, run.gen[:, 0]), (Kind.UND, run.und[:, 0])):
        order, visible_from, visible_to = column[:3]
        sees = (visible_from <= text_order) & (text_order <= visible_to)
        assert sees[begin:end].all()
        assert sees[end:].any() == (kind not in hidden)
        assert sees[end:].all() == (kind not in hidden)
        assert not sees[text_order < order].any()


# ---- words ---------------------------------------------------------------------------------------


def test_special_strings_in_a_prompt_stay_text():
    tokenizer = load_tokenizer("")
    special = {tokenizer.bos, tokenizer.eos, tokenizer.image_start, tokenizer.image_end,
               tokenizer.end_of_text}  # fmt: skip
    prompt = "".join(SPECIALS) + "</ins><refine>{prompt}</refine> \N{ARTIST PALETTE}<script>"
    trajectory = dataclasses.replace(MISALIGNMENT, prompt=prompt)
    segments = to_segments(trajectory, GrammarConfig())
    assert [s.part for s in segments] == [
        s.part for s in to_segments(MISALIGNMENT, GrammarConfig())
    ]
    assert from_segments(segments).prompt == prompt
    encoded = token_ids(tokenizer).encode(segments[0].text)
    assert not special & set(encoded)
    assert tokenizer.decode(encoded) == segments[0].text
    # A tokenizer that parsed them would have given five ids.
    assert len(special) == 5 and len(encoded) > len(prompt) / 2


def test_check_text():
    assert check_text(Part.PLAN, PLAN) is Part.PLAN
    assert check_text(Part.REFINED_PLAN, PLAN) is Part.REFINED_PLAN
    assert check_text(Part.INSPECTION, "fine") is Part.INSPECTION
    assert check_text(Part.INSPECTION, FAULT) is Part.FAULT
    for text in ("", "<ins>a</ins>", "<ins>a<des>b</des>", f"{PLAN} and more"):
        assert check_text(Part.PLAN, text) is None
    for text in ("<refine>a", "a</refine>", "</refine>a<refine>"):
        assert check_text(Part.INSPECTION, text) is None
        with pytest.raises(TrajectoryError, match="unbalanced"):
            grammar.after_inspection(text)


def test_prompts():
    assert grammar.prompt_text("{a} dot", "process").endswith("step-by-step: {a} dot")
    assert grammar.prompt_text("{a} dot", "one_shot") == "{a} dot"
