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
LARGEST = 512  # px a side: larger pictures are shrunk to this in the report
FLUSH = 256  # pieces of the page written at once

Verdicts = Mapping[str, bool]


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
      verdicts: for each trajectory, name -> right or wrong, or None where nobody judged it.
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
    style, script = _source("report.css") + _source("curves.css"), _source("report.js")
    template = environment().get_template("report.html")
    stream = template.stream(
        title=title,
        style=style,
        script=script,
        policy=_policy(style, script),
        process=summarize(trajectories),
        sampled=any(t.finish_reason is not None for t in trajectories),
        scores=scores,
        rows=_score_rows(scores),
        charts=charts(curves or ()),
        size=VIEW,
        settings=list(_flat(settings or {})),
        sections=[(section, _shown(section)) for section in sections],
        facets=_facets(trajectories, verdicts),
        paintings=_paintings(trajectories, verdicts),
    )
    stream.enable_buffering(FLUSH)
    file = epath.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as out:
        for text in stream:
            # A lone surrogate in a prompt is legal in Python and JSON but not in UTF-8.
            out.write(text.encode("utf-8", "replace"))


# ---- what the template shows ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Picture:
    """An `img` element's source and size in px."""

    src: str
    width: int
    height: int
    small: bool


def _paintings(
    trajectories: Sequence[Trajectory], verdicts: Sequence[Verdicts | None]
) -> Iterator[dict[str, Any]]:
    """One at a time, so that a report of many large pictures is never held as a whole."""
    for trajectory, judged in zip(trajectories, verdicts, strict=True):
        row: list[tuple[Panel, _Picture | None]] = [
            (panel, None if panel.image is None else _picture(panel.image))
            for panel in panels(trajectory)
        ]
        yield {
            "trajectory": trajectory,
            "tag": _tag(trajectory),
            "verdicts": judged or {},
            "facets": "|".join(_facet(name, right) for name, right in (judged or {}).items()),
            "panels": row,
            "large": any(picture is not None and not picture.small for _, picture in row),
        }


def _shown(section: Section) -> list[tuple[str, _Picture]]:
    """Its pictures pixel by pixel, for they are drawings."""
    return [
        (caption, _Picture(_data_url("png", encode_png(x)), x.shape[1], x.shape[0], True))
        for caption, x in section.pictures
    ]


def _picture(image: Image) -> _Picture:
    height, width = image.shape[:2]
    if max(height, width) <= SMALL:
        return _Picture(_data_url("png", encode_png(image)), width, height, True)
    picture = PILImage.fromarray(image)
    picture.thumbnail((LARGEST, LARGEST), PILImage.Resampling.LANCZOS)
    out = io.BytesIO()
    picture.save(out, format="WEBP", quality=88)
    return _Picture(_data_url("webp", out.getvalue()), picture.width, picture.height, False)


def _data_url(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _tag(trajectory: Trajectory) -> str:
    return str(trajectory.metadata.get("tag") or "")


def _facet(name: str, right: bool) -> str:
    return f"{name}:{'right' if right else 'wrong'}"


def _facets(
    trajectories: Sequence[Trajectory], verdicts: Sequence[Verdicts | None]
) -> dict[str, list[tuple[str, str]]]:
    """Values that occur, for the filters: facet -> (value, text)."""
    tags = dict.fromkeys(tag for t in trajectories if (tag := _tag(t)))
    ends = dict.fromkeys(t.finish_reason for t in trajectories if t.finish_reason)
    names = dict.fromkeys(name for judged in verdicts if judged for name in judged)
    return {
        "tag": [(tag, tag) for tag in tags],
        "verdict": [
            (_facet(name, right), f"{name} {'right' if right else 'wrong'}")
            for name in names
            for right in (True, False)
        ],
        "end": [(end, end.replace("_", " ")) for end in ends],
    }


def _score_rows(scores: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    if not scores:
        return []
    return [*scores["tags"].items(), ("overall", {"n": scores["n"], **scores["overall"]})]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
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
