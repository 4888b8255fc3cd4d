"""The pages in a real headless Chromium: search, filter, sort, fold, enlarge, nothing that runs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from process_gen.core.trajectory import Sampled, Step, Trajectory, plan_text
from process_gen.evaluation import judged
from process_gen.report.comparison import compare
from process_gen.report.comparison_page import write_comparison
from process_gen.report.html import write_report
from process_gen.report.runs import read_run
from process_gen.sampling import records

HOSTILE = (
    '<img src=x onerror="document.title=1"><script>document.title=2</script></script></style>'
    "</bdi></article><b onclick=x>bold</b> {{ 7 * 7 }} &lt;i&gt; \u202e\x00\ud800 javascript:x"
)
TAGS = ("colors", "counting", "position")


def picture(level, side=8):
    return np.full((side, side, 3), level % 256, np.uint8)


def painting(i, prompt=None):
    """Painting `i` has i % 3 + 1 steps; every other one has a fault that was mended."""
    prompt = prompt or f"prompt {i}"
    steps = [
        Step(plan_text(f"add {i}", "all"), picture(i + k), f"seen: it. part {k} fits.")
        for k in range(i % 3 + 1)
    ]
    if i % 2:
        said = f"part {i} should be blue. <refine>make {prompt} blue</refine>"
        steps[0] = dataclasses.replace(steps[0], inspection=said, refined=picture(200 + i))
    return Trajectory(
        prompt,
        steps=tuple(steps),
        final_image=steps[-1].image,
        finish_reason="finished" if i % 5 else "max_images",
        metadata={"tag": TAGS[i % 3]},
        sampled=Sampled(i, 0, 7, 100 - i, 0.5 + i % 4),
    )


class Visit:
    """A page that is open, and what it complains of."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(viewport={"width": 1300, "height": 900}, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # ms; the machine may be busy
        self.complaints, self.asked = [], []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())

    def shown(self):
        """Prompts that can be seen, from the top; `innerText` of what is off screen is empty."""
        prompt = "a => a.querySelector('h3').textContent"
        return self.page.eval_on_selector_all(
            "article", f"all => all.filter(a => !a.hidden).map({prompt})"
        )

    def close(self):
        self.context.close()
        assert self.complaints == []
        assert all(url.startswith(("file:", "data:")) for url in self.asked), self.asked


@pytest.fixture
def visit(browser):
    visits = []

    def open_page(path, **options):
        visits.append(Visit(browser, path, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    paintings = [painting(i) for i in range(12)] + [painting(12, HOSTILE)]
    verdicts = [{"exact": i % 4 != 0, "wiscore": i / 16} for i in range(12)] + [{HOSTILE: True}]
    write_report(path, paintings, verdicts=verdicts, title="A report", settings={"x": HOSTILE})
    return path


def test_search_filter_and_sort(visit, report):
    me = visit(report)
    page, count = me.page, me.page.locator("output")
    assert count.inner_text() == "13 of 13 shown" and len(me.shown()) == 13
    page.fill("input[type=search]", "PROMPT 1")
    assert me.shown() == ["prompt 1", "prompt 10", "prompt 11"]
    page.fill("input[type=search]", "should blue")
    assert me.shown() == [] and page.is_visible("text=No painting fits")
    page.check("[name=deep]")  # the words of inspections
    assert me.shown() == [f"prompt {i}" for i in (1, 3, 5, 7, 9, 11)]
    page.select_option("[name=steps]", "2")
    assert me.shown() == ["prompt 1", "prompt 7"]
    page.click("text=clear")
    from playwright.sync_api import expect  # where it is missing, `browser` skips

    # Not `wait_for_function`: when its first look fails it looks again from inside of the page,
    # whose policy forbids `eval`.
    expect(count).to_have_text("13 of 13 shown", timeout=120_000)
    page.select_option("[name=tag]", "counting")
    assert me.shown() == ["prompt 1", "prompt 4", "prompt 7", "prompt 10"]
    page.select_option("[name=verdict]", "exact:wrong")
    assert me.shown() == ["prompt 4"] and count.inner_text() == "1 of 13 shown"
    page.select_option("[name=verdict]", "")
    page.select_option("[name=tag]", "")
    page.select_option("[name=end]", "max_images")
    assert me.shown() == ["prompt 0", "prompt 5", "prompt 10"]
    page.select_option("[name=end]", "finished")
    page.select_option("[name=sort]", "steps")
    assert me.shown()[:3] == ["prompt 2", "prompt 8", "prompt 11"]
    page.select_option("[name=sort]", "wrong")
    assert me.shown()[:2] == ["prompt 4", "prompt 8"]  # "wrong", then the smaller score
    page.select_option("[name=sort]", "slowest first")
    assert me.shown()[:2] == ["prompt 3", "prompt 7"]
    page.select_option("[name=sort]", "order")
    assert me.shown()[:2] == ["prompt 1", "prompt 2"]


def test_fold_and_enlarge(visit, report):
    me = visit(report)
    page = me.page
    words = page.locator("article").nth(1).locator(".instruction").first
    assert words.is_visible()
    page.locator(".fold").nth(1).click()
    assert not words.is_visible()
    assert page.locator(".fold").nth(1).get_attribute("aria-expanded") == "false"
    assert page.locator("article").nth(2).locator(".instruction").first.is_visible()
    page.uncheck("[name=words]")
    assert page.locator(".strip p:visible").count() == 0
    page.check("[name=words]")
    assert words.is_visible()

    page.locator("article").nth(1).locator(".zoom").first.click()
    view = page.locator("dialog")
    assert view.is_visible() and "1 · sketch (1 of 3)" in view.inner_text()
    assert "part 1 should be blue." in view.inner_text()
    page.keyboard.press("ArrowRight")
    assert "1 · refined (2 of 3)" in view.inner_text()
    page.click("dialog .before")
    page.keyboard.press("ArrowLeft")
    assert "2 · sketch (3 of 3)" in view.inner_text()
    page.keyboard.press("Escape")
    assert not view.is_visible()


def test_everything_by_keyboard(visit, report):
    me = visit(report)
    page = me.page
    page.keyboard.press("/")
    page.keyboard.insert_text("prompt 1")
    assert me.shown() == ["prompt 1", "prompt 10", "prompt 11"]
    page.keyboard.press("Escape")
    at = "document.activeElement.querySelector('h3')?.textContent"
    places = []
    for key in "jjjjk":
        page.keyboard.press(key)
        places.append(page.evaluate(at))
    assert places == ["prompt 1", "prompt 10", "prompt 11", "prompt 11", "prompt 10"]
    page.keyboard.press("o")
    assert page.evaluate("document.activeElement.classList.contains('folded')")
    page.keyboard.press("Tab")  # its button, then its first picture
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.is_visible("dialog")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.className") == "zoom"  # back where one was


def test_a_screen_reader_finds_names(visit, report):
    page = visit(report).page
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, img')]
        .filter(e => !(e.closest('label')?.textContent || e.textContent || e.alt ||
                       e.querySelector('img')?.alt)).map(e => e.outerHTML)""")
    assert nameless == []
    levels = page.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(e => +e.tagName[1])")
    assert levels[0] == 1
    assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.locator("output[aria-live=polite]").count() == 1
    assert page.locator("main").count() == 1 and page.get_attribute("html", "lang") == "en"


def test_hostile_words_stay_words(visit, report):
    me = visit(report)
    page = me.page
    assert page.title() == "A report" and page.locator("article").count() == 13
    assert page.locator("img[src=x], article b, [onclick]").count() == 0
    shown = page.locator("article").last.text_content()
    assert "<img src=x onerror=" in shown and "{{ 7 * 7 }}" in shown and "&lt;i&gt;" in shown
    page.locator(".zoom").last.click()
    assert page.locator("dialog img").count() == 1 and page.title() == "A report"
    # Read as HTML, the same text is an element: the check above can fail.
    read = "text => new DOMParser().parseFromString(text, 'text/html').images.length"
    assert page.evaluate(read, HOSTILE.replace("\ud800", "")) == 1
    # And what the page itself would inject may not run.
    with page.expect_console_message() as told:
        page.evaluate("""() => { const s = document.createElement('script');
            s.textContent = "document.title = 'ran'"; document.body.append(s); }""")
    assert page.title() == "A report"
    assert me.complaints == [told.value.text] and "Content Security Policy" in me.complaints.pop()


def test_dark_and_light_and_without_scripts(visit, report):
    paper = "getComputedStyle(document.body).backgroundColor"
    colours = {visit(report, color_scheme=s).page.evaluate(paper) for s in ("dark", "light")}
    assert colours == {"rgb(15, 18, 22)", "rgb(255, 255, 255)"}
    plain = visit(report, java_script_enabled=False).page
    assert plain.locator("article:visible").count() == 13
    assert plain.locator("form:visible, .fold:visible").count() == 0


def test_a_narrow_screen_does_not_scroll_sideways(visit, report):
    page = visit(report).page
    page.set_viewport_size({"width": 390, "height": 800})
    wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert page.evaluate("innerWidth") == 390 and page.evaluate(wide) <= 0
    page.evaluate("document.querySelector('main').style.width = '500px'")
    assert page.evaluate(wide) > 0


def test_a_thousand_paintings_open(visit, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, [painting(6 * i, f"prompt {i}") for i in range(1000)])
    assert path.stat().st_size < 3e6
    me = visit(path)
    me.page.fill("input[type=search]", "prompt 99")
    assert len(me.shown()) == 19
    me.page.select_option("[name=sort]", "nfe")
    assert me.shown()[0] == "prompt 99" and me.shown()[-1] == "prompt 999"


def test_two_runs_side_by_side(visit, tmp_path):
    for name, right in (("a", (0, 1)), ("b", (1, 2))):
        with records.Recorder(tmp_path / name) as recorder:
            lines = [
                judged.of_record(recorder.add(painting(i, prompt)), {"exact": i in right})
                for i, prompt in enumerate((HOSTILE[:60], "second", "third", "fourth"))
            ]
        judged.write(tmp_path / name, lines)
    runs = [read_run(tmp_path / name, name) for name in "ab"]
    write_comparison(tmp_path / "compare.html", compare(runs), runs)
    me = visit(tmp_path / "compare.html")
    page = me.page
    assert page.locator("article").count() == 4 and page.locator(".side").count() == 8
    boxes = [page.locator(".side").nth(i).bounding_box() for i in (2, 3)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    for outcome, prompts in (
        ("exact: only a", [HOSTILE[:60]]),
        ("exact: only b", ["third"]),
        ("exact: all", ["second"]),
        ("exact: none", ["fourth"]),
    ):
        page.select_option("[name=outcome]", outcome)
        assert me.shown() == prompts
    assert "Comparison" in page.title() and page.locator("table.rates").count() >= 1
    page.locator(".zoom:visible").first.click()
    assert page.is_visible("dialog")
