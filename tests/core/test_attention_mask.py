from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask, draw, may_attend
from process_gen.core.batch import Lengths, Place, lay_out, pack
from process_gen.core.configs import GrammarConfig
from process_gen.core.grammar import Kind, Part, Segment, to_segments

MODE = {Kind.TEXT: "causal", Kind.CLEAN: "full", Kind.UND: "full", Kind.NOISED: "noise"}


class Token(NamedTuple):
    """What BAGEL's rule looks at, and where the token lies in the pack's concatenated streams."""

    slot: int
    document: int
    split: int
    index: int  # in the sequence as BAGEL would write it
    mode: str


def random_document(rng: np.random.Generator) -> list[Segment]:
    """Splits in any order: causal texts, full (clean, understanding) and noised pictures."""
    segments: list[Segment] = []
    for index in range(int(rng.integers(1, 7))):
        kind = list(MODE)[rng.choice(4, p=[0.4, 0.15, 0.15, 0.3])]
        if kind is Kind.TEXT:
            part = Part.PROMPT if index == 0 else [Part.PLAN, Part.INSPECTION][rng.integers(2)]
            text = " ".join("y" * int(rng.integers(0, 4)))
            segments.append(Segment(kind, part, text=text))
        else:
            image = np.zeros((8, 8 * int(rng.integers(1, 4)), 3), np.uint8)
            plans = [i for i, s in enumerate(segments) if s.part is Part.PLAN]
            plan = plans[-1] if plans else None  # reserves order slots that stay empty
            segments.append(Segment(kind, Part.SKETCH, image=image, plan=plan))
    return segments


def tokens_of(documents: list[list[Segment]], ids, lengths: Lengths) -> list[Token]:
    tokens: list[Token] = []
    text, und, gen = 0, lengths.text, lengths.text + lengths.und
    split = index = 0
    for number, document in enumerate(documents):
        for segment in document:
            mode = MODE[segment.kind]
            if segment.kind is Kind.TEXT:
                slots = list(range(text, text + len(ids.encode(segment.text)) + 2))
                text = slots[-1] + 1
            else:
                count = segment.image.shape[1] // 8
                first = und if segment.kind is Kind.UND else gen
                slots = [text, *range(first, first + count), text + 1]
                text += 2
                if segment.kind is Kind.UND:
                    und += count
                else:
                    gen += count
            for slot in slots:
                tokens.append(Token(slot, number, split, index, mode))
                index += 1
            split += 1
    return tokens


def three_predicates(tokens: list[Token], size: int) -> np.ndarray:
    """BAGEL's rule (`data/data_utils.py` of its repository): ``bool[size, size]``.

    Same document; not later, or in the same picture; and no noised picture seen from outside.
    """
    slot, document, split, index = (np.array([t[i] for t in tokens]) for i in range(4))
    bidirectional = np.array([t.mode in ("full", "noise") for t in tokens])
    noised = np.array([t.mode == "noise" for t in tokens])
    same_document = document[:, None] == document[None]
    same_split = split[:, None] == split[None]
    past = index[None] <= index[:, None]
    allow = same_document & (past | (same_split & bidirectional[:, None]))
    allow &= ~(noised[None] & ~same_split)
    out = np.zeros((size, size), bool)
    out[slot[:, None], slot[None]] = allow
    return out


def whole(row) -> Place:
    return Place(*(np.concatenate(x) for x in zip(row.text, row.und, row.gen, strict=True)))


@pytest.fixture(scope="module")
def random_packs(ids, sizes):
    """1,000 packs: places of the concatenated streams, tokens for the three predicates."""
    rng = np.random.default_rng(20)
    packs = []
    for _ in range(1000):
        documents = [random_document(rng) for _ in range(int(rng.integers(1, 5)))]
        runs = [lay_out(document, ids, sizes) for document in documents]
        need = np.sum([run.lengths for run in runs], 0)
        lengths = Lengths(*(int(n) + int(rng.integers(0, 4)) for n in need))
        packs.append((whole(pack(runs, lengths, sizes)), tokens_of(documents, ids, lengths)))
    return packs


def test_the_interval_rule_equals_bagels_three_predicates(random_packs):
    documents, noised = [], 0
    for place, tokens in random_packs:
        expected = three_predicates(tokens, len(place.order))
        mask = dense_mask(place.order, place.visible_from, place.visible_to)
        np.testing.assert_array_equal(mask, expected)
        documents.append(tokens[-1].document + 1)
        noised += any(t.mode == "noise" for t in tokens)
    assert max(documents) == 4 and noised > 500


def without_end(place):
    return place.visible_from[None] <= place.order[:, None]


def without_beginning(place):
    return place.order[:, None] <= place.visible_to[None]


def noise_seen_to_the_end(place):
    last = int(place.visible_to[place.order >= 0].max())
    longer = np.where(place.visible_from == place.visible_to, last, place.visible_to)
    return dense_mask(place.order, place.visible_from, longer)


@pytest.mark.parametrize("mutant", [without_end, without_beginning, noise_seen_to_the_end])
def test_a_dropped_term_is_noticed(mutant, random_packs):
    noticed = [
        not np.array_equal(mutant(place), three_predicates(tokens, len(place.order)))
        for place, tokens in random_packs
        if len(tokens) > 20
    ]
    assert np.mean(noticed) > 0.75 and len(noticed) > 500


def test_a_dropped_predicate_is_noticed(random_packs):
    """The other side can fail too: BAGEL's rule without its third line."""
    differs = 0
    for place, tokens in random_packs:
        visible = [t._replace(mode="full") if t.mode == "noise" else t for t in tokens]
        size = len(place.order)
        differs += not np.array_equal(
            three_predicates(visible, size), three_predicates(tokens, size)
        )
    assert differs > 300


def test_trajectories_of_the_grammar_too(thousand, ids, sizes):
    """With every copy kept and none dropped, a painting is an ordinary BAGEL sequence."""
    settings = GrammarConfig(noise_copies=2, supervise_rejected=True)
    for trajectory in thousand[:60]:
        small = [
            Segment(s.kind, s.part, text=s.text, plan=s.plan)
            if s.image is None
            else Segment(s.kind, s.part, image=s.image[:8], plan=s.plan)
            for s in to_segments(trajectory, settings)
        ]
        run = lay_out(small, ids, sizes)
        place = whole(pack([run], run.lengths, sizes))
        mask = dense_mask(place.order, place.visible_from, place.visible_to)
        expected = three_predicates(tokens_of([small], ids, run.lengths), len(place.order))
        np.testing.assert_array_equal(mask, expected)


def test_the_rule_elementwise():
    assert may_attend(3, 3, 3) and may_attend(3, 0, 9)
    assert not may_attend(3, 4, 9) and not may_attend(3, 0, 2)
    assert not may_attend(PAD_ORDER, NEVER, PAD_ORDER) and not may_attend(7, NEVER, PAD_ORDER)
    assert not may_attend(PAD_ORDER, 0, 9)


def test_dense_mask_has_a_batch_axis():
    order = np.array([[0, 1], [1, 0]])
    mask = dense_mask(order, np.zeros((2, 3), int), np.array([[0, 1, 2]] * 2))
    assert mask.shape == (2, 2, 3)
    assert mask[0].tolist() == [[True, True, True], [False, True, True]]
    assert mask[1].tolist() == mask[0][::-1].tolist()


def test_draw():
    # A word, a noised picture of two tokens, its clean copy, a word.
    order, start, end = [0, 1, 1, 2, 3], [0, 1, 1, 2, 3], [3, 1, 1, 3, 3]
    assert draw(order, start, end, "tnnct").splitlines() == [
        "  t n n c t",
        "t # . . . .",
        "n # # # . .",
        "n # # # . .",
        "c # . . # .",
        "t # . . # #",
    ]
    assert draw(order, start, [3, 3, 3, 3, 3], "tnnct") != draw(order, start, end, "tnnct")
    assert draw(order, start, end).splitlines()[1] == ". # . . . ."
    with pytest.raises(ValueError):
        draw(order, start, end, "tn")


def test_the_masks_drawn_in_the_documentation(capsys):
    """The code in `docs/grammar.md` prints the drawings there; paste its output after a change."""
    page = (Path(__file__).parents[2] / "docs" / "grammar.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/grammar.md", "exec"), {})
    printed = capsys.readouterr().out
    drawn = re.findall(r"```text\n(  P .*?)```", page, re.DOTALL)
    assert len(drawn) == 3 and printed == "".join(drawn)
