"""The page of the live studio: Gradio components around `launch.app_desk`.

No prompt, plan or inspection is ever put into the page but by `report.live`, which escapes it, or
into a text box. Nothing is loaded from elsewhere, and nothing is sent there.
"""

from __future__ import annotations

import collections
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.themes import Soft
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse

from launch.app_desk import GUIDANCE, BusyError, Desk, Wish, choices, read_wish
from process_gen.core.errors import ConfigError, DataError
from process_gen.core.grammar import Part
from process_gen.core.trajectory import Trajectory, to_json
from process_gen.report.figures import filmstrip
from process_gen.report.live import doing, live_strip, live_style
from process_gen.sampling import editing

MAX_REQUEST = 256 * 1024  # bytes of one request; the largest honest one is a form of three texts
MAX_TYPED = 20_000  # characters that a text box takes; the desk says what is too long, and why
KEPT = 64  # paintings whose files can be downloaded
STRIP_WIDTH = 128  # pixels of the strip for one of its pictures, at least
WELCOME = (
    "Type what to paint. The painter writes a plan, paints a sketch, looks at it, mends what it "
    "finds wrong, and goes on until it is done. The first painting after a start compiles the "
    "model, which may take a minute."
)
EXAMPLES = (
    "a red circle above a blue square",
    "three yellow stars and a green triangle",
    "a purple square left of an orange circle",
)
LABELS = {
    Part.PLAN: ("What to paint next", "The whole scene as it should look then"),
    Part.INSPECTION: ("What is seen, and whether it fits", "What to mend (empty: nothing)"),
}
STYLE = """
footer { display: none !important; }
.gradio-container { max-width: 80rem !important; margin: 0 auto !important; }
#strip, #title { padding: 0 !important; }
#title h1 { margin: .3rem 0 0; font-size: 1.5rem; } #title p { margin: 0; opacity: .75; }
"""


def build(desk: Desk) -> gr.Blocks:
    """The page, not yet served."""
    files = Files()
    sampler = desk.painter.config.sampler
    with gr.Blocks(analytics_enabled=False, title="process_gen", delete_cache=(600, 3600)) as page:
        painting = gr.State(None, time_to_live=3600)
        gr.HTML(
            "<h1>process_gen</h1><p>Plan, sketch, inspect, refine: watch it paint.</p>",
            elem_id="title",
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                prompt = gr.Textbox(
                    label="Prompt",
                    lines=3,
                    max_length=MAX_TYPED,
                    placeholder=EXAMPLES[0],
                    elem_id="prompt",
                )
                with gr.Row():
                    paint = gr.Button("Paint", variant="primary", elem_id="paint", min_width=90)
                    stop = gr.Button(
                        "Stop", variant="stop", interactive=False, elem_id="stop", min_width=90
                    )
                gr.Examples([[text] for text in EXAMPLES], prompt, label="Or one of these")
                beside = gr.Checkbox(label="One shot beside it", elem_id="beside")
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    seed = gr.Number(0, label="Seed", precision=0, minimum=0, elem_id="seed")
                    steps = gr.Dropdown(
                        list(choices(desk.painter)),
                        value=sampler.denoise_steps,
                        label="Denoising steps a picture",
                        elem_id="steps",
                    )
                    guidance = gr.Slider(
                        *GUIDANCE,
                        value=min(max(sampler.guidance, GUIDANCE[0]), GUIDANCE[1]),
                        step=0.25,
                        label="Guidance",
                        elem_id="guidance",
                    )
            with gr.Column(scale=3, min_width=480):
                strip = gr.HTML(
                    live_strip(note=WELCOME),
                    elem_id="strip",
                    js_on_load=None,
                    apply_default_css=False,
                )
                with gr.Group(visible=False, elem_id="change") as change:
                    place = gr.Dropdown([], label="Change its words and go on", elem_id="place")
                    with gr.Row():
                        first = gr.Textbox(lines=3, max_length=MAX_TYPED, elem_id="first")
                        second = gr.Textbox(lines=3, max_length=MAX_TYPED, elem_id="second")
                    go_on = gr.Button("Go on from here", elem_id="go-on")
                with gr.Row(visible=False, elem_id="downloads") as downloads:
                    as_json = gr.DownloadButton("Trajectory (JSON)", elem_id="json")
                    as_png = gr.DownloadButton("Filmstrip (PNG)", elem_id="png")

        controls = [beside, seed, steps, guidance]
        shown = [strip, painting, change, place, first, second]
        shown += [downloads, as_json, as_png, paint, stop, go_on]

        def busy(html: str, before: Trajectory | None) -> dict:
            return {
                strip: html,
                painting: before,
                change: gr.update(visible=False),
                downloads: gr.update(visible=False),
                paint: gr.update(interactive=False),
                stop: gr.update(interactive=True),
                go_on: gr.update(interactive=False),
            }

        def ready(html: str, out: Trajectory | None, write: bool = True) -> dict:
            state: dict = {
                strip: html,
                painting: out,
                paint: gr.update(interactive=True),
                stop: gr.update(interactive=False),
                go_on: gr.update(interactive=True),
                change: gr.update(visible=bool(out and out.steps)),
                downloads: gr.update(visible=bool(out and out.images)),
            }
            if write and out is not None:
                found = editing.places(out)
                if found:
                    state[place] = gr.update(
                        choices=[_name(p) for p in found], value=_name(found[-1])
                    )
                    state[first], state[second] = _boxes(out, found[-1])
                if out.images:
                    state[as_json], state[as_png] = files.write(out)
            return state

        def follow(session: str, wish: Wish, before: Trajectory | None) -> Iterator[dict]:
            """Streams a painting into the page; `before` stays when the wish is refused."""
            try:
                job = desk.ask(session, wish)
            except BusyError:  # a second click; the page is that of the painting under way
                return
            except DataError as error:
                yield ready(live_strip(before, error=str(error)), before, write=False)
                return
            last: Trajectory | None = None
            yield busy(live_strip(busy="reading the prompt"), before)
            for update in job.watch():
                if update.ahead:
                    line = f"waiting, {update.ahead} before you"
                    yield busy(live_strip(busy=line), before)
                    continue
                last = update.painting or last
                if not update.done:
                    assert last is not None
                    yield busy(live_strip(last, busy=doing(last)), before)
                elif last is None or update.error:
                    note = "" if update.error else "Stopped."
                    html = live_strip(last, error=update.error, note=note)
                    yield ready(html, last or before)
                else:
                    yield ready(live_strip(last, one_shot=update.one_shot), last)

        # Handlers get `request` by its annotation, and whatever a form may send: any value at all.
        def on_paint(prompt, beside, seed, steps, guidance, before, request: gr.Request):
            try:
                wish = read_wish(prompt, beside, seed, steps, guidance)
            except DataError as error:
                yield ready(live_strip(before, error=str(error)), before, write=False)
                return
            yield from follow(str(request.session_hash), wish, before)

        def on_go_on(
            name, first, second, beside, seed, steps, guidance, before, request: gr.Request
        ):
            try:
                if before is None:
                    raise DataError("there is no painting to go on with")
                begun = editing.rewrite(before, _place(before, name), str(first), str(second))
                wish = read_wish(begun, beside, seed, steps, guidance)
            except DataError as error:
                yield ready(live_strip(before, error=str(error)), before, write=False)
                return
            yield from follow(str(request.session_hash), wish, before)

        def on_place(name, before):
            if before is None:
                return gr.skip(), gr.skip()
            return _boxes(before, _place(before, name))

        def on_stop(request: gr.Request):
            desk.stop(str(request.session_hash))

        streaming = {
            "outputs": shown,
            "concurrency_id": "paint",
            "concurrency_limit": desk.limits.waiting + 2,  # the desk says who is refused
            "show_progress": "hidden",
            "api_visibility": "private",
            # A click right after an end is not dropped; one too early is refused by the desk.
            "trigger_mode": "multiple",
        }
        quiet = {"show_progress": "hidden", "queue": False, "api_visibility": "private"}
        asked = [prompt, *controls, painting]
        gr.on([paint.click, prompt.submit], on_paint, asked, **streaming)
        go_on.click(on_go_on, [place, first, second, *controls, painting], **streaming)
        place.input(on_place, [place, painting], [first, second], **quiet)
        stop.click(on_stop, None, None, **quiet)
        page.unload(on_stop)
    page.queue(max_size=4 * desk.limits.waiting)
    return page


def serve(page: gr.Blocks, host: str, port: int) -> str:
    """Begins to serve; `page.close()` ends it.

    Returns:
      The address.

    Raises:
      ConfigError: the port is taken, or the host is none of this machine's.
    """
    guards = [Middleware(BodyLimit, most=MAX_REQUEST)]
    if host in ("127.0.0.1", "localhost"):
        # A page elsewhere whose name was made to point here is not served.
        guards.append(Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]))
    own = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = Soft(primary_hue="indigo", font=own["font"], font_mono=own["font_mono"])
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            inbrowser=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            footer_links=[],
            enable_monitoring=False,
            max_file_size=MAX_REQUEST,
            state_session_capacity=200,
            theme=theme,
            css=STYLE + live_style(),
            app_kwargs={"middleware": guards},
        )
    except OSError as error:
        raise ConfigError(
            f"cannot serve at --host={host} --port={port}: the port is taken, or the address is "
            "none of this machine's"
        ) from error
    return address


# ---- places --------------------------------------------------------------------------------------


def _name(place: editing.Place) -> str:
    return f"{place.part.name.lower()} of step {place.step + 1}"


def _place(painting: Trajectory, name: Any) -> editing.Place:
    found = next((p for p in editing.places(painting) if _name(p) == name), None)
    if found is None:
        raise DataError("choose which of its texts to change")
    return found


def _boxes(painting: Trajectory, place: editing.Place) -> tuple[dict, dict]:
    words, labels = editing.words(painting, place), LABELS[place.part]
    first, second = (
        gr.update(value=text, label=label) for text, label in zip(words, labels, strict=True)
    )
    return first, second


# ---- files ---------------------------------------------------------------------------------------


class Files:
    """Trajectories to download, the last `KEPT` of them; gone with the process."""

    def __init__(self):
        """Makes a folder of its own."""
        self._root = tempfile.TemporaryDirectory(prefix="process_gen-studio-")
        self._folders: collections.deque[str] = collections.deque()

    def write(self, painting: Trajectory) -> tuple[str, str]:
        """Writes a trajectory as JSON and as one PNG; returns their paths."""
        folder = tempfile.mkdtemp(dir=self._root.name)
        self._folders.append(folder)
        while len(self._folders) > KEPT:
            shutil.rmtree(self._folders.popleft(), ignore_errors=True)
        record, strip = Path(folder, "trajectory.json"), Path(folder, "filmstrip.png")
        record.write_text(json.dumps(to_json(painting)), encoding="utf-8")
        widest = max(image.shape[1] for image in painting.images)
        filmstrip(painting, max(1, STRIP_WIDTH // widest)).save(strip)
        return str(record), str(strip)


# ---- requests ------------------------------------------------------------------------------------

_Message = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Message]]
_Send = Callable[[_Message], Awaitable[None]]


class BodyLimit:
    """Refuses requests with a body of more than `most` bytes, and keeps none of it (ASGI)."""

    def __init__(self, app: Any, most: int):
        """Wraps an application."""
        self.app, self.most = app, most

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Serves a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        count, refused = 0, False

        async def counted() -> _Message:
            nonlocal count, refused
            message = await receive()
            count += len(message.get("body", b""))
            if count <= self.most:
                return message
            # Read to its end, or the browser says that the connection broke.
            while message.get("more_body"):
                message = await receive()
            refused = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def unless_refused(message: _Message) -> None:
            if not refused:
                await send(message)

        await self.app(scope, counted, unless_refused)
        if refused:
            text = f"the request is larger than {self.most // 1024} kB; a prompt is a few words"
            await JSONResponse({"detail": text}, 413)(scope, receive, send)
