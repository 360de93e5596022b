"""The ratios of a comparison as an SVG: a bar for each case, to the right where we are faster. Pure."""

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Final

from bench.rows import Row

_WIDTH: Final = 720
_LEFT: Final = 130
_RIGHT: Final = 200
_LINE: Final = 20
_HEAD: Final = 34
_TOP: Final = 30
_LOWEST, _HIGHEST = 0.25, 64.0
_FASTER, _SLOWER, _INK, _FAINT = "#2f7d5b", "#b4552d", "#222222", "#d8d8d8"


def draw(rows: Sequence[Row]) -> str:
    """Draw the rows that have a ratio, a group for each store, on a logarithmic scale; a tick shows the goal."""
    groups = [
        list(each)
        for _, each in groupby((row for row in rows if row.ratio), key=lambda row: (row.store, row.peer_name))
    ]
    height = _TOP + sum(_HEAD + _LINE * len(each) for each in groups) + 30
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>',
        *_grid(height),
    ]
    y = _TOP
    for each in groups:
        parts.append(f'<rect x="0" y="{y + 8}" width="{_WIDTH - _RIGHT}" height="20" fill="white"/>')
        parts.append(_text(10, y + 22, f"{each[0].store}:// against {each[0].peer_name}", weight="bold"))
        y += _HEAD
        for row in each:
            parts += _bar(row, y)
            y += _LINE
    parts.append(_text(_LEFT, height - 8, "how many times the peer's speed; the tick is the goal", fill="#666666"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def position(ratio: float) -> float:
    """Give the horizontal place of a ratio; what lies beyond the scale is drawn at its end."""
    inside = min(max(ratio, _LOWEST), _HIGHEST)
    share = math.log(inside / _LOWEST) / math.log(_HIGHEST / _LOWEST)
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _grid(height: int) -> list[str]:
    lines = []
    for ratio in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0):
        x = position(ratio)
        colour = _INK if ratio == 1.0 else _FAINT
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{height - 28}" stroke="{colour}"/>')
        lines.append(_text(x, _TOP - 8, f"{ratio:g}", anchor="middle", fill="#666666"))
    return lines


def _bar(row: Row, y: int) -> list[str]:
    assert row.ratio is not None and row.peer is not None, "rows without a ratio are not drawn"
    start, end = sorted((position(1.0), position(row.ratio)))
    colour = _FASTER if row.ratio >= 1 else _SLOWER
    parts = [
        _text(_LEFT - 8, y + 14, row.case, anchor="end"),
        f'<rect x="{start:.1f}" y="{y + 3}" width="{max(end - start, 1):.1f}" height="{_LINE - 6}" fill="{colour}"/>',
        _text(_WIDTH - _RIGHT + 12, y + 14, f"{row.ratio:.2f}", weight="bold"),
        _text(_WIDTH - _RIGHT + 58, y + 14, f"{row.ours:,.0f} / {row.peer:,.0f} {row.unit}"),
    ]
    if row.goal is not None:
        x = position(row.goal)
        parts.append(
            f'<line x1="{x:.1f}" y1="{y + 1}" x2="{x:.1f}" y2="{y + _LINE - 1}" stroke="{_INK}" stroke-width="2"/>'
        )
    return parts


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = _INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
