from __future__ import annotations

import numpy as np
import pytest

from process_gen.core.attention_mask import dense_mask
from process_gen.core.batch import Dropout
from process_gen.core.configs import from_mapping
from process_gen.data.rows import Rows
from process_gen.report.packs import KINDS, legend, mask_drawing, mask_picture


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = from_mapping({"data": {"sources": [{"kind": "strokes", "size": 12}]}})
    return Rows(config, config.data.sources, "train", Dropout())


def test_the_picture_is_the_mask(rows):
    row = rows[0]
    picture = mask_picture(row, 10_000)
    parts = [np.stack(part[:3]) for part in row[:3]]
    place = np.concatenate(parts, axis=1)
    place = place[:, place[0] >= 0]
    place = place[:, np.argsort(place[0], kind="stable")]
    seen = (picture != 250).any(axis=2)
    assert np.array_equal(seen, dense_mask(*place))
    assert 6 <= len(np.unique(picture.reshape(-1, 3), axis=0)) <= len(KINDS) + 1


def test_a_long_pack_is_thinned(rows):
    assert max(mask_picture(rows[0], 50).shape[:2]) <= 50


def test_an_empty_pack_has_a_picture(rows):
    assert mask_picture(rows.packed([])).shape == (1, 1, 3)


def test_only_short_packs_are_drawn_in_letters(rows):
    assert mask_drawing(rows[0]) == ""
    lines = mask_drawing(rows[0], 1000).splitlines()
    names = lines[0].split()
    assert len(lines) == len(names) + 1 and {"P", "p", "N", "i"} <= set(names)
    assert all(f"{name} " in legend() for name in set(names))
    assert all(line.split()[i + 1] == "#" for i, line in enumerate(lines[1:]))  # sees itself
