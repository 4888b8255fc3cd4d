"""Format validity names the first broken rule; counts and means."""

import dataclasses
import json

import numpy as np
import pytest

from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.evaluation.process_metrics import format_fault, summarize

RED = np.full((8, 8, 3), (230, 38, 38), np.uint8)
GREEN = np.full((8, 8, 3), (38, 191, 64), np.uint8)
PLAN = plan_text("add a red circle at top left", "a red circle at top left")
FAULT = "it should be red, it is green. <refine>change it to red</refine>"
GOOD = Step(PLAN, RED, "the picture is complete.")
REPAIRED = Step(PLAN, GREEN, FAULT, None, RED)


def process(*steps: Step, **fields) -> Trajectory:
    fields = {"finish_reason": "finished", "final_image": RED} | fields
    return Trajectory("a red circle", steps=steps, **fields)


@pytest.mark.parametrize(
    "trajectory",
    [
        process(GOOD),
        process(REPAIRED, GOOD),
        process(dataclasses.replace(REPAIRED, refined_plan=PLAN)),
        process(dataclasses.replace(GOOD, inspection=None)),
        Trajectory("x", mode="one_shot", final_image=RED, finish_reason="finished"),
        Trajectory("x", mode="understand", text="a circle", finish_reason="finished"),
    ],
)
def test_valid(trajectory):
    assert format_fault(trajectory) is None


@pytest.mark.parametrize(
    ("trajectory", "fault"),
    [
        (process(GOOD, finish_reason="max_images"), "ended with max_images"),
        (process(GOOD, finish_reason=None), "ended with None"),
        (process(), "no steps"),
        (
            process(GOOD, dataclasses.replace(GOOD, plan="<ins>a</ins>")),
            "step 1: the plan",
        ),
        (
            process(dataclasses.replace(REPAIRED, refined_plan="a")),
            "step 0: the re-emitted plan",
        ),
        (
            process(dataclasses.replace(GOOD, sketch=None, inspection=None)),
            "step 0: no sketch",
        ),
        (process(dataclasses.replace(GOOD, inspection="a <refine>b")), "unbalanced"),
        (process(dataclasses.replace(GOOD, inspection="b</refine> a")), "unbalanced"),
        (process(dataclasses.replace(REPAIRED, refined=None)), "none painted"),
        (process(dataclasses.replace(GOOD, refined=RED)), "nothing commanded"),
        (Trajectory("x", mode="one_shot", finish_reason="finished"), "no picture"),
    ],
)
def test_faults_are_named(trajectory, fault):
    assert fault in format_fault(trajectory)


def test_summary():
    done = process(REPAIRED, sampled=Sampled(0, 0, 0, nfe=20, seconds=1.0))
    cut = process(GOOD, finish_reason="max_images", sampled=Sampled(1, 0, 0, nfe=10, seconds=2.0))
    bad = process(dataclasses.replace(GOOD, plan="x"))
    worse = process(GOOD, dataclasses.replace(GOOD, plan="x"))
    summary = json.loads(json.dumps(summarize([done, cut, bad, worse])))
    assert summary["n"] == 4
    assert summary["format_valid"]["hits"] == 1
    assert summary["format_faults"] == {
        "the plan does not parse": 2,
        "ended with max_images": 1,
    }
    assert summary["finish_reasons"] == {"finished": 3, "max_images": 1}
    assert summary["modes"] == {"process": 4}
    assert (summary["images"], summary["steps"]) == (6 / 4, 5 / 4)
    assert (summary["nfe"], summary["seconds"]) == (
        15,
        1.5,
    )  # over the two that were sampled


def test_summary_of_nothing():
    summary = summarize([])
    assert summary["n"] == 0 and summary["images"] is None
    assert summary["format_valid"]["rate"] is None
