"""PNG figures of paintings: the strip of one trajectory, and a grid of finished pictures.

Everything is drawn with Pillow in the DejaVu fonts that come with matplotlib, so that a figure
looks the same everywhere. Lengths are multiples of a text size that follows `scale`: a figure of
twice the scale is the same figure at twice the resolution.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from process_gen.core.errors import DataError
from process_gen.core.trajectory import Image, Trajectory
from process_gen.report.panels import Panel, Piece, panels

INK, GREY, FAINT, EDGE = (27, 31, 36), (95, 103, 112), (150, 157, 165), (221, 225, 230)
RED, RED_TINT, GREEN, BLUE = (196, 43, 43), (253, 241, 240), (26, 127, 55), (9, 91, 191)
COLOURS = {
    "instruction": INK,
    "description": GREY,
    "seen": GREY,
    "verdict": INK,
    "fault": RED,
    "command": RED,
    "malformed": RED,
}
MAX_LINES = {"prompt": 3, "instruction": 5, "description": 7, "seen": 6}
OTHER_LINES = 8
MIN_COLUMN = 128

_Run = tuple[str, tuple[int, int, int], bool]


@dataclasses.dataclass(frozen=True)
class _Block:
    """Lines of one font and colour, `gap` below what stands above; `label` is a small heading."""

    lines: tuple[str, ...]
    bold: bool = False
    colour: tuple[int, int, int] = INK
    gap: float = 0.35
    label: str = ""


def filmstrip(
    trajectory: Trajectory,
    scale: int = 4,
    *,
    verdicts: Mapping[str, bool] | None = None,
    columns: int = 8,
) -> PILImage.Image:
    """Draws a trajectory: the prompt above, then a column a picture with its texts below.

    Args:
      trajectory: any mode.
      scale: pixels of the figure for one of a picture; the text's size follows the column's width.
      verdicts: name -> right or wrong, shown beside the prompt.
      columns: pictures in a row of the strip; longer trajectories wrap.

    Returns:
      An RGB image on white.
    """
    _check(scale, columns)
    row = panels(trajectory)
    shown = [p.image.shape for p in row if p.image is not None]
    width = max([scale * s[1] for s in shown] + [MIN_COLUMN])
    size = _text_size(width)
    height = max((scale * s[0] for s in shown), default=width // 2)
    gutter, margin = round(1.9 * size), round(1.6 * size)
    across = min(columns, len(row)) or 1
    caption = _caption(trajectory, verdicts)
    needed = sum(_font(size, bold).getlength(text) + 1.1 * size for text, _, bold in caption)
    strip = across * width + (across - 1) * gutter
    page = margin * 2 + max(strip, round(needed), 26 * size)

    title = _wrap(f"“{_one_line(trajectory.prompt)}”", _font(1.25 * size, True), page - 2 * margin)
    title = _limit(title, MAX_LINES["prompt"])
    texts = [_blocks(p, width, size) for p in row]
    bands = [range(i, min(i + across, len(row))) for i in range(0, len(row), across)]
    tall = [max(_height(texts[i], size) for i in band) for band in bands]
    above = round(margin + len(title) * 1.25 * size * 1.3 + 2.3 * size)
    head = round(1.9 * size)
    total = above + sum(head + height + h for h in tall) + round((len(bands) - 1) * 1.5 * size)
    canvas = PILImage.new("RGB", (page, total + margin), (255, 255, 255))
    draw = ImageDraw.Draw(canvas)

    y = margin
    for line in title:
        draw.text((margin, y), line, INK, _font(1.25 * size, True))
        y += round(1.25 * size * 1.3)
    x = float(margin)
    for text, colour, bold in caption:
        draw.text((x, y + 0.25 * size), text, colour, _font(size, bold))
        x += _font(size, bold).getlength(text) + 1.1 * size

    y = above
    for band, text_height in zip(bands, tall, strict=True):
        for column, i in enumerate(band):
            x = margin + column * (width + gutter)
            _heading(draw, row[i], x, y, width, size)
            _picture(canvas, row[i], x, y + head, scale, (width, height), size)
            if column:
                _arrow(draw, x - gutter / 2, y + head + height / 2, size)
            _write(draw, texts[i], x, y + head + height, size)
        y += head + height + text_height + round(1.5 * size)
    return canvas


def grid(
    images: Sequence[Image], *, labels: Sequence[str] = (), columns: int = 8, scale: int = 4
) -> PILImage.Image:
    """Draws pictures of one size ``uint8[H, W, 3]`` in rows, each with a label of up to 3 lines.

    Raises:
      DataError: no pictures, pictures of several sizes, or another number of labels.
    """
    _check(scale, columns)
    if not images or len({image.shape for image in images}) != 1:
        raise DataError("a grid needs pictures, all of one size")
    if labels and len(labels) != len(images):
        raise DataError(f"{len(labels)} labels for {len(images)} pictures")
    height, width = scale * images[0].shape[0], scale * images[0].shape[1]
    size = _text_size(width)
    font = _font(0.9 * size)
    texts = [_limit(_wrap(_one_line(label), font, width), 3) for label in labels]
    step = round(0.9 * size * 1.3)
    below = max((len(t) for t in texts), default=0) * step + size
    gap, across = size, min(columns, len(images))
    down = math.ceil(len(images) / across)
    canvas = PILImage.new(
        "RGB", (gap + across * (width + gap), gap + down * (height + below)), (255, 255, 255)
    )
    draw = ImageDraw.Draw(canvas)
    for i, image in enumerate(images):
        x, y = gap + i % across * (width + gap), gap + i // across * (height + below)
        _picture(canvas, Panel("painting", "", image), x, y, scale, (width, height), size)
        for n, line in enumerate(texts[i] if texts else ()):
            draw.text((x, y + height + 0.35 * size + n * step), line, GREY, font)
    return canvas


# ---- parts of the strip --------------------------------------------------------------------------


def _blocks(panel: Panel, width: int, size: int) -> list[_Block]:
    """The texts below a picture, wrapped."""
    found: list[_Block] = []
    label = panel.label.upper()
    for piece in panel.before:
        found.append(_block(piece, width, size, label))
        label = ""
    label = "INSPECTION"
    for piece in panel.after:
        found.append(_block(piece, width, size, "REFINE" if piece.mark == "command" else label))
        label = ""
    return found


def _block(piece: Piece, width: int, size: int, label: str) -> _Block:
    bold = piece.mark in ("instruction", "command")
    lines = _wrap(_one_line(piece.text), _font(size, bold), width)
    lines = _limit(lines, MAX_LINES.get(piece.mark, OTHER_LINES))
    gap = 0.9 if label else 0.35
    return _Block(tuple(lines), bold, COLOURS[piece.mark], gap, label)


def _height(blocks: Sequence[_Block], size: int) -> int:
    lines = sum(len(b.lines) for b in blocks) * _leading(size)
    labels = sum(bool(b.label) for b in blocks) * 1.25 * size
    return round(lines + labels + sum(b.gap for b in blocks) * size)


def _write(draw: ImageDraw.ImageDraw, blocks: Sequence[_Block], x: int, y: float, size: int):
    for block in blocks:
        y += block.gap * size
        if block.label:
            colour = RED if block.label == "REFINE" else FAINT
            draw.text((x, y), block.label, colour, _font(0.75 * size, True))
            y += 1.25 * size
        for line in block.lines:
            draw.text((x, y), line, block.colour, _font(size, block.bold))
            y += _leading(size)


def _caption(trajectory: Trajectory, verdicts: Mapping[str, bool] | None) -> list[_Run]:
    """Verdicts, how it ended, and what it cost: runs of (text, colour, bold) for one line."""
    pieces = [
        (f"{'✓' if right else '✗'} {name}", GREEN if right else RED, True)
        for name, right in (verdicts or {}).items()
    ]
    count = len(trajectory.images)
    rest = [f"{count} picture{'s' * (count != 1)}"]
    if trajectory.finish_reason is not None:
        rest.insert(0, trajectory.finish_reason.replace("_", " "))
    if trajectory.sampled is not None:
        rest += [f"{trajectory.sampled.nfe} NFE", f"{trajectory.sampled.seconds:.2f} s"]
    return [*pieces, (" · ".join(rest), GREY, False)]


def _heading(draw, panel: Panel, x: int, y: int, width: int, size: int) -> None:
    font = _font(0.9 * size, True)
    draw.text((x, y + 0.3 * size), panel.heading, INK, font)
    note, colour = ("✗ fault", RED) if panel.faulty else ("✓ final", GREEN)
    if panel.faulty or panel.final:
        place = (x + width - font.getlength(note), y + 0.3 * size)
        draw.text(place, note, colour, font)


def _picture(
    canvas: PILImage.Image,
    panel: Panel,
    x: int,
    y: int,
    scale: int,
    box: tuple[int, int],
    size: int,
) -> None:
    """Pastes the enlarged picture with rounded corners; an empty frame where there is none."""
    radius = round(0.45 * size)
    if panel.image is None:
        draw = ImageDraw.Draw(canvas)
        frame = (x, y, x + box[0] - 1, y + box[1] - 1)
        draw.rounded_rectangle(frame, radius, (247, 248, 250), EDGE, max(1, size // 12))
        font = _font(size)
        left = x + (box[0] - font.getlength("no picture")) / 2
        draw.text((left, y + box[1] / 2 - 0.6 * size), "no picture", FAINT, font)
        return
    picture = PILImage.fromarray(panel.image)
    wide = (picture.width * scale, picture.height * scale)
    picture = picture.resize(wide, PILImage.Resampling.NEAREST)
    fine = 4  # the corners are drawn larger and shrunk, which smooths them
    mask = PILImage.new("L", (wide[0] * fine, wide[1] * fine), 0)
    corner = (0, 0, mask.width - 1, mask.height - 1)
    ImageDraw.Draw(mask).rounded_rectangle(corner, radius * fine, 255)
    canvas.paste(picture, (x, y), mask.resize(wide, PILImage.Resampling.BOX))
    if panel.faulty:
        line = max(2, size // 5)
        ring = PILImage.new("L", mask.size, 0)
        ImageDraw.Draw(ring).rounded_rectangle(corner, radius * fine, None, 255, line * fine)
        canvas.paste(RED, (x, y), ring.resize(wide, PILImage.Resampling.BOX))


def _arrow(draw: ImageDraw.ImageDraw, x: float, y: float, size: int) -> None:
    reach, rise = 0.22 * size, 0.42 * size
    points = [(x - reach, y - rise), (x + reach, y), (x - reach, y + rise)]
    draw.line(points, FAINT, max(1, round(size / 7)), joint="curve")


# ---- text ----------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _font_of(pixels: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", name)
    # The basic engine needs no shaping library, so that every machine sets the same lines.
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)


def _font(size: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    return _font_of(round(size), bold)


def _text_size(column: int) -> int:
    """About 20 letters a line of `column` pixels, from 11 px to 28 px."""
    return min(28, max(11, column // 13))


def _leading(size: int) -> float:
    return round(1.32 * size)


def _one_line(text: str) -> str:
    """Without control characters, which fonts draw as boxes."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:4000]).split())


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Breaks between words, and inside a word that is wider than the line."""
    lines, line = [], ""
    for word in text.split(" "):
        trial = f"{line} {word}" if line else word
        if font.getlength(trial) <= width:
            line = trial
            continue
        if line:
            lines.append(line)
        # No more letters than pixels can fit: a word of thousands is not measured as a whole.
        while len(word) > 1 and font.getlength(word[: int(width)]) > width:
            letters = range(1, min(len(word), int(width)))
            fits = bisect.bisect_right(letters, width, key=_width_of(word, font))
            lines.append(word[: max(1, fits)])
            word = word[max(1, fits) :]
        line = word
    return [*lines, line]


def _width_of(word: str, font: ImageFont.FreeTypeFont) -> Callable[[int], float]:
    return lambda letters: font.getlength(word[:letters])


def _limit(lines: list[str], most: int) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][:-1] + "…"]


def _check(scale: int, columns: int) -> None:
    if scale < 1 or columns < 1:
        raise DataError(f"scale and columns must be at least 1, got {scale} and {columns}")
