from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from process_gen.core.attention_mask import NEVER, PAD_ORDER, dense_mask
from process_gen.kernels.block_visits import (
    PAIR_BITS,
    visit_lists,
    visited_blocks,
    walks,
    whole_blocks,
)
from tests.kernels.packs import random_places, real_places


def needed(place, block_q, block_k):
    """Pairs of blocks in which some query sees some key, by the rule itself."""
    mask = np.asarray(dense_mask(place.order, place.visible_from, place.visible_to))
    b, sq, sk = mask.shape
    mask = np.pad(mask, ((0, 0), (0, -sq % block_q), (0, -sk % block_k)))
    cut = mask.reshape(b, mask.shape[1] // block_q, block_q, mask.shape[2] // block_k, block_k)
    return cut.any((2, 4))


@pytest.fixture(scope="module", params=["real", "random"])
def place(request):
    return real_places("strokes_tiny", 20) if request.param == "real" else random_places(20, 200)


@pytest.mark.parametrize("sizes", [(16, 16), (64, 16), (48, 32)])
def test_whoever_sees_is_visited(place, sizes):
    visited = np.asarray(visited_blocks(*place[:3], *sizes))
    must = needed(place, *sizes)
    assert visited.shape == must.shape and np.all(visited | ~must)
    assert not np.all(visited[:, 1:] | ~must[:, :-1])  # other blocks would not do


@pytest.mark.parametrize("sizes", [(16, 16), (64, 16), (48, 32)])
def test_whole_blocks_need_no_mask(place, sizes):
    """Whoever is called whole sees everything; of real packs many blocks are."""
    whole = np.asarray(whole_blocks(*place[:3], *sizes))
    mask = np.asarray(dense_mask(place.order, place.visible_from, place.visible_to))
    b, sq, sk = mask.shape
    mask = np.pad(mask, ((0, 0), (0, -sq % sizes[0]), (0, -sk % sizes[1])))
    cut = mask.reshape(b, mask.shape[1] // sizes[0], sizes[0], mask.shape[2] // sizes[1], sizes[1])
    seen = cut.all((2, 4))
    assert np.all(seen | ~whole) and np.all(np.asarray(visited_blocks(*place[:3], *sizes)) | ~whole)
    if whole.any():
        assert not np.all(seen[:, 1:] | ~whole[:, :-1])  # other blocks would not do


def test_real_packs_have_whole_blocks():
    place = real_places("strokes_tiny", 20)
    assert 0.02 < np.asarray(whole_blocks(*place[:3], 16, 16)).mean() < 0.1


def test_real_packs_skip_most_blocks():
    place = real_places("strokes_tiny", 20)
    visited = np.asarray(visited_blocks(*place[:3], 16, 16))
    assert visited.mean() < 0.35
    everything = place._replace(visible_from=place.order * 0, visible_to=place.order * 0 + NEVER)
    assert np.asarray(visited_blocks(*everything[:3], 16, 16)).mean() > 0.6  # all but padding


def test_padding_neither_visits_nor_is_visited():
    order = np.array([[0, 1, 2, 3, PAD_ORDER, PAD_ORDER]], np.int32)
    start = np.array([[0, 0, NEVER, NEVER, 9, NEVER]], np.int32)
    end = np.array([[9, 9, PAD_ORDER, PAD_ORDER, 9, PAD_ORDER]], np.int32)
    visited = np.asarray(visited_blocks(order, start, end, 2, 2))[0]
    assert visited.tolist() == [[True, False, False], [True, False, False], [False, False, False]]
    # A padded query beside a real one does not widen the span of their block.
    mixed = np.array([[5, PAD_ORDER]], np.int32)
    early, late = np.array([[0, 0]], np.int32), np.array([[3, 5]], np.int32)
    assert not np.asarray(visited_blocks(mixed, early, early + 3, 2, 2)).any()
    assert np.asarray(visited_blocks(mixed, early, late, 2, 2)).all()


def test_lists_name_every_visit():
    visited = np.random.default_rng(0).random((5, 7)) < 0.4
    index, count = (np.asarray(x) for x in visit_lists(jnp.asarray(visited)))
    for i, row in enumerate(visited):
        assert index[i, : count[i]].tolist() == np.flatnonzero(row).tolist()


@pytest.mark.parametrize("blocks", [1, 2, 5, 6])
def test_walks_make_every_visit_once_block_after_block(blocks):
    visited = np.random.default_rng(blocks).random((3, blocks, 7)) < 0.3
    visited[0, 0] = False
    walk = walks(jnp.asarray(visited))
    pairs, count = np.asarray(walk.pairs_BxPxN), np.asarray(walk.count_BxP)
    assert pairs.shape[1] == min(2, blocks)
    for row, own in enumerate(visited):
        seen = set()
        for part in range(pairs.shape[1]):
            steps = pairs[row, part, : count[row, part]]
            mine = [(int(p) >> PAIR_BITS, int(p) & ((1 << PAIR_BITS) - 1)) for p in steps]
            assert mine == sorted(mine) and not seen & set(mine)
            assert {i for i, _ in mine} == set(range(part, blocks, pairs.shape[1]))
            assert np.all(pairs[row, part, count[row, part] :] == steps[-1])
            seen |= set(mine)
        idle = {(i, 0) for i in np.flatnonzero(~own.any(1))}
        assert seen == {(i, j) for i, j in np.argwhere(own)} | idle
