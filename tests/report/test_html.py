"""The HTML report: complete, self-contained, and every outside text inert."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Sampled, Step, Trajectory, decode_image, plan_text
from process_gen.evaluation.strokes import TAGS, score, verdicts
from process_gen.report.html import write_report

RNG = np.random.default_rng(0)
HOSTILE = (
    '<script>alert(1)</script></script><img src=x onerror=alert(2)> " \' onload="alert(3)" '
    '</ins></des></title></style></textarea><a href="javascript:alert(4)">{{ 7 * 7 }}{% x %}'
    "<|vision_start|> ]]> --> &lt; &#60; \u202e\x00\ud800 😀"
)


def image(side=8):
    return RNG.integers(0, 256, (side, side, 3), np.uint8)


def painting(text="a red circle", tag="colors"):
    sketch, refined = image(), image()
    steps = (
        Step(
            plan_text(text, text), sketch, f"{text} should <refine>{text}</refine>", None, refined
        ),
        Step(plan_text("add", "all"), refined, "seen: all. the picture is complete."),
    )
    metadata = {"tag": tag, "include": [{"class": "circle", "count": 1}], "prompt": "p"}
    return Trajectory(
        text,
        steps=steps,
        final_image=refined,
        finish_reason="finished",
        metadata=metadata,
        sampled=Sampled(0, 0, 7, 21, 0.5),
    )


class Page(HTMLParser):
    """Collects elements, their attributes and texts, as a browser would split them."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self.texts, self.scripts, self.open = [], [], [], []
        self.feed(path.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data):
        kept = self.scripts if self.open and self.open[-1] == "script" else self.texts
        kept.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


@dataclasses.dataclass
class Verdict:
    geneval: bool
    exact: bool


def judge(image, metadata):
    return Verdict(True, bool(image[0, 0, 0] > 127))


def write(path, trajectories, **given):
    write_report(path, trajectories, **given)
    return Page(path)


def active(page):
    """What a browser would run or fetch: scripts, handlers, script URLs, addresses."""
    found = ["script"] * len(page.all("script"))
    for tag, attrs in page.elements:
        found += [f"{tag} {name}" for name in attrs if name.startswith("on")]
        found += [f"{tag} style" for name in attrs if name == "style"]
        for name in ("src", "href", "action", "srcset", "xlink:href", "formaction"):
            value = attrs.get(name)
            if value is not None and not re.match(r"data:image/(png|webp);base64,|#", value):
                found.append(f"{tag} {name}={value}")
    return found


def test_hostile_text_is_inert_everywhere(tmp_path):
    hostile = painting(HOSTILE, tag="colors")
    broken = dataclasses.replace(
        hostile, steps=(Step(HOSTILE, image(), "<refine>" + HOSTILE),), finish_reason="malformed"
    )
    foreign = dataclasses.replace(hostile, metadata={"tag": HOSTILE}, text=HOSTILE)
    page = write(
        tmp_path / "report.html",
        [hostile, broken, foreign],
        verdicts=[{HOSTILE: True}, {HOSTILE: False}, None],
        title=HOSTILE,
        settings={HOSTILE: HOSTILE, "nested": {"x": HOSTILE}},
        scores=score([hostile], judge),
        curves=[{"step": 1, "split": "train", f"{HOSTILE}_ce": 1.0}],
    )
    assert active(page) == ["script"]
    assert len(page.all("article")) == 3 and len(page.all("title")) == 1
    assert not {"a"} & {tag for tag, a in page.elements if a.get("href") != "#paintings"}
    assert page.text.count("<script>alert(1)</script>") > 10  # shown as the text it is
    assert "{{ 7 * 7 }}" in page.text and "49" not in page.text
    assert page.all("h3")[0] == {} and "".join(page.scripts).count("alert") == 0


def test_the_check_of_inertness_can_fail(tmp_path):
    path = tmp_path / "report.html"
    write(path, [painting()])
    text = path.read_text()
    for evil, kind in (
        ("<script>1</script>", "script"),
        ("<img src=x>", "img src=x"),
        ("<p onclick=x>", "p onclick"),
        ("<a href='javascript:x'>", "a href=javascript:x"),
    ):
        path.write_text(text.replace("<h2", evil + "<h2", 1))
        assert kind in active(Page(path))[:2]


def test_the_policy_allows_exactly_our_style_and_script(tmp_path):
    path = tmp_path / "report.html"
    page = write(path, [painting()])
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; img-src data:")
    text = path.read_text()
    for tag in ("script", "style"):
        body = re.search(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
        assert (
            base64.b64encode(hashlib.sha256(b"x" + body.encode()).digest()).decode() not in policy
        )


def test_everything_is_shown(tmp_path):
    paintings = [painting(f"prompt {i}", tag) for i, tag in enumerate(TAGS)]
    page = write(
        tmp_path / "deep" / "report.html",
        paintings,
        verdicts=[verdicts(t, judge) for t in paintings],
        title="My report",
        settings={"sampler": {"guidance": 1.5}, "seed": 7},
        scores=score(paintings, judge),
        curves=[{"step": s, "split": "train", "plan_ce": 5.0 / s} for s in (1, 2, 3)],
    )
    for words in (
        "My report",
        "7 paintings: 7 in process mode",
        "95 % intervals",
        "overall 7",
        "format valid",
        "plan_ce",
        "sampler.guidance 1.5",
        "prompt 6",
        "as commanded",
        "the picture is complete.",
        "✗ fault",
        "✓ final",
        "✓ geneval",
        "21 NFE",
        "0.50 s",
        "prompt 0, sample 0, seed 7",
    ):
        assert words in page.text, words
    assert {a["data-tag"] for a in page.all("article")} == set(TAGS)
    assert all("geneval:right" in a["data-verdict"].split("|") for a in page.all("article"))
    assert len(page.all("img")) == 7 * 3  # the finished picture is the last sketch, shown once
    assert all(a["alt"] and a["class"] == "small" for a in page.all("img"))
    assert [a["name"] for a in page.all("select")] == [
        "tag",
        "verdict",
        "sort",
    ]  # one ending: no filter
    assert "hidden" in page.all("form")[0]


def test_small_pictures_are_kept_pixel_by_pixel(tmp_path):
    trajectory = Trajectory("p", mode="one_shot", final_image=image(32), finish_reason="finished")
    source = write(tmp_path / "r.html", [trajectory]).all("img")[0]["src"]
    kept = decode_image(base64.b64decode(source.split(",")[1]))
    assert np.array_equal(kept, trajectory.final_image)
    assert not np.array_equal(kept, image(32))


def test_large_pictures_are_shrunk(tmp_path):
    large = np.zeros((600, 1200, 3), np.uint8)
    page = write(tmp_path / "r.html", [Trajectory("p", mode="one_shot", final_image=large)])
    (img,) = page.all("img")
    assert (img["width"], img["height"]) == ("512", "256") and "class" not in img
    assert img["src"].startswith("data:image/webp")


def test_training_data_and_other_modes(tmp_path):
    given = [
        dataclasses.replace(painting(), finish_reason=None, sampled=None, metadata={}),
        Trajectory("what is it?", mode="understand", inputs=(image(),), text="a cat"),
        Trajectory("refused", mode="one_shot", finish_reason="refused"),
    ]
    page = write(tmp_path / "r.html", given)
    assert "a cat" in page.text and "no picture" in page.text
    unsampled = write(tmp_path / "s.html", given[:2])
    assert "format valid" in page.text and "format valid" not in unsampled.text
    assert "0 paintings" in write(tmp_path / "t.html", []).text


def test_verdicts_must_match(tmp_path):
    with pytest.raises(DataError, match="1 verdicts for 2 paintings"):
        write_report(tmp_path / "r.html", [painting(), painting()], verdicts=[None])
    assert not (tmp_path / "r.html").exists()


def test_a_thousand_paintings(tmp_path):
    paintings = [painting(f"prompt {i}") for i in range(1000)]
    scores = json.loads(json.dumps(score(paintings, judge)))  # as read back from a file
    page = write(tmp_path / "r.html", paintings, scores=scores)
    assert len(page.all("article")) == 1000
    assert (tmp_path / "r.html").stat().st_size < 1000 * 6000
