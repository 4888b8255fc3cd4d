"""The live studio, driven in a real headless Chromium, on a painter that follows a script."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from process_gen.core.errors import ConfigError
from process_gen.core.trajectory import decode_image, from_json
from tests.launch.scripted_painter import Scripted

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "<img src=x onerror=\"document.title='pwned'\"> ${document.title='pwned'} {{value}} <b>a"
WAIT = 120_000  # ms; the machine may be busy
HELD = """async (texts) => {
  for (let turn = 0; turn < 20; turn++) {
    for (const [box, text] of Object.entries(texts))
      if (document.querySelector(box).value != text) return false;
    await new Promise(done => setTimeout(done, 25));
  }
  return true;
}"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(condition):
    end = time.monotonic() + WAIT / 1e3
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


class Open:
    """A studio that is served, and the desk behind it."""

    def __init__(self, painter):
        from launch import app, app_desk, app_page

        app.prepare()
        self.painter, self.port = painter, free_port()
        self.desk = app_desk.Desk(painter)
        self.page = app_page.build(self.desk)
        self.address = app_page.serve(self.page, "127.0.0.1", self.port)

    def close(self):
        self.painter.release()
        self.page.close(verbose=False)
        self.desk.close()


@pytest.fixture(scope="module")
def studio():
    if importlib.util.find_spec("gradio") is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no gradio: extra [app]")
    opened = Open(Scripted())
    yield opened
    opened.close()


class Visit:
    """A visitor's browser window."""

    def __init__(self, browser, address):
        self.context = browser.new_context(viewport={"width": 1360, "height": 900})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT)
        self.complaints, self.hosts = [], set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self.hosts.add(request.url.split("/")[2]))
        self.page.goto(address)
        self.page.wait_for_selector("#prompt textarea")

    def _heard(self, message):
        if message.type == "error":
            self.complaints.append(message.text)

    def paint(self, prompt):
        self.page.fill("#prompt textarea", prompt)
        self.page.click("#paint")

    def wait(self, text):
        """Until the strip says `text`."""
        self.page.wait_for_selector(f"#strip .live:has-text({json.dumps(text)})")
        return self.page.inner_text("#strip .live")

    def ended(self, reason="finished"):
        self.page.wait_for_selector(f".live-end:text-is('{reason}')")
        self.page.wait_for_selector("#paint:enabled")
        return self.page.inner_text("#strip .live")

    def write(self, **texts):
        """Words into boxes. Gradio puts what the server sent there twice, some milliseconds apart,
        and overwrites what was typed between; nobody types so fast, but this does."""
        texts = {f"#{box} textarea": text for box, text in texts.items()}
        for _ in range(10):
            for box, text in texts.items():
                self.page.fill(box, text)
            if self.page.evaluate(HELD, texts):
                return
        pytest.fail(f"the page does not keep {texts}")

    def inspection(self, first, second):
        """Other words for the last inspection, once the page has put its own there."""
        box = "document.querySelector('#first textarea')"
        self.page.wait_for_function(f"{box}?.value.startsWith('Seen: nothing')")
        self.write(first=first, second=second)

    def download(self, button):
        with self.page.expect_download() as found:
            self.page.click(button)
        return found.value.suggested_filename, Path(found.value.path()).read_bytes()


@pytest.fixture
def visit(studio, browser):
    studio.desk._begun.clear()
    visits = []

    def begin():
        visits.append(Visit(browser, studio.address))
        return visits[-1]

    yield begin
    studio.painter.release()
    for one in visits:
        one.context.close()
    assert not any(one.complaints for one in visits), [one.complaints for one in visits]
    assert {host for one in visits for host in one.hosts} <= {f"127.0.0.1:{studio.port}"}


def test_paint_change_go_on_and_download(studio, visit):
    me = visit()
    studio.painter.hold(1)
    me.page.check("#beside input")
    me.paint("a star")
    me.wait("step 1: painting a sketch")  # the plan is there before its picture
    assert me.page.locator("#strip img").count() == 0 and me.page.is_disabled("#paint")
    studio.painter.release()
    text = me.ended()
    assert "paint a star" in text and "Seen: nothing." in text and "one shot" in text
    assert me.page.locator("#strip img").count() == 2

    me.inspection("Seen: no star.", "add the star")
    me.page.uncheck("#beside input")
    me.page.click("#go-on")
    me.page.wait_for_selector(".live-faulty")
    text = me.ended()
    assert "add the star" in text and "1 · refined" in text and "✗ fault" in text

    name, data = me.download("#json")
    record = json.loads(data)
    assert name == "trajectory.json" and from_json(record).steps[0].rejected
    assert record["steps"][0]["inspection"] == "Seen: no star. <refine>add the star</refine>"
    name, data = me.download("#png")
    assert name == "filmstrip.png" and decode_image(data).shape[1] > 256


def test_a_double_click_is_one(studio, visit, monkeypatch):
    """The second click changes nothing in a page that is the first one's."""
    me, ask, answers = visit(), studio.desk.ask, []

    def asked(session, wish):
        try:
            answers.append(ask(session, wish))
        except Exception as error:
            time.sleep(1)  # so that its answer is the last that the page gets
            answers.append(type(error).__name__)
            raise
        return answers[-1]

    monkeypatch.setattr(studio.desk, "ask", asked)
    studio.painter.hold()
    me.page.fill("#prompt textarea", "a star")
    me.page.dblclick("#paint")
    assert until(lambda: len(answers) == 2) and answers[1] == "BusyError"
    me.page.wait_for_timeout(300)  # what the second click said would be there by then
    assert me.page.is_disabled("#paint") and me.page.is_enabled("#stop")
    assert "not finished" not in me.page.inner_text("#strip")
    studio.painter.release()
    me.ended()


def test_settings_reach_the_painter(studio, visit):
    me = visit()
    me.page.click("#settings button")
    me.page.fill("#seed input", "11")
    me.page.click("#steps input")
    me.page.click("li:text-is('20'), [role=option]:text-is('20')")
    me.page.fill("#guidance input[type=number]", "3")
    me.page.keyboard.press("Tab")
    me.paint("a star")
    assert "seed 11" in me.ended()
    prompt, mode, settings = studio.painter.asked[-1]
    assert (prompt, mode, settings["seed"]) == ("a star", "process", 11)
    assert settings["denoise_steps"] == 20 and settings["guidance"] == 3.0


def test_too_many_in_a_minute(studio, visit, monkeypatch):
    monkeypatch.setattr(
        studio.desk, "limits", dataclasses.replace(studio.desk.limits, per_minute=2)
    )
    me = visit()
    for prompt in ("a star", "a moon"):
        me.paint(prompt)
        me.wait(f"paint {prompt}")
        me.ended()
    me.paint("a sun")
    assert "2 paintings a minute are the limit; try again in" in me.wait("the limit")
    assert "paint a moon" in me.page.inner_text("#strip .live")  # the painting is still there


def test_another_plan(studio, visit):
    me = visit()
    me.paint("a moon")
    me.ended()
    me.page.click("#place input")
    me.page.click("text=plan of step 1")
    me.page.wait_for_function("document.querySelector('#first textarea').value == 'paint a moon'")
    me.write(first="paint a sun")
    me.page.click("#go-on")
    me.wait("paint a sun")
    assert "paint a moon" not in me.ended()
    prompt, mode, _ = studio.painter.asked[-1]
    assert mode == "process" and prompt.steps[0].sketch is None

    me.write(second="x" * 3000)
    me.page.click("#go-on")
    assert "2,000 is the limit" in me.wait("characters")
    assert "paint a sun" in me.page.inner_text("#strip .live")  # the painting is still there


def test_stop(studio, visit):
    me = visit()
    studio.painter.hold(1)
    me.paint("a star")
    me.wait("step 1")
    (job,) = studio.desk._jobs
    me.page.click("#stop")
    assert until(lambda: job.stopped)
    studio.painter.release()
    me.ended("stopped")
    me.page.wait_for_selector("#stop:disabled")


def test_hostile_words_stay_words(visit):
    me = visit()
    me.paint(HOSTILE)
    assert me.ended().count("<img src=x onerror=") >= 2  # prompt and plan
    me.inspection(HOSTILE, "mend <i>it</i>")
    me.page.click("#go-on")
    me.page.wait_for_selector(".live-faulty")
    assert HOSTILE in me.ended()
    assert me.page.title() == "process_gen"
    assert me.page.locator("img[src=x]").count() == 0
    # Read as HTML, the same text is an element: the check above can fail.
    read = "text => new DOMParser().parseFromString(text, 'text/html').images.length"
    assert me.page.evaluate(read, HOSTILE) == 1


def test_prompts_that_are_no_prompts(visit):
    me = visit()
    me.page.focus("#prompt textarea")
    me.page.keyboard.insert_text("x" * 10_000_000)
    me.page.click("#paint")
    assert me.wait("characters") == "the prompt has 20,000 characters; 1,000 are the limit"
    me.paint(" ")
    assert me.wait("empty") == "the prompt is empty"
    me.paint("a star")
    me.ended()


def test_requests_that_are_too_large(studio, visit):
    url = f"{studio.address}gradio_api/queue/join"
    for size, wanted in ((10_000_000, 413), (300_000, 413)):
        body = json.dumps({"data": ["x" * size], "fn_index": 0, "session_hash": "a"}).encode()
        asked = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(asked, timeout=60)
        assert refused.value.code == wanted
        assert "larger than 256 kB" in json.loads(refused.value.read())["detail"]
    other = urllib.request.Request(studio.address, headers={"Host": "elsewhere.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(other, timeout=60)
    me = visit()
    me.paint("a star")
    me.ended()


def test_two_at_once_and_a_closed_browser(studio, visit):
    one, two, three = visit(), visit(), visit()
    studio.painter.hold(1)
    studio.painter.most = 0
    one.paint("a star")
    one.wait("step 1")
    two.paint("a moon")
    two.wait("waiting, 1 before you")
    (job,) = (j for j in studio.desk._jobs if j.wish.prompt == "a star")
    one.context.close()
    assert until(lambda: job.stopped) and not job.ended, "a painting that nobody watches goes on"
    studio.painter.release()
    three.paint("a sun")
    assert "paint a moon" in two.ended() and "paint a sun" in three.ended()
    assert studio.painter.most == 1 and not studio.desk._jobs


def test_a_port_that_is_taken(studio):
    from launch import app_page

    page = app_page.build(studio.desk)
    with pytest.raises(ConfigError, match="the port is taken"):
        app_page.serve(page, "127.0.0.1", studio.port)


def test_without_gradio(monkeypatch):
    from launch import app

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install -e '.[app]'")):
        app.prepare()


@pytest.mark.slow
def test_the_command_with_the_painter_of_the_package(browser):
    port = free_port()
    command = [sys.executable, "-m", "launch.app", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(2)]
            assert "checkpoint" in said[0] and f"http://127.0.0.1:{port}/" in said[1]
            me = Visit(browser, f"http://127.0.0.1:{port}/")
            me.page.set_default_timeout(240_000)
            me.paint("a red circle above a blue square")
            assert "red circle" in me.ended() and not me.complaints
            name, data = me.download("#json")
            assert from_json(json.loads(data)).finish_reason == "finished"
            me.context.close()
        finally:
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 75
