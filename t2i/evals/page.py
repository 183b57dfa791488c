"""Parts of one self-contained HTML page: tables, pictures within it, and a plot as SVG. Everything that is text is
escaped; nothing is loaded from anywhere."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from PIL import Image

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # told apart by all eyes (Okabe & Ito)
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; }
p, li { max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th small, td small { opacity: .75; font-weight: normal; }
.grid td, .grid th { text-align: center; }
.grid td:first-child, .grid th:first-child { text-align: left; min-width: 8rem; }
.grid img { display: block; width: 100%; min-width: 6rem; max-width: 12rem; height: auto; margin: auto; }
svg { max-width: 100%; height: auto; background: var(--soft); }
svg text { fill: currentColor; font: 13px system-ui, sans-serif; }
details { margin: .5rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--soft); padding: .7rem; }
@media (max-width: 36rem) {
  th, td { padding: .2rem .3rem; } .grid td:first-child, .grid th:first-child { min-width: 5rem; }
  .grid img { min-width: 4rem; }
}
@media print { details > * { display: block; } h2 { break-after: avoid; } tr { break-inside: avoid; } }
"""


class Cell(NamedTuple):
    """A number of a table: what is large, and what stands small beside it."""

    text: str
    beside: str = ""


class Point(NamedTuple):
    """A point of a curve, with half of its intervals and a label."""

    x: float
    y: float
    half_x: float
    half_y: float
    label: str


def escaped(text: object) -> str:
    """Text of anyone, fit for HTML and its attributes."""
    return html.escape(str(text), quote=True)


def page(title: str, body: Sequence[str]) -> str:
    """The whole page."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escaped(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>{escaped(title)}</h1>\n" + "\n".join(body) + "\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """A heading with what belongs below it."""
    return "\n".join([f"<section>\n<h2>{escaped(title)}</h2>", *parts, "</section>"])


def paragraph(text: str) -> str:
    """Text."""
    return f"<p>{escaped(text)}</p>"


def table(corner: str, columns: Sequence[str], rows: Mapping[str, Sequence[Cell]]) -> str:
    """Numbers by row and column."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in (corner, *columns))
    lines = [f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>']
    for name, cells in rows.items():
        tds = "".join(
            f"<td>{escaped(c.text)}{f' <small>{escaped(c.beside)}</small>' if c.beside else ''}</td>" for c in cells
        )
        lines.append(f'<tr><th scope="row">{escaped(name)}</th>{tds}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def gallery(columns: Sequence[str], rows: Sequence[tuple[str, str, Sequence[Image.Image]]], side: int = 192) -> str:
    """Pictures side by side: each row has a caption, something small below it, and a picture of every column."""
    head = "".join(f'<th scope="col">{escaped(name)}</th>' for name in ("prompt", *columns))
    lines = [f'<div class="wide"><table class="grid">\n<thead><tr>{head}</tr></thead>\n<tbody>']
    for caption, beside, images in rows:
        tds = "".join(
            f'<td><img alt="{escaped(f"{caption}, by {name}")}" src="{embedded(image, side)}"></td>'
            for name, image in zip(columns, images, strict=True)
        )
        small = f"<br><small>{escaped(beside)}</small>" if beside else ""
        lines.append(f'<tr><th scope="row">{escaped(caption)}{small}</th>{tds}</tr>')
    return "\n".join([*lines, "</tbody></table></div>"])


def embedded(image: Image.Image, side: int) -> str:
    """A picture as an address that holds it, at most so many pixels wide; small ones are enlarged a whole number of
    times, so that they are not blurred."""
    if image.width > side:
        image = image.resize((side, round(side * image.height / image.width)), Image.Resampling.LANCZOS)
    elif (times := side // image.width) > 1:
        image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.convert("RGB").save(file, "WEBP", quality=90)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def details(summary: str, text: str) -> str:
    """Something long that is folded away."""
    return f"<details><summary>{escaped(summary)}</summary><pre>{escaped(text)}</pre></details>"


def plot(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str, width: int = 640, height: int = 400) -> str:
    """Curves of points with bars of their intervals and a legend, as SVG."""
    points = [p for curve in curves.values() for p in curve]
    left, right, top, bottom = 70, 20, 20, 55
    xs = [v for p in points for v in (p.x - p.half_x, p.x + p.half_x)]
    ys = [v for p in points for v in (p.y - p.half_y, p.y + p.half_y)]
    (x0, x1), (y0, y1) = _range(xs), _range(ys)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            round(left + (x - x0) / (x1 - x0) * (width - left - right), 1),
            round(height - bottom - (y - y0) / (y1 - y0) * (height - top - bottom), 1),
        )

    told = "; ".join(
        f"{name}: " + ", ".join(f"{p.label} ({p.x:.3g}, {p.y:.3g})" for p in c) for name, c in curves.items()
    )
    lines = [
        f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="{escaped(f"{y_label} against {x_label}. {told}")}">'
    ]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        (px, _), (_, py) = at(x, y0), at(x0, y)
        lines.append(
            f'<line x1="{px}" y1="{top}" x2="{px}" y2="{height - bottom}" stroke="currentColor" opacity=".12"/>'
        )
        lines.append(
            f'<line x1="{left}" y1="{py}" x2="{width - right}" y2="{py}" stroke="currentColor" opacity=".12"/>'
        )
        lines.append(f'<text x="{px}" y="{height - bottom + 18}" text-anchor="middle">{x:.3g}</text>')
        lines.append(f'<text x="{left - 8}" y="{py + 4}" text-anchor="end">{y:.3g}</text>')
    lines.append(
        f'<text x="{(left + width - right) / 2}" y="{height - 12}" text-anchor="middle">{escaped(x_label)}</text>'
    )
    middle = (top + height - bottom) / 2
    lines.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">{escaped(y_label)}</text>'
    )
    for number, (name, curve) in enumerate(curves.items()):
        lines += _curve(curve, _COLOURS[number % len(_COLOURS)], at)
        y = top + 16 + 18 * number
        lines.append(f'<circle cx="{left + 14}" cy="{y - 4}" r="5" fill="{_COLOURS[number % len(_COLOURS)]}"/>')
        lines.append(f'<text x="{left + 26}" y="{y}">{escaped(name)}</text>')
    return "\n".join([*lines, "</svg>"])


def _curve(curve: Sequence[Point], colour: str, at: object) -> list[str]:
    place = at  # (x, y) → pixels
    assert callable(place)
    line = " ".join(f"{x},{y}" for x, y in (place(p.x, p.y) for p in curve))
    found = [f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>']
    for p in curve:
        (x, y), (low, _), (high, _) = place(p.x, p.y), place(p.x - p.half_x, p.y), place(p.x + p.half_x, p.y)
        (_, down), (_, up) = place(p.x, p.y - p.half_y), place(p.x, p.y + p.half_y)
        found.append(f'<path d="M{low} {y}H{high}M{x} {down}V{up}" stroke="{colour}" opacity=".5"/>')
        found.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{colour}"/>')
        found.append(f'<text x="{x + 8}" y="{y - 8}">{escaped(p.label)}</text>')
    return found


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.08 * (high - low) or 1.0
    return low - margin, high + margin
