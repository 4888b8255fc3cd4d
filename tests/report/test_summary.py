"""Terminal summary."""

import io

from rich.console import Console

from process_gen.core.trajectory import Trajectory
from process_gen.evaluation.strokes import TAGS, score
from process_gen.report.summary import show

INCLUDE = [{"class": "circle", "count": 1}]


def printed(**given):
    out = io.StringIO()
    show(console=Console(file=out, width=80), **given)
    return out.getvalue()


def test_scores_fit_a_terminal():
    metadata = [{"tag": tag, "include": INCLUDE, "prompt": "[bold]p"} for tag in TAGS]
    paintings = [Trajectory("p", metadata=m, finish_reason="max_text") for m in metadata]
    text = printed(scores=score(paintings, judge=lambda image, metadata: None))
    rows = [line for line in text.splitlines() if line.strip()]
    assert max(map(len, rows[:-1])) <= 80
    assert all(any(row.strip().startswith(tag) for row in rows) for tag in (*TAGS, "overall"))
    assert "0.0 to 35.4" in text  # Wilson's upper limit of 0 of 7, for overall
    assert rows[-1] == "7 max_text; format valid 0.0%; 0.0 pictures a painting"


def test_losses_first_and_last():
    history = [
        {"step": s, "split": "train", "loss": 9.0 - s, "inspect_ce": 1 / s} for s in (1, 2, 4)
    ]
    lines = printed(history=history + [{"step": 4, "split": "eval", "loss": 5.5}]).splitlines()
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert rows["loss"] == ["8", "5", "5.5", "5.5"]
    assert rows["inspect_ce"] == ["1", "0.25"]


def test_nothing_given_prints_nothing():
    assert printed() == ""


def test_names_are_no_markup():
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    row = {"n": 9, "exact": rate}
    scores = {"suite": "[/x]", "n": 9, "confidence": 0.95, "tags": {"run[v2]": row}}
    text = printed(scores={**scores, "overall": {"exact": rate}}, rates={":bug:[b]": rate})
    assert all(name in text for name in ("[/x]", "run[v2]", ":bug:[b]"))
