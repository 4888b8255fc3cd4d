"""The strokes suite over a stand-in judge that reads the picture's first pixel."""

import dataclasses
import json

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Trajectory
from process_gen.evaluation.strokes import TAGS, score, table, verdicts


@dataclasses.dataclass
class Verdict:
    geneval: bool
    exact: bool


def judge(image, metadata):
    """Pixel value 2 is exact, 1 only geneval, 0 wrong."""
    assert "include" in metadata
    level = int(image[0, 0, 0])
    return Verdict(geneval=level >= 1, exact=level >= 2)


def painting(tag, level, prompt="p"):
    image = None if level is None else np.full((4, 4, 3), level, np.uint8)
    metadata = {
        "tag": tag,
        "include": [{"class": "circle", "count": 1}],
        "prompt": prompt,
    }
    reason = "finished" if image is not None else "malformed"
    return Trajectory(
        prompt,
        mode="one_shot",
        final_image=image,
        finish_reason=reason,
        metadata=metadata,
    )


def suite(levels=(2, 2, 1, 0)):
    return [painting(tag, x, f"p{i}") for tag in TAGS for i, x in enumerate(levels)]


def test_score_counts_both_verdicts_per_tag():
    report = json.loads(json.dumps(score(suite(), judge)))
    assert list(report["tags"]) == list(TAGS)
    assert report["n"] == 28 and report["missing_tags"] == []
    for row in report["tags"].values():
        assert (row["n"], row["prompts"], row["no_image"]) == (4, 4, 0)
        assert (row["exact"]["rate"], row["geneval"]["rate"]) == (0.5, 0.75)
        assert row["exact"]["low"] < 0.5 < row["exact"]["high"]
    assert report["overall"]["exact"]["rate"] == 0.5
    assert report["process"]["finish_reasons"] == {"finished": 28}


def test_a_painting_without_picture_is_wrong_not_skipped():
    full = score([painting("colors", 2)] * 3, judge)
    part = score([painting("colors", 2)] * 3 + [painting("colors", None)], judge)
    assert full["tags"]["colors"]["exact"]["rate"] == 1.0
    row = part["tags"]["colors"]
    assert (row["n"], row["no_image"], row["exact"]["rate"]) == (4, 1, 0.75)
    assert part["process"]["format_valid"]["hits"] == 3


def test_overall_is_the_mean_of_tags_present():
    paintings = [painting("colors", 2)] * 9 + [painting("complex", 0)]
    report = score(paintings, judge)
    assert report["overall"]["exact"]["rate"] == 0.5  # not 0.9, the share of pictures
    assert report["missing_tags"] == [t for t in TAGS if t not in ("colors", "complex")]


def test_verdicts_for_the_report():
    assert verdicts(painting("colors", 1), judge) == {"exact": False, "geneval": True}
    assert verdicts(painting("colors", None), judge) == {
        "exact": False,
        "geneval": False,
    }
    assert verdicts(Trajectory("free text"), judge) is None
    foreign = painting("colors", 2)
    foreign.metadata["include"][0]["class"] = "bench"  # GenEval's own prompts are not ours to judge
    assert verdicts(foreign, judge) is None


def test_refuses_what_it_cannot_judge():
    with pytest.raises(DataError, match="no paintings"):
        score([], judge)
    with pytest.raises(DataError, match="painting 1 .*'colour'"):
        score([painting("colors", 2), painting("colour", 2)], judge)
    with pytest.raises(DataError, match="painting 0 .*'include'"):
        score([Trajectory("p", metadata={"tag": "colors", "prompt": "p"})], judge)


def test_table_lines_up():
    text = table(score(suite() + [painting("counting", None)], judge))
    lines = text.splitlines()
    assert len(lines) == 1 + len(TAGS) + 1
    assert len({line.index("[") for line in lines[1:]}) == 1
    assert lines[-1].startswith("overall") and "48.6" in lines[-1]
    partial = table(score([painting("colors", 2)], judge))
    assert "overall leaves out: single_object" in partial
