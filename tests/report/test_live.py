"""The piece of a page that the live studio shows."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np

from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.report.live import live_strip, live_style

HOSTILE = "<img src=x onerror=alert(1)>\"'${alert(1)}{{ alert(1) }}</bdi><script>alert(1)</script>"
PICTURE = np.zeros((8, 8, 3), np.uint8)
STEP = Step(plan_text("add a star", "a star"), PICTURE, "No star. <refine>a star</refine>", None)


class Elements(HTMLParser):
    """Elements with their attributes, and the text outside of tags."""

    def __init__(self, html):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_it_shows_how_far_a_painting_is():
    begun = live_strip(Trajectory("a star", steps=(Step(STEP.plan),)), busy="painting a sketch")
    assert "live-pulse" in begun and "add a star" in begun and "painting a sketch" in begun
    drawn = live_strip(Trajectory("a star", steps=(STEP,), final_image=PICTURE))
    assert "live-pulse" not in drawn and "data:image/png;base64," in drawn
    assert "✗ fault" in drawn and "final" not in drawn
    assert "live-strip" not in live_strip(Trajectory("a star"), busy="writing a plan")


def test_one_shot_stands_beside():
    shot = Trajectory(
        "a star", mode="one_shot", final_image=PICTURE, sampled=Sampled(0, 0, 0, 16, 1.0)
    )
    text = Elements(live_strip(Trajectory("a star", steps=(STEP,)), one_shot=shot)).text
    assert "one shot" in text and "16 NFE" in text


def test_hostile_words_stay_words():
    step = dataclasses.replace(STEP, plan=HOSTILE, inspection=f"{HOSTILE} <refine>{HOSTILE}")
    html = live_strip(Trajectory(HOSTILE, steps=(step,)), busy="busy", error=HOSTILE)
    page = Elements(html)
    assert page.text.count(HOSTILE) == 5  # the inspection has it twice
    images = [attrs for tag, attrs in page.found if tag == "img"]
    assert [set(attrs) for attrs in images] == [{"class", "src", "alt"}]
    assert not [tag for tag, _ in page.found if tag == "script"]
    assert Elements(HOSTILE).found[0][0] == "img"  # what the parser finds where nothing is escaped


def test_every_class_has_its_style():
    style = live_style()
    for name in ("live-strip", "live-faulty", "live-pulse", "live-error", "live-one-shot"):
        assert f".{name}" in style
