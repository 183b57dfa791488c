"""Sheets of pictures with words: a row for each sample, its caption beneath, a legend above.

C columns of a row · S side of a picture on the sheet
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from t2i.io.images import save_png

_SMALLEST = 96  # pixels of a side; smaller pictures are shown a whole number of times larger
_GAP = 2  # within a row
_MARGIN = 12  # between rows, and around all


@dataclass(frozen=True)
class Section:
    """Rows of as many pictures of one size, each with a caption of at most so many lines, under a legend."""

    legend: str
    rows: Sequence[Sequence[Image.Image]]
    captions: Sequence[str] = ()
    lines: int = 3


def save_sheet(sections: Sequence[Section], path: object) -> None:
    """Write sections below each other as a PNG; errors as in `save_png`."""
    parts = [_drawn(section) for section in sections if section.rows]
    width = max(part.width for part in parts)
    whole = Image.new("RGB", (width, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    save_png(whole, str(path))


def legend(names: Sequence[str]) -> str:
    """`left: picture · right: drawn`; the name alone where there is one."""
    sides = {1: [""], 2: ["left: ", "right: "]}.get(len(names), [f"{i}: " for i in range(1, len(names) + 1)])
    return " · ".join(side + name for side, name in zip(sides, names, strict=True))


def _drawn(section: Section) -> Image.Image:
    """One section; rows stand beside each other so that the sheet is about square."""
    first = section.rows[0][0]
    times = max(1, math.ceil(_SMALLEST / first.width))
    side, high = first.width * times, first.height * times
    font = ImageFont.load_default(size=max(12, side // 12))
    width = len(section.rows[0]) * (side + _GAP) - _GAP
    captions = [_wrapped(text, font, width, section.lines) for text in section.captions]
    line = math.ceil(font.getbbox("Ágj")[3]) + 3
    height = high + line * max((len(lines) for lines in captions), default=0)
    columns = max(1, min(len(section.rows), math.ceil(math.sqrt(len(section.rows) * height / width))))
    columns = math.ceil(len(section.rows) / math.ceil(len(section.rows) / columns))  # no more than are needed
    whole_width = columns * (width + _MARGIN) + _MARGIN
    above = _wrapped(section.legend, font, whole_width - 2 * _MARGIN)
    top = _MARGIN + len(above) * line + _MARGIN // 2
    whole = Image.new("RGB", (whole_width, top + math.ceil(len(section.rows) / columns) * (height + _MARGIN)), "white")
    pen = ImageDraw.Draw(whole)
    pen.multiline_text((_MARGIN, _MARGIN // 2), "\n".join(above), "black", font, spacing=3)
    for i, row in enumerate(section.rows):
        x, y = _MARGIN + i % columns * (width + _MARGIN), top + i // columns * (height + _MARGIN)
        for j, picture in enumerate(row):
            whole.paste(picture.resize((side, high), Image.Resampling.NEAREST), (x + j * (side + _GAP), y))
        if i < len(captions):
            pen.multiline_text((x, y + high), "\n".join(captions[i]), "black", font, spacing=3)
    return whole


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int, most: int = 3) -> list[str]:
    """At most so many lines of printable text that are no wider than so many pixels; what is too long ends in dots."""
    lines = [""]
    for word in "".join(c if c.isprintable() else " " for c in text[:1000]).split():
        if font.getlength(f"{lines[-1]} {word}") > width and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    shown = lines[:most]
    if len(lines) > most:
        shown[-1] += " …"
    return [_cut(line, font, width) for line in shown if line]


def _cut(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    if font.getlength(line) <= width:
        return line
    return next(
        (f"{line[:end]}…" for end in range(len(line) - 1, 0, -1) if font.getlength(f"{line[:end]}…") <= width), "…"
    )
