"""One self-contained HTML file that shows paintings, scores and loss curves.

Everything that comes from outside (prompts, plans, inspections, settings) is text: the templates
escape every value, and a content security policy in the page lets the browser run the report's own
script (by hash) and nothing else, load pictures from the page itself and nothing from the network.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from markupsafe import Markup
from PIL import Image as PILImage

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Image, Trajectory, encode_png
from process_gen.evaluation.process_metrics import summarize
from process_gen.report.curves import VIEW, charts
from process_gen.report.environment import environment
from process_gen.report.panels import Panel, panels

SMALL = 128  # px a side: up to here pictures are kept pixel by pixel and enlarged without blur
# Pictures on a page, and the px a side to which larger ones are shrunk: a page that a browser opens
# in seconds holds 100 MB at most.
LARGEST = ((600, 512), (1500, 384), (10**9, 256))
FLUSH = 256  # pieces of the page written at once

Verdicts = Mapping[str, bool | float]
SORTS = (
    ("order", "as painted"),
    ("tag", "tag"),
    ("wrong", "wrong first"),
    ("steps", "most steps first"),
    ("nfe", "most NFE first"),
    ("seconds", "slowest first"),
)
# Settings that stand under the heading; all of them are in the table below.
MADE = ("checkpoint", "checkpoint_hash", "weights", "mode", "seed", "dtype", "commit", "command")


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page between its head and the paintings.

    Attributes:
      title: its heading.
      text: a paragraph.
      tables: caption, names of columns, rows.
      pictures: caption and ``uint8[H, W, 3]``.
      drawing: lines in letters of equal width.
    """

    title: str
    text: str = ""
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[Any]]]] = ()
    pictures: Sequence[tuple[str, Image]] = ()
    drawing: str = ""


def write_report(
    path: str | os.PathLike[str],
    trajectories: Sequence[Trajectory],
    *,
    verdicts: Sequence[Verdicts | None] | None = None,
    title: str = "Paintings",
    settings: Mapping[str, Any] | None = None,
    scores: Mapping[str, Any] | None = None,
    curves: Sequence[Mapping[str, Any]] | None = None,
    sections: Sequence[Section] = (),
) -> None:
    """Writes the report.

    Args:
      path: of the HTML file, local or remote; its folder is made.
      trajectories: any modes; shown in this order.
      verdicts: for each trajectory, name -> right or wrong, or a score from 0 to 1; None where
        nobody judged it.
      title: heading of the page.
      settings: nested mappings, shown as a table of dotted names.
      scores: what `evaluation.strokes.score` gives.
      curves: a run's history, what `report.curves.read_history` gives.
      sections: what else the page shows, above the paintings.

    Raises:
      DataError: not one entry of `verdicts` for each trajectory.
    """
    if verdicts is None:
        verdicts = [None] * len(trajectories)
    if len(verdicts) != len(trajectories):
        raise DataError(f"{len(verdicts)} verdicts for {len(trajectories)} paintings")
    pairs = list(zip(trajectories, verdicts, strict=True))
    largest = largest_side(sum(len(t.all_images) + 1 for t in trajectories))
    flat = list(flatten(settings or {}))
    write_page(
        path,
        "report.html",
        title=title,
        note="",
        process=summarize(trajectories),
        sampled=any(t.finish_reason is not None for t in trajectories),
        scores=scores,
        rows=_score_rows(scores),
        charts=charts(curves or ()),
        size=VIEW,
        made=_made(dict(flat)),
        settings=flat,
        sections=[(section, _shown(section)) for section in sections],
        facets=facets(
            [tag_of(t) for t in trajectories],
            [verdict_facets(judged) for _, judged in pairs],
            [[len(t.steps)] if t.steps else [] for t in trajectories],
            [[t.finish_reason] if t.finish_reason else [] for t in trajectories],
        ),
        sorts=SORTS,
        paintings=(
            item(number, [side("", t, judged or {}, largest)])
            for number, (t, judged) in enumerate(pairs)
        ),
    )


def write_page(path: str | os.PathLike[str], template: str, **values: Any) -> None:
    """Renders a page into a file, local or remote, a piece at a time; its folder is made."""
    style, script = _source("report.css") + _source("curves.css"), _source("report.js")
    page = environment().get_template(template)
    stream = page.stream(style=style, script=script, policy=_policy(style, script), **values)
    stream.enable_buffering(FLUSH)
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for text in stream:
            # A lone surrogate in a prompt is legal in Python and JSON but not in UTF-8.
            out.write(text.encode("utf-8", "replace"))


# ---- what the templates show ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Picture:
    """An `img` element's source and size in px."""

    src: str
    width: int
    height: int
    small: bool


@dataclasses.dataclass(frozen=True)
class Side:
    """One run's painting of a prompt; `trajectory` is None where it painted none."""

    name: str
    trajectory: Trajectory | None
    verdicts: Verdicts
    panels: Sequence[tuple[Panel, _Picture | None]] = ()
    large: bool = False


def side(name: str, trajectory: Trajectory | None, verdicts: Verdicts, largest: int) -> Side:
    """A painting with its pictures, none larger than `largest` px a side."""
    if trajectory is None:
        return Side(name, None, verdicts)
    row = [
        (panel, None if panel.image is None else _picture(panel.image, largest))
        for panel in panels(trajectory)
    ]
    large = any(picture is not None and not picture.small for _, picture in row)
    return Side(name, trajectory, verdicts, row, large)


def item(order: int, sides: Sequence[Side], **more: str) -> dict[str, Any]:
    """One prompt of the page: its sides, and what it is filtered and sorted by.

    Args:
      order: its place on the page.
      sides: paintings of the prompt, at least one of them there.
      **more: further facets.
    """
    painted = [one.trajectory for one in sides if one.trajectory is not None]
    sampled = [t.sampled for t in painted if t.sampled is not None]
    values = [float(value) for one in sides for value in one.verdicts.values()]
    steps = [len(t.steps) for t in painted if t.steps]
    return {
        "prompt": painted[0].prompt,
        "tag": tag_of(painted[0]),
        "sides": sides,
        "span": _span(sides),
        "data": {
            "order": order,
            "tag": tag_of(painted[0]),
            "verdict": "|".join(v for one in sides for v, _ in verdict_facets(one.verdicts)),
            "end": "|".join(t.finish_reason for t in painted if t.finish_reason),
            "steps": "|".join(map(str, steps)),
            "most": max(steps, default=0),
            "nfe": max((s.nfe for s in sampled), default=0),
            "seconds": max((s.seconds for s in sampled), default=0),
            "right": sum(values) / len(values) if values else 2,  # unjudged ones come last
            **more,
        },
    }


def _span(sides: Sequence[Side]) -> int:
    """Columns that a short strip takes of the page; 0 for the whole width."""
    short = len(sides) == 1 and not sides[0].large and len(sides[0].panels) <= 4
    return len(sides[0].panels) if short else 0


def facets(
    tags: Sequence[str],
    verdicts: Sequence[Sequence[tuple[str, str]]],
    steps: Sequence[Sequence[int]],
    ends: Sequence[Sequence[str]],
) -> list[tuple[str, str, list[tuple[str, str]]]]:
    """Filters: name, label and the values that occur, each with its text; a sequence a painting."""
    found = dict.fromkeys(facet for judged in verdicts for facet in judged)
    names = list(dict.fromkeys(value.rpartition(":")[0] for value, _ in found))
    counts = sorted({count for own in steps for count in own})
    return [
        ("tag", "tag", [(tag, tag) for tag in dict.fromkeys(tags) if tag]),
        (
            "verdict",
            "verdict",
            [(f"{name}:{what}", f"{name} {what}") for name in names for what in ("right", "wrong")],
        ),
        ("steps", "steps", [(str(count), str(count)) for count in counts]),
        (
            "end",
            "ended",
            [(e, e.replace("_", " ")) for e in dict.fromkeys(e for own in ends for e in own)],
        ),
    ]


def verdict_facets(judged: Verdicts | None) -> list[tuple[str, str]]:
    """Value and text of each verdict for the filter; scores between 0 and 1 are none."""
    found = []
    for name, value in (judged or {}).items():
        if isinstance(value, bool):
            what = "right" if value else "wrong"
            found.append((f"{name}:{what}", f"{name} {what}"))
    return found


def largest_side(pictures: int) -> int:
    """Px a side to which pictures are shrunk on a page with so many."""
    return next(side for most, side in LARGEST if pictures <= most)


def _shown(section: Section) -> list[tuple[str, _Picture]]:
    """Its pictures pixel by pixel, for they are drawings."""
    return [
        (caption, _Picture(_data_url("png", encode_png(x)), x.shape[1], x.shape[0], True))
        for caption, x in section.pictures
    ]


def _picture(image: Image, largest: int) -> _Picture:
    height, width = image.shape[:2]
    if max(height, width) <= SMALL:
        return _Picture(_data_url("png", encode_png(image)), width, height, True)
    picture = PILImage.fromarray(image)
    picture.thumbnail((largest, largest), PILImage.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="WEBP", quality=88)
    return _Picture(_data_url("webp", out.getvalue()), picture.width, picture.height, False)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def tag_of(trajectory: Trajectory) -> str:
    """The tag of its prompt; empty where it has none."""
    return str(trajectory.metadata.get("tag") or "")


def _made(settings: Mapping[str, str]) -> list[tuple[str, str]]:
    """The few settings under the heading; those of the sampler as reports or as files have them."""
    shot = "one_shot_" if settings.get("mode") not in (None, "process") else ""
    steps = "one_shot_steps" if shot else "denoise_steps"
    sampler = [
        f"{part}.{n}" for n in (f"{shot}guidance", steps) for part in ("sampler", "settings")
    ]
    found = [n for n in (*MADE[:-2], *sampler, *MADE[-2:]) if n in settings]
    return [(name.rpartition(".")[2].replace("_", " "), settings[name]) for name in found]


def _score_rows(scores: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    if not scores:
        return []
    return [*scores["tags"].items(), ("overall", {"n": scores["n"], **scores["overall"]})]


def flatten(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Settings under dotted names, as text."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


# ---- the page's own style and script -------------------------------------------------------------


def _source(name: str) -> Markup:
    """A static file of ours, the only text that is put into the page unescaped."""
    loader = environment().loader
    assert loader is not None
    return Markup(loader.get_source(environment(), name)[0])


def _policy(style: str, script: str) -> str:
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode('ascii')}'"
