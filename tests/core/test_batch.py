from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, dense_mask
from process_gen.core.batch import (
    NO_COPY,
    NO_LABEL,
    Dropout,
    Lengths,
    Place,
    lay_out,
    measure,
    pack,
    stack,
    table_ids,
)
from process_gen.core.configs import GrammarConfig
from process_gen.core.errors import DataError
from process_gen.core.grammar import Kind, Next, to_segments
from process_gen.core.patches import patchify, unpatchify
from process_gen.core.trajectory import Stage, Step, Trajectory, Turn

IMAGE = np.arange(8 * 16 * 3, dtype=np.uint16).reshape(8, 16, 3).astype(np.uint8)
# The prompt becomes 6 words, so 8 tokens; the plan is one word, the inspection too: 3 tokens each.
ONE_STEP = Trajectory(
    "dot", steps=(Step("<ins>a</ins><des>a</des>", IMAGE, "fine"),), final_image=IMAGE
)
ONE_SHOT = Trajectory("a dot", mode="one_shot", final_image=IMAGE)
ALWAYS_WITHOUT_PLAN = Dropout(text=1.0)
ALWAYS_ALONE = Dropout(prompt=1.0)
ROOM = Lengths(64, 8, 16)


def run_of(trajectory, ids, sizes, dropout=None, **settings):
    segments = to_segments(trajectory, GrammarConfig(**settings))
    rng = np.random.default_rng(0) if dropout else None
    return lay_out(segments, ids, sizes, dropout=dropout or Dropout(), rng=rng)


def columns(block):
    return [tuple(column) for column in block.T.tolist()]


# One step by hand. Orders: 0 is kept free before the prompt (0 to 8 with it), 9 before the plan.
#   prompt 1..8 | plan 10..12 | noised 13 | clean 14 | understanding 15 | inspection 16..18
# Positions: prompt 0..7 | plan 8..10 | noised 11, clean 11 | understanding 12 | inspection 13..15
def test_one_step_by_hand(ids, sizes):
    run = run_of(ONE_STEP, ids, sizes)
    n, control = NO_LABEL, int(Stage.CONTROL)
    plan, sketch, inspect = int(Stage.PLAN), int(Stage.SKETCH), int(Stage.INSPECT)
    prompt = [
        (1 + i, 1 + i, 18, i, token, n, 0)
        for i, token in enumerate([1, 106, 106, 103, 105, 113, 103])
    ]
    assert columns(run.text) == [
        *prompt,
        (8, 8, 18, 7, 2, 1, control),  # <|im_end|> of the prompt: a plan follows
        (10, 10, 18, 8, 1, 124, plan),
        (11, 11, 18, 9, 124, 2, plan),
        (12, 12, 18, 10, 2, 3, control),  # a picture follows
        (13, 13, 13, 11, 3, n, sketch),  # boundary tokens of the noised copy: seen by it alone
        (13, 13, 13, 11, 4, n, sketch),
        (14, 14, 18, 11, 3, n, sketch),  # of the clean copy, at the same position
        (14, 14, 18, 11, 4, n, sketch),
        (15, 15, 18, 12, 3, n, sketch),
        (15, 15, 18, 12, 4, 1, control),  # after the last copy: an inspection follows
        (16, 16, 18, 13, 1, 104, inspect),
        (17, 17, 18, 14, 104, 2, inspect),
        (18, 18, 18, 15, 2, 5, control),  # finished
    ]
    assert columns(run.gen) == [
        (13, 13, 13, 11, 0, 0, sketch),  # table id, copy, stage of the flow loss
        (13, 13, 13, 11, 1, 0, sketch),
        (14, 14, 18, 11, 0, NO_COPY, n),
        (14, 14, 18, 11, 1, NO_COPY, n),
    ]
    assert columns(run.und) == [(15, 15, 18, 12, 0, 0), (15, 15, 18, 12, 1, 0)]
    assert (run.orders, run.images, run.copies) == (19, 1, 1)
    np.testing.assert_array_equal(run.und[4], [0, 1])
    np.testing.assert_array_equal(run.patches, patchify(IMAGE, 8))
    np.testing.assert_array_equal(run.latents, np.concatenate([patchify(IMAGE, 8)] * 2))


def test_one_shot_by_hand(ids, sizes):
    run = run_of(ONE_SHOT, ids, sizes)
    shot = int(Stage.ONE_SHOT)
    assert columns(run.text) == [
        (1, 1, 5, 0, 1, NO_LABEL, 0),
        (2, 2, 5, 1, 101, NO_LABEL, 0),
        (3, 3, 5, 2, 103, NO_LABEL, 0),
        (4, 4, 5, 3, 2, 3, int(Stage.CONTROL)),
        (5, 5, 5, 4, 3, NO_LABEL, shot),
        (5, 5, 5, 4, 4, NO_LABEL, shot),
    ]
    assert columns(run.gen) == [(5, 5, 5, 4, 0, 0, shot), (5, 5, 5, 4, 1, 0, shot)]
    assert run.und.shape == (6, 0) and run.patches.shape == (0, 192)


def test_positions_of_copies_follow_bagel(ids, sizes):
    """Noised copies and the clean one share a position, the understanding copy has the next."""
    run = run_of(ONE_STEP, ids, sizes, noise_copies=3)
    assert run.gen[3].tolist() == [11] * 8
    assert run.gen[5].tolist() == [0, 0, 1, 1, 2, 2, NO_COPY, NO_COPY]
    assert run.und[3].tolist() == [12, 12]
    assert run.text[3, -3:].tolist() == [13, 14, 15]
    # Orders: three slots before the prompt (8 tokens), three before the plan (3), three noised.
    assert run.gen[0].tolist() == [17, 17, 18, 18, 19, 19, 20, 20]
    only_und = run_of(ONE_STEP, ids, sizes, context_images="vit")
    assert (only_und.gen[3].tolist(), only_und.und[3].tolist()) == ([11, 11], [11, 11])


# ---- dropped copies ------------------------------------------------------------------------------


def seen_by(run, gen_token):
    """Words of the text stream, then which latent and understanding tokens a latent token sees."""
    order = run.gen[0, gen_token]
    return [
        np.flatnonzero((block[1] <= order) & (order <= block[2])).tolist()
        for block in (run.text, run.gen, run.und)
    ]


def test_a_copy_without_its_plan_sees_what_came_before_it(ids, sizes):
    run = run_of(ONE_STEP, ids, sizes, ALWAYS_WITHOUT_PLAN)
    assert (run.gen[0, 0], run.gen[3, 0]) == (9, 8)  # the slot before the plan, and its position
    assert seen_by(run, 0) == [[*range(8), 11, 12], [0, 1], []]  # the prompt, its own boundary
    kept = run_of(ONE_STEP, ids, sizes)
    assert seen_by(kept, 0) == [[*range(13)], [0, 1], []]  # the plan too
    # Nothing else moved, no label changed.
    np.testing.assert_array_equal(run.text[4:], kept.text[4:])
    others = [i for i in range(20) if i not in (11, 12)]
    np.testing.assert_array_equal(run.text[:, others], kept.text[:, others])
    np.testing.assert_array_equal(run.gen[:, 2:], kept.gen[:, 2:])


def test_a_copy_without_context_sees_only_itself(ids, sizes):
    for trajectory, boundary in ((ONE_STEP, [11, 12]), (ONE_SHOT, [4, 5])):
        run = run_of(trajectory, ids, sizes, ALWAYS_ALONE)
        assert (run.gen[0, 0], run.gen[3, 0]) == (0, 0)
        assert seen_by(run, 0) == [boundary, [0, 1], []]


def test_dropping_the_text_of_a_one_shot_copy_leaves_nothing(ids, sizes):
    run = run_of(ONE_SHOT, ids, sizes, ALWAYS_WITHOUT_PLAN)
    assert seen_by(run, 0) == [[4, 5], [0, 1], []]


def test_a_picture_of_a_chain_of_thoughts_loses_the_words_that_led_to_it(ids, sizes):
    told, painted = Turn(True, text="dot"), Turn(True, image=IMAGE)
    thinking = Trajectory(
        "dot",
        mode="understand",
        turns=(Turn(False, text="dot"), told, painted, told, painted, told),
    )
    run = run_of(thinking, ids, sizes, ALWAYS_WITHOUT_PLAN)
    kept = run_of(thinking, ids, sizes)
    second = int(np.flatnonzero(kept.gen[5] == 1)[0])  # of its noised copy
    begins = int(np.flatnonzero(kept.text[4] == ids.bos)[2])
    lost = set(seen_by(kept, second)[0]) - set(seen_by(run, second)[0])
    assert lost == set(range(begins, begins + 3)) and seen_by(run, second)[0]


def test_a_picture_that_nothing_led_to_can_lose_its_context(ids, sizes):
    begun = Trajectory(
        "dot",
        mode="understand",
        turns=(Turn(True, image=IMAGE), Turn(False, text="dot"), Turn(True, text="dot")),
    )
    run = run_of(begun, ids, sizes, ALWAYS_ALONE)
    assert run.gen[0, 0] == 0 and seen_by(run, 0)[1] == [0, 1]


# ---- deleted items: BAGEL's trainer --------------------------------------------------------------

TWO_PICTURES = Trajectory(
    "dot",
    steps=(
        Step("<ins>a</ins><des>a</des>", IMAGE, "fine"),
        Step("<ins>b</ins><des>b</des>", IMAGE, "fine"),
    ),
    final_image=IMAGE,
)


def positions(run):
    """Rotary positions of texts (boundaries included), latents and patches."""
    return [part[3].tolist() for part in (run.text, run.gen, run.und)]


# Kept: prompt 0..7 | plan 8..10 | noised, clean 11 | patches 12 | inspection 13..15
# | plan 16..18 | noised, clean 19 | patches 20 | inspection 21..23.
def test_a_deleted_text_moves_what_follows_up_and_takes_its_labels_along(ids, sizes):
    run = run_of(TWO_PICTURES, ids, sizes, Dropout(text=1.0, delete=True))
    # No text is left: both pictures, each with its boundary tokens.
    assert run.text[4].tolist() == [3, 4] * 6
    assert positions(run) == [
        [0, 0, 0, 0, 1, 1, 2, 2, 2, 2, 3, 3],
        [0, 0, 0, 0, 2, 2, 2, 2],
        [1, 1, 3, 3],
    ]
    # What is left of the labels are the decisions at the pictures' last copies.
    assert run.text[5].tolist() == [*[NO_LABEL] * 5, 1, *[NO_LABEL] * 5, 1]
    assert [seen_by(run, token) for token in (0, 2, 4)] == [
        [[0, 1], [0, 1], []],
        [[2, 3], [2, 3], []],
        [[2, 3, 4, 5, 6, 7], [2, 3, 4, 5], [0, 1]],
    ]


def test_a_deleted_picture_leaves_its_position_empty(ids, sizes):
    kept = run_of(TWO_PICTURES, ids, sizes)
    without_clean = run_of(TWO_PICTURES, ids, sizes, Dropout(vae=1.0, delete=True))
    assert (without_clean.gen[5] != NO_COPY).all() and without_clean.gen.shape[1] == 4
    clean = [13, 14, 25, 26]  # boundary tokens of the clean copies
    np.testing.assert_array_equal(without_clean.text[3:], np.delete(kept.text[3:], clean, 1))
    np.testing.assert_array_equal(without_clean.und[3], kept.und[3])
    neither = run_of(TWO_PICTURES, ids, sizes, Dropout(vae=1.0, vit=1.0, delete=True))
    assert neither.und.shape == (6, 0) and neither.patches.shape[0] == 0
    gone = [*clean, 15, 16, 27, 28]
    np.testing.assert_array_equal(neither.text[3:], np.delete(kept.text[3:], gone, 1))
    # Prompt and plan, not the first noised copy; inspection, plan, its own boundary tokens.
    assert seen_by(neither, 2) == [[*range(11), *range(13, 21)], [2, 3], []]


def test_chances_of_deletion_are_independent_and_a_pack_may_become_empty(ids, sizes):
    counts = np.zeros(2)
    texts = 0
    for seed in range(300):
        segments = to_segments(TWO_PICTURES, GrammarConfig())
        dropout = Dropout(text=0.2, vae=0.5, vit=0.3, delete=True)
        run = lay_out(segments, ids, sizes, dropout=dropout, rng=np.random.default_rng(seed))
        assert (run.gen[5] != NO_COPY).sum() == 4  # noised copies stay
        texts += int((run.text[4] == ids.bos).sum())
        counts += [(run.gen[5] == NO_COPY).sum() / 2, run.und.shape[1] / 2]
    assert texts / (300 * 5) == pytest.approx(0.8, abs=0.04)
    assert counts / 600 == pytest.approx([0.5, 0.7], abs=0.06)
    only_text = Trajectory("dot", steps=(Step("<ins>a</ins><des>a</des>"),))
    empty = run_of(only_text, ids, sizes, Dropout(text=1.0, delete=True))
    row = pack([empty, run_of(ONE_SHOT, ids, sizes)], ROOM, sizes)
    alone = pack([run_of(ONE_SHOT, ids, sizes)], ROOM, sizes)
    assert empty.lengths == (0, 0, 0)
    np.testing.assert_array_equal(row.token_BxT, alone.token_BxT)


PLAN = "<ins>a</ins><des>a</des>"
LONG = Trajectory(
    "dot",
    steps=(
        Step(PLAN, IMAGE, "fine"),
        Step(PLAN, IMAGE, "no <refine>do</refine>", PLAN, IMAGE),
        Step(PLAN, IMAGE, "no <refine>do</refine>", None, IMAGE),
    ),
    final_image=IMAGE,
)


def test_a_refinement_without_its_plan_sees_what_came_before_that_plan(ids, sizes):
    """After a conflict that is the re-emitted plan, after a misalignment the step's own."""
    segments = to_segments(LONG, GrammarConfig(context_images="vit"))
    run = lay_out(segments, ids, sizes, dropout=ALWAYS_WITHOUT_PLAN, rng=np.random.default_rng(0))
    opening = {}
    at = 0
    for index, segment in enumerate(segments):
        opening[index] = at
        at += 2 + (len(ids.encode(segment.text)) if segment.kind is Kind.TEXT else 0)
    copy = 0
    for index, segment in enumerate(segments):
        if segment.kind is not Kind.NOISED:
            continue
        own = [opening[index], opening[index] + 1]
        noised = {
            opening[i] + k for i, s in enumerate(segments) if s.kind is Kind.NOISED for k in (0, 1)
        }
        before = [i for i in range(opening[segment.plan]) if i not in noised]
        assert seen_by(run, 2 * copy)[0] == sorted([*before, *own])
        assert seen_by(run, 2 * copy)[1] == [2 * copy, 2 * copy + 1]
        copy += 1
    plans = [s.plan for s in segments if s.kind is Kind.NOISED]
    assert [segments[plan].part.value for plan in plans] == ["plan", "re-emitted plan", "plan"]


@pytest.mark.parametrize("dropout", [ALWAYS_WITHOUT_PLAN, ALWAYS_ALONE, Dropout(0.5, 0.3)])
def test_dropped_copies_never_share_an_order(dropout, ids, sizes):
    run = run_of(LONG, ids, sizes, dropout, noise_copies=4, supervise_rejected=True)
    orders = {int(copy): set(run.gen[0, run.gen[5] == copy]) for copy in range(run.copies)}
    assert all(len(order) == 1 for order in orders.values())
    assert len(set.union(*orders.values())) == run.copies == 20
    text = run.text[0][np.isin(run.text[4], [ids.image_start, ids.image_end], invert=True)]
    assert not set.union(*orders.values()) & set(text.tolist())
    assert run.orders == run_of(LONG, ids, sizes, noise_copies=4, supervise_rejected=True).orders


def test_dropout_happens_as_often_as_asked(ids, sizes):
    rng = np.random.default_rng(1)
    segments = to_segments(ONE_STEP, GrammarConfig(noise_copies=10))
    runs = [lay_out(segments, ids, sizes, dropout=Dropout(0.3, 0.2), rng=rng) for _ in range(200)]
    order_N = np.concatenate([run.gen[0, :20:2] for run in runs])
    # Ten slots before the prompt (orders 0..9) and ten before the plan (18..27).
    assert abs(np.mean(order_N < 10) - 0.2) < 0.03
    assert abs(np.mean((order_N >= 18) & (order_N < 28)) - 0.3) < 0.03


# ---- lengths and packs ---------------------------------------------------------------------------


FAULT = Step(
    "<ins>a</ins><des>a</des>", IMAGE, "no <refine>b</refine>", refined=IMAGE, refined_plan=None
)
TWO_STEPS = Trajectory("dot", steps=(FAULT, ONE_STEP.steps[0]), final_image=IMAGE)


@pytest.mark.parametrize("kind", ["vae", "vit"])
def test_a_dropped_copy_is_seen_by_its_own_inspection_and_nothing_later(kind, ids, sizes):
    whole_run = run_of(TWO_STEPS, ids, sizes)
    run = run_of(TWO_STEPS, ids, sizes, Dropout(**{kind: 1.0}))
    dropped, kept = (run.gen, run.und) if kind == "vae" else (run.und, run.gen)
    before, same = (whole_run.gen, whole_run.und)[:: 1 if kind == "vae" else -1]
    np.testing.assert_array_equal(kept, same)
    np.testing.assert_array_equal(dropped[[0, 1, 3, 4, 5]], before[[0, 1, 3, 4, 5]])
    np.testing.assert_array_equal(run.text[[0, 1, 3, 4, 5, 6]], whole_run.text[[0, 1, 3, 4, 5, 6]])
    context = np.ones(dropped.shape[1], bool) if kind == "vit" else dropped[5] == NO_COPY
    orders = sorted(set(dropped[0, context].tolist()))  # sketch, refinement, second sketch
    assert len(orders) == 3
    last = [int(dropped[2, context & (dropped[0] == order)][0]) for order in orders]
    end = int(run.text[0].max())
    assert set(before[2, context].tolist()) == {end}
    plan_of_second = run.text[0, run.text[6] == int(Stage.PLAN)].max()
    assert orders[0] < last[0] < orders[1]  # to the end of the inspection that found the fault
    assert last[1] == orders[1] < plan_of_second  # nobody inspects a refinement
    assert last[2] == end  # the last inspection ends the trajectory


def test_lengths_equal_measure(thousand, grammars, ids, sizes):
    rng = np.random.default_rng(0)
    for i, trajectory in enumerate(thousand[::2]):
        segments = to_segments(trajectory, grammars[i % len(grammars)])
        expected = measure(segments, ids, sizes)
        for dropout in (Dropout(), Dropout(0.4, 0.4)):
            run = lay_out(segments, ids, sizes, dropout=dropout, rng=rng)
            assert run.lengths == expected
            assert len(run.patches) == expected.und and len(run.latents) == expected.gen
            assert max(run.text[0].max(), run.text[2].max()) < run.orders
        longer = [dataclasses.replace(segments[0], text=segments[0].text + " y"), *segments[1:]]
        assert measure(longer, ids, sizes).text == expected.text + 1


def test_a_pack_continues_orders_images_and_copies(ids, sizes):
    first, second = run_of(ONE_STEP, ids, sizes), run_of(LONG, ids, sizes, noise_copies=2)
    row = pack([first, second], Lengths(200, 16, 40), sizes)
    (t, v, g), (t2, v2, g2) = first.lengths, second.lengths
    for place, block, n in (
        (row.text, first.text, t),
        (row.und, first.und, v),
        (row.gen, first.gen, g),
    ):
        np.testing.assert_array_equal(np.stack(place)[:, :n], block[:4])
    shift = np.array([19, 19, 19, 0])[:, None]
    np.testing.assert_array_equal(np.stack(row.text)[:, t : t + t2], second.text[:4] + shift)
    np.testing.assert_array_equal(np.stack(row.und)[:, v : v + v2], second.und[:4] + shift)
    np.testing.assert_array_equal(np.stack(row.gen)[:, g : g + g2], second.gen[:4] + shift)
    noised = second.gen[5] != NO_COPY
    np.testing.assert_array_equal(row.copy_BxG[:g], first.gen[5])
    np.testing.assert_array_equal(
        row.copy_BxG[g : g + g2], np.where(noised, second.gen[5] + 1, NO_COPY)
    )
    np.testing.assert_array_equal(row.patch_image_BxV[v : v + v2], second.und[5] + 1)
    np.testing.assert_array_equal(row.token_BxT[t : t + t2], second.text[4])
    np.testing.assert_array_equal(row.latent_BxGxP[g : g + g2], second.latents)
    np.testing.assert_array_equal(row.patch_BxVxQ[v : v + v2], second.patches)
    np.testing.assert_array_equal(row.target_stage_BxG[g : g + g2], second.gen[6])
    np.testing.assert_array_equal(row.patch_id_BxV[v : v + v2], second.und[4])


def whole(row) -> Place:
    return Place(*(np.concatenate(x) for x in zip(row.text, row.und, row.gen, strict=True)))


def test_no_interval_crosses_the_border(ids, sizes):
    first, second = run_of(ONE_STEP, ids, sizes), run_of(LONG, ids, sizes)
    row = pack([first, second], Lengths(120, 16, 40), sizes)
    place = whole(row)
    mask = dense_mask(place.order, place.visible_from, place.visible_to)
    in_first, in_second = (place.order >= 0) & (place.order < 19), place.order >= 19
    assert mask[in_first][:, in_first].any() and mask[in_second][:, in_second].any()
    assert not mask[in_first][:, in_second].any()
    assert not mask[in_second][:, in_first].any()
    # The border is real: were the second not shifted, they would see each other.
    unshifted = np.where(in_second, place.order - 19, place.order)
    assert dense_mask(unshifted, place.visible_from, place.visible_to)[in_second][:, in_first].any()


def test_padding_sees_nothing_and_is_seen_by_nobody(ids, sizes):
    row = pack([run_of(ONE_STEP, ids, sizes)], ROOM, sizes)
    place = whole(row)
    pad = place.order == -1
    assert pad.sum() == sum(ROOM) - 20 - 2 - 4
    mask = dense_mask(place.order, place.visible_from, place.visible_to)
    assert not mask[pad].any() and not mask[:, pad].any()
    assert mask[~pad].any(1).all()
    assert set(place.visible_from[pad]) == {NEVER} and set(place.visible_to[pad]) == {-1}
    assert (row.label_BxT[20:] == NO_LABEL).all() and (row.token_BxT[20:] == 0).all()
    assert (row.target_stage_BxG[4:] == NO_LABEL).all() and (row.copy_BxG[4:] == NO_COPY).all()
    assert (row.patch_image_BxV[2:] == NO_COPY).all() and not row.latent_BxGxP[4:].any()
    empty = pack([], ROOM, sizes)
    assert (np.concatenate([empty.text.order, empty.und.order, empty.gen.order]) == -1).all()


@pytest.mark.parametrize(
    ("lengths", "part"),
    [
        (Lengths(19, 2, 4), "text"),
        (Lengths(20, 1, 4), "understanding"),
        (Lengths(20, 2, 3), "latent"),
    ],
)
def test_overflow_raises(lengths, part, ids, sizes):
    run = run_of(ONE_STEP, ids, sizes)
    pack([run], Lengths(20, 2, 4), sizes)
    with pytest.raises(DataError, match=f"{part} tokens, but its trajectories need more"):
        pack([run], lengths, sizes)


def test_stack_puts_rows_above_each_other(ids, sizes):
    rows = [pack([run_of(t, ids, sizes)], ROOM, sizes) for t in (ONE_STEP, ONE_SHOT)]
    batch = stack(rows)
    assert batch.token_BxT.shape == (2, 64) and batch.latent_BxGxP.shape == (2, 16, 192)
    for i, row in enumerate(rows):
        np.testing.assert_array_equal(batch.gen.visible_to[i], row.gen.visible_to)
        np.testing.assert_array_equal(batch.label_BxT[i], row.label_BxT)


# ---- pictures ------------------------------------------------------------------------------------


def test_table_ids_by_hand():
    assert table_ids(16, 24, 8, 4).tolist() == [0, 1, 2, 4, 5, 6]
    assert table_ids(24, 16, 8, 8).tolist() == [0, 1, 8, 9, 16, 17]  # BAGEL's extrapolated ids
    for height, width in ((40, 8), (8, 40), (7, 8)):
        with pytest.raises(DataError, match="position table holds 1 to 4"):
            table_ids(height, width, 8, 4)


def test_a_picture_that_does_not_divide_is_refused(ids, sizes):
    odd = dataclasses.replace(ONE_SHOT, final_image=np.zeros((8, 12, 3), np.uint8))
    with pytest.raises(DataError, match="does not divide into 8x8 patches"):
        run_of(odd, ids, sizes)


def test_patches_run_row_column_channel():
    patches = patchify(np.arange(4 * 6 * 3).reshape(4, 6, 3), 2)
    assert patches.shape == (6, 12)
    assert patches[1].tolist() == [6, 7, 8, 9, 10, 11, 24, 25, 26, 27, 28, 29]
    image = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3))
    np.testing.assert_array_equal(unpatchify(patchify(image, 8), 8, 2, 3), image)
    assert (unpatchify(patchify(image, 8), 8, 3, 2) != image.reshape(2, 24, 16, 3)).any()


def test_control_tokens(ids):
    assert [ids.control(n) for n in (Next.TEXT, Next.IMAGE, Next.END)] == [1, 3, 5]
