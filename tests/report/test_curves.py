"""History file and loss curves."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import decode_image
from process_gen.report.curves import POINTS, charts, compared, curves, read_history, series

HISTORY = [
    {
        "step": s,
        "split": "train",
        "loss": 8.0 / s,
        "plan_ce": 1.0 + 1 / s,
        "rate": 5.0,
        "seconds": s,
    }
    for s in range(1, 50)
] + [{"step": 40, "split": "eval", "loss": 0.3, "exact": 0.5}]


def write(path, records, end="\n"):
    path.write_text("\n".join(json.dumps(r) for r in records) + end)
    return path


def test_history_is_read_sorted(tmp_path):
    path = write(tmp_path / "metrics.jsonl", HISTORY[::-1])
    history = read_history(path)
    assert [r["step"] for r in history] == [*range(1, 40), 40, 40, *range(41, 50)]
    assert len(history) == len(HISTORY)


def test_a_resumed_run_replaces_its_steps(tmp_path):
    again = {"step": 3, "split": "train", "loss": 99.0}
    history = read_history(write(tmp_path / "m.jsonl", [*HISTORY, again]))
    assert [r["loss"] for r in history if r["step"] == 3] == [99.0]
    assert len(history) == len(HISTORY)


def test_a_last_line_cut_off_is_dropped_but_no_other(tmp_path):
    path = write(tmp_path / "m.jsonl", HISTORY, end='\n{"step": 50, "spl')
    assert len(read_history(path)) == len(HISTORY)
    path.write_text('{"step": 1\n{"step": 2, "split": "train"}\n')
    with pytest.raises(DataError, match="line 1"):
        read_history(path)
    path.write_text('{"step": 50, "spl\n')  # a whole line, so not cut off
    with pytest.raises(DataError, match="line 1"):
        read_history(path)


@pytest.mark.parametrize("line", ["[]", '{"step": "1", "split": "train"}', '{"step": 1}'])
def test_lines_of_another_kind_are_refused(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(DataError, match="'step' and 'split'"):
        read_history(path)
    with pytest.raises(DataError, match="no training history"):
        read_history(tmp_path / "none.jsonl")


def test_series_hold_losses_and_scores_only():
    found = series([*HISTORY, {"step": 60, "split": "train", "loss": float("nan")}])
    assert list(found) == ["loss", "plan_ce", "exact"]
    assert list(found["loss"]) == ["train", "eval"]
    assert len(found["loss"]["train"]) == 49  # the NaN is no point
    assert found["exact"] == {"eval": [(40.0, 0.5)]}


def test_charts_stay_inside_their_frame_and_follow_the_values():
    loss, plan, _ = charts(HISTORY)
    assert loss.logarithmic and not plan.logarithmic
    (_, _, last, points), (_, _, _, lone) = loss.lines
    assert last == "0.163" and len(lone) == 1
    heights = [y for _, y in points]
    assert heights == sorted(heights)  # a falling loss goes down the page
    assert all(48 <= x <= 310 and 26 <= y <= 166 for x, y in points)
    assert all(26 <= y <= 166 for y, _ in loss.y_ticks) and len(loss.y_ticks) >= 2


def test_a_long_history_is_thinned():
    long = [{"step": s, "split": "train", "loss": float(s)} for s in range(1, 10_001)]
    points = charts(long)[0].lines[0][3]
    assert 100 < len(points) <= POINTS + 1
    assert points[-1] == (310.0, 26.0)  # the last step is kept


def test_constant_and_single_values():
    for history in ([{"step": 0, "split": "eval", "loss": 0.0}], [*HISTORY[:1], *HISTORY[:1]]):
        assert charts(history)[0].lines
        ElementTree.fromstring(curves(history))


def test_svg_is_a_picture_of_its_own_and_names_are_escaped():
    hostile = {"step": 1, "split": "train", "<script>_ce": 1.0}
    text = curves([*HISTORY, hostile])
    root = ElementTree.fromstring(text)
    assert root.tag.endswith("svg") and "<script>" not in text
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 4
    assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_png_is_drawn():
    picture = decode_image(curves(HISTORY, "png"))
    assert picture.shape[0] > 200 and len(np.unique(picture)) > 10
    with pytest.raises(DataError, match="'svg' or 'png'"):
        curves(HISTORY, "gif")
    with pytest.raises(DataError, match="no losses"):
        curves([{"step": 1, "split": "train", "rate": 1.0}])


def test_more_runs_than_colours_keep_their_own_lines():
    histories = [[{"step": 1, "split": "train", "loss": float(i)}] for i in range(14)]
    (chart,), labels = compared(histories, [f"run {i}" for i in range(14)])
    assert list(labels.values()) == [f"run {i}" for i in range(14)]
    assert len({str(line) for line in chart.lines}) == 14
    assert {label.split()[0] for label in labels} == {f"run-{i}" for i in range(6)}
